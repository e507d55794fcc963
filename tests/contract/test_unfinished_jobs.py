"""Jobs that fail, expire, hang, or are left when their worker or pusher ends."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.contract.jobs import Pair, Task, ends, flush, values
from tests.contract.support import TIMEOUT, MakeNode, next_event
from zfabric import (
    AckRefused,
    DecodeError,
    DeliveryFailed,
    HandlerError,
    Job,
    JobDead,
    JobsExpired,
    JobsOrphaned,
    JobsUnfinished,
)


async def test_poison_ends_as_a_dead_letter_that_can_be_pushed_again(pair: Pair) -> None:
    """The others flow; the dead letter tells why, and is an ordinary job."""
    a, b = pair
    pusher = a.pusher("jobs", max_attempts=3, backoff_s=0.01)
    done: list[Any] = []

    @b.worker("jobs")
    async def work(job: Job) -> None:
        if job.value == "poison" and "mended" not in (job.headers or {}):
            raise ValueError("cannot do that")
        done.append((job.value, job.attempt))

    await pusher.push("good")
    await pusher.push("poison", headers={"unit": "C"})
    await pusher.push("good too")
    await flush(pusher)
    assert sorted(done) == [("good", 1), ("good too", 1)]
    assert a.statistics().queues["jobs"].dead == 1

    async with b.puller("$dead.jobs") as dead:
        job = await dead.receive(TIMEOUT)
        assert job.value == "poison"
        assert job.headers == {
            "unit": "C", "dead.queue": "jobs", "dead.reason": "ValueError: cannot do that", "dead.attempts": 3,
            "dead.id": 1,
        }  # fmt: skip
        await pusher.push(job.value, headers={**job.headers, "mended": True})
    await flush(pusher)
    assert done[-1] == ("poison", 1)
    assert a.statistics().queues["$dead.jobs"].depth == 0


async def test_events_tell_of_failures_and_deaths(pair: Pair) -> None:
    """The worker's node of its handler's error, the pusher's of the end."""
    a, b = pair
    pusher = a.pusher("jobs", max_attempts=1)
    here, there = a.events(), b.events()

    @b.worker("jobs")
    async def work(job: Job) -> None:
        if job.value == "reject":
            await job.reject("not mine")
        else:
            raise ValueError("no")

    await pusher.push_many(["fail", "reject"])
    await flush(pusher)

    error = await next_event(there, HandlerError)
    assert (error.topic, error.error) == ("jobs", "ValueError: no")
    deaths = {(death.id, death.reason, death.attempts) for death in [await next_event(here, JobDead) for _ in range(2)]}
    assert deaths == {(0, "ValueError: no", 1), (1, "not mine", 1)}


async def test_what_does_not_decode_is_a_dead_letter(pair: Pair) -> None:
    """The puller's type decides; good jobs of the same lease are done."""
    pusher, puller = await ends(pair, type=Task)
    events = pair[1].events()
    await pusher.push_many([{"number": 1}, {"number": "one"}, {"number": 3}])
    got = await values(puller, 2)
    await puller.close()
    await flush(pusher)

    assert got == [Task(1), Task(3)]
    assert (await next_event(events, DecodeError)).seq == 1
    async with pair[0].puller("$dead.jobs") as dead:
        headers = (await dead.receive(TIMEOUT)).headers
    assert headers is not None
    assert "does not decode" in headers["dead.reason"]


async def test_expired_jobs_are_counted_and_reported(pair: Pair) -> None:
    """And end a flush."""
    pusher = pair[0].pusher("jobs")
    events = pair[0].events()
    await pusher.push("gone", ttl=0.05)
    await flush(pusher)
    assert (await next_event(events, JobsExpired)).count == 1
    assert pair[0].statistics().queues["jobs"].expired == 1


async def test_a_worker_that_closes_gives_back_what_it_has_not_begun(make_node: MakeNode) -> None:
    """Its handler finishes; the rest is done elsewhere, as a first attempt."""
    a, b, c = [await make_node(name) for name in "abc"]
    pusher = a.pusher("jobs")
    begun, finish = asyncio.Event(), asyncio.Event()
    done: list[tuple[str, int, int]] = []

    @b.worker("jobs")
    async def slow(job: Job) -> None:
        begun.set()
        await finish.wait()
        done.append(("b", job.value, job.attempt))

    await pusher.push_many(range(10))
    await asyncio.wait_for(begun.wait(), TIMEOUT)
    closing = asyncio.create_task(b.close())
    await asyncio.sleep(0)
    finish.set()

    @c.worker("jobs")
    async def fast(job: Job) -> None:
        done.append(("c", job.value, job.attempt))

    await asyncio.wait_for(closing, TIMEOUT)
    await flush(pusher)

    assert sorted(value for _, value, _ in done) == list(range(10))
    assert {attempt for *_, attempt in done} == {1}
    assert ("b", 0, 1) in done


async def test_what_is_in_hand_can_be_settled_after_the_puller_s_end(pair: Pair) -> None:
    """Until its node closes, which gives the rest back at once."""
    pusher, puller = await ends(pair, ack="manual")
    await pusher.push_many(range(3))
    jobs = [await puller.receive(TIMEOUT) for _ in range(2)]
    await puller.close()
    await jobs[0].ack()
    await pair[1].close()
    async with pair[0].puller("jobs") as again:
        got = {(job.value, job.attempt) for job in [await again.receive(TIMEOUT) for _ in range(2)]}
    await flush(pusher)

    assert got == {(1, 2), (2, 1)}


async def test_closing_with_unfinished_jobs_is_reported(make_node: MakeNode) -> None:
    """The event counts them, the flush fails, the worker's node tells of what it has in hand."""
    a, b = await make_node("a", close_timeout_s=0.4), await make_node("b")
    pusher, puller = await ends((a, b), ack="manual", credit=1)
    here, there = a.events(), b.events()
    await pusher.push_many(range(5))
    await puller.receive(TIMEOUT)
    flushed = asyncio.create_task(pusher.flush())
    await asyncio.sleep(0)
    await a.close()

    assert (await next_event(here, JobsUnfinished)).count == 5
    with pytest.raises(DeliveryFailed, match="jobs"):
        await flushed
    orphaned = await next_event(there, JobsOrphaned)
    assert (orphaned.queue, orphaned.peer.name, orphaned.count) == ("jobs", "a", 1)


async def test_a_hung_handler_loses_its_job(make_node: MakeNode) -> None:
    """Another worker gets it, and the rest of what waited behind it."""
    a, b, c = await make_node("a"), await make_node("b", handler_timeout_s=0.3), await make_node("c")
    pusher, puller = await ends((a, b), credit=5)
    await pusher.push_many(range(5))
    job = await puller.receive(TIMEOUT)
    await job.renew()
    async with c.puller("jobs") as other:
        got = [await other.receive(TIMEOUT) for _ in range(5)]
        assert {(job.value, job.attempt) for job in got} == {(0, 2), *((number, 1) for number in range(1, 5))}
    await flush(pusher)
    events = b.events()
    await job.ack()
    refused = await next_event(events, AckRefused)
    assert (refused.queue, refused.peer.name, refused.count, refused.here) == ("jobs", "a", 1, True)


async def test_dead_letters_are_bounded(make_node: MakeNode) -> None:
    """The oldest go first (dead_bytes), and are counted."""
    a, b = await make_node("a", dead_bytes=5000), await make_node("b")
    pusher = a.pusher("jobs")

    @b.worker("jobs")
    async def work(job: Job) -> None:
        await job.reject()

    await pusher.push_many(range(100))
    await flush(pusher)
    dead = a.statistics().queues["$dead.jobs"]
    assert dead.pushed == 100
    assert 10 <= dead.depth < 30
    assert dead.depth + dead.expired == 100
