"""The fabric in memory: faults, crashes, partitions, and the same run for the same seed."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from zfabric import (
    Config,
    Event,
    Gap,
    LocalProtocolError,
    Node,
    PeerJoined,
    PeerLeft,
    Publisher,
    SubscriberLeft,
    Subscription,
)
from zfabric.testing import Faults, MemoryFabric, eventually, run

SEEDS = range(5)


async def connect(a: Node, b: Node, topic: str = "t", **options: Any) -> tuple[Publisher, Subscription]:
    """A publisher on a and a subscription on b, in place."""
    publisher, subscription = a.publisher(topic), b.subscribe(topic, **options)
    await publisher.wait_for(1, timeout=60)
    return publisher, subscription


async def drain(subscription: Subscription) -> list[Any]:
    """Everything that arrives until nothing comes for a second."""
    values = []
    try:
        while True:
            values.append((await subscription.receive(timeout=1)).value)
    except TimeoutError:
        return values


# -- the same seed gives the same run ----------------------------------------------------------


async def eventful(seed: int) -> list[str]:
    """A run with every kind of fault; returns all that can be seen of it."""
    async with MemoryFabric(seed) as fabric:
        nodes = [await fabric.open(f"n{index}") for index in range(4)]
        events = [node.events() for node in nodes]
        subscriptions = [node.subscribe("#") for node in nodes]
        fabric.disturb(drop=0.1, duplicate=0.1, delay=0.3, reorder=0.2, delay_s=0.5, plane="data")
        fabric.disturb(delay=0.5, delay_s=1.0, plane="control")
        publishers = [node.publisher(f"of.{node.name}") for node in nodes]
        await fabric.clock.advance(5)
        for number in range(50):
            for publisher in publishers:
                await publisher.publish(number)
            await fabric.clock.advance(0.1)
            if number == 20:
                fabric.partition({"n0", "n1"}, {"n2", "n3"})
            if number == 30:
                fabric.heal()
        await fabric.clock.advance(20)
        seen = [str([message async for message in _read(subscription)]) for subscription in subscriptions]
        times = f"{fabric.clock.time():.9f}"
        await fabric.close()
        seen += [str([_plain(event) async for event in stream]) for stream in events]
        return [*seen, times, *[node.id for node in nodes]]


async def _read(subscription: Subscription) -> Any:
    for _ in range(subscription.pending):
        message = await subscription.receive(timeout=1)
        yield message.source.name, message.topic, message.seq, message.value


def _plain(event: Event) -> str:
    """An event without what comes from the real machine: process, host and wall clock."""
    if isinstance(event, PeerJoined | PeerLeft):
        return f"{type(event).__name__} {event.peer.name} {event.peer.patterns} {event.peer.topics}"
    return str(event)


@pytest.mark.parametrize("seed", [0, 7])
def test_the_same_seed_gives_the_same_run(seed: int) -> None:
    """Two runs with one seed cannot be told apart; another seed gives another run."""
    first, second, other = run(eventful(seed)), run(eventful(seed)), run(eventful(seed + 1))

    assert first == second
    assert first != other


def test_a_failing_seed_is_in_the_repr() -> None:
    """What has to be known to repeat a run is shown."""
    assert "seed=42" in repr(MemoryFabric(42))


# -- partitions and crashes --------------------------------------------------------------------


def test_a_partition_ends_what_lasts_and_heals() -> None:
    """Both sides lose each other after the timeout, and meet again by themselves."""

    async def main() -> None:
        async with MemoryFabric() as fabric:
            a, b, c = [await fabric.open(name) for name in "abc"]
            publisher, subscription = await connect(a, b)
            fabric.partition({"a"}, {b})
            await fabric.clock.advance(Config().peer_timeout_s + 2)
            assert [peer.name for peer in a.peers] == [peer.name for peer in b.peers] == ["c"]
            assert {peer.name for peer in c.peers} == {"a", "b"}
            assert publisher.subscribers == 0

            fabric.heal()
            await publisher.wait_for(1, timeout=60)
            await publisher.publish("again")
            assert (await subscription.receive(timeout=5)).value == "again"

    run(main())


def test_a_short_partition_only_delays() -> None:
    """What was sent meanwhile waits, as in TCP, and nobody leaves."""

    async def main() -> None:
        async with MemoryFabric() as fabric:
            a, b = await fabric.open("a"), await fabric.open("b")
            publisher, subscription = await connect(a, b)
            events = b.events()
            fabric.partition({a}, {b})
            await publisher.publish_many(range(10))
            await fabric.clock.advance(2)
            assert subscription.pending == 0

            fabric.heal()
            assert await drain(subscription) == list(range(10))
            await fabric.close()
            assert [event async for event in events if isinstance(event, Gap)] == []

    run(main())


def test_a_crash_is_noticed_soon() -> None:
    """A crashed node says no goodbye: the others notice that nobody listens there any more."""

    async def main() -> None:
        async with MemoryFabric() as fabric:
            a, b = await fabric.open("a"), await fabric.open("b")
            publisher, _ = await connect(a, b)
            events = a.events()

            fabric.crash(b)
            await fabric.clock.advance(1)

            assert (a.peers, publisher.subscribers) == ((), 0)
            await fabric.close()
            left = [event async for event in events if isinstance(event, PeerLeft | SubscriberLeft)]
            assert [event.reason for event in left if isinstance(event, PeerLeft)] == ["gone"]

    run(main())


def test_a_crashed_node_can_be_replaced() -> None:
    """A new node of the same name, at the same fixed address, is found by those who had it as a seed."""

    async def main() -> None:
        async with MemoryFabric() as fabric:
            config = Config(mdns=False, registry=False)
            server = Config(mdns=False, registry=False, port=7400)
            old = await fabric.open("server", config=server)
            assert old.endpoints == ("memory://7400:in",)
            client = await fabric.open("client", config=config, seeds=["memory://7400:in"])
            subscription = client.subscribe("t")
            await old.publisher("t").wait_for(1, timeout=5)

            fabric.crash(old)
            new = await fabric.open("server", config=server)
            publisher = new.publisher("t")
            await publisher.wait_for(1, timeout=60)
            await publisher.publish("from the new one")

            assert (await subscription.receive(timeout=5)).value == "from the new one"
            assert new.id != old.id

    run(main())


def test_an_address_is_taken_once() -> None:
    """Two nodes on one fixed port are an error, as with real sockets."""

    async def main() -> None:
        async with MemoryFabric() as fabric:
            await fabric.open("a", config=Config(port=7400))
            with pytest.raises(OSError, match="7400"):
                await fabric.open("b", config=Config(port=7400))

    run(main())


def test_lifetimes_are_virtual_too() -> None:
    """A ttl passes with the virtual clock, and timestamps are its readings."""

    async def main() -> None:
        async with MemoryFabric() as fabric:
            a, b = await fabric.open("a"), await fabric.open("b")
            publisher, subscription = await connect(a, b)
            sent_at = fabric.clock.utc()
            publisher.publish_nowait("stale", ttl=20)
            publisher.publish_nowait("fresh", ttl=40)
            await fabric.clock.advance(30)

            message = await subscription.receive(timeout=1)
            assert message.value == "fresh"
            assert message.timestamp == pytest.approx(sent_at)
            assert b.statistics().topics["t"].expired == 1
            assert 0 <= fabric.clock.utc() - 30 - b.peers[0].since < 1

    run(main())


# -- faults ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_lost_batches_are_gaps_with_exact_counts(seed: int) -> None:
    """Whatever the network drops, what arrives and what is reported missing add up."""

    async def main() -> None:
        async with MemoryFabric(seed) as fabric:
            a, b = await fabric.open("a"), await fabric.open("b")
            publisher, subscription = await connect(a, b)
            events = b.events()
            fabric.disturb(drop=0.3, plane="data")
            for number in range(200):
                await publisher.publish(number)
                await publisher.flush()
            fabric.calm()
            await fabric.clock.advance(10)
            received = await drain(subscription)
            await fabric.close()

            gaps = [event async for event in events if isinstance(event, Gap)]
            missing = [number for gap in gaps for number in range(gap.first, gap.last + 1)]
            assert 90 < len(received) < 190
            assert sorted(received + missing) == list(range(200))
            assert {gap.cause for gap in gaps} == {"overflow"}
            assert b.statistics().topics["t"].lost == len(missing)

    run(main())


@pytest.mark.parametrize("seed", SEEDS)
def test_a_reliable_topic_survives_a_terrible_network(seed: int) -> None:
    """Dropped, doubled, delayed and reordered batches: all arrive, once and in order."""

    async def main() -> None:
        async with MemoryFabric(seed) as fabric:
            a, b = await fabric.open("a"), await fabric.open("b")
            publisher = a.publisher("t", delivery="at-least-once")
            subscription = b.subscribe("t")
            await publisher.wait_for(1, timeout=10)
            fabric.disturb(drop=0.2, duplicate=0.1, delay=0.2, reorder=0.2, plane="data")
            for number in range(100):
                await publisher.publish(number)
                await fabric.clock.advance(0.001)
            reader = asyncio.create_task(drain(subscription))
            await publisher.flush()

            assert await reader == list(range(100))

    run(main())


@pytest.mark.parametrize("kind", ["duplicate", "reorder"])
def test_best_effort_never_doubles_and_never_goes_back(kind: str) -> None:
    """At-most-once numbers only grow, whatever the network does."""

    async def main() -> None:
        async with MemoryFabric(3) as fabric:
            a, b = await fabric.open("a"), await fabric.open("b")
            publisher, subscription = await connect(a, b)
            fabric.disturb(Faults(**{kind: 0.5}), plane="data")
            for number in range(100):
                await publisher.publish(number)
                await fabric.clock.advance(0.001)

            received = await drain(subscription)
            assert received == sorted(set(received))
            assert len(received) == 100 if kind == "duplicate" else len(received) < 100

    run(main())


def test_delays_keep_the_order() -> None:
    """Delayed frames hold up those behind them, as in TCP."""

    async def main() -> None:
        async with MemoryFabric(3) as fabric:
            a, b = await fabric.open("a"), await fabric.open("b")
            publisher, subscription = await connect(a, b)
            fabric.disturb(delay=0.5, delay_s=0.4)
            for number in range(100):
                await publisher.publish(number)
                await fabric.clock.advance(0.01)

            assert await drain(subscription) == list(range(100))

    run(main())


def test_faults_can_be_of_some_connections_only() -> None:
    """`between` names the nodes; the others do not notice."""

    async def main() -> None:
        async with MemoryFabric(3) as fabric:
            a, b, c = [await fabric.open(name) for name in "abc"]
            publisher = a.publisher("t")
            good, bad = b.subscribe("t"), c.subscribe("t")
            await publisher.wait_for(2, timeout=10)
            fabric.disturb(drop=1.0, between=("a", "c"), plane="data")
            await publisher.publish("lost for c")
            await publisher.flush()

            assert await drain(good) == ["lost for c"]
            assert await drain(bad) == []

    run(main())


@pytest.mark.parametrize("faults", [{"drop": 1.5}, {"delay": -0.1}, {"delay_s": -1.0}, {"duplicate": 2}])
def test_impossible_faults_are_refused(faults: dict[str, float]) -> None:
    """Probabilities are from 0 to 1, delays not negative."""
    with pytest.raises(ValueError, match="Faults"):
        Faults(**faults)


def test_a_slow_subscriber_loses_what_its_queue_cannot_hold() -> None:
    """As with ZeroMQ, a publisher never waits for a paused feed: beyond the queue batches are dropped in a run."""

    async def main() -> None:
        async with MemoryFabric() as fabric:
            a = await fabric.open("a", config=Config(outlet_queue_bytes=50_000))
            b = await fabric.open("b")
            publisher, subscription = await connect(a, b, overflow="block", buffer_bytes=10_000)
            events = b.events()
            for number in range(300):
                await publisher.publish([number, "x" * 1000])
                await publisher.flush()
            received = [value[0] for value in await drain(subscription)]
            for number in range(300, 310):
                await publisher.publish([number, ""])
            received += [value[0] for value in await drain(subscription)]
            await fabric.close()

            gaps = [event async for event in events if isinstance(event, Gap)]
            missing = [number for gap in gaps for number in range(gap.first, gap.last + 1)]
            assert 50 < len(received) < 120
            assert sorted(received + missing) == list(range(310))

    run(main())


# -- in real time ------------------------------------------------------------------------------


async def test_the_fixtures_work(fabric: MemoryFabric, fabric_pair: tuple[Node, Node]) -> None:
    """`fabric_pair` gives two peers of the fixture `fabric`, on the ordinary event loop."""
    a, b = fabric_pair
    publisher, subscription = await connect(a, b)

    await publisher.publish(1)

    assert (await subscription.receive(timeout=5)).value == 1
    with pytest.raises(LocalProtocolError, match="real"):
        await fabric.clock.advance(1)
    c = await fabric.open("c")
    await eventually(lambda: len(c.peers) == 2)


async def test_the_real_fabric_is_private(real_fabric: Any) -> None:
    """Real nodes of the fixture find each other over ZeroMQ."""
    a, b = await real_fabric.open("a"), await real_fabric.open("b")
    publisher, subscription = await connect(a, b)

    await publisher.publish(1)

    assert (await subscription.receive(timeout=5)).value == 1
    assert a.fabric.startswith("test-")
    assert "test-" in repr(real_fabric)


def test_nodes_may_be_opened_and_closed_by_hand() -> None:
    """`fabric.node` makes nodes for `async with`; those in different fabrics never meet."""

    async def main() -> None:
        fabric = MemoryFabric()
        async with fabric.node("a") as a, fabric.node("b", fabric="other") as b, fabric.node("c") as c:
            await a.wait_for_peers(1, timeout=5)
            await fabric.clock.advance(10)
            assert ([peer.name for peer in a.peers], b.peers) == (["c"], ())
            assert [peer.name for peer in c.peers] == ["a"]

    run(main())


def test_large_fabrics_are_quick() -> None:
    """Thirty nodes become a full mesh and exchange messages."""

    async def main() -> None:
        async with MemoryFabric() as fabric:
            nodes = [await fabric.open(f"n{index}") for index in range(30)]
            for node in nodes:
                await node.wait_for_peers(29, timeout=30)
            subscriptions = [node.subscribe("all") for node in nodes]
            publisher = nodes[0].publisher("all")
            await publisher.wait_for(30, timeout=30)
            await publisher.publish("hello")
            for subscription in subscriptions:
                assert (await subscription.receive(timeout=5)).value == "hello"

    run(main())
