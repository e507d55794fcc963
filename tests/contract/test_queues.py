"""Queues: every job is done once by somebody, wherever that is."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest

from tests.contract.jobs import Pair, Task, ends, flush, values
from tests.contract.support import TIMEOUT, MakeNode
from tests.waiting import wait_until_async
from zfabric import (
    EncodeFailed,
    Job,
    LimitExceeded,
    LocalProtocolError,
    Node,
    NodeClosed,
    SelectorError,
    Topic,
    TopicError,
    WindowFull,
)


async def test_jobs_come_in_order_and_flush_waits_until_they_are_done(pair: Pair) -> None:
    """One by one, and many at once; a job is done when the next one is asked for."""
    pusher, puller = await ends(pair)

    assert [await pusher.push(number) for number in range(3)] == [0, 1, 2]
    assert await pusher.push_many(range(3, 1000)) == 999
    flushed = asyncio.create_task(pusher.flush())
    got = await values(puller, 1000)
    assert not flushed.done()
    await puller.close()
    await asyncio.wait_for(flushed, TIMEOUT)

    assert got == list(range(1000))
    assert pusher.depth == 0
    pushed, pulled = (node.statistics().queues["jobs"] for node in pair)
    assert (pushed.pushed, pushed.done, pushed.depth, pushed.in_flight) == (1000, 1000, 0, 0)
    assert (pulled.pulled, pulled.held) == (1000, 0)


async def test_a_job_tells_all_about_itself(pair: Pair) -> None:
    """What it was pushed with, where it is from, and that it is its first attempt."""
    pusher, puller = await ends(pair)
    await pusher.push({"a": 1}, key="k", headers={"unit": "C"}, priority=7, ttl=60)
    job = await puller.receive(TIMEOUT)

    assert isinstance(job, Job)
    assert (job.value, job.key, job.headers, job.priority, job.attempt) == ({"a": 1}, "k", {"unit": "C"}, 7, 1)
    assert (job.queue, job.seq, job.source.name, job.source.id) == ("jobs", 0, "a", pair[0].id)
    assert repr(job) == "<Job jobs#0 from a key='k': {'a': 1}>"


async def test_batches_are_done_together_unless_told_otherwise(pair: Pair) -> None:
    """All but the one that is given back."""
    pusher, puller = await ends(pair, pusher={"backoff_s": 0.01})
    await pusher.push_many(range(10))
    seen: Counter[int] = Counter()
    async for batch in puller.batches():
        seen.update(job.value for job in batch)
        for job in batch:
            if job.value == 3 and job.attempt == 1:
                await job.nack()
        if sum(seen.values()) == 11:
            break
    await puller.close()
    await flush(pusher)

    assert seen == Counter({number: 1 + (number == 3) for number in range(10)})


async def test_large_values_travel_between_small_ones(pair: Pair) -> None:
    """Arrays and long bytes, in order with the rest."""
    pusher, puller = await ends(pair)
    sent: list[Any] = [1, b"x" * 100_000, 2, np.arange(50_000), b"y" * 70_000, 3]
    for value in sent:
        await pusher.push(value)
    await pusher.push_many(sent)
    await pusher.push(b"z" * 100_000, headers={"special": True})
    got = await values(puller, 13)

    for value, expected in zip(got, [*sent, *sent, b"z" * 100_000], strict=True):
        assert np.array_equal(value, expected)


async def test_a_pusher_tells_which_jobs_are_finished(pair: Pair) -> None:
    """Each by its number, in whatever order: done, or dead."""
    pusher, puller = await ends(pair, ack="manual", credit=10)
    first, second, third = [await pusher.push(number, headers={"n": number}) for number in range(3)]
    jobs = [await puller.receive(TIMEOUT) for _ in range(3)]
    assert not any(map(pusher.finished, (first, second, third)))

    await jobs[2].ack()
    await wait_until_async(lambda: pusher.finished(third))
    await jobs[0].reject()
    await wait_until_async(lambda: pusher.finished(first))
    assert not pusher.finished(second)
    await puller.close()


async def test_manual_acks_in_any_order(pair: Pair) -> None:
    """Nothing is done before its own ack; settling twice changes nothing."""
    pusher, puller = await ends(pair, ack="manual")
    await pusher.push_many(range(3))
    jobs = [await puller.receive(TIMEOUT) for _ in range(3)]
    assert pusher.in_flight == 3
    for job in reversed(jobs):
        await job.ack()
        await job.ack()
    await flush(pusher)

    assert pair[0].statistics().queues["jobs"].refused == 0


async def test_a_reader_that_holds_all_it_may_and_waits_gets_more(pair: Pair) -> None:
    """Who settles many jobs together needs no `credit=`."""
    pusher, puller = await ends(pair, ack="manual")
    await pusher.push_many(range(300))
    jobs = [await puller.receive(TIMEOUT) for _ in range(300)]
    for job in jobs:
        await job.ack()
    await flush(pusher)


async def test_what_is_in_hand_comes_back_when_the_body_raises(pair: Pair) -> None:
    """With what follows it, which nobody has begun with, as its first attempt."""
    pusher, puller = await ends(pair, pusher={"backoff_s": 0.01})
    await pusher.push_many(range(3))

    async def fail() -> None:
        async with puller:
            async for job in puller:
                if job.value == 1:
                    raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    async with pair[1].puller("jobs") as again:
        jobs = [await again.receive(TIMEOUT) for _ in range(2)]
        await again.close()
    await flush(pusher)

    assert {(job.value, job.attempt) for job in jobs} == {(1, 2), (2, 1)}


async def test_workers_run_side_by_side(pair: Pair) -> None:
    """As many as `concurrency`, and a slow one holds nobody up."""
    pusher = pair[0].pusher("jobs")
    running, most = 0, 0
    gate = asyncio.Event()

    @pair[1].worker("jobs", concurrency=3)
    async def work(job: Job) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        if most == 3:
            gate.set()
        await gate.wait()
        running -= 1

    await pusher.push_many(range(10))
    await flush(pusher)
    assert most == 3


async def test_plain_functions_work_in_threads(pair: Pair) -> None:
    """They may block."""
    import threading

    pusher = pair[0].pusher("jobs")
    names = set()

    @pair[1].worker("jobs")
    def work(job: Job) -> None:
        names.add(threading.current_thread().name)

    await pusher.push_many(range(10))
    await flush(pusher)
    assert names == {"zfabric-handler"}


async def test_typed_queues_check_what_is_pushed(pair: Pair) -> None:
    """And give back the type."""
    jobs = Topic("jobs", Task)
    pusher = pair[0].pusher(jobs)
    async with pair[1].puller(jobs) as puller:
        await pusher.push(Task(5))
        with pytest.raises(EncodeFailed, match="jobs"):
            await pusher.push("five")
        assert await values(puller, 1) == [Task(5)]


async def test_two_workers_share_and_two_pushers_are_served(make_node: MakeNode) -> None:
    """Many to many: everything is done once, by both."""
    nodes = [await make_node(name) for name in "abcd"]
    pushers = [node.pusher("jobs") for node in nodes[:2]]
    seen: Counter[Any] = Counter()
    by: Counter[str] = Counter()

    def begin(node: Node) -> None:
        @node.worker("jobs", concurrency=2)
        async def work(job: Job) -> None:
            seen[job.source.name, job.value] += 1
            by[node.name] += 1
            await asyncio.sleep(0)

    for node in nodes[2:]:
        begin(node)
    for pusher in pushers:
        await pusher.wait_for(2, timeout=TIMEOUT)
    for pusher in pushers:
        await pusher.push_many(range(200))
    for pusher in pushers:
        await flush(pusher)

    assert seen == Counter((name, number) for name in "ab" for number in range(200))
    assert set(by) == {"c", "d"}


async def test_the_pusher_s_own_node_can_work(make_node: MakeNode) -> None:
    """Without any peer."""
    node = await make_node("alone")
    pusher = node.pusher("jobs")
    await pusher.push_many(range(100))
    async with node.puller("jobs") as puller:
        assert await values(puller, 100) == list(range(100))
    await flush(pusher)


async def test_priorities_delays_and_times(pair: Pair) -> None:
    """High ones first; what rests comes when its time has come."""
    pusher = pair[0].pusher("jobs")
    await pusher.push("low", priority=1)
    await pusher.push("soon", delay=0.3, priority=0)
    await pusher.push("then", not_before=datetime.now(UTC) + timedelta(seconds=0.6), priority=0)
    await pusher.push("high", priority=9)
    async with pair[1].puller("jobs", credit=1) as puller:
        assert await values(puller, 4) == ["high", "low", "soon", "then"]
    await flush(pusher)


async def test_selectors_choose(pair: Pair) -> None:
    """The rest waits for somebody else; a bad one is an error at once."""
    pusher, puller = await ends(pair, selector="colour = 'red'")
    for number, colour in enumerate(["red", "blue", "red"]):
        await pusher.push(number, headers={"colour": colour})
    assert await values(puller, 2) == [0, 2]
    async with pair[1].puller("jobs") as others:
        assert await values(others, 1) == [1]
    with pytest.raises(SelectorError):
        pair[1].puller("jobs", selector="colour =")


async def test_keys_keep_their_order_among_workers(make_node: MakeNode) -> None:
    """Ten workers, three keys: of each key one job at a time, in order."""
    a, b, c = [await make_node(name) for name in "abc"]
    pusher = a.pusher("jobs", backoff_s=0.01)
    seen: dict[str, list[int]] = {key: [] for key in "xyz"}
    running: Counter[str] = Counter()

    def begin(node: Node) -> None:
        @node.worker("jobs", concurrency=5)
        async def work(job: Job) -> None:
            running[job.key] += 1
            assert running[job.key] == 1
            await asyncio.sleep(0)
            running[job.key] -= 1
            if job.value % 7 == 3 and job.attempt == 1:
                raise ValueError("once more")
            seen[job.key].append(job.value)

    begin(b)
    begin(c)
    for number in range(20):
        for key in "xyz":
            await pusher.push(number, key=key)
    await flush(pusher)
    assert seen == {key: list(range(20)) for key in "xyz"}


async def test_a_dedupe_id_stands_for_one_job(pair: Pair) -> None:
    """The second push gives the first one's number."""
    pusher, puller = await ends(pair)
    first = await pusher.push("once", dedupe_id="order-1")
    assert await pusher.push("once", dedupe_id="order-1") == first
    await pusher.push("end")
    assert await values(puller, 2) == ["once", "end"]
    assert pair[0].statistics().queues["jobs"].deduplicated == 1


async def test_a_full_queue_makes_pushers_wait(make_node: MakeNode) -> None:
    """`push_nowait` raises; `push` and `push_many` go on when jobs are done (queue_bytes)."""
    a, b = await make_node("a", queue_bytes=5000), await make_node("b")
    pusher = a.pusher("jobs")
    for _ in range(5):
        pusher.push_nowait(b"x" * 1000, headers={"special": 1})
    with pytest.raises(WindowFull, match="jobs"):
        pusher.push_nowait(1)
    many = asyncio.create_task(pusher.push_many([b"y" * 1000] * 100))
    one = asyncio.create_task(pusher.push(b"z"))
    await asyncio.sleep(0)
    assert not many.done()
    assert not one.done()

    @b.worker("jobs")
    async def work(job: Job) -> None: ...

    await asyncio.wait_for(asyncio.gather(many, one), TIMEOUT)
    await flush(pusher)


async def test_misuse_is_refused_with_a_reason(pair: Pair) -> None:
    """Names, options, numbers; and use after the end."""
    a, b = pair
    pusher = a.pusher("jobs")
    assert "jobs" in repr(pusher)
    with pytest.raises(TopicError):
        a.pusher("jobs.*")
    with pytest.raises(TopicError):
        a.pusher("$other")
    with pytest.raises(LocalProtocolError, match="other options"):
        a.pusher("jobs", max_attempts=2)
    for options in ({"max_attempts": -1}, {"backoff_s": 50}, {"queue_bytes": 0}, {"delivery": "exactly-once"}):
        with pytest.raises(ValueError, match=r"must|delivery"):
            a.pusher("other", **options)
    for options in ({"ack": "never"}, {"credit": 0}, {"lease_s": 0}, {"handler_timeout_s": -1}):
        with pytest.raises(ValueError, match="must"):
            b.puller("jobs", **options)
    with pytest.raises(ValueError, match="concurrency"):
        b.worker("jobs", concurrency=0)
    with pytest.raises(ValueError, match="priority"):
        await pusher.push(1, priority=10)
    with pytest.raises(ValueError, match="delay"):
        await pusher.push(1, delay=float("inf"))
    with pytest.raises(EncodeFailed, match="ttl"):
        await pusher.push(1, ttl=-1)
    with pytest.raises(EncodeFailed):
        await pusher.push(object())
    with pytest.raises(EncodeFailed):
        await pusher.push_many([1, object()])
    await pusher.close()
    await pusher.close()
    with pytest.raises(NodeClosed):
        await pusher.push(1)
    puller = b.puller("jobs")
    assert "jobs" in repr(puller)
    await puller.close()
    with pytest.raises(NodeClosed):
        await puller.receive()


async def test_queues_and_pullers_are_bounded(make_node: MakeNode) -> None:
    """The error names the limit (queues_max, pullers_max)."""
    node = await make_node("a", queues_max=1, pullers_max=1)
    node.pusher("one")
    with pytest.raises(LimitExceeded, match="queues_max"):
        node.pusher("two")
    node.puller("one")
    with pytest.raises(LimitExceeded, match="pullers_max"):
        node.puller("one")
