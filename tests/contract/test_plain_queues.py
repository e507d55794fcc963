"""Queues at-most-once: libzmq deals the jobs out, and what is lost is counted."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from tests.contract.jobs import Pair, flush
from tests.contract.support import TIMEOUT, MakeNode, next_event
from tests.waiting import wait_until_async
from zfabric import (
    DecodeError,
    HandlerError,
    IncompatibleDelivery,
    Job,
    JobsLost,
    JobsUnfinished,
    LimitExceeded,
    LocalProtocolError,
    Puller,
    Pusher,
    Topic,
    WindowFull,
)

PLAIN: dict[str, Any] = {"delivery": "at-most-once"}


async def ends(pair: Pair, pullers: int = 1, **options: Any) -> tuple[Pusher, list[Puller]]:
    """A pusher and some pullers that know each other."""
    pusher = pair[0].pusher("jobs", **PLAIN)
    readers = [pair[1].puller("jobs", **PLAIN, **options) for _ in range(pullers)]
    await pusher.wait_for(pullers, timeout=TIMEOUT)
    return pusher, readers


async def read(puller: Puller, into: list[Any]) -> None:
    """Read until the end."""
    async for job in puller:
        into.append(job.value)  # noqa: PERF401 - what was read counts, also if there is no end


async def test_each_job_goes_to_one_puller(pair: Pair) -> None:
    """In order to each; all of them are counted as done once their readers are through with them."""
    pusher, readers = await ends(pair, 2)
    got: list[list[Any]] = [[], []]
    tasks = [asyncio.create_task(read(puller, values)) for puller, values in zip(readers, got, strict=True)]
    assert await pusher.push(0) == 0
    assert await pusher.push_many(range(1, 20_000)) == 19_999
    await flush(pusher)

    assert sorted([*got[0], *got[1]]) == list(range(20_000))
    assert all(values == sorted(values) for values in got)
    pushed, pulled = (node.statistics().queues["jobs"] for node in pair)
    assert (pushed.pushed, pushed.done, pushed.lost, pushed.depth, pushed.workers) == (20_000, 20_000, 0, 0, 2)
    assert pulled.pulled == 20_000
    assert [(state.queue, state.statistics.done) for state in await pair[1].queues()] == [("jobs", 20_000)]
    for puller in readers:
        await puller.close()
    await asyncio.gather(*tasks)


async def test_jobs_are_not_done_before_their_reader_asks_for_more(pair: Pair) -> None:
    """A batch in a reader's hands is in flight; values, keys, headers and arrays are as they were pushed."""
    pusher, (puller,) = await ends(pair)
    await pusher.push({"item": 1}, key="k", headers={"colour": "red"}, ttl=60)
    await pusher.push(np.arange(100_000))
    first = await puller.receive(TIMEOUT)
    assert (first.value, first.key, first.headers, first.attempt) == ({"item": 1}, "k", {"colour": "red"}, 1)
    assert pusher.depth == 2
    assert not pusher.finished(0)
    second = await puller.receive(TIMEOUT)
    assert (second.value.sum(), second.seq, second.queue) == (4_999_950_000, 1, "jobs")
    with pytest.raises(TimeoutError):
        await puller.receive(0.01)
    await flush(pusher)


async def test_without_room_pushers_wait(pair: Pair) -> None:
    """Nobody pulls: `push` waits, `push_nowait` raises; a puller that comes gets all of it."""
    pusher = pair[0].pusher("jobs", **PLAIN)
    await pusher.push(0)
    await asyncio.sleep(0)
    waiting = asyncio.create_task(pusher.push_many(range(1, 100)))

    def is_full() -> bool:
        try:
            pusher.push_nowait(0)
        except WindowFull:
            return True
        return False

    await wait_until_async(is_full)
    got: list[Any] = []
    async with pair[1].puller("jobs", **PLAIN) as puller:
        reading = asyncio.create_task(read(puller, got))
        await asyncio.wait_for(waiting, TIMEOUT)
        await flush(pusher)
    await reading
    assert set(range(100)) <= set(got)


async def test_a_slow_reader_holds_its_pushers_up(make_node: MakeNode) -> None:
    """Its node takes what its credit in bytes allows, the sockets a few batches; the rest stays with the pusher."""
    a, b = await make_node("a", queue_bytes=2**20), await make_node("b", credit_bytes=200_000)
    pusher, puller = a.pusher("jobs", **PLAIN), b.puller("jobs", **PLAIN)
    await pusher.wait_for(1, TIMEOUT)
    pushing = asyncio.create_task(pusher.push_many([bytes(1000)] * 20_000))
    await wait_until_async(lambda: puller.pending * 1000 >= 200_000)
    assert not pushing.done()
    assert pusher.depth * 1000 <= 2**21
    assert puller.pending * 1000 < 400_000
    count = 0
    async for batch in puller.batches():
        count += len(batch)
        if count == 20_000:
            break
    await asyncio.wait_for(pushing, TIMEOUT)


async def test_what_a_puller_leaves_unread_is_lost_and_told(pair: Pair) -> None:
    """Nothing is given back: the pusher counts it, and `flush` returns."""
    pusher, (puller,) = await ends(pair)
    events = pair[0].events()
    await pusher.push_many(range(1000))
    await wait_until_async(lambda: puller.pending == 1000)
    await puller.close()
    assert (await next_event(events, JobsLost)).count == 1000
    await flush(pusher)
    figures = pair[0].statistics().queues["jobs"]
    assert (figures.lost, figures.done, figures.depth, figures.workers) == (1000, 0, 0, 0)


@pytest.mark.parametrize(("read", "lost"), [(3, 0), (2, 3)])
async def test_a_batch_is_done_when_its_reader_had_all_of_it(pair: Pair, read: int, lost: int) -> None:
    """A puller that closes was through with a batch whose last job it handed out, and with no other."""
    pusher, (puller,) = await ends(pair)
    await pusher.push_many(range(3))
    for _ in range(read):
        await puller.receive(TIMEOUT)
    await puller.close()
    await flush(pusher)
    figures = pair[0].statistics().queues["jobs"]
    assert (figures.done, figures.lost) == (3 - lost, lost)


async def test_the_jobs_of_others_are_not_lost_with_a_puller(pair: Pair) -> None:
    """What is with the other reader stays in flight until it is through with it, however long that takes."""
    pusher, (first, second) = await ends(pair, 2)
    pushed = 0
    async with asyncio.timeout(TIMEOUT):
        while not (first.pending and second.pending):
            await pusher.push(pushed)
            pushed += 1
            await asyncio.sleep(0)
    await wait_until_async(lambda: first.pending + second.pending == pushed)
    left, kept = first.pending, second.pending
    await first.close()
    figures = pair[0].statistics().queues["jobs"]
    assert (figures.depth, figures.lost) in {(pushed, 0), (kept, left)}, "only what is certain"
    got: list[Any] = []
    reading = asyncio.create_task(read(second, got))
    await flush(pusher)
    figures = pair[0].statistics().queues["jobs"]
    assert (figures.done, figures.lost, len(got)) == (kept, left, kept)
    await second.close()
    await reading


@pytest.mark.parametrize(
    ("offered", "requested"), [("at-most-once", "at-least-once"), ("at-least-once", "at-most-once")]
)
@pytest.mark.parametrize("puller_first", [True, False])
async def test_both_sides_learn_that_their_deliveries_differ(
    pair: Pair, offered: str, requested: str, *, puller_first: bool
) -> None:
    """Whoever comes first; nothing is delivered."""
    events = [node.events() for node in pair]
    if puller_first:
        puller = pair[1].puller("jobs", delivery=requested)
    pusher = pair[0].pusher("jobs", delivery=offered)
    if not puller_first:
        await asyncio.sleep(0)
        puller = pair[1].puller("jobs", delivery=requested)
    for stream, peer in zip(events, "ba", strict=True):
        event = await next_event(stream, IncompatibleDelivery)
        assert (event.topic, event.peer.name, event.offered, event.requested) == ("jobs", peer, offered, requested)
    assert (pusher.workers, puller.pushers) == (0, 0)


async def test_one_node_pushes_to_a_queue_in_one_way(pair: Pair) -> None:
    """At a time: with jobs of the other delivery left it would lose them."""
    leased = pair[0].pusher("jobs")
    with pytest.raises(LocalProtocolError, match="other options"):
        pair[0].pusher("jobs", **PLAIN)
    await leased.push(1)
    await leased.close()
    with pytest.raises(LocalProtocolError, match="another delivery"):
        pair[0].pusher("jobs", **PLAIN)
    await pair[0].close(timeout=0.05)


async def test_what_needs_a_lease_is_refused(pair: Pair) -> None:
    """With a word about what to do."""
    a, b = pair
    options: dict[str, Any]
    for options in ({"max_attempts": 3}, {"backoff_s": 0.0}, {"dedupe_window_s": 1.0}):
        with pytest.raises(ValueError, match="at-least-once"):
            a.pusher("jobs", **PLAIN, **options)
    for options in ({"credit": 3}, {"selector": "a = 1"}, {"lease_s": 1.0}, {"handler_timeout_s": 1.0}):
        with pytest.raises(ValueError, match="at-least-once"):
            b.puller("jobs", **PLAIN, **options)
    for delivery in ("exactly-once", "sometimes"):
        with pytest.raises(ValueError, match="at-most-once"):
            a.pusher("jobs", delivery=delivery)
        with pytest.raises(ValueError, match="at-most-once"):
            b.puller("jobs", delivery=delivery)
    pusher, (puller,) = await ends(pair)
    for options in ({"priority": 9}, {"delay": 1.0}, {"dedupe_id": "x"}):
        with pytest.raises(LocalProtocolError, match="at-least-once"):
            await pusher.push(1, **options)
    await pusher.push(1)
    job = await puller.receive(TIMEOUT)
    await job.ack()
    await job.renew()
    for settle in (job.nack, job.reject):
        with pytest.raises(LocalProtocolError, match="at most once"):
            await settle()


async def test_a_handler_gets_each_job_once_even_if_it_fails(pair: Pair) -> None:
    """The exception is reported; nothing is tried again."""
    a, b = pair
    got: list[int] = []
    events = b.events()

    @b.worker("jobs", concurrency=2, **PLAIN)
    async def work(job: Job) -> None:
        got.append(job.value)
        if job.value == 3:
            raise ValueError("three")

    pusher = a.pusher("jobs", **PLAIN)
    await pusher.push_many(range(100))
    assert (await next_event(events, HandlerError)).error == "ValueError: three"
    await flush(pusher)
    assert sorted(got) == list(range(100))


async def test_types_are_checked_and_lifetimes_end(pair: Pair) -> None:
    """A job of another type is skipped and reported; one that is too old is not handed out."""
    a, b = pair
    pusher, puller = a.pusher("jobs", **PLAIN), b.puller(Topic("jobs", int), **PLAIN)
    await pusher.wait_for(1, TIMEOUT)
    events = b.events()
    for value in (1, "two", 3):
        await pusher.push(value)
    await pusher.push(4, ttl=0.001)
    await pusher.push(5)
    await wait_until_async(lambda: puller.pending == 5)
    late = asyncio.get_running_loop().time() + 0.01
    await wait_until_async(lambda: asyncio.get_running_loop().time() > late)
    assert [(await puller.receive(TIMEOUT)).value for _ in range(3)] == [1, 3, 5]
    assert (await next_event(events, DecodeError)).topic == "jobs"
    figures = b.statistics().topics["jobs"]
    assert (figures.undecodable, figures.expired) == (1, 1)


async def test_a_node_works_on_its_own_jobs(pair: Pair) -> None:
    """Through the same sockets."""
    node = pair[0]
    pusher, puller = node.pusher("jobs", **PLAIN), node.puller("jobs", **PLAIN)
    await pusher.push_many(range(10))
    assert [(await puller.receive(TIMEOUT)).value for _ in range(10)] == list(range(10))
    await puller.close()
    await flush(pusher)


async def test_a_node_that_closes_reports_what_nobody_took(make_node: MakeNode) -> None:
    """It waits first, as long as it may."""
    node = await make_node("a")
    events = node.events()
    pusher = node.pusher("jobs", **PLAIN)
    await pusher.push(1)
    await node.close(timeout=0.05)
    assert (await next_event(events, JobsUnfinished)).count == 1


async def test_pullers_are_limited(make_node: MakeNode) -> None:
    """By Config.pullers_max, as those of leased jobs are."""
    node = await make_node("a", pullers_max=2)
    pullers = [node.puller("jobs", **PLAIN) for _ in range(2)]
    with pytest.raises(LimitExceeded, match="pullers_max"):
        node.puller("jobs", **PLAIN)
    await pullers[0].close()
    node.puller("jobs", **PLAIN)


async def test_a_job_is_done_when_its_handler_is(pair: Pair) -> None:
    """What one of several handlers has in hand is neither done nor lost, whatever the others did since."""
    pusher = pair[0].pusher("jobs", **PLAIN)
    begun: list[int] = []
    ends = [asyncio.Event() for _ in range(20)]

    @pair[1].worker("jobs", concurrency=3, **PLAIN)
    async def work(job: Job) -> None:
        begun.append(job.value)
        await ends[job.value].wait()

    await pusher.push(0)
    await wait_until_async(lambda: begun)
    await pusher.push_many(range(1, 20))
    flushing = asyncio.create_task(flush(pusher))
    for end in ends[1:]:
        end.set()
    await wait_until_async(lambda: pair[0].statistics().queues["jobs"].done == 19)

    assert not flushing.done()
    assert pair[0].statistics().queues["jobs"].lost == 0
    ends[0].set()
    await flushing
    assert sorted(begun) == list(range(20))
    assert (pair[0].statistics().queues["jobs"].done, pair[0].statistics().queues["jobs"].lost) == (20, 0)
