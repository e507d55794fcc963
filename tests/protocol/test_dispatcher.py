"""The dispatcher: every job ends once, and only who has its lease can end it."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest

from tests.protocol.dispatching import CONFIG, Bench, decode
from zfabric.protocol.jobs import JobState
from zfabric.protocol.workers import WorkerKey
from zfabric.wire.queue_records import (
    AckRefused,
    Backlog,
    CreditReturned,
    Recall,
)


def test_many_alike_are_one_lease_and_one_ack() -> None:
    """A thousand jobs cost two records, and the body travels as it was pushed."""
    bench = Bench()
    a = bench.worker("a", 1000)

    bench.block(*range(1000))
    bench.run()
    jobs = bench.take(a)

    assert (jobs.count, jobs.first, jobs.meta, jobs.ids) == (1000, 0, None, [])
    assert decode(jobs.body) == list(range(1000))
    assert (bench.queue.depth, bench.queue.in_flight) == (1000, 1000)
    bench.done(a, jobs.lease, 0, 1000)
    assert (bench.queue.depth, bench.queue.nbytes, bench.queue.floor) == (0, 0, 1000)
    assert bench.queue.floor == 1000


def test_credit_bounds_jobs_and_bytes() -> None:
    """A worker gets no more than it asked for, but one lease however large; it learns that there are more, once."""
    bench = Bench()
    a = bench.worker("a", 3)
    bench.block(*range(10))
    bench.run()
    bench.run()

    assert bench.values(a) == [0, 1, 2]
    assert bench.said(Backlog) == [Backlog(1)]

    b = bench.worker("b", nbytes=1)
    bench.run()
    assert bench.values(b) == [3]
    bench.done(b, bench.got[b][0].lease)
    bench.run()
    assert bench.values(b) == [3, 4]


def test_a_peer_without_room_gets_nothing() -> None:
    """The channel's bound counts, too."""
    bench = Bench()
    a = bench.worker("a")
    bench.room[b"a"] = False
    bench.block(1)
    bench.run()
    assert bench.values(a) == []

    bench.room[b"a"] = True
    bench.run()
    assert bench.values(a) == [1]


def test_jobs_are_shared_and_idle_workers_come_first() -> None:
    """Ten jobs for two workers are five each; who has more than the others gets less."""
    bench = Bench()
    a, b = bench.worker("a"), bench.worker("b")
    bench.block(*range(10))
    bench.run()
    assert (len(bench.values(a)), len(bench.values(b))) == (5, 5)

    c = bench.worker("c")
    bench.block(*range(4))
    bench.run()
    assert len(bench.values(c)) == 4


@pytest.mark.parametrize("seed", range(20))
def test_every_job_ends_exactly_once(seed: int) -> None:
    """Blocks and single jobs, acks in any order and in parts, nacks, losses, returns: nothing is lost or done twice."""
    rng, bench = random.Random(seed), Bench(max_attempts=0, backoff_s=0.1)
    workers = [bench.worker(name, 20) for name in "abc"]
    pushed: list[int] = []
    done: Counter[int] = Counter()
    held: list[tuple[WorkerKey, int, int, int]] = []
    for _ in range(400):
        match rng.randrange(8):
            case 0:
                values = list(range(len(pushed), len(pushed) + rng.randrange(1, 30)))
                pushed += values
                bench.block(*values)
            case 1:
                bench.push(
                    len(pushed),
                    priority=rng.randrange(10),
                    delay_s=rng.choice((0, 0, 0.5)),
                    key=rng.choice((None, 1, "k")),
                )
                pushed.append(len(pushed))
            case 2 if rng.random() < 0.1:
                gone = rng.choice(workers)
                bench.queue.leave(gone, "lost", bench.now)
                held = [entry for entry in held if entry[0] != gone]
                workers[workers.index(gone)] = bench.worker(gone[0].decode(), 20)
            case _ if held:
                key, lease, position, value = held.pop(rng.randrange(len(held)))
                if rng.random() < 0.8:
                    bench.done(key, lease, position, position + 1)
                    done[value] += 1
                else:
                    bench.undone(key, lease, position, position + 1, rng.choice(("nack", "hung", "returned")))
                bench.credit(key, 1)
        bench.run(rng.choice((0, 0.01, 0.2)))
        for key in workers:
            held += [(key, *entry) for entry in bench.leases(key)]
            bench.got[key].clear()
    for _ in range(10_000):
        if not bench.queue.depth:
            break
        for key, lease, position, value in held:
            bench.done(key, lease, position, position + 1)
            done[value] += 1
            bench.credit(key, 1)
        bench.run(1)
        held = [(key, *entry) for key in workers for entry in bench.leases(key)]
        for key in workers:
            bench.got[key].clear()

    assert done == Counter(pushed)
    assert (bench.queue.depth, bench.queue.nbytes, bench.queue.in_flight) == (0, 0, 0)
    assert bench.queue.floor == len(pushed)
    assert not bench.said(AckRefused)


def test_acks_may_come_in_any_order_and_count_once() -> None:
    """The second one for the same position is refused."""
    bench = Bench()
    a = bench.worker("a")
    bench.block(*range(4))
    bench.run()
    lease = bench.take(a).lease

    bench.done(a, lease, 2, 4)
    bench.done(a, lease, 0, 1)
    bench.done(a, lease, 3, 4)
    bench.run()

    assert bench.said(AckRefused) == [AckRefused(1, lease, 3, 4)]
    assert bench.queue.depth == 1
    assert bench.queue.floor == 1
    bench.done(a, lease, 1, 2)
    assert bench.queue.floor == 4


def test_a_late_ack_is_refused() -> None:
    """The lease ended because nobody renewed it, and the job is somebody else's."""
    bench = Bench()
    a = bench.worker("a", lease_s=1)
    bench.block("job")
    bench.run()
    lease = bench.take(a).lease
    bench.queue.renew(a, 0.9)
    bench.run(1.5)
    assert bench.queue.in_flight == 1
    b = bench.worker("b")
    bench.queue.credit_back(a)

    bench.run(0.5)

    again = bench.take(b)
    assert again.meta is not None
    assert again.meta.attempts == {0: 2}
    bench.done(a, lease)
    bench.run()
    assert bench.said(AckRefused) == [AckRefused(1, lease, 0, 1)]
    assert bench.queue.depth == 1
    assert bench.queue.counters.refused == 1
    bench.done(b, again.lease)
    assert bench.queue.depth == 0


def test_a_lost_worker_s_jobs_are_free_at_once_and_travel_alone() -> None:
    """In order, one at a time for each worker, so that a job that kills its worker takes no other with it."""
    bench = Bench()
    a = bench.worker("a")
    bench.block(*range(5))
    bench.run()
    bench.queue.leave(a, "lost", bench.now)
    b = bench.worker("b")
    seen = []
    for _ in range(5):
        bench.run()
        jobs = bench.take(b)
        assert (jobs.count, jobs.meta is not None and jobs.meta.attempts) == (1, {0: 2})
        seen += decode(jobs.body)
        bench.done(b, jobs.lease)

    assert seen == [0, 1, 2, 3, 4]


def test_a_job_that_kills_its_workers_dies_and_its_neighbours_live() -> None:
    """Job 3 ends every worker that begins with it."""
    bench = Bench(max_attempts=3)
    bench.block(*range(10))
    for number in range(100):
        if not bench.queue.depth:
            break
        worker = bench.worker(f"w{number}", 4)
        while worker in bench.queue.workers.all:
            bench.run()
            fresh, bench.got[worker] = bench.got[worker], []
            if not fresh:
                break
            for jobs in fresh:
                for position, value in enumerate(decode(jobs.body)):
                    if value == 3:
                        bench.queue.leave(worker, "killed", bench.now)
                        break
                    bench.done(worker, jobs.lease, position, position + 1)
                    bench.credit(worker, 1)
        bench.queue.leave(worker, "no more to do", bench.now)

    assert [(job.id, job.attempts) for job, _ in bench.queue.take_dead()] == [(3, 3)]
    assert bench.queue.counters.done == 9


def test_failures_rest_longer_and_longer_and_end() -> None:
    """0.1, 0.2, 0.3 seconds at most; the fourth failure is the last."""
    bench = Bench(max_attempts=4, backoff_s=0.1, backoff_s_max=0.3)
    a = bench.worker("a")
    bench.block("job")
    bench.run()
    pauses = []
    for _ in range(4):
        jobs = bench.take(a)
        bench.undone(a, jobs.lease, 0, 1, "nack", reason="no")
        before = bench.now
        while not bench.got[a] and bench.queue.depth:
            bench.run(0.01)
        pauses.append(bench.now - before)

    assert pauses == pytest.approx([0.1, 0.2, 0.3, 0], abs=0.011)
    ((job, reason),) = bench.queue.take_dead()
    assert (job.attempts, reason, bench.queue.depth, bench.queue.counters.redelivered) == (4, "no", 0, 3)


def test_a_nack_s_own_delay_counts() -> None:
    """Not the back-off."""
    bench = Bench(backoff_s=100, backoff_s_max=100)
    a = bench.worker("a")
    bench.block("job")
    bench.run()
    bench.undone(a, bench.take(a).lease, 0, 1, "nack", delay_ms=500)
    bench.run(0.4)
    assert not bench.got[a]
    bench.run(0.1)
    assert bench.values(a) == ["job"]


def test_what_nobody_began_with_comes_back_as_new() -> None:
    """It is first in line, in order, and its attempt does not count."""
    bench = Bench()
    a = bench.worker("a", 5)
    bench.block(*range(5))
    bench.run()
    lease = bench.take(a).lease
    bench.block(5, 6)
    bench.undone(a, lease, 2, 5, "returned")
    bench.credit(a, 10)
    bench.run()

    assert bench.values(a) == [2, 3, 4, 5, 6]
    assert all(jobs.meta is None for jobs in bench.got[a])


def test_rejected_jobs_are_dead_at_once() -> None:
    """With the worker's reason."""
    bench = Bench()
    a = bench.worker("a")
    bench.push("job", headers={"x": 1}, key="k")
    bench.run()
    bench.undone(a, bench.take(a).lease, 0, 1, "reject", reason="nonsense")

    ((job, reason),) = bench.queue.take_dead()
    assert (decode(job.value), job.headers, job.key, job.attempts, reason) == ("job", {"x": 1}, "k", 1, "nonsense")


def test_idle_workers_let_busy_ones_give_back() -> None:
    """After recall_s, half of what the busiest has; not before, and not again at once."""
    bench = Bench()
    a = bench.worker("a")
    bench.block(*range(10))
    bench.run()
    bench.worker("b")
    bench.run()
    assert not bench.said(Recall)
    assert bench.queue.timer() == pytest.approx(0.5)
    bench.run(0.5)
    bench.run()
    assert [(key, record) for key, record in bench.told if isinstance(record, Recall)] == [(a, Recall(1, 5))]


def test_idle_pushers_return_credit() -> None:
    """All but what they may keep, once there is nothing to lease."""
    bench = Bench()
    a = bench.worker("a", 100, keep=10)
    bench.block(*range(5))
    bench.run()

    assert bench.said(CreditReturned) == [CreditReturned(1, 85)]
    assert bench.queue.workers.all[a].credit == 10


def test_a_puller_that_ends_settles_what_it_has() -> None:
    """It gets no more, and then it is gone."""
    bench = Bench()
    a = bench.worker("a", 2)
    bench.block(1, 2, 3)
    bench.run()
    lease = bench.take(a).lease
    bench.queue.end(a)
    bench.credit(a, 10)
    bench.run()
    bench.undone(a, lease, 1, 2, "returned")
    bench.run()
    assert not bench.got[a]
    bench.done(a, lease, 0, 1)
    assert not bench.queue.workers.all
    assert (bench.queue.counters.done, bench.queue.depth) == (1, 2)


def test_one_lease_is_bounded() -> None:
    """In jobs (lease_jobs_max) and in bytes (batch_bytes)."""
    bench = Bench(replace(CONFIG, lease_jobs_max=4, batch_bytes=1000))
    a = bench.worker("a")
    bench.block(*range(10))
    bench.run()
    assert [jobs.count for jobs in bench.got[a]] == [4, 4, 2]
    bench.got[a].clear()
    bench.block(*["x" * 300] * 8)
    for _ in range(5):
        bench.push("y" * 400)
    bench.run()
    assert [jobs.count for jobs in bench.got[a]] == [3, 3, 2, 2, 2, 1]


def test_changes_can_be_journaled() -> None:
    """As ranges of jobs and what became of them."""
    bench = Bench(max_attempts=1)
    bench.queue.journal = True
    a = bench.worker("a")
    bench.block("a", "b", "c")
    bench.run()
    lease = bench.take(a).lease
    bench.done(a, lease, 0, 2)
    bench.undone(a, lease, 2, 3, "nack")

    assert bench.queue.take_changes() == [
        (0, 3, JobState.WAITING, 0),
        (0, 3, JobState.LEASED, 0),
        (0, 2, JobState.DONE, 0),
        (2, 3, JobState.DEAD, 0),
    ]


def test_dropping_the_oldest_makes_room() -> None:
    """Of those that nobody has."""
    bench = Bench()
    a = bench.worker("a", 1)
    bench.block(1, 2)
    bench.run()
    assert bench.queue.drop_oldest(bench.now) == 1
    assert bench.queue.drop_oldest(bench.now) is None
    bench.done(a, bench.take(a).lease)
    assert (bench.queue.depth, bench.queue.nbytes) == (0, 0)
