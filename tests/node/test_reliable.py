"""Windows, confirmations, history and settling by hand, over real sockets."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from tests.node.support import TIMEOUT, MakeNode, connect, driver_of, next_event
from tests.waiting import wait_until_async
from zfabric import (
    Config,
    DeliveryFailed,
    Evicted,
    Gap,
    Message,
    Node,
    Rejected,
    Subscription,
    Undelivered,
    WindowFull,
)
from zfabric.testing import MemoryFabric, run

RELIABLE = {"delivery": "at-least-once"}
SLOW_S = 0.05
"For one message."


async def take(subscription: Subscription, count: int) -> list[Message]:
    """The next messages."""
    return [await subscription.receive(timeout=TIMEOUT) for _ in range(count)]


async def pair(make_node: MakeNode, **limits: Any) -> tuple[Node, Node]:
    """Two nodes with the same limits."""
    return await make_node("a", **limits), await make_node("b", **limits)


# -- windows -----------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["argument", "window_bytes", "window_messages_max"])
async def test_a_full_window_raises_and_opens_again(make_node: MakeNode, how: str) -> None:
    """Config.window_bytes, window_messages_max and `window_bytes=` bound what a stuck reader leaves unconfirmed."""
    limits: dict[str, Any] = {"argument": {}, "window_bytes": {"window_bytes": 20_000}}.get(
        how, {"window_messages_max": 20}
    )
    a, b = await pair(make_node, **limits)
    options = {**RELIABLE, **({"window_bytes": 20_000} if how == "argument" else {})}
    publisher, subscription = await connect(a, b, "t", publisher=options)
    sent = 0

    full = None
    while full is None and sent < 1000:
        try:
            publisher.publish_nowait(b"x" * 1000)
        except WindowFull as error:
            full = error
        else:
            sent += 1
            await asyncio.sleep(0)

    assert full is not None and full.topic == "t"
    assert 10 <= sent <= 80
    waiting = asyncio.ensure_future(publisher.publish(b"x"))
    assert len(await take(subscription, sent)) == sent
    subscription_end = asyncio.ensure_future(subscription.receive(timeout=TIMEOUT))
    await asyncio.wait_for(waiting, TIMEOUT)
    assert (await subscription_end).value == b"x"


@pytest.mark.parametrize("confirm", ["received", "processed"])
async def test_confirmation_levels(make_node: MakeNode, confirm: str) -> None:
    """`received` is there when the other node has it, `processed` when its reader asks for more."""
    a, b = await pair(make_node)
    publisher, subscription = await connect(a, b, "t", publisher={**RELIABLE, "confirm": confirm})

    done = asyncio.ensure_future(publisher.publish(1))
    await wait_until_async(lambda: subscription.pending)
    assert (await take(subscription, 1))[0].value == 1
    if confirm == "processed":
        assert not done.done()
        asking = asyncio.ensure_future(subscription.receive())
        assert await asyncio.wait_for(done, TIMEOUT) == 0
        asking.cancel()
    else:
        assert await asyncio.wait_for(done, TIMEOUT) == 0


async def test_a_reader_that_does_not_return_fails_what_waits_for_it(make_node: MakeNode) -> None:
    """After Config.grace_s without the reader: Undelivered, and DeliveryFailed with its name and the range."""
    a, b = await pair(make_node, grace_s=0.2, heartbeat_interval_s=0.1, peer_timeout_s=0.3)
    events = a.events()
    publisher, subscription = await connect(a, b, "t", publisher=RELIABLE, ack="manual")
    await publisher.publish(0)
    await take(subscription, 1)
    driver_of(b)._transport.pause_feed(True)
    for number in range(1, 4):
        await publisher.publish(number)
    flushing = asyncio.ensure_future(publisher.flush())
    await asyncio.sleep(0)

    transport = driver_of(b)._transport
    driver_of(b).open_state = "dead"
    await transport.close(0)

    with pytest.raises(DeliveryFailed) as caught:
        await asyncio.wait_for(flushing, TIMEOUT)
    assert [(name, last, reason) for name, _, last, reason in caught.value.failures] == [("b", 3, "away")]
    lost = await next_event(events, Undelivered)
    assert (lost.topic, lost.first, lost.last, lost.reason, lost.peer.name) == ("t", 0, 3, "away", "b")


@pytest.mark.parametrize("evict_slow", [True, False])
def test_slow_readers_are_given_up_only_if_asked_for(*, evict_slow: bool) -> None:
    """A reader that makes progress, too little: evicted after Config.grace_s with evict_slow, else waited for."""
    config = Config(grace_s=0.3, evict_slow=evict_slow)
    evictions: list[Evicted] = []

    async def read_slowly() -> None:
        async with MemoryFabric(seed=1) as fabric:
            a, b = await fabric.open("a", config=config), await fabric.open("b", config=config)
            told, watching = b.events(), asyncio.create_task(collect(a.events(), evictions))
            options = {**RELIABLE, "window_bytes": 3000}
            publisher, subscription = await connect(a, b, "t", publisher=options, ack="manual")
            await publisher.publish_many([b"x" * 300] * 40)
            for _ in range(20):
                message = await subscription.receive(timeout=TIMEOUT)
                await asyncio.sleep(SLOW_S)
                await message.ack()
                if evictions:
                    assert (await next_event(told, Evicted)).here
                    break
            watching.cancel()
            await asyncio.wait([watching])

    run(read_slowly())

    assert [(eviction.peer.name, eviction.here) for eviction in evictions] == [("b", False)] * evict_slow


async def test_a_slow_reader_that_opens_the_window_for_moments_is_given_up(make_node: MakeNode) -> None:
    """The publisher fills whatever an ack makes free; with evict_slow that does not go on for ever."""
    a, b = await pair(make_node, grace_s=0.3, evict_slow=True)
    gone = a.events()
    publisher, subscription = await connect(a, b, "t", publisher={**RELIABLE, "window_bytes": 30_000}, ack="manual")
    evictions: list[Evicted] = []
    watching = asyncio.ensure_future(collect(gone, evictions))

    async def fill() -> None:
        while not evictions:
            await publisher.publish(b"x" * 300)
            await asyncio.sleep(0)  # each in a batch of its own

    async def read() -> None:
        while not evictions:
            message = await subscription.receive(timeout=TIMEOUT)
            await message.ack()
            await wait_until_async(lambda: publisher._outbox.full or evictions)

    await asyncio.wait_for(asyncio.gather(fill(), read()), TIMEOUT)

    assert evictions[0].peer.name == "b"
    watching.cancel()
    await asyncio.wait([watching])


async def collect(events: Any, found: list[Evicted]) -> None:
    """Evictions as they come."""
    async for event in events:
        found += [event] if isinstance(event, Evicted) else []


# -- history -----------------------------------------------------------------------------------


async def test_history_serves_late_readers(make_node: MakeNode) -> None:
    """Each way to start gets what it asks for, and then the live stream, without hole or double."""
    a, b = await pair(make_node)
    publisher = a.publisher("t", delivery="at-least-once", history=100)
    for number in range(150):
        await publisher.publish(number)
        await publisher.flush()
    starts: dict[Any, int] = {"earliest": 50, "latest": 150, 120: 120, -5: 145}
    subscriptions = {start: b.subscribe("t", start=start) for start in starts}
    for subscription in subscriptions.values():
        await subscription.wait_for(publishers=1, timeout=TIMEOUT)
    await publisher.publish(150)

    for start, first in starts.items():
        assert [message.seq for message in await take(subscriptions[start], 151 - first)] == list(range(first, 151))


async def test_history_is_bounded_in_bytes(make_node: MakeNode) -> None:
    """Config.history_bytes_max holds whatever `history=` asks for; who asks for what is gone gets a Gap."""
    a, b = await pair(make_node, history_bytes_max=50_000)
    events = b.events()
    publisher = a.publisher("t", delivery="at-least-once", history=1000)
    for _ in range(100):
        await publisher.publish(b"x" * 5000)
        await publisher.flush()

    subscription = b.subscribe("t", start=0)
    first = (await take(subscription, 1))[0]
    gap = await next_event(events, Gap)

    assert 85 <= first.seq <= 95
    assert (gap.first, gap.last, gap.cause) == (0, first.seq - 1, "expired")


# -- settling by hand --------------------------------------------------------------------------


async def test_a_message_comes_again_after_nack_and_its_delay(make_node: MakeNode) -> None:
    """Not before the delay, and as often as it is not acknowledged; then its confirmation is there."""
    a, b = await pair(make_node)
    publisher, subscription = await connect(a, b, "t", publisher={**RELIABLE, "confirm": "processed"}, ack="manual")
    done = asyncio.ensure_future(publisher.publish(1))

    for delay in (0.0, 0.15):
        message = await subscription.receive(timeout=TIMEOUT)
        begin = time.monotonic()
        await message.nack(delay)
        message = await subscription.receive(timeout=TIMEOUT)
        assert (message.value, message.seq) == (1, 0)
        assert time.monotonic() - begin >= delay
        await message.nack()
    assert not done.done()
    await (await subscription.receive(timeout=TIMEOUT)).ack()

    assert await asyncio.wait_for(done, TIMEOUT) == 0


async def test_acks_in_any_order_confirm_what_is_settled(make_node: MakeNode) -> None:
    """The position moves when the earliest is settled; acknowledging again changes nothing."""
    a, b = await pair(make_node)
    publisher, subscription = await connect(a, b, "t", publisher={**RELIABLE, "confirm": "processed"}, ack="manual")
    last = asyncio.ensure_future(publisher.publish_many(range(5)))
    messages = await take(subscription, 5)

    for index in (4, 2, 2, 1, 3):
        await messages[index].ack()
    assert not last.done()
    await messages[0].ack()

    assert await asyncio.wait_for(last, TIMEOUT) == 4


async def test_a_rejected_message_is_an_event_and_does_not_come_again(make_node: MakeNode) -> None:
    """It counts as settled."""
    a, b = await pair(make_node)
    events = b.events()
    publisher, subscription = await connect(a, b, "t", publisher={**RELIABLE, "confirm": "processed"}, ack="manual")
    done = asyncio.ensure_future(publisher.publish("bad"))
    await (await subscription.receive(timeout=TIMEOUT)).reject()

    assert await asyncio.wait_for(done, TIMEOUT) == 0
    rejected = await next_event(events, Rejected)
    assert (rejected.topic, rejected.seq, rejected.source.name) == ("t", 0, "a")
    follow = asyncio.ensure_future(publisher.publish("good"))
    message = await subscription.receive(timeout=TIMEOUT)
    await message.ack()
    await asyncio.wait_for(follow, TIMEOUT)
    assert message.value == "good"


async def test_unsettled_messages_are_bounded(make_node: MakeNode) -> None:
    """Config.unsettled_max messages may be held; more come when some are settled."""
    a, b = await pair(make_node, unsettled_max=10)
    publisher, subscription = await connect(a, b, "t", publisher=RELIABLE, ack="manual")
    for number in range(30):
        await publisher.publish(number)
        await asyncio.sleep(0)
    held = await take(subscription, 10)

    with pytest.raises(TimeoutError):
        await subscription.receive(timeout=0.3)
    for message in held:
        await message.ack()

    got = await take(subscription, 10)
    assert [message.value for message in (*held, *got)] == list(range(20))
    for message in got:
        await message.ack()
