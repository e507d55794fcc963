"""Subscriptions that begin in the past: the log of a store and what is live, without a hole and without a double."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from math import inf
from pathlib import Path
from typing import Any

import pytest

from tests.durable.conftest import MakeStore
from tests.waiting import wait_until_async as until
from zfabric import Config, Gap, LogMissing, Message, Node, Position, ProtocolError, Publisher, Subscription
from zfabric.protocol.history import Joint, Phase
from zfabric.store import Store
from zfabric.store.service import StoreService
from zfabric.testing import MemoryFabric

TIMEOUT = 30.0


async def durable(fabric: MemoryFabric, topic: str = "orders", **options: Any) -> tuple[Node, Publisher]:
    """A node and its durable publisher, that a store keeps."""
    node = await fabric.open(options.pop("name", "shop"))
    publisher = node.publisher(topic, durable=True, **options)
    await publisher.wait_for(stores=1, timeout=TIMEOUT)
    return node, publisher


async def take(subscription: Subscription, count: int) -> list[Message]:
    """That many messages."""
    return [await subscription.receive(TIMEOUT) for _ in range(count)]


def values(messages: list[Message]) -> list[Any]:
    """Their payloads."""
    return [message.value for message in messages]


def joint(subscription: Subscription, topic: str = "orders") -> Joint:
    """Where a subscription stands."""
    assert subscription.history is not None
    return subscription.history._joints[topic]


async def published(publisher: Publisher, numbers: range) -> None:
    """Publish and store them, ten to a batch."""
    for start in range(numbers.start, numbers.stop, 10):
        await publisher.publish_many(range(start, min(start + 10, numbers.stop)))
        await publisher.flush()


STARTS: dict[str, tuple[Any, int]] = {
    "earliest": ("earliest", 0),
    "offset": (37, 37),
    "last": (-25, 75),
    "since an hour": (timedelta(hours=1), 0),
    "since 2020": (datetime(2020, 1, 1, tzinfo=UTC), 0),
    "since now": (timedelta(0), 100),
}


@pytest.mark.parametrize("name", STARTS)
async def test_it_begins_where_it_was_asked_to(fabric: MemoryFabric, make_store: MakeStore, name: str) -> None:
    """History from there on, then what is published live, in order."""
    await make_store()
    _, orders = await durable(fabric)
    await published(orders, range(100))
    start, first = STARTS[name]
    reader = await fabric.open("reader")
    subscription = reader.subscribe("orders", start=start)
    history = await take(subscription, 100 - first)
    await subscription.wait_for(publishers=1, timeout=TIMEOUT)
    await orders.publish_many(range(100, 150))

    messages = history + await take(subscription, 50)

    assert values(messages) == list(range(first, 150))
    assert [message.position.offset for message in history if message.position] == list(range(first, 100))


async def test_the_last_value_of_each_key(fabric: MemoryFabric, make_store: MakeStore) -> None:
    """One message for each key that has a value, then everything that comes."""
    await make_store()
    _, stock = await durable(fabric, "stock")
    for key, value in (("a", 1), ("b", 2), ("a", 3), ("c", 4), ("b", None)):
        await stock.publish(value, key=key)
    await stock.flush()
    subscription = (await fabric.open("reader")).subscribe("stock", start="last-per-key")

    assert [(message.key, message.value) for message in await take(subscription, 2)] == [("a", 3), ("c", 4)]
    await stock.publish(5, key="c")
    assert values(await take(subscription, 1)) == [5]


async def test_late_joiners_under_load(fabric: MemoryFabric, make_store: MakeStore) -> None:
    """Readers that join while 10,000 messages a second are published get every one, once, in order, and become live."""
    await make_store()
    _, orders = await durable(fabric)
    total = 20_000
    subscriptions: list[Subscription] = []

    async def publish() -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        for start in range(0, total, 50):
            await orders.publish_many(range(start, start + 50))
            await asyncio.sleep(max(0.0, began + start / 10_000 - loop.time()))

    publishing = asyncio.create_task(publish())
    for number in range(4):
        await until(lambda before=number * 3000: orders._outbox.base > before)  # type: ignore[misc]
        subscriptions.append((await fabric.open(f"reader-{number}")).subscribe("orders", start="earliest"))
    taken = await asyncio.gather(*(take(subscription, total) for subscription in subscriptions))
    await publishing

    for subscription, messages in zip(subscriptions, taken, strict=True):
        assert values(messages) == list(range(total))
        await until(lambda one=subscription: joint(one).phase is Phase.LIVE and joint(one).offset == total)  # type: ignore[misc]


async def test_a_pattern_over_many_topics_and_producers(fabric: MemoryFabric, make_store: MakeStore) -> None:
    """Topics of producers that are gone, that are there, and that come later."""
    await make_store()
    old, gone = await durable(fabric, "orders.eu", name="old")
    await gone.publish_many(range(10))
    await gone.flush()
    await old.close()
    _, there = await durable(fabric, "orders.us", name="there")
    await there.publish_many(range(10, 20))
    await there.flush()
    subscription = (await fabric.open("reader")).subscribe("orders.#", start="earliest")
    history = await take(subscription, 20)
    _, later = await durable(fabric, "orders.asia", name="later")
    await later.publish_many(range(20, 30))

    assert sorted(values(history)) == list(range(20))
    assert {message.source.name for message in history if message.value >= 10} == {"there"}
    assert values(await take(subscription, 10)) == list(range(20, 30))


async def test_topics_that_are_not_durable_are_read_as_ever(fabric: MemoryFabric, make_store: MakeStore) -> None:
    """A pattern may match both; the others' history is their publisher's."""
    await make_store()
    node, orders = await durable(fabric, "plant.orders")
    other = node.publisher("plant.other", delivery="at-least-once", history=10)
    await orders.publish(1)
    await other.publish(2)
    subscription = (await fabric.open("reader")).subscribe("plant.*", start="earliest")

    messages = await take(subscription, 2)

    assert {(message.topic, message.value) for message in messages} == {("plant.orders", 1), ("plant.other", 2)}


async def test_positions_are_stored_and_resumed(fabric: MemoryFabric, make_store: MakeStore) -> None:
    """`start=position` goes on after that message; as text it survives anything."""
    await make_store()
    _, orders = await durable(fabric)
    await published(orders, range(100))
    reader = await fabric.open("reader")
    first = await take(reader.subscribe("orders", start="earliest"), 43)
    saved = str(first[-1].position)

    again = reader.subscribe("orders", start=Position.parse(saved))
    rest = await take(again, 57)
    await published(orders, range(100, 120))
    rest += await take(again, 20)

    assert values(first + rest) == list(range(120))
    assert [message.position.offset for message in rest if message.position] == list(range(43, 120))


async def test_a_position_of_another_log_waits_for_it(fabric: MemoryFabric, make_store: MakeStore) -> None:
    """Offsets mean nothing in another log: nothing is read rather than something wrong."""
    await make_store(name="one")
    _, orders = await durable(fabric)
    await published(orders, range(10))
    reader = await fabric.open("reader")
    strange = Position("orders", -1, 5, "00" * 16)
    subscription = reader.subscribe("orders", start=strange)
    sentinel = reader.subscribe("orders", start="earliest")

    await take(sentinel, 10)

    assert subscription.pending == 0
    for text in ("orders", "orders:x:y:" + "00" * 16, "orders:-1:1:00", ":-1:1:" + "00" * 16):
        with pytest.raises(ValueError, match=r"position|hex|literal"):
            Position.parse(text)
    for start in ([], [strange, Position("a", -1, 1, "11" * 16)], "yesterday"):
        with pytest.raises(ValueError, match="start"):
            reader.subscribe("orders", start=start)


async def test_what_a_dead_publisher_left_comes_from_the_store(fabric: MemoryFabric, make_store: MakeStore) -> None:
    """A subscriber that missed live messages gets them from the log, although their publisher is gone."""
    await make_store()
    node, orders = await durable(fabric)
    reader = await fabric.open("reader")
    subscription = reader.subscribe("orders", start="earliest")
    await subscription.wait_for(publishers=1, timeout=TIMEOUT)
    await orders.publish(0)
    assert values(await take(subscription, 1)) == [0]
    await until(lambda: joint(subscription).phase is Phase.LIVE)
    fabric.partition({"shop", "store"}, {"reader"})
    for number in range(1, 50):
        await orders.publish(number)
    await orders._reach(50, "stored")
    fabric.crash(node)
    fabric.heal()

    assert values(await take(subscription, 49)) == list(range(1, 50))
    assert reader.statistics().total("lost") == 0


async def test_what_only_the_store_has_is_no_loss(
    fabric: MemoryFabric, make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Although the publisher tells that it keeps nothing before the store tells that it has the topic."""
    streams = StoreService._streams

    def late(self: StoreService, *arguments: Any) -> None:
        asyncio.get_running_loop().call_later(0.3, streams, self, *arguments)

    monkeypatch.setattr(StoreService, "_streams", late)
    await make_store()
    _, orders = await durable(fabric)
    await published(orders, range(100))
    reader = await fabric.open("reader")
    subscription = reader.subscribe("orders", start=37)

    assert values(await take(subscription, 63)) == list(range(37, 100))
    assert reader.statistics().total("lost") == 0


async def test_lost_batches_are_found_in_the_store(fabric: MemoryFabric, make_store: MakeStore) -> None:
    """Without any repair by the publisher, what is dropped on the way comes from the log."""
    await make_store()
    _, orders = await durable(fabric)
    config = Config(gap_settle_s=0.05, repair_delay_s=30.0)
    reader = await fabric.open("reader", config=config)
    subscription = reader.subscribe("orders", start="earliest")
    await subscription.wait_for(publishers=1, timeout=TIMEOUT)
    fabric.disturb(drop=0.3, plane="data", between=("shop", "reader"))
    taking = asyncio.create_task(take(subscription, 300))
    for number in range(300):
        await orders.publish(number)
        await asyncio.sleep(0)

    assert values(await taking) == list(range(300))


async def test_reading_goes_on_after_the_store_restarts(
    fabric: MemoryFabric, make_store: MakeStore, tmp_path: Path
) -> None:
    """In the middle of history and while live: no hole, no double."""
    store = await make_store(str(tmp_path / "data"))
    _, orders = await durable(fabric)
    await published(orders, range(1000))
    reader = await fabric.open("reader")
    slow = reader.subscribe("orders", start="earliest", buffer_bytes=2000)
    live = reader.subscribe("orders", start="earliest")
    begun = await take(slow, 100)
    assert len(await take(live, 1000)) == 1000
    await until(lambda: joint(live).phase is Phase.LIVE)
    fabric.crash(store.node)
    await store.close()
    sending = asyncio.create_task(published(orders, range(1000, 1100)))
    assert values(await take(live, 10)) == list(range(1000, 1010))  # live data needs no store

    await make_store(str(tmp_path / "data"))
    await sending

    assert values(begun + await take(slow, 1000)) == list(range(1100))
    assert values(await take(live, 90)) == list(range(1010, 1100))


async def test_read_ahead_is_bounded(fabric: MemoryFabric, make_store: MakeStore) -> None:
    """A reader that stops reading gets about `buffer_bytes` and no more."""
    await make_store()
    _, orders = await durable(fabric)
    for _ in range(50):
        await orders.publish(bytes(10_000))
        await orders.flush()
    reader = await fabric.open("reader")
    subscription = reader.subscribe("orders", start="earliest", buffer_bytes=50_000)
    await until(lambda: subscription.pending >= 5)
    other = reader.subscribe("orders", start="earliest")
    await take(other, 50)

    assert subscription.pending <= 6
    assert len(await take(subscription, 50)) == 50


async def test_what_retention_took_is_told(fabric: MemoryFabric, make_store: MakeStore) -> None:
    """A position before the oldest message that is left: a Gap, then what is there."""
    store = await make_store()
    _, orders = await durable(fabric)
    await published(orders, range(100))
    store.log.trim("orders", 50)
    reader = await fabric.open("reader")
    events = reader.events()

    messages = await take(reader.subscribe("orders", start=Position("orders", -1, 19, store.log.id.hex())), 50)

    assert values(messages) == list(range(50, 100))
    gap = await anext(event async for event in events if isinstance(event, Gap))
    assert (gap.topic, gap.first, gap.last, gap.cause, gap.source.name) == ("orders", 20, 49, "expired", "store")


async def test_replay_at_the_original_pace(fabric: MemoryFabric, make_store: MakeStore) -> None:
    """What took a while to publish takes as long to replay, divided by the rate."""
    await make_store()
    _, orders = await durable(fabric)
    pause = 0.05
    for number in range(10):
        await orders.publish(number)
        await asyncio.sleep(pause)
    await orders.flush()
    reader = await fabric.open("reader")
    loop = asyncio.get_running_loop()
    took: dict[float, float] = {}
    for rate in (1.0, 4.0, 4.0, 4.0):
        began = loop.time()
        messages = await take(reader.subscribe("orders", start="earliest", replay_rate=rate), 10)
        took[rate] = min(took.get(rate, inf), loop.time() - began)  # the least: the machine may stand still for a while
        assert values(messages) == list(range(10))

    assert took[1.0] >= 0.45
    assert 0.11 <= took[4.0] < took[1.0]
    with pytest.raises(ValueError, match="replay_rate"):
        reader.subscribe("orders", replay_rate=0)


async def test_manual_acknowledgements_of_history(fabric: MemoryFabric, make_store: MakeStore) -> None:
    """Messages of the log are settled like others; what is not may come again on request."""
    await make_store()
    _, orders = await durable(fabric)
    await published(orders, range(10))
    subscription = (await fabric.open("reader")).subscribe("orders", start=3, ack="manual")
    messages = await take(subscription, 7)
    await messages[0].nack()
    for message in messages[1:]:
        await message.ack()

    assert values(await take(subscription, 1)) == [3]


@pytest.mark.parametrize("mechanism", ["dedupe", "order"])
async def test_without_the_joint_it_is_caught(
    fabric: MemoryFabric, make_store: MakeStore, monkeypatch: pytest.MonkeyPatch, mechanism: str
) -> None:
    """With duplicates let through, or live data not held back, late joiners do not get every message once, in order."""
    if mechanism == "dedupe":
        monkeypatch.setattr(Joint, "_fresh", lambda _joint, batch: batch)
    else:
        monkeypatch.setattr(Joint, "take", lambda joint, batch, source, _now: joint._deliver(batch, source))
    await make_store()
    _, orders = await durable(fabric)
    await published(orders, range(500))
    reader = await fabric.open("reader")
    for start in range(500, 10_500, 1000):  # what is sent shows it only in a moment that may be missed
        sending = asyncio.create_task(published(orders, range(start, start + 1000)))
        async with reader.subscribe("orders", start="earliest") as subscription:
            messages = await take(subscription, 500)
            await sending
            messages += [await subscription.receive(TIMEOUT) for _ in range(min(1000, subscription.pending))]
        if values(messages) != list(range(len(messages))):
            return

    pytest.fail("nobody noticed")


def test_stores_are_named_everywhere_alike() -> None:
    """A position prints as what `parse` reads."""
    position = Position("orders", -1, 7, "0f" * 16)

    assert Position.parse(str(position)) == position
    assert Store.__name__ in repr(Store("memory:"))


async def test_a_store_that_answered_nothing_binds_nobody(fabric: MemoryFabric, make_store: MakeStore) -> None:
    """Who asked a store that was dead already, and came back with another log, reads that one; in a group, too."""
    config = Config(heartbeat_interval_s=0.1, peer_timeout_s=0.5)
    store = await make_store(config=config)
    shop = await fabric.open("shop", config=config)
    orders = shop.publisher("orders", durable=True, confirm="stored")
    await orders.wait_for(stores=1, timeout=TIMEOUT)
    await orders.publish_many(range(10))
    reader = await fabric.open("reader", config=config)
    await until(lambda: any(peer.stores for peer in reader.peers), TIMEOUT)
    fabric.crash(store.node)
    alone = reader.subscribe("orders", start="earliest")
    member = reader.subscribe("orders", start="earliest", group="billing")
    await make_store(config=config, name="second")
    await orders.publish_many(range(10, 20))

    for subscription in (alone, member):
        assert [(await subscription.receive(TIMEOUT)).value for _ in range(10)] == list(range(10, 20))


async def test_another_log_is_read_without_doubles(fabric: MemoryFabric, make_store: MakeStore) -> None:
    """By a reader that was live when its store was wiped; one that began at a position says that it waits."""
    store = await make_store()
    orders = (await fabric.open("shop")).publisher("orders", durable=True, confirm="stored")
    await orders.wait_for(stores=1, timeout=TIMEOUT)
    await orders.publish_many(range(10))
    node = await fabric.open("reader", config=Config(grace_s=0.1, heartbeat_interval_s=0.1, peer_timeout_s=0.5))
    events = node.events()
    live = node.subscribe("orders", start="earliest")
    messages = [await live.receive(TIMEOUT) for _ in range(10)]
    position = messages[4].position
    assert position is not None
    resumed = node.subscribe("orders", start=position)
    assert [(await resumed.receive(TIMEOUT)).value for _ in range(5)] == list(range(5, 10))
    fabric.crash(store.node)
    await make_store(name="second")
    await orders.publish_many(range(10, 20))
    messages += [await live.receive(TIMEOUT) for _ in range(10)]
    told: list[LogMissing] = []
    gaps: list[Gap] = []
    async with asyncio.timeout(TIMEOUT):
        async for event in events:
            if isinstance(event, LogMissing):
                told.append(event)
            elif isinstance(event, Gap):
                gaps.append(event)
            if {event.waits for event in told} == {True, False}:
                break
    await orders.publish_many(range(20, 30))
    messages += [await live.receive(TIMEOUT) for _ in range(10)]

    assert [message.value for message in messages] == list(range(30))
    assert {(event.topic, event.group, event.store) for event in told} == {("orders", "", position.store)}
    assert not resumed.pending
    assert not gaps


async def test_too_many_readings_of_one_peer_are_refused(fabric: MemoryFabric, make_store: MakeStore) -> None:
    """The store tells which limit it was; those that have a place are served."""
    store = await make_store(config=Config(store_readings_per_peer_max=1))
    _, orders = await durable(fabric)
    await published(orders, range(10))
    events = store.node.events()
    reader = await fabric.open("reader")
    first = reader.subscribe("orders", start="earliest")

    assert values(await take(first, 10)) == list(range(10))
    reader.subscribe("bills", start="earliest")
    async with asyncio.timeout(TIMEOUT):
        reason = await anext(event.reason async for event in events if isinstance(event, ProtocolError))

    assert "Config.store_readings_per_peer_max = 1" in reason


@pytest.mark.parametrize("start", ["earliest", "last-per-key"])
async def test_a_look_at_the_disk_that_fails_is_repeated(
    fabric: MemoryFabric, make_store: MakeStore, monkeypatch: pytest.MonkeyPatch, start: str
) -> None:
    """The reader gets everything, later."""
    store = await make_store()
    _, orders = await durable(fabric, confirm="stored")
    for number in range(10):
        orders.publish_nowait(number, key=number)
    await orders.flush()
    assert store.log is not None
    read, failures = store.log.read, [OSError("no"), ArithmeticError("no")]

    def failing(*arguments: Any) -> Any:
        if failures:
            raise failures.pop()
        return read(*arguments)

    monkeypatch.setattr(store.log, "read", failing)
    monkeypatch.setattr("zfabric.store.readings.RETRY_S", 0.01)
    reader = await fabric.open("reader")

    assert values(await take(reader.subscribe("orders", start=start), 10)) == list(range(10))
    assert not failures
