"""Which messages reach which subscription, and from when on."""

from __future__ import annotations

import pytest

from tests.contract.support import TIMEOUT, MakeNode, connect, publish_each, take, values
from zfabric import Node, TopicError
from zfabric.testing import eventually

Pair = tuple[Node, Node]

TOPICS = (
    "plant",
    "plant.line1",
    "plant.line10",
    "plant.line1.temp",
    "plant.line1.temp.max",
    "plant.line2.temp",
    "other",
)

MATCHES: dict[str, set[str]] = {
    "plant": {"plant"},
    "plant.line1": {"plant.line1"},
    "plant.*": {"plant.line1", "plant.line10"},
    "plant.*.temp": {"plant.line1.temp", "plant.line2.temp"},
    "*.line1.*": {"plant.line1.temp"},
    "plant.line1.#": {"plant.line1", "plant.line1.temp", "plant.line1.temp.max"},
    "plant.#": set(TOPICS) - {"other"},
    "#.temp": {"plant.line1.temp", "plant.line2.temp"},
    "*": {"plant", "other"},
    "#": set(TOPICS),
    "nobody.publishes.this": set(),
}


@pytest.mark.parametrize("pattern", MATCHES)
async def test_a_pattern_gets_what_it_matches_and_nothing_else(pair: Pair, pattern: str) -> None:
    """`*` stands for one word and `#` for any number; a literal topic matches itself and no longer one."""
    a, b = pair
    everything, chosen = b.subscribe("#"), b.subscribe(pattern)
    publishers = [a.publisher(topic) for topic in TOPICS]
    await everything.wait_for(publishers=1, timeout=TIMEOUT)
    for publisher in publishers:
        await publisher.wait_for(subscribers=1, timeout=TIMEOUT)

    for publisher in publishers:
        publisher.publish_nowait(publisher.topic)

    assert {m.topic for m in await take(everything, len(TOPICS))} == set(TOPICS)
    assert set(await values(chosen, len(MATCHES[pattern]))) == MATCHES[pattern]
    assert chosen.pending == 0


async def test_a_literal_subscription_is_not_in_place_for_a_longer_topic(pair: Pair) -> None:
    """Only line1 is sent to a subscriber of line1, though line10 begins with the same letters."""
    a, b = pair
    short, subscription = await connect(a, b, "line1")
    longer = a.publisher("line10")

    await publish_each(longer, ["wrong"])
    await publish_each(short, ["right"])

    assert await values(subscription, 1) == ["right"]
    assert longer.subscribers == 0


async def test_the_first_message_arrives_once_the_publisher_waited(pair: Pair) -> None:
    """After `publisher.wait_for` nothing is missed, however soon it is published."""
    a, b = pair
    subscription = b.subscribe("first")
    publisher = a.publisher("first")

    await publisher.wait_for(subscribers=1, timeout=TIMEOUT)
    seq = publisher.publish_nowait("hello")

    message = await subscription.receive(timeout=TIMEOUT)
    assert (message.value, message.seq, message.topic) == ("hello", seq, "first")
    assert (message.source.name, message.source.id) == ("a", a.id)


async def test_the_first_message_arrives_once_the_subscriber_waited(pair: Pair) -> None:
    """After `subscription.wait_for` nothing is missed either."""
    a, b = pair
    publisher = a.publisher("first")
    subscription = b.subscribe("first")

    await subscription.wait_for(publishers=1, timeout=TIMEOUT)
    publisher.publish_nowait("hello")

    assert await values(subscription, 1) == ["hello"]


async def test_subscribing_before_anybody_publishes(make_node: MakeNode) -> None:
    """The order of subscribing, publishing and joining the fabric does not matter."""
    b = await make_node("b")
    subscription = b.subscribe("late.*")
    a = await make_node("a")
    publisher = a.publisher("late.one")

    await publisher.wait_for(subscribers=1, timeout=TIMEOUT)
    publisher.publish_nowait(1)

    assert await values(subscription, 1) == [1]


async def test_a_second_topic_of_a_followed_publisher_is_in_place_at_once(pair: Pair) -> None:
    """A topic that opens while a matching subscription is in place needs no new handshake to be heard."""
    a, b = pair
    _, subscription = await connect(a, b, "plant.one", "plant.*")

    second = a.publisher("plant.two")
    await second.wait_for(subscribers=1, timeout=TIMEOUT)
    second.publish_nowait(2)

    assert (await subscription.receive(timeout=TIMEOUT)).topic == "plant.two"


async def test_several_subscriptions_get_a_copy_each(pair: Pair) -> None:
    """Each subscription of a node gets every message once, also where several match or are equal."""
    a, b = pair
    publisher, exact = await connect(a, b, "plant.temp")
    same, wild, other = b.subscribe("plant.temp"), b.subscribe("plant.*"), b.subscribe("#")
    own = a.subscribe("plant.temp")
    await eventually(lambda: publisher.subscribers >= 2)
    for subscription in (same, wild, other):
        await subscription.wait_for(publishers=1, timeout=TIMEOUT)

    await publisher.publish_many(range(10))

    for subscription in (exact, same, wild, other, own):
        assert await values(subscription, 10) == list(range(10))
        assert subscription.pending == 0


async def test_own_publications_reach_own_subscriptions(make_node: MakeNode) -> None:
    """A node hears itself, without any peer."""
    node = await make_node("alone")
    subscription = node.subscribe("self.*")
    publisher = node.publisher("self.talk")

    assert (publisher.subscribers, subscription.publishers) == (1, 1)
    publisher.publish_nowait({"n": 1})
    message = await subscription.receive(timeout=TIMEOUT)

    assert (message.value, message.source.id) == ({"n": 1}, node.id)


async def test_subscribers_goes_back_to_zero_when_a_subscription_closes(pair: Pair) -> None:
    """Closing a subscription tells the publisher."""
    a, b = pair
    publisher, subscription = await connect(a, b, "short")

    await subscription.close()

    assert await eventually(lambda: publisher.subscribers == 0)


async def test_subscribers_goes_back_to_zero_when_the_node_closes(pair: Pair) -> None:
    """Closing the subscriber's node tells the publisher."""
    a, b = pair
    publisher, _ = await connect(a, b, "short")

    await b.close()

    assert await eventually(lambda: publisher.subscribers == 0)
    assert a.peers == ()


async def test_publishers_goes_back_to_zero_when_the_publisher_closes(pair: Pair) -> None:
    """Closing a publisher tells the subscriber."""
    a, b = pair
    publisher, subscription = await connect(a, b, "short")

    await publisher.close()

    assert await eventually(lambda: subscription.publishers == 0)


async def test_a_closed_pattern_stops_while_another_goes_on(pair: Pair) -> None:
    """Only the closed subscription ends; one that overlaps with it still gets everything."""
    a, b = pair
    publisher, stays = await connect(a, b, "plant.temp")
    goes = b.subscribe("plant.*")
    await goes.wait_for(publishers=1, timeout=TIMEOUT)

    await goes.close()
    await publish_each(publisher, [1, 2])

    assert await values(stays, 2) == [1, 2]
    assert goes.pending == 0
    await eventually(lambda: publisher.subscribers == 1)


async def test_a_pattern_can_be_subscribed_to_again(pair: Pair) -> None:
    """Closing and subscribing again works any number of times, at once and after the publisher noticed."""
    a, b = pair
    publisher, subscription = await connect(a, b, "again")
    for round_ in range(6):
        await subscription.close()
        if round_ % 2:
            await eventually(lambda: publisher.subscribers == 0)
        subscription = b.subscribe("again")
        await subscription.wait_for(publishers=1, timeout=TIMEOUT)
        await publisher.wait_for(subscribers=1, timeout=TIMEOUT)

        await publisher.publish(round_)

        assert await values(subscription, 1) == [round_]


async def test_a_topic_can_be_published_again(pair: Pair) -> None:
    """A publisher that is opened again on its topic begins a new sequence, and nothing is lost or doubled."""
    a, b = pair
    publisher, subscription = await connect(a, b, "again")
    for round_ in range(4):
        await publisher.wait_for(subscribers=1, timeout=TIMEOUT)
        await publish_each(publisher, [(round_, 0), (round_, 1)])
        received = await take(subscription, 2)
        assert [(message.value, message.seq) for message in received] == [([round_, 0], 0), ([round_, 1], 1)]

        await publisher.close()
        publisher = a.publisher("again")

    assert b.statistics().total("lost") == 0


@pytest.mark.parametrize("name", ["", ".", "a..b", "a b", "a.*b", "$own", "x" * 300, "a.*", "#"])
async def test_topics_are_checked_where_they_are_published(make_node: MakeNode, name: str) -> None:
    """A malformed topic, or a pattern in its place, is an error at once."""
    node = await make_node("node")

    with pytest.raises(TopicError):
        node.publisher(name)


@pytest.mark.parametrize("pattern", ["", "a..b", "a.*b", "##", "x" * 300])
async def test_patterns_are_checked_where_they_are_subscribed_to(make_node: MakeNode, pattern: str) -> None:
    """A malformed pattern is an error at once."""
    node = await make_node("node")

    with pytest.raises(TopicError):
        node.subscribe(pattern)
