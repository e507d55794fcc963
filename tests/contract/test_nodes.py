"""Nodes: who sees whom, handlers, events, statistics and the end."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from tests.contract.support import TIMEOUT, MakeNode, connect, next_event, publish_each, take, values
from tests.waiting import SLACK_S
from zfabric import (
    Config,
    HandlerError,
    LocalProtocolError,
    Message,
    Node,
    NodeClosed,
    PeerJoined,
    PeerLeft,
    PeerRefused,
    SubscriberJoined,
    SubscriberLeft,
    Topic,
)
from zfabric.testing import RealFabric, eventually

Pair = tuple[Node, Node]


# -- who sees whom -----------------------------------------------------------------------------


async def test_peers_describe_each_other(pair: Pair) -> None:
    """A peer shows its id, name, topics and patterns."""
    a, b = pair
    await connect(a, b, "plant.temp", "plant.*")

    (seen_by_a,), (seen_by_b,) = a.peers, b.peers
    assert (seen_by_a.id, seen_by_a.name, seen_by_a.patterns) == (b.id, "b", ("plant.*",))
    assert (seen_by_b.id, seen_by_b.name, seen_by_b.topics) == (a.id, "a", ("plant.temp",))
    assert abs(seen_by_a.since - time.time()) < 60


async def test_two_fabrics_share_nothing(make_node: MakeNode) -> None:
    """Nodes of another fabric are refused, even when they know the address."""
    a1, a2 = await make_node("a1", fabric="one"), await make_node("a2", fabric="one")
    await a1.wait_for_peers(1, timeout=TIMEOUT)
    publisher, subscription = await connect(a1, a2, "topic")
    stranger = await make_node("stranger", fabric="two", seeds=[a1.endpoints[0]])
    spy = stranger.subscribe("#")
    refused = await next_event(stranger.events(), PeerRefused)

    await publisher.publish("secret")

    assert await values(subscription, 1) == ["secret"]
    assert refused.reason == "fabric"
    assert (stranger.peers, spy.pending, len(a1.peers), publisher.subscribers) == ((), 0, 1, 1)


async def test_many_nodes_in_one_loop_form_a_mesh(make_node: MakeNode) -> None:
    """Each of several nodes hears every other one, and itself."""
    nodes = [await make_node(f"n{index}") for index in range(5)]
    subscriptions = [node.subscribe("mesh.*") for node in nodes]
    publishers = [node.publisher(f"mesh.{node.name}") for node in nodes]
    for publisher, subscription in zip(publishers, subscriptions, strict=True):
        await publisher.wait_for(subscribers=5, timeout=TIMEOUT)
        await subscription.wait_for(publishers=5, timeout=TIMEOUT)

    for publisher in publishers:
        publisher.publish_nowait(publisher.topic)

    for subscription in subscriptions:
        assert sorted(await values(subscription, 5)) == [f"mesh.n{index}" for index in range(5)]
    assert [len(node.peers) for node in nodes] == [4] * 5


async def test_nodes_may_share_a_name(make_node: MakeNode) -> None:
    """Names are for people: two nodes of one name are two sources with numbers of their own."""
    twins = [await make_node("twin"), await make_node("twin")]
    reader = await make_node("reader")
    subscription = reader.subscribe("twins")
    publishers = [twin.publisher("twins") for twin in twins]
    for publisher in publishers:
        await publisher.wait_for(1, timeout=TIMEOUT)

    for publisher in publishers:
        publisher.publish_nowait(1)

    messages = await take(subscription, 2)
    assert {message.source.id for message in messages} == {twin.id for twin in twins}
    assert [(message.source.name, message.seq) for message in messages] == [("twin", 0)] * 2


async def test_one_seed_is_enough_to_find_everybody(make_node: MakeNode) -> None:
    """Without any discovery, nodes that know one address learn of each other from the node there."""
    first = await make_node("first", registry=False, mdns=False)
    seeds = [first.endpoints[0]]
    others = [await make_node(f"n{index}", registry=False, mdns=False, seeds=seeds) for index in range(3)]

    for node in (first, *others):
        await node.wait_for_peers(3, timeout=TIMEOUT)

    publisher, subscription = await connect(others[0], others[2], "gossip")
    await publisher.publish(1)
    assert await values(subscription, 1) == [1]


async def test_a_seed_that_discovery_finds_too_changes_nothing(make_node: MakeNode) -> None:
    """A second way to the same peer is closed again, and later subscriptions still get through."""
    a = await make_node("a")
    b = await make_node("b", seeds=[*a.endpoints, *a.endpoints])
    await a.wait_for_peers(1, timeout=TIMEOUT)
    await b.wait_for_peers(1, timeout=TIMEOUT)

    for round_ in range(5):
        for publishing, subscribing in ((a, b), (b, a)):
            publisher, subscription = await connect(publishing, subscribing, f"round.{round_}.{publishing.name}")
            await publisher.publish(round_)
            assert await values(subscription, 1) == [round_]
    assert (len(a.peers), len(b.peers)) == (1, 1)


async def test_a_seed_may_be_its_own_address_or_nobodys(make_node: MakeNode, environment: str) -> None:
    """Useless seeds do no harm."""
    nobody = "memory://9999:in" if environment == "memory" else "tcp://127.0.0.1:1"
    a = await make_node("a")
    b = await make_node("b", seeds=[nobody, *a.endpoints])

    await b.wait_for_peers(1, timeout=TIMEOUT)

    assert [peer.name for peer in b.peers] == ["a"]


@pytest.mark.slow
async def test_mdns_alone_is_enough(runtime_dir: object) -> None:
    """With mDNS as the only way, on the loopback interface, nodes find each other."""
    fabric = RealFabric(Config(registry=False))
    a, b = await fabric.open("a"), await fabric.open("b")
    try:
        publisher, subscription = await connect(a, b, "found")
        await publisher.publish(1)
        assert await values(subscription, 1) == [1]
    finally:
        await fabric.close()


# -- events and statistics ---------------------------------------------------------------------


async def test_events_tell_who_comes_and_goes(make_node: MakeNode) -> None:
    """Joining, subscribing, leaving: one event each, with a reason, in that order."""
    a = await make_node("a")
    events = a.events()
    publisher = a.publisher("topic")
    b = await make_node("b")
    subscription = b.subscribe("topic")
    await subscription.wait_for(publishers=1, timeout=TIMEOUT)
    await publisher.wait_for(subscribers=1, timeout=TIMEOUT)
    await b.close()
    await eventually(lambda: not a.peers)
    await a.close()

    seen = [event async for event in events]

    assert [type(event) for event in seen] == [PeerJoined, SubscriberJoined, PeerLeft, SubscriberLeft]
    joined, subscribed, left, unsubscribed = seen
    assert isinstance(joined, PeerJoined) and (joined.peer.id, joined.peer.name) == (b.id, "b")
    assert isinstance(subscribed, SubscriberJoined) and (subscribed.topic, subscribed.peer.name) == ("topic", "b")
    assert isinstance(left, PeerLeft) and (left.peer.id, left.reason) == (b.id, "goodbye")
    assert isinstance(unsubscribed, SubscriberLeft) and unsubscribed.topic == "topic"


async def test_every_event_stream_sees_everything_from_its_start(make_node: MakeNode) -> None:
    """Streams are independent; a closed one ends."""
    a = await make_node("a")
    first, second = a.events(), a.events()
    await make_node("b")

    assert (await next_event(first, PeerJoined)).peer.name == "b"
    assert (await next_event(second, PeerJoined)).peer.name == "b"
    first.close()
    assert [event async for event in first] == []


async def test_a_slow_event_stream_drops_its_oldest_and_counts(make_node: MakeNode) -> None:
    """Config.events_max bounds what waits."""
    node = await make_node("node", events_max=3)
    events = node.events()
    subscription = node.subscribe("typed", type=int)
    publisher = node.publisher("typed")

    for _ in range(10):
        publisher.publish_nowait("not a number")
    publisher.publish_nowait(1)
    assert await values(subscription, 1) == [1]

    assert node.statistics().events_dropped == 7
    events.close()
    assert [getattr(event, "seq", None) async for event in events] == [7, 8, 9]


async def test_statistics_add_up(pair: Pair) -> None:
    """Both sides count messages, batches and bytes; counters outlive what they counted."""
    a, b = pair
    publisher, subscription = await connect(a, b, "counted")
    await publish_each(publisher, ["x" * 100] * 10)
    await take(subscription, 10)

    sent, received = a.statistics(), b.statistics()
    assert (sent.peers, received.peers) == (1, 1)
    assert (sent.topics["counted"].published, sent.topics["counted"].unmatched) == (10, 0)
    assert (received.topics["counted"].received, received.topics["counted"].lost) == (10, 0)
    assert (sent.batches_sent, received.batches_received) == (10, 10)
    assert sent.bytes_sent == received.bytes_received > 1000
    for name in ("protocol_errors", "handler_errors", "strangers", "events_dropped"):
        assert (getattr(sent, name), getattr(received, name)) == (0, 0), name

    await publisher.close()
    await subscription.close()
    assert a.statistics().topics["counted"].published == 10
    assert b.statistics().total("received") == 10


# -- handlers ----------------------------------------------------------------------------------


async def test_handlers_run_in_the_loop_or_in_a_thread(pair: Pair) -> None:
    """`async def` runs in the event loop, `def` in a thread; each gets every message in order."""
    a, b = pair
    in_loop: list[int] = []
    in_thread: list[int] = []
    threads: set[int] = set()

    @b.on("work.*")
    async def coroutine(message: Message) -> None:
        await asyncio.sleep(0)
        in_loop.append(message.value)

    @b.on("work.*")
    def function(message: Message) -> None:
        threads.add(threading.get_ident())
        in_thread.append(message.value)

    publisher = a.publisher("work.one")
    await publisher.wait_for(subscribers=2, timeout=TIMEOUT)
    await publisher.publish_many(range(50))
    await eventually(lambda: len(in_loop) == len(in_thread) == 50)

    assert in_loop == in_thread == list(range(50))
    assert threading.get_ident() not in threads


async def test_exceptions_of_handlers_are_counted_and_reported(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    """A handler that fails is told of, and goes on with the next message."""
    a, b = pair
    events = b.events()
    survived: list[object] = []

    @b.on("fragile")
    async def coroutine(message: Message) -> None:
        survived.append(("loop", 1 / message.value))

    @b.on("fragile")
    def function(message: Message) -> None:
        survived.append(("thread", 1 / message.value))

    publisher = a.publisher("fragile")
    await publisher.wait_for(subscribers=2, timeout=TIMEOUT)
    await publisher.publish_many([0, 1])
    await eventually(lambda: len(survived) == 2)

    errors = [await next_event(events, HandlerError) for _ in range(2)]
    assert {error.handler.rpartition(".")[2] for error in errors} == {"coroutine", "function"}
    assert {error.error for error in errors} == {"ZeroDivisionError: division by zero"}
    assert b.statistics().handler_errors == 2
    assert sorted(map(str, survived)) == ["('loop', 1.0)", "('thread', 1.0)"]
    assert "fragile" in caplog.text


async def test_typed_handlers_get_their_type(make_node: MakeNode) -> None:
    """`on` takes what `subscribe` takes."""
    node = await make_node("node")
    seen: list[float] = []

    @node.on(Topic("typed", float))
    async def handle(message: Message) -> None:
        seen.append(message.value)

    node.publisher("typed").publish_nowait("no")
    node.publisher("typed").publish_nowait(1.5)

    assert await eventually(lambda: seen) == [1.5]


async def test_close_lets_handlers_finish_what_has_arrived(make_node: MakeNode) -> None:
    """Messages that are in the node already are handled before close returns."""
    node = await make_node("node")
    handled: list[int] = []

    @node.on("work")
    async def handle(message: Message) -> None:
        await asyncio.sleep(0)
        handled.append(message.value)

    await node.publisher("work").publish_many(range(20))
    await node.close()

    assert handled == list(range(20))


async def test_close_returns_in_spite_of_hung_handlers(make_node: MakeNode) -> None:
    """Handlers that never end, in the loop or in a thread, cost the timeout and no more."""
    node = await make_node("node")
    release = threading.Event()
    started: list[str] = []

    @node.on("hang")
    async def coroutine(message: Message) -> None:
        started.append("loop")
        await asyncio.Event().wait()

    @node.on("hang")
    def function(message: Message) -> None:
        started.append("thread")
        release.wait()

    node.publisher("hang").publish_nowait(1)
    await eventually(lambda: len(started) == 2)
    loop = asyncio.get_running_loop()
    before = loop.time()

    await node.close(timeout=0.4)

    assert loop.time() - before < 0.4 + SLACK_S
    release.set()


# -- the end -----------------------------------------------------------------------------------


async def test_what_was_published_before_close_arrives(make_node: MakeNode) -> None:
    """Closing right after publishing loses nothing, though goodbye takes another connection than the messages."""
    b = await make_node("b")
    subscription = b.subscribe("last.words")
    for round_ in range(10):
        a = await make_node(f"a{round_}")
        publisher = a.publisher("last.words")
        await publisher.wait_for(1, timeout=TIMEOUT)

        for number in range(200):
            publisher.publish_nowait([number, "x" * 1000])
        await a.close()

        assert [value[0] for value in await values(subscription, 200)] == list(range(200))
    assert b.statistics().total("lost") == 0


async def test_iteration_ends_when_the_node_closes(make_node: MakeNode) -> None:
    """Readers see the end: loops stop, receive and wait_for raise NodeClosed."""
    node = await make_node("node")
    first, second = node.subscribe("a"), node.subscribe("b")
    publisher = node.publisher("c")

    async def loop() -> list[Message]:
        return [message async for message in first]

    tasks = [
        asyncio.create_task(loop()),
        asyncio.create_task(second.receive(timeout=TIMEOUT)),
        asyncio.create_task(publisher.wait_for(1, timeout=TIMEOUT)),
        asyncio.create_task(node.wait_for_peers(9, timeout=TIMEOUT)),
    ]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await node.close()

    ended, received, *waited = await asyncio.gather(*tasks, return_exceptions=True)
    assert ended == []
    assert isinstance(received, NodeClosed)
    assert all(isinstance(error, NodeClosed) for error in waited)


async def test_what_waits_can_be_read_after_close(make_node: MakeNode) -> None:
    """Closing a subscription keeps what had arrived; then it ends."""
    node = await make_node("node")
    subscription = node.subscribe("rest")
    publisher = node.publisher("rest")
    await publisher.publish_many(range(3))
    await publisher.flush()
    await subscription.close()
    await subscription.close()

    assert [message.value async for message in subscription] == [0, 1, 2]
    with pytest.raises(NodeClosed):
        await subscription.receive(timeout=TIMEOUT)


async def test_several_may_close_a_node_at_once(pair: Pair) -> None:
    """Each call returns when the node is closed, also while peers have not acknowledged everything."""
    a, b = pair

    @b.service("echo")
    async def echo(value: int) -> int:
        return value

    await a.wait_for_service("echo", timeout=TIMEOUT)
    asking = asyncio.create_task(a.request("echo", 1))
    await asyncio.sleep(0)

    assert set(await asyncio.gather(a.close(), a.close(), a.close())) == {None}

    await asyncio.gather(asking, return_exceptions=True)
    with pytest.raises(NodeClosed):
        a.publisher("closed")


async def test_everything_raises_after_close(pair: Pair) -> None:
    """A closed node, and all that came from it, says so; closing again is fine."""
    a, b = pair
    publisher, subscription = await connect(a, b, "closed")
    own = a.subscribe("closed")
    await a.close()
    await a.close()

    with pytest.raises(NodeClosed):
        publisher.publish_nowait(1)
    with pytest.raises(NodeClosed):
        await publisher.publish(1)
    with pytest.raises(NodeClosed):
        await publisher.publish_many([1])
    with pytest.raises(NodeClosed):
        await publisher.flush()
    with pytest.raises(NodeClosed):
        a.publisher("other")
    with pytest.raises(NodeClosed):
        a.subscribe("other")
    with pytest.raises(NodeClosed):
        await a.wait_for_peers(1)
    with pytest.raises(NodeClosed):
        _ = a.peers
    await publisher.close()
    await own.close()
    assert a.statistics().topics["closed"].published == 0
    assert subscription.pending == 0


async def test_a_node_opens_once(make_node: MakeNode) -> None:
    """A node that was opened cannot be opened again, and one that was not says so."""
    node = await make_node("node")

    with pytest.raises(LocalProtocolError):
        await node.open()
    with pytest.raises(LocalProtocolError):
        Node("never opened").publisher("topic")
    await Node("never opened").close()
