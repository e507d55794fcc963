"""Many topics in one turn of the event loop: their small batches travel together, and nothing else differs."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.contract.support import TIMEOUT, MakeNode, next_event, take
from zfabric import DecodeError, Gap, Node, Publisher, Subscription, Topic
from zfabric.testing import eventually

TOPICS = [f"plant.t{number}" for number in range(40)]


async def opened(a: Node, b: Node, **options: Any) -> tuple[list[Publisher], Subscription]:
    """A publisher of each topic, and a subscription to all of them."""
    publishers = [a.publisher(topic) for topic in TOPICS]
    subscription = b.subscribe("plant.*", **options)
    for publisher in publishers:
        await publisher.wait_for(subscribers=1, timeout=TIMEOUT)
    return publishers, subscription


async def test_a_turn_of_many_topics_is_one_batch(pair: tuple[Node, Node]) -> None:
    """Every message arrives once, with its topic, number, time and source; both nodes count it."""
    a, b = pair
    publishers, subscription = await opened(a, b)

    for number in range(3):
        for publisher in publishers:
            assert publisher.publish_nowait([publisher.topic, number]) == number
    messages = await anext(subscription.batches())

    assert sorted((m.topic, m.seq, m.value) for m in messages) == sorted(
        (topic, number, [topic, number]) for topic in TOPICS for number in range(3)
    )
    assert {(m.source.name, m.key, m.headers) for m in messages} == {("a", None, None)}
    assert a.statistics().batches_sent == b.statistics().batches_received == 1
    assert {a.statistics().topics[topic].published for topic in TOPICS} == {3}
    assert {b.statistics().topics[topic].received for topic in TOPICS} == {3}
    assert b.statistics().total("lost") == 0


async def test_order_is_kept_between_bundles_and_batches(pair: tuple[Node, Node]) -> None:
    """A topic whose batches travel together, alone, with keys and as buffers in turn is one stream in order."""
    a, b = pair
    publishers, subscription = await opened(a, b)
    first = publishers[0]

    for turn in range(0, 50, 5):
        for publisher in publishers:
            publisher.publish_nowait(turn)
        await asyncio.sleep(0)
        first.publish_nowait(turn + 1)
        await asyncio.sleep(0)
        first.publish_nowait(turn + 2, key="k", headers={"h": 1})
        for publisher in publishers[1:]:
            publisher.publish_nowait(turn + 2)
        await asyncio.sleep(0)
        first.publish_nowait(bytes(100_000))
        await first.publish_many(["x" * 50_000, turn + 4])
        for publisher in publishers[1:]:
            publisher.publish_nowait(turn + 4)
        await asyncio.sleep(0)

    messages = await take(subscription, 60 + 39 * 30)
    for topic in TOPICS:
        seqs = [message.seq for message in messages if message.topic == topic]
        assert seqs == list(range(len(seqs)))
    of_first = [message for message in messages if message.topic == first.topic]
    assert [m.value for m in of_first if isinstance(m.value, int)] == [n for n in range(50) if n % 5 != 3]
    assert [(m.key, m.headers) for m in of_first[2::6]] == [("k", {"h": 1})] * len(of_first[2::6])
    assert b.statistics().total("lost") == 0


async def test_bad_values_are_reported_for_their_own_topic(pair: tuple[Node, Node]) -> None:
    """What does not fit the type is a DecodeError with topic and number; the others arrive."""
    a, b = pair
    events = b.events()
    publishers = [a.publisher(topic) for topic in TOPICS]
    subscription = b.subscribe(Topic("plant.*", int))
    for publisher in publishers:
        await publisher.wait_for(subscribers=1, timeout=TIMEOUT)

    for publisher in publishers:
        publisher.publish_nowait("text" if publisher is publishers[7] else 7)
        publisher.publish_nowait(8)

    messages = await take(subscription, 2 * len(TOPICS) - 1)
    assert {message.value for message in messages} == {7, 8}
    error = await next_event(events, DecodeError)
    assert (error.topic, error.seq) == (TOPICS[7], 0)
    assert b.statistics().total("undecodable") == 1


async def test_a_full_buffer_drops_bundles_with_a_gap_for_each_topic(make_node: MakeNode) -> None:
    """By default the oldest goes when a subscription is full, and every lost message is told."""
    a, b = await make_node("a"), await make_node("b", buffer_bytes=1)
    events = b.events()
    publishers, subscription = await opened(a, b)

    for turn in range(2):
        for publisher in publishers:
            publisher.publish_nowait(turn)
        await asyncio.sleep(0)

    gaps = [await next_event(events, Gap) for _ in TOPICS]
    assert sorted((gap.topic, gap.first, gap.last, gap.cause) for gap in gaps) == sorted(
        (topic, 0, 0, "buffer") for topic in TOPICS
    )
    assert {message.value for message in await take(subscription, len(TOPICS))} == {1}


async def test_the_newest_of_each_topic_is_kept(pair: tuple[Node, Node]) -> None:
    """`overflow="latest"` has a slot for each topic of a bundle."""
    a, b = pair
    publishers, subscription = await opened(a, b, overflow="latest")

    for turn in range(5):
        for publisher in publishers:
            publisher.publish_nowait(turn)
        await asyncio.sleep(0)
    await eventually(lambda: b.statistics().total("received") == 5 * len(TOPICS))

    messages = await take(subscription, len(TOPICS))
    assert {(m.topic, m.value) for m in messages} == {(topic, 4) for topic in TOPICS}


async def test_local_and_remote_subscriptions_hear_the_same(make_node: MakeNode) -> None:
    """Subscriptions of the publishing node, of several peers, to all topics and to one: each hears its own, once."""
    a, b, c = [await make_node(name) for name in "abc"]
    publishers, at_b = await opened(a, b)
    at_a, at_c = a.subscribe("plant.t3"), c.subscribe("#")
    one = b.subscribe("plant.t5")
    for publisher in publishers:
        await publisher.wait_for(subscribers=2, timeout=TIMEOUT)
    await publishers[3].wait_for(subscribers=3, timeout=TIMEOUT)
    await publishers[5].wait_for(subscribers=3, timeout=TIMEOUT)

    for publisher in publishers:
        publisher.publish_nowait(publisher.topic)

    for subscription in (at_b, at_c):
        assert sorted(message.value for message in await take(subscription, len(TOPICS))) == sorted(TOPICS)
    assert [(await subscription.receive(timeout=TIMEOUT)).value for subscription in (at_a, one)] == [
        "plant.t3",
        "plant.t5",
    ]
    assert (at_b.pending, at_c.pending, at_a.pending, one.pending) == (0, 0, 0, 0)
