"""Durable topics on bad networks and with readers that hang: in the end everybody has everything, once and in order."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.durable.conftest import MakeStore
from tests.waiting import wait_until_async as until
from zfabric import Config, Evicted, Node, NotStored, Publisher, Subscription
from zfabric.store import Store
from zfabric.testing import MemoryFabric

TIMEOUT = 30.0
COUNT = 200
FAST: dict[str, Any] = {
    "heartbeat_interval_s": 0.1,
    "peer_timeout_s": 0.4,
    "grace_s": 0.6,
    "gap_settle_s": 0.1,
    "channel_retry_s": 0.1,
}


class Scene:
    """A publisher, a store and a reader that began in the past."""

    def __init__(self, store: Store, shop: Node, reader: Node, orders: Publisher, subscription: Subscription) -> None:
        self.store = store
        self.shop = shop
        self.reader = reader
        self.orders = orders
        self.subscription = subscription
        self.next = 0

    async def publish(self, count: int) -> None:
        """Publish numbers, one to a batch, without waiting for anybody."""
        for _ in range(count):
            await self.orders.publish(self.next)
            self.next += 1

    async def check(self) -> None:
        """Everything is stored, and everything is read; once, in order, and nothing was given up."""
        await until(lambda: self.stored == self.next, TIMEOUT)
        messages = [await self.subscription.receive(TIMEOUT) for _ in range(self.next)]
        assert [message.value for message in messages] == list(range(self.next))
        assert self.reader.statistics().total("lost") == 0
        await self.orders.publish("sentinel")
        assert (await self.subscription.receive(TIMEOUT)).value == "sentinel"
        await self.orders.flush()

    @property
    def stored(self) -> int:
        """How many messages the store has."""
        info = self.store.log.info("orders")
        return 0 if info is None else info.next


@pytest.fixture
async def scene(fabric: MemoryFabric, make_store: MakeStore) -> Scene:
    """All are connected, and the reader is live."""
    store = await make_store(config=Config(**FAST))
    shop = await fabric.open("shop", config=Config(**FAST))
    reader = await fabric.open("reader", config=Config(**FAST))
    orders = shop.publisher("orders", durable=True, without_store="buffer")
    subscription = reader.subscribe("orders", start="earliest")
    await orders.wait_for(stores=1, subscribers=1, timeout=TIMEOUT)
    return Scene(store, shop, reader, orders, subscription)


@pytest.mark.parametrize(
    ("plane", "faults"),
    [
        ("data", {"drop": 0.3}),
        ("data", {"drop": 0.1, "duplicate": 0.2, "reorder": 0.2}),
        (None, {"duplicate": 0.3}),
        (None, {"delay": 0.3, "delay_s": 0.02}),
    ],
    ids=["drop", "everything", "duplicate", "delay"],
)
async def test_bad_connections(fabric: MemoryFabric, scene: Scene, plane: Any, faults: Any) -> None:
    """Frames that are lost, doubled, late or out of order between all of them."""
    fabric.disturb(plane=plane, **faults)
    await scene.publish(COUNT)
    await scene.orders.flush()
    fabric.calm()

    await scene.check()


@pytest.mark.parametrize("islands", [({"shop"}, {"reader"}), ({"shop"}, {"store"}), ({"store"}, {"reader"})], ids=str)
@pytest.mark.parametrize("seconds", [0.2, 2.5], ids=["short", "beyond the grace"])
async def test_partitions(fabric: MemoryFabric, scene: Scene, islands: Any, seconds: float) -> None:
    """Whoever was cut off catches up, from the publisher or from the store, however long it took."""
    await scene.publish(10)
    fabric.partition(*islands)
    await scene.publish(COUNT)
    await asyncio.sleep(seconds)
    fabric.heal()

    await scene.check()


async def test_a_flapping_network(fabric: MemoryFabric, scene: Scene) -> None:
    """Cut and mended again and again, everybody from everybody."""
    pause = 0.15
    for _ in range(6):
        fabric.partition({"shop"}, {"reader"}, {"store"})
        await scene.publish(20)
        await asyncio.sleep(pause)
        fabric.heal()
        await asyncio.sleep(pause)

    await scene.check()


async def test_a_stuck_reader_reads_on_from_the_store(fabric: MemoryFabric, make_store: MakeStore) -> None:
    """The publisher gives it up after the grace and goes on; later it gets all that it missed, without a Gap."""
    await make_store(config=Config(**FAST))
    shop = await fabric.open("shop", config=Config(**FAST, window_bytes=20_000))
    reader = await fabric.open("reader", config=Config(**FAST))
    orders = shop.publisher("orders", durable=True)
    subscription = reader.subscribe("orders", start="earliest", buffer_bytes=5000)
    await orders.wait_for(stores=1, subscribers=1, timeout=TIMEOUT)
    events = shop.events()

    for number in range(COUNT):
        await orders.publish([number, bytes(500)])
    await orders.flush()
    evicted = await anext(event async for event in events if isinstance(event, Evicted))
    messages = [await subscription.receive(TIMEOUT) for _ in range(COUNT)]

    assert evicted.peer.name == "reader"
    assert [message.value[0] for message in messages] == list(range(COUNT))
    assert reader.statistics().total("lost") == 0


async def test_a_publisher_alone_with_its_window(fabric: MemoryFabric, scene: Scene) -> None:
    """Cut off from the store for longer than the grace, who waits is told; what waited is stored afterwards."""
    strict = scene.shop.publisher("invoices", durable=True, confirm="stored")
    await strict.wait_for(stores=1, timeout=TIMEOUT)
    fabric.partition({"shop"}, {"store"})

    with pytest.raises(NotStored):
        await strict.publish("waits")
    fabric.heal()
    await strict.wait_for(stores=1, timeout=TIMEOUT)
    await strict.publish("goes on")

    assert scene.store.log.info("invoices").next == 2  # type: ignore[union-attr]
