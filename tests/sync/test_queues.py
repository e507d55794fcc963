"""Queues for threads: the same names, blocking."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any

import pytest

from tests.waiting import wait_until
from zfabric import Job, NodeClosed, TopicError, WindowFull
from zfabric.sync import Node

TIMEOUT = 30.0


def test_jobs_are_pushed_pulled_and_done(near: Node, far: Node) -> None:
    """One by one and many at once; flush returns when all are done."""
    pusher = near.pusher("jobs")
    with far.puller("jobs") as puller:
        puller.wait_for(1, TIMEOUT)
        pusher.wait_for(1, TIMEOUT)
        assert pusher.push("first", headers={"a": 1}) == 0
        assert pusher.push_many(iter(range(100))) == 100
        assert pusher.push_nowait("last") == 101
        jobs = [puller.receive(TIMEOUT) for _ in range(102)]
        assert (jobs[0].value, jobs[0].headers) == ("first", {"a": 1})
        assert [job.value for job in jobs[1:]] == [*range(100), "last"]
    pusher.flush()
    assert (pusher.queue, pusher.depth, pusher.in_flight) == ("jobs", 0, 0)


def test_jobs_come_at_most_once(near: Node, far: Node) -> None:
    """With `delivery=` on both ends; handlers, too."""
    pusher = near.pusher("jobs", delivery="at-most-once")
    got: list[int] = []

    @far.worker("jobs", delivery="at-most-once")
    def work(job: Job) -> None:
        got.append(job.value)

    assert pusher.push_many(range(100)) == 99
    pusher.flush()
    assert got == list(range(100))
    with near.puller("others", delivery="at-most-once") as puller:
        far.pusher("others", delivery="at-most-once").push(7)
        assert puller.receive(TIMEOUT).value == 7


def test_a_plain_function_returns_what_shall_become_of_its_job(near: Node, far: Node) -> None:
    """It cannot await: rejected, or again after a time of its own."""
    jobs = near.pusher("jobs", backoff_s=TIMEOUT, backoff_s_max=TIMEOUT)
    begun: list[tuple[Any, int]] = []

    @far.worker("jobs")
    def work(job: Job) -> Any:
        begun.append((job.value, job.attempt))
        if job.value == "bad":
            return job.reject("no address")
        return job.nack(0.01) if job.attempt == 1 else None

    jobs.push_many(["bad", "later"])
    jobs.flush()
    assert begun == [("bad", 1), ("later", 1), ("later", 2)]
    figures = near.statistics().queues["jobs"]
    assert (figures.done, figures.dead) == (1, 1)


def test_threads_work_beside_each_other(near: Node, far: Node) -> None:
    """A `def` worker runs in threads, and may push."""
    jobs, results = near.pusher("jobs"), far.pusher("results")
    names: Counter[str] = Counter()

    @far.worker("jobs", concurrency=3)
    def work(job: Job) -> None:
        names[threading.current_thread().name] += 1
        results.push(job.value * 2)

    jobs.push_many(range(50))
    with near.puller("results") as puller:
        got = sorted(puller.receive(TIMEOUT).value for _ in range(50))
    jobs.flush()
    assert got == [2 * number for number in range(50)]
    assert set(names) == {"zfabric-handler"}


def test_quick_readers_get_each_job_once(near: Node, far: Node) -> None:
    """Though jobs that one of them has not begun with go to the other, who has nothing to do."""
    pusher, got = near.pusher("jobs"), list[int]()

    def read() -> None:
        with far.puller("jobs") as puller:
            got.extend(job.value for job in puller)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    pusher.wait_for(2, TIMEOUT)
    for first in range(0, 5000, 500):
        pusher.push_many(range(first, first + 500))
        pusher.flush()
    far.close()
    for reader in readers:
        reader.join(TIMEOUT)
    assert sorted(got) == list(range(5000))


def test_batches_and_fates(near: Node, far: Node) -> None:
    """Acks, failures and rejections, told through the puller."""
    pusher = near.pusher("jobs", backoff_s=0.01)
    pusher.push_many(["ack", "nack", "reject"])
    fates = {}
    with far.puller("jobs", ack="manual") as puller:
        for batch in puller.batches():
            for job in batch:
                fates[job.value, job.attempt] = True
                puller.renew(job)
                if job.value == "reject":
                    puller.reject(job, "no")
                elif job.value == "nack" and job.attempt == 1:
                    puller.nack(job, reason="again")
                else:
                    puller.ack(job)
            if ("nack", 2) in fates:
                break
    pusher.flush()
    statistics = near.statistics().queues["jobs"]
    assert (statistics.done, statistics.dead, statistics.redelivered) == (2, 1, 1)


def test_what_is_in_hand_comes_back_when_the_body_raises(near: Node, far: Node) -> None:
    """As its second attempt."""
    pusher = near.pusher("jobs", backoff_s=0.01)
    pusher.push("job")

    def fail() -> None:
        with far.puller("jobs") as puller:
            for _ in puller:
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with far.puller("jobs") as again:
        assert again.receive(TIMEOUT).attempt == 2
    pusher.flush()


def test_iteration_ends_with_the_node(near: Node) -> None:
    """In whatever thread it waits."""
    ended = []
    puller = near.puller("jobs")
    reader = threading.Thread(target=lambda: ended.append(list(puller)))
    reader.start()
    wait_until(lambda: puller._puller._waiters)
    near.close()
    reader.join(TIMEOUT)
    assert ended == [[]]
    with pytest.raises(NodeClosed):
        puller.receive()


def test_a_full_queue_is_an_error_where_nobody_waits(near: Node) -> None:
    """WindowFull, as in coroutines."""
    pusher = near.pusher("jobs", queue_bytes=100)
    pusher.push("x" * 200, priority=9)
    with pytest.raises(WindowFull):
        pusher.push_nowait(1)


def test_decorators_refuse_what_they_cannot_use(near: Node) -> None:
    """Where they stand: without its name one would swallow the function."""
    decorators: list[Any] = [near.on, near.worker, near.service]
    for decorator in decorators:
        with pytest.raises((TypeError, TopicError)):
            decorator(lambda _: None)
    with pytest.raises(TypeError, match="callable"):
        near.worker("jobs")(5)  # type: ignore[type-var]
