"""Publishers of durable topics and their stores: what is confirmed is stored, and who cannot store says so."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

import pytest

from tests.durable.conftest import MakeStore
from tests.waiting import wait_until_async as until
from zfabric import Config, NotStored, StoreLacks, WindowFull
from zfabric.errors import StoreFailed
from zfabric.store import Commit, StoredBatch, Writer
from zfabric.testing import MemoryFabric

TIMEOUT = 30.0


def values_in(store: object, topic: str) -> int:
    """How many messages a store has on a topic."""
    info = store.log.info(topic)  # type: ignore[attr-defined]
    return 0 if info is None else info.next


async def test_confirmed_means_stored(fabric: MemoryFabric, make_store: MakeStore, tmp_path: Path) -> None:
    """When `publish` returns, the log on the disk has the message, as it travelled."""
    store = await make_store(str(tmp_path / "data"))
    node = await fabric.open("shop")
    orders = node.publisher("orders", durable=True, confirm="stored")
    await orders.wait_for(stores=1, timeout=TIMEOUT)

    for number in range(20):
        assert await orders.publish({"id": number}) == number
        assert values_in(store, "orders") == number + 1

    batches = store.log.read("orders", 0, 10**6)
    assert all(isinstance(batch, StoredBatch) and batch.producer.hex() == node.id for batch in batches)


async def test_confirmations_are_pipelined(fabric: MemoryFabric, make_store: MakeStore) -> None:
    """Many tasks wait at one time, for messages that share batches and flushes."""
    store = await make_store()
    orders = (await fabric.open("shop")).publisher("orders", durable=True, confirm="stored")
    await orders.wait_for(stores=1, timeout=TIMEOUT)

    numbers = await asyncio.gather(*(orders.publish(number) for number in range(5000)))

    assert numbers == list(range(5000))
    assert values_in(store, "orders") == 5000
    assert len(store.log.read("orders", 0, 10**9)) < 100


async def test_flush_waits_for_the_store(fabric: MemoryFabric, make_store: MakeStore) -> None:
    """Without `confirm=`, `flush` is what waits."""
    store = await make_store()
    orders = (await fabric.open("shop")).publisher("orders", durable=True)
    await orders.wait_for(stores=1, timeout=TIMEOUT)

    await orders.publish_many(range(100_000))
    await orders.flush()

    assert values_in(store, "orders") == 100_000


async def test_without_a_store_it_says_so_at_once(fabric: MemoryFabric) -> None:
    """Every way of publishing raises, and nothing is published."""
    orders = (await fabric.open("shop")).publisher("orders", durable=True)

    for publish in (orders.publish, orders.publish_many):
        with pytest.raises(NotStored, match="zfabric store run"):
            await publish([1])
    with pytest.raises(NotStored):
        orders.publish_nowait(1)
    await orders.flush()  # nothing was published


async def test_a_store_in_sight_is_waited_for(fabric: MemoryFabric, make_store: MakeStore) -> None:
    """A node that knows a store of the topic need not wait for it with each publisher."""
    store = await make_store(topics=["orders.#"])
    shop = await fabric.open("shop")
    first = shop.publisher("orders.first", durable=True, confirm="stored")
    await first.wait_for(stores=1, timeout=30)

    await shop.publisher("orders.second", durable=True, confirm="stored").publish(2)
    assert values_in(store, "orders.second") == 1
    with pytest.raises(NotStored, match="zfabric store run"):
        await shop.publisher("letters", durable=True).publish(3)


async def test_without_a_store_it_may_buffer(fabric: MemoryFabric, make_store: MakeStore) -> None:
    """The window takes messages until it is full; a store that comes gets all of them."""
    node = await fabric.open("shop", config=Config(batch_bytes=1000))
    orders = node.publisher("orders", durable=True, without_store="buffer", window_bytes=10_000)
    sent = 0
    with suppress(WindowFull):
        while sent < 1000:
            orders.publish_nowait(bytes(100))
            sent += 1
    waiting = asyncio.create_task(orders.publish(bytes(100)))

    store = await make_store()
    await waiting
    await orders.flush()

    assert 50 < sent < 1000
    assert values_in(store, "orders") == sent + 1


async def test_a_store_keeps_what_it_was_told_to(fabric: MemoryFabric, make_store: MakeStore) -> None:
    """Only durable topics, only those that match, and nothing else reaches it at all."""
    store = await make_store(topics=("orders.#",))
    node = await fabric.open("shop")
    kept = node.publisher("orders.eu", durable=True, confirm="stored")
    await kept.wait_for(stores=1, timeout=TIMEOUT)
    other = node.publisher("invoices", durable=True)
    loud = node.publisher("orders.chatter", delivery="at-least-once")
    for number in range(100):
        loud.publish_nowait(number)
        await kept.publish(number)

    assert [info.name for info in store.log.streams()] == ["orders.eu"]
    assert store.node.statistics().batches_received == 100
    with pytest.raises(NotStored):
        await other.publish(1)


async def test_stores_are_no_subscribers(fabric: MemoryFabric, make_store: MakeStore) -> None:
    """`subscribers` counts who reads; peers show who stores what."""
    await make_store(topics=("orders", "invoices"))
    node = await fabric.open("shop")
    orders = node.publisher("orders", durable=True)
    await orders.wait_for(stores=1, timeout=TIMEOUT)

    assert (orders.subscribers, orders.stores) == (0, 1)
    (peer,) = node.peers
    assert (peer.patterns, peer.stores, peer.name) == ((), ("orders", "invoices"), "store")


async def test_a_store_that_restarts_is_waited_for(fabric: MemoryFabric, make_store: MakeStore, tmp_path: Path) -> None:
    """What is published meanwhile is stored, once, by the next one."""
    first = await make_store(str(tmp_path / "data"))
    orders = (await fabric.open("shop")).publisher("orders", durable=True, confirm="stored")
    await orders.wait_for(stores=1, timeout=TIMEOUT)
    await orders.publish_many(range(1000))
    fabric.crash(first.node)
    await first.close()
    waiting = asyncio.gather(*(orders.publish(number) for number in range(1000)))

    second = await make_store(str(tmp_path / "data"))
    await waiting

    assert values_in(second, "orders") == 2000


async def test_a_store_that_stays_away_is_told(fabric: MemoryFabric, make_store: MakeStore) -> None:
    """After the grace who waits for it gets NotStored, and what they published waits for another one."""
    config = Config(grace_s=0.3)
    first = await make_store()
    orders = (await fabric.open("shop", config=config)).publisher("orders", durable=True, confirm="stored")
    await orders.wait_for(stores=1, timeout=TIMEOUT)
    fabric.crash(first.node)
    publishing = asyncio.ensure_future(orders.publish("late"))
    await first.close()

    with pytest.raises(NotStored, match="no store is in sight"):
        await publishing

    second = await make_store()
    await orders.wait_for(stores=1, timeout=TIMEOUT)
    await until(lambda: values_in(second, "orders") == 1)
    assert await orders.publish("next") == 1


async def test_two_stores(fabric: MemoryFabric, make_store: MakeStore) -> None:
    """The first that has a message confirms it, and the other one gets it, too."""
    one, two = await make_store(name="one"), await make_store(name="two")
    orders = (await fabric.open("shop")).publisher("orders", durable=True, confirm="stored")
    await orders.wait_for(stores=2, timeout=TIMEOUT)
    await orders.publish_many(range(10_000))
    assert max(values_in(one, "orders"), values_in(two, "orders")) == 10_000
    await until(lambda: values_in(one, "orders") == values_in(two, "orders") == 10_000)

    fabric.crash(one.node)
    await orders.publish("the other one is enough")

    assert values_in(two, "orders") == 10_001


async def test_a_store_that_joins_late_keeps_what_comes(fabric: MemoryFabric, make_store: MakeStore) -> None:
    """From where each publisher is, since what it has not any more cannot come."""
    one = await make_store(name="one")
    node = await fabric.open("shop")
    orders = node.publisher("orders", durable=True, confirm="stored", window_bytes=50_000)
    await orders.wait_for(stores=1, timeout=TIMEOUT)
    await orders.publish(0)
    two = await make_store(name="two")
    await orders.wait_for(stores=2, timeout=TIMEOUT)
    async with asyncio.timeout(TIMEOUT / 2):
        for _ in range(100):
            await orders.publish(bytes(1000))
    late = node.publisher("invoices", durable=True, confirm="stored")
    await late.wait_for(stores=2, timeout=TIMEOUT)
    await late.publish(1)

    await until(lambda: (values_in(one, "orders"), values_in(two, "orders")) == (101, 100))
    await until(lambda: values_in(one, "invoices") == values_in(two, "invoices") == 1)


async def test_an_empty_store_takes_the_place_of_another(fabric: MemoryFabric, make_store: MakeStore) -> None:
    """A publisher that has begun goes on at a store that was wiped, in strict order; it says what that one lacks."""
    first = await make_store()
    shop = await fabric.open("shop")
    events = shop.events()
    orders = shop.publisher("orders", durable=True, confirm="stored")
    await orders.wait_for(stores=1, timeout=TIMEOUT)
    await orders.publish_many(range(100))
    fabric.crash(first.node)
    await first.close()
    publishing = asyncio.ensure_future(orders.publish(100))

    second = await make_store()

    assert await asyncio.wait_for(publishing, TIMEOUT) == 100
    await orders.publish_many(range(101, 200))
    (begun, *rest) = second.log.read("orders", 0, 10**6)
    assert isinstance(begun, StoredBatch) and (begun.offset, begun.base) == (0, 100)
    assert rest[-1].next == 100
    told = await asyncio.wait_for(anext(event async for event in events if isinstance(event, StoreLacks)), TIMEOUT)
    assert (told.topic, told.first, told.last, told.count, told.elsewhere) == ("orders", 0, 99, 100, False)


async def test_waiting_in_vain_for_a_store_names_the_cure(fabric: MemoryFabric) -> None:
    """And how many there are."""
    orders = (await fabric.open("shop")).publisher("orders", durable=True)
    with pytest.raises(TimeoutError, match=r"orders: .* 0 of 1 stores after 0.05 s: .*zfabric store run"):
        await orders.wait_for(stores=1, timeout=0.05)


async def test_a_store_that_comes_late_is_known_for_what_it_lacks(
    fabric: MemoryFabric, make_store: MakeStore, tmp_path: Path
) -> None:
    """Another has it; that is said once for each log, and of a store that was away too long, of what it missed."""
    shop = await fabric.open("shop", config=Config(grace_s=0.3))
    events = shop.events()
    orders = shop.publisher("orders", durable=True, confirm="stored")
    for url, stores in (("memory:", 1), (str(tmp_path), 2)):
        store = await make_store(url, name=f"store-{stores}")
        await orders.wait_for(stores=stores, timeout=TIMEOUT)
        await orders.publish_many(range(10))
    await store.close()
    await until(lambda: orders.stores == 1, TIMEOUT)
    await orders.publish_many(range(10))
    outbox = shop._driver.core.interests.outboxes["orders"]  # type: ignore[union-attr]
    await until(lambda: len(outbox.readers) == 1, TIMEOUT)
    await make_store(str(tmp_path), name="store-2")
    await orders.wait_for(stores=2, timeout=TIMEOUT)
    await make_store("memory:", name="store-3")
    told = []
    async with asyncio.timeout(TIMEOUT):
        async for event in events:
            if isinstance(event, StoreLacks):
                told.append((event.peer.name, event.first, event.last, event.elsewhere))
            if told and told[-1][0] == "store-3":
                break

    assert [told[0], told[-1]] == [("store-2", 0, 9, True), ("store-3", 0, 29, True)]
    ((name, first, last, elsewhere),) = told[1:-1]  # as far as the publisher had heard, in what it had stored
    assert (name, last, elsewhere) == ("store-2", 29, True) and 10 <= first <= 20


async def test_stores_that_are_restarted_in_turn_lack_nothing(
    fabric: MemoryFabric, make_store: MakeStore, tmp_path: Path
) -> None:
    """Each gets what was published and confirmed by the other meanwhile, although it had said goodbye."""
    shop = await fabric.open("shop", config=Config(grace_s=600))
    events = shop.events()
    orders = shop.publisher("orders", durable=True, confirm="stored")
    outbox = shop._driver.core.interests.outboxes["orders"]  # type: ignore[union-attr]
    stores = {name: await make_store(str(tmp_path / name), name=name) for name in ("one", "two")}
    await orders.wait_for(stores=2, timeout=TIMEOUT)
    for name in ("one", "two", "one"):
        await stores[name].close()
        await until(lambda: orders.stores == 1)
        await orders.publish_many(range(100))
        stores[name] = await make_store(str(tmp_path / name), name=name)
        await until(lambda: {values_in(each, "orders") for each in stores.values()} == {outbox.base})
    await shop.close()

    assert [event async for event in events if isinstance(event, StoreLacks)] == []


async def test_a_store_that_said_goodbye_holds_nobody_up(
    fabric: MemoryFabric, make_store: MakeStore, tmp_path: Path
) -> None:
    """It is kept for as the window has room; what it lacks then is told when it comes back."""
    shop = await fabric.open("shop", config=Config(grace_s=600))
    events = shop.events()
    orders = shop.publisher("orders", durable=True, confirm="stored", window_bytes=50_000)
    await make_store(name="one")
    two = await make_store(str(tmp_path), name="two")
    await orders.wait_for(stores=2, timeout=TIMEOUT)
    await orders.publish(0)
    await until(lambda: values_in(two, "orders") == 1)
    await two.close()
    await until(lambda: orders.stores == 1)
    async with asyncio.timeout(TIMEOUT):
        for _ in range(100):
            await orders.publish(bytes(1000))
    two = await make_store(str(tmp_path), name="two")
    await orders.wait_for(stores=2, timeout=TIMEOUT)
    await orders.publish("both have this")
    told = await asyncio.wait_for(anext(event async for event in events if isinstance(event, StoreLacks)), TIMEOUT)
    await until(lambda: values_in(two, "orders") == 102 - told.count)

    assert (told.peer.name, told.last, told.elsewhere) == ("two", 100, True)


async def test_a_store_that_cannot_store_says_why(
    fabric: MemoryFabric, make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk is NotStored for who waits and for who publishes; when there is room all goes on, in order."""
    full = False
    store = await make_store()
    commit = store.log.commit

    def refuse(commits: list[Commit]) -> object:
        return [NotStored("the disk is full") for _ in commits] if full else commit(commits)

    monkeypatch.setattr(store.log, "commit", refuse)
    orders = (await fabric.open("shop")).publisher("orders", durable=True, confirm="stored")
    await orders.wait_for(stores=1, timeout=TIMEOUT)
    await orders.publish(0)
    full = True
    for attempt in range(1, 4):
        with pytest.raises(NotStored, match="the disk is full"):
            await orders.publish(attempt)
    full = False

    def goes_on() -> bool:
        with suppress(NotStored):
            orders.publish_nowait("on")
            return True
        return False

    await until(goes_on)
    await orders.flush()
    assert values_in(store, "orders") == 3  # the one that was refused while it was on its way is there, too


async def test_a_store_whose_disk_fails_confirms_nothing(
    fabric: MemoryFabric, make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`Store.wait` raises, and who waits for a confirmation goes on waiting."""
    store = await make_store()
    orders = (await fabric.open("shop")).publisher("orders", durable=True, confirm="stored")
    await orders.wait_for(stores=1, timeout=TIMEOUT)

    def fail(commits: list[Commit]) -> object:
        raise StoreFailed("fsync: Input/output error")

    monkeypatch.setattr(store.log, "commit", fail)
    waiting = asyncio.create_task(orders.publish(1))
    with pytest.raises(StoreFailed, match="Input/output"):
        await store.wait()

    assert not waiting.done()
    waiting.cancel()


async def test_keys_reach_the_log(fabric: MemoryFabric, make_store: MakeStore) -> None:
    """The last value of each key can be found, and a message without a value ends its key."""
    store = await make_store()
    stock = (await fabric.open("shop")).publisher("stock", durable=True, confirm="stored")
    await stock.wait_for(stores=1, timeout=TIMEOUT)
    for key, value in (("a", 1), ("b", 2), ("a", 3), (("x", 1), 4), ("b", None)):
        await stock.publish(value, key=key)

    assert sorted(store.log.last_per_key("stock").values()) == [2, 3]


async def test_options_that_make_no_sense(fabric: MemoryFabric) -> None:
    """Durable topics need reliable delivery, and only they can be stored."""
    node = await fabric.open("shop")
    for options in (
        {"confirm": "stored"},
        {"durable": True, "delivery": "at-most-once"},
        {"durable": True, "without_store": "hope"},
    ):
        with pytest.raises(ValueError, match=r"durable|store"):
            node.publisher("orders", **options)


async def test_acknowledging_before_the_flush_is_caught(
    fabric: MemoryFabric, make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the flush taken out of the way of the confirmation, confirmed messages are not in the log."""
    store = await make_store()
    orders = (await fabric.open("shop")).publisher("orders", durable=True, confirm="stored")
    await orders.wait_for(stores=1, timeout=TIMEOUT)

    def commit(writer: Writer, commit: Commit) -> asyncio.Future[object]:
        future: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        future.set_result([type("Early", (), {"offset": None})])
        return future

    monkeypatch.setattr(Writer, "commit", commit)
    await orders.publish(1)

    assert values_in(store, "orders") == 0
