"""Options of the wrong kind raise an error there and then, and peers go on: a record that they refuse blocks a node."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from math import inf, nan
from typing import Any

import numpy as np
import pytest

from tests.contract.support import TIMEOUT, MakeNode
from zfabric import Config, EncodeFailed, LimitExceeded, Node, Retention, SelectorError, TopicError, WindowFull

Pair = tuple[Node, Node]

NOT_UTF8 = "caf\udce9"
"As the name of a file comes from the operating system."


async def _works(a: Node, b: Node) -> None:
    """Both directions of a pair: a request, and a job with its acknowledgement."""
    assert await a.request("answer", timeout=TIMEOUT) == 42
    jobs = a.pusher("still")
    await jobs.push(1)
    async with b.puller("still", ack="manual") as puller:
        await (await puller.receive(timeout=TIMEOUT)).ack()
        await jobs.flush()
    assert a.statistics().protocol_errors == b.statistics().protocol_errors == 0


@pytest.fixture
async def answering(pair: Pair) -> Pair:
    """A pair whose second node provides `answer`."""
    a, b = pair

    @b.service("answer")
    async def answer(**_: Any) -> int:
        return 42

    await a.wait_for_service("answer", timeout=TIMEOUT)
    return pair


async def test_requests(answering: Pair) -> None:
    """Options of requests: numpy's numbers are numbers, and what is something else is refused."""
    a, b = answering
    for options, error in (
        ({"idempotent": 1}, TypeError),
        ({"version": True}, TypeError),
        ({"version": 1.0}, TypeError),
        ({"version": 2**70}, ValueError),
        ({"timeout": "1"}, TypeError),
        ({"timeout": nan}, ValueError),
        ({"wait": "1"}, TypeError),
        ({"wait": nan}, ValueError),
        ({"idempotent": True, "hedge": nan}, ValueError),
        ({NOT_UTF8: 1}, EncodeFailed),
    ):
        with pytest.raises(error):
            await a.request("answer", **options)
    with pytest.raises(TypeError, match="wait must be a number"):
        await anext(a.request_all("answer", wait="1"))  # type: ignore[arg-type]
    for good in ({"timeout": np.float64(9)}, {"timeout": inf}, {"version": np.int64(1)}):
        assert await a.request("answer", **good) == 42
    await _works(a, b)


async def test_services_and_pullers(answering: Pair) -> None:
    """What a node offers and grants."""
    a, b = answering

    async def nothing() -> None: ...

    for options in ({"version": True}, {"concurrency": 1.5}, {"concurrency": 2**70}):
        with pytest.raises((TypeError, ValueError)):
            b.service("wrong", **options)(nothing)
    for wrong in ({"credit": 1.5}, {"credit": True}, {"lease_s": nan}, {"lease_s": "1"}, {"selector": 5}):
        with pytest.raises((TypeError, ValueError)):
            b.puller("wrong", **wrong)
    with pytest.raises(LimitExceeded, match="credit_jobs_max"):
        b.worker("wrong", concurrency=10**9)
    with pytest.raises(SelectorError, match="UTF-8"):
        b.puller("wrong", selector=f"a = '{NOT_UTF8}'")
    b.service("right", concurrency=np.int64(2))(nothing)  # type: ignore[arg-type]
    b.puller("right", credit=np.int64(2), lease_s=inf)  # type: ignore[arg-type]
    await a.pusher("right").wait_for(workers=1, timeout=TIMEOUT)
    await _works(a, b)


async def test_pushers(answering: Pair) -> None:
    """Options of queues and of pushes."""
    a, b = answering
    for name in ("n" * 255, "n" * 250):  # "$dead." before it would be too long
        with pytest.raises(TopicError, match="255"):
            a.pusher(name)
        with pytest.raises(TopicError, match="255"):
            a.puller(name)
    for options in ({"max_attempts": 1.5}, {"backoff_s": nan}, {"dedupe_window_s": "1"}, {"queue_bytes": 1.5}):
        with pytest.raises((TypeError, ValueError)):
            a.pusher("wrong", **options)
    assert await a.pusher("n" * 249).push(1) == 0
    jobs = a.pusher("jobs")
    for option in (
        {"dedupe_id": 5},
        {"dedupe_id": NOT_UTF8},
        {"delay": nan},
        {"delay": 1e12},
        {"delay": "1"},
        {"not_before": "now"},
    ):
        with pytest.raises((TypeError, ValueError)):
            await jobs.push(1, **option)
    assert jobs.depth == 0
    await jobs.push(1, delay=np.float64(0.001), not_before=datetime.now(UTC))
    async with b.puller("jobs") as puller:
        assert (await puller.receive(timeout=TIMEOUT)).value == 1
    await _works(a, b)


async def test_settling_a_job(answering: Pair) -> None:
    """A job stays in hand when its settlement makes no sense, and reasons may be anything."""
    a, b = answering
    jobs = a.pusher("jobs", backoff_s=0)
    puller = b.puller("jobs", ack="manual")
    await jobs.push(1)
    job = await puller.receive(timeout=TIMEOUT)
    with pytest.raises(ValueError, match="delay"):
        await job.nack(nan)
    await job.nack(0, reason=NOT_UTF8)
    job = await puller.receive(timeout=TIMEOUT)
    assert job.attempt == 2
    await job.reject(ValueError("no"))  # type: ignore[arg-type]
    await jobs.flush()
    dead = await b.puller("$dead.jobs").receive(timeout=TIMEOUT)
    assert dead.headers is not None
    assert dead.headers["dead.reason"] == "no"
    await _works(a, b)


async def test_subscriptions_and_publishers(answering: Pair) -> None:
    """What is told of topics."""
    a, b = answering
    for options in ({"start": 2**70}, {"replay_rate": nan}, {"buffer_bytes": 1.5}, {"group": "g", "member": 5}):
        with pytest.raises((TypeError, ValueError)):
            b.subscribe("topic", **options)
    for wrong in ({"history": 1.5, "delivery": "at-least-once"}, {"window_bytes": 0}, {"window_bytes": "1"}):
        with pytest.raises((TypeError, ValueError)):
            a.publisher("topic", **wrong)
    for name in (5, None):
        with pytest.raises(TopicError, match="it must be str"):
            a.pusher(name)  # type: ignore[arg-type]
    await _works(a, b)


async def test_settling_a_message(answering: Pair) -> None:
    """A delay that is no number would put the event loop's timers out of order."""
    a, b = answering
    topic = a.publisher("topic", delivery="at-least-once")
    subscription = b.subscribe("topic", ack="manual")
    await topic.wait_for(subscribers=1, timeout=TIMEOUT)
    await topic.publish(1)
    message = await subscription.receive(timeout=TIMEOUT)
    for delay in (nan, inf):
        with pytest.raises(ValueError, match="delay"):
            await message.nack(delay)
    await message.nack(0.001)
    await (await subscription.receive(timeout=TIMEOUT)).ack()
    await _works(a, b)


async def test_what_an_exception_says_travels_whatever_it_is(answering: Pair) -> None:
    """Messages with bytes of a file's name, and messages that cannot be made, from services and workers."""
    a, b = answering

    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    @b.service("open", traces=True)
    async def open_(mute: bool) -> None:
        raise Mute if mute else FileNotFoundError(2, "no file", NOT_UTF8)

    @b.worker("files")
    async def read(job: Any) -> None:
        raise Mute if job.value else FileNotFoundError(2, "no file", NOT_UTF8)

    await a.wait_for_service("open", timeout=TIMEOUT)
    for mute in (False, True):
        with pytest.raises(Exception, match="cannot be shown" if mute else r"caf\\udce9"):
            await a.request("open", mute)
    files = a.pusher("files", max_attempts=1)
    await files.push_many([False, True])
    await files.flush()
    assert a.statistics().queues["files"].dead == 2
    await _works(a, b)


def _publish_each(publish: Callable[[str], int], count: int) -> None:
    for _ in range(count):
        publish("x" * 100)


async def test_a_small_window_is_full_at_its_size_within_one_turn(pair: Pair) -> None:
    """Not only after a whole batch."""
    a, b = pair
    jobs = a.pusher("jobs", queue_bytes=1000)
    topic = a.publisher("topic", delivery="at-least-once", window_bytes=1000)
    b.subscribe("topic", delivery="at-least-once", ack="manual")
    await topic.wait_for(subscribers=1, timeout=TIMEOUT)
    for publish in (jobs.push_nowait, topic.publish_nowait):
        _publish_each(publish, 9)
        with pytest.raises(WindowFull):
            _publish_each(publish, 6)


def _yields(_: Any) -> Any:
    yield


async def _yields_too(_: Any) -> AsyncIterator[None]:
    yield


@pytest.mark.parametrize("handler", [5, _yields, _yields_too])
async def test_what_is_no_handler_is_refused(make_node: MakeNode, handler: Any) -> None:
    """Jobs and messages would count as done without anything done: a generator's body is never run."""
    node = await make_node("a")
    for decorate in (node.on("topic"), node.worker("queue")):
        with pytest.raises(TypeError, match=r"callable|yields"):
            decorate(handler)


async def test_a_decorator_without_its_name_is_refused(make_node: MakeNode) -> None:
    """`@node.worker` alone would swallow the function."""
    node = await make_node("a")
    decorators: list[Any] = [node.on, node.worker, node.service]
    for decorator in decorators:
        with pytest.raises((TypeError, TopicError)):
            decorator(lambda _: None)


@pytest.mark.parametrize(
    "options", [{"age_s": -1}, {"age_s": nan}, {"messages": 1.5}, {"bytes": "1"}, {"messages": 2**64}]
)
def test_retention(options: dict[str, Any]) -> None:
    """Refused where it is made."""
    with pytest.raises((TypeError, ValueError)):
        Retention(**options)


@pytest.mark.parametrize("options", [{"topic_bytes_max": 256}, {"selector_bytes_max": 65_537}, {"lease_s": nan}])
def test_limits_that_no_record_can_keep(options: dict[str, Any]) -> None:
    """Names that peers refuse are refused here."""
    with pytest.raises(ValueError, match=next(iter(options))):
        Config(**options)
