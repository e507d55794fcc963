"""Events are bounded, statistics are one consistent picture, and the small limits hold."""

from __future__ import annotations

import asyncio
import threading

import pytest

from tests.node.support import TIMEOUT, MakeNode, connect, next_event
from tests.waiting import wait_until_async
from zfabric import (
    DecodeError,
    Gap,
    HandlerError,
    LimitExceeded,
    Message,
    SubscriberJoined,
    SubscriberLeft,
    TopicError,
)


async def test_events_are_bounded_and_dropped_ones_counted(make_node: MakeNode) -> None:
    """An iterator that is not read keeps Config.events_max events, the newest; the others are in the statistics."""
    node, other = await make_node("a", events_max=10), await make_node("b")
    slow = node.events()
    publisher, subscription = await connect(other, node, "t", type=int)
    got = asyncio.ensure_future(subscription.receive())
    for _ in range(30):
        await publisher.publish("not an int")
        await publisher.flush()
    await publisher.publish(1)
    await asyncio.wait_for(got, TIMEOUT)

    dropped = node.statistics().events_dropped
    assert dropped >= 20
    first = await next_event(slow, DecodeError)
    assert first.seq in (20, 21)
    slow.close()
    assert node.statistics().events_dropped >= dropped


async def test_statistics_agree_with_what_happened(make_node: MakeNode) -> None:
    """Published, unmatched, received, undecodable and expired add up, and outlive publishers and readers."""
    a, b = await make_node("a"), await make_node("b")
    publisher = a.publisher("t")
    publisher.publish_nowait("nobody")
    subscription = b.subscribe("t", type=int)
    await publisher.wait_for(subscribers=1, timeout=TIMEOUT)
    await subscription.wait_for(publishers=1, timeout=TIMEOUT)
    for value in (1, "bad", 2):
        await publisher.publish(value)
    await publisher.publish(3, ttl=1e-9)
    await publisher.flush()
    await wait_until_async(lambda: b.statistics().total("received") == 4)
    begin = asyncio.get_running_loop().time()
    await wait_until_async(lambda: asyncio.get_running_loop().time() - begin > 0.01)
    assert [(await subscription.receive(timeout=TIMEOUT)).value for _ in range(2)] == [1, 2]
    await publisher.publish(4)
    assert (await subscription.receive(timeout=TIMEOUT)).value == 4

    await subscription.close()
    await publisher.close()

    sent, got = a.statistics(), b.statistics()
    assert (sent.topics["t"].published, sent.topics["t"].unmatched) == (6, 1)
    assert (got.topics["t"].received, got.topics["t"].undecodable, got.topics["t"].lost) == (5, 1, 0)
    assert got.topics["t"].expired == 1
    assert (sent.batches_sent, sent.bytes_sent) == (got.batches_received, got.bytes_received)
    assert (sent.peers, got.peers, got.protocol_errors, got.strangers) == (1, 1, 0, 0)


async def test_a_full_buffer_is_a_gap_of_the_right_size(make_node: MakeNode) -> None:
    """What Config.buffer_bytes has no room for is reported and counted, message by message."""
    a, b = await make_node("a"), await make_node("b", buffer_bytes=20_000)
    events = b.events()
    publisher, subscription = await connect(a, b, "t")
    for _ in range(100):
        await publisher.publish(b"x" * 1000)
        await publisher.flush()
    await wait_until_async(lambda: b.statistics().total("received") == 100)

    gap = await next_event(events, Gap)
    lost = b.statistics().total("lost")

    assert (gap.first, gap.cause) == (0, "buffer")
    assert subscription.pending == 100 - lost
    assert (await subscription.receive(timeout=TIMEOUT)).seq == lost


async def test_joining_and_leaving_subscribers_are_events(make_node: MakeNode) -> None:
    """Each once, with topic and peer."""
    a, b = await make_node("a"), await make_node("b")
    events = a.events()
    _, subscription = await connect(a, b, "t")
    joined = await next_event(events, SubscriberJoined)

    await subscription.close()

    left = await next_event(events, SubscriberLeft)
    assert (joined.topic, joined.peer.name, left.topic, left.peer.name) == ("t", "b", "t", "b")


async def test_handlers_use_a_bounded_number_of_threads(make_node: MakeNode) -> None:
    """Twenty blocked handlers share Config.handler_threads_max threads; the others wait their turn."""
    node = await make_node("a", handler_threads_max=3)
    release, busy = threading.Event(), []

    def handle(message: Message) -> None:
        busy.append(threading.current_thread())
        assert release.wait(TIMEOUT)

    for _ in range(20):
        node.on("t")(handle)
    await node.publisher("t").publish(1)
    await wait_until_async(lambda: len(busy) == 3)
    release.set()
    await wait_until_async(lambda: len(busy) == 20)

    assert len(set(busy)) == 3
    assert node.statistics().handler_errors == 0


async def test_an_exception_in_a_handler_is_counted_and_reported(make_node: MakeNode) -> None:
    """The node and the handler go on."""
    node = await make_node("a")
    events, seen = node.events(), []

    @node.on("t")
    def handle(message: Message) -> None:
        seen.append(message.value)
        raise ValueError(message.value)

    await node.publisher("t").publish_many([1, 2])

    for number in (1, 2):
        error = await next_event(events, HandlerError)
        assert (error.topic, error.error) == ("t", f"ValueError: {number}")
    assert (seen, node.statistics().handler_errors) == ([1, 2], 2)


async def test_own_topics_and_subscriptions_are_bounded(make_node: MakeNode) -> None:
    """Config.topics_max and patterns_max name themselves; closing one makes room."""
    node = await make_node("a", topics_max=3, patterns_max=2, topic_bytes_max=20)
    publishers = [node.publisher(f"t{number}") for number in range(3)]
    subscriptions = [node.subscribe(f"t{number}") for number in range(2)]

    with pytest.raises(LimitExceeded, match=r"Config\.topics_max = 3"):
        node.publisher("t3")
    with pytest.raises(LimitExceeded, match=r"Config\.patterns_max = 2"):
        node.subscribe("t2")
    with pytest.raises(TopicError, match=r"Config\.topic_bytes_max = 20"):
        node.publisher("t" * 21)
    with pytest.raises(TopicError, match=r"Config\.topic_bytes_max = 20"):
        node.subscribe("t" * 21)
    await publishers[0].close()
    await subscriptions[0].close()

    node.publisher("t3")
    node.subscribe("t2")


async def test_a_value_that_no_frame_can_hold_is_refused(make_node: MakeNode) -> None:
    """Config.frame_bytes_max is an error at the publisher, not a connection that dies at the subscriber."""
    a, b = await make_node("a", frame_bytes_max=200_000), await make_node("b", frame_bytes_max=200_000)
    publisher, subscription = await connect(a, b, "t")

    for value in ("x" * 200_000, b"x" * 200_001, ["x" * 100_000] * 2):
        with pytest.raises(LimitExceeded, match=r"Config\.frame_bytes_max = 200000"):
            publisher.publish_nowait(value)
    await publisher.publish("fine")

    message = await subscription.receive(timeout=TIMEOUT)
    assert (message.value, message.seq) == ("fine", 0)


async def test_batches_are_sealed_at_their_limits(make_node: MakeNode) -> None:
    """Within one turn batch_bytes, batch_messages_max and buffers_per_batch_max each end a batch."""
    a = await make_node("a", batch_bytes=10_000, batch_messages_max=50, buffers_per_batch_max=10, inline_bytes=500)
    b = await make_node("b", batch_messages_max=50, buffers_per_batch_max=10)
    publisher, subscription = await connect(a, b, "t")

    counts = []
    for size, messages in ((400, 100), (1, 100), (501, 40)):
        before = a.statistics().batches_sent
        for _ in range(messages):
            publisher.publish_nowait(b"x" * size)
        await publisher.flush()
        counts.append(a.statistics().batches_sent - before)
        for _ in range(messages):
            assert (await subscription.receive(timeout=TIMEOUT)).value == b"x" * size

    assert counts == [4, 2, 8]
    assert b.statistics().protocol_errors == 0


async def test_more_topics_than_fit_a_frame_are_all_connected(make_node: MakeNode) -> None:
    """What must be told of thousands of topics goes in frames that the other side accepts."""
    a, b = await make_node("a"), await make_node("b", control_records_max=1500)
    publishers = [a.publisher(f"many.t{number}") for number in range(3000)]
    subscription = b.subscribe("many.*")

    await publishers[-1].wait_for(subscribers=1, timeout=TIMEOUT)
    await wait_until_async(lambda: len(subscription.lane.attached) == 3000)

    assert b.statistics().protocol_errors == 0
