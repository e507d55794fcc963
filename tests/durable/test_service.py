"""What a store keeps in memory for those who read it, and lets go when they go."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import apsw
import pytest

from tests.durable.conftest import MakeStore
from tests.store.support import append
from tests.waiting import wait_until_async as until
from zfabric import Config, GroupRefused, Node, NotStored, Retention, StoreDamaged
from zfabric.errors import StoreLocked
from zfabric.node.storeclient import StoreClient
from zfabric.protocol.peers import PeerRecord
from zfabric.store import Commit, PositionUpdate, Store, open_log
from zfabric.store import node as node_module
from zfabric.store import service as service_module
from zfabric.store.memory import MemoryLog
from zfabric.store.records import FORGOT_MARKS
from zfabric.store.service import StoreService
from zfabric.store.sqlite import SqliteLog
from zfabric.testing import MemoryFabric
from zfabric.wire.store_records import AskStreams, NamedPosition, Read, ReadStop

TIMEOUT = 30.0


async def service_of(store: Store, reader: Node) -> tuple[StoreService, PeerRecord]:
    """The store's side, and the reader as it knows it."""
    driver = store.node._driver
    assert driver is not None and store._service is not None
    peers = driver.core.peers.known
    await until(lambda: bytes.fromhex(reader.id) in peers)
    return store._service, peers[bytes.fromhex(reader.id)]


async def test_a_reading_that_is_stopped_at_once_leaves_nothing(fabric: MemoryFabric, make_store: MakeStore) -> None:
    """Also if it ends before it has begun: else the newest batches of its topic were kept for nobody."""
    store, reader = await make_store(), await fabric.open("reader")
    service, peer = await service_of(store, reader)

    service.records[Read](peer, Read(1, "orders", "earliest"), 0.0)
    service.records[ReadStop](peer, ReadStop(1), 0.0)

    await until(lambda: not service._tails)


async def test_watches_are_bounded(fabric: MemoryFabric, make_store: MakeStore) -> None:
    """A peer watches as many patterns as it may read streams; the rest is not answered, and it leaves nothing."""
    store = await make_store(config=Config(store_readings_per_peer_max=3))
    reader = await fabric.open("reader")
    service, peer = await service_of(store, reader)

    for number in range(10):
        service.records[AskStreams](peer, AskStreams(number, "orders.#"), 0.0)

    assert len(service._watches[peer.id]) == 3
    service.records[ReadStop](peer, ReadStop(1), 0.0)
    service.records[AskStreams](peer, AskStreams(11, "orders.#"), 0.0)
    assert set(service._watches[peer.id]) == {0, 2, 11}
    await reader.close()
    await until(lambda: peer.id not in service._watches)


def damage_positions(store: Store) -> None:
    """Let no named value of its log be what was written, as if bits had flipped in the head."""
    assert isinstance(store.log, SqliteLog)
    connection = apsw.Connection(str(store.log._head.path))
    connection.execute("UPDATE positions SET crc = crc + 1")
    connection.close()


async def test_what_a_damaged_log_cannot_tell_is_an_error(
    fabric: MemoryFabric, make_store: MakeStore, tmp_path: Path
) -> None:
    """Whoever asks for a schedule, joins a group or pushes a job hears at once that the store's files are damaged."""
    store, node = (
        await make_store(str(tmp_path / "data")),
        await fabric.open("node", config=Config(close_timeout_s=0.1)),
    )
    await node.schedule("nightly", queue="jobs", every=100_000, timeout=TIMEOUT)
    store.log.commit([Commit(positions=[PositionUpdate(name, b"") for name in ("group/billing", "$queue/bills")])])
    damage_positions(store)

    with pytest.raises(StoreDamaged, match="checksum"):
        await node.schedules(timeout=TIMEOUT)
    with pytest.raises(StoreDamaged, match="checksum"):
        await node.schedule("nightly", queue="jobs", every=5, timeout=TIMEOUT)
    with pytest.raises(GroupRefused, match="checksum"):
        await node.subscribe("orders", group="billing").receive(TIMEOUT)
    with pytest.raises(NotStored, match="checksum"):
        await asyncio.wait_for(node.pusher("bills", durable=True, max_attempts=7).push("job"), TIMEOUT)
    orders = node.publisher("orders", durable=True, confirm="stored")
    await orders.wait_for(stores=1, timeout=TIMEOUT)
    await asyncio.wait_for(orders.publish("what is not damaged goes on"), TIMEOUT)


async def test_more_positions_than_fit_a_frame_are_an_error(fabric: MemoryFabric, make_store: MakeStore) -> None:
    """A longer prefix is the cure."""
    store, node = await make_store(), await fabric.open("node", config=Config(frame_bytes_max=100_000))
    values = [PositionUpdate(f"{letter}{number}", bytes(1000)) for letter in "ab" for number in range(60)]
    store.log.commit([Commit(positions=values)])
    client = StoreClient(node._driver)  # type: ignore[arg-type]
    known = await client.wait_for(lambda: node._driver.core.stores.keeping("orders"), TIMEOUT)  # type: ignore[union-attr]

    with pytest.raises(StoreDamaged, match="longer prefix"):
        await client.positions(known, "")
    assert len(await client.positions(known, "b")) == 60


async def test_the_names_of_the_log_itself_are_not_for_peers(fabric: MemoryFabric, make_store: MakeStore) -> None:
    """One of them says that the log forgot producers: it would refuse all that begin in the middle. Nor any others."""
    store, node = await make_store(), await fabric.open("node")
    client = StoreClient(node._driver)  # type: ignore[arg-type]
    known = await client.wait_for(lambda: node._driver.core.stores.keeping("orders"), TIMEOUT)  # type: ignore[union-attr]
    for name in (FORGOT_MARKS, "group/billing", "$queue/jobs", "mine"):
        with pytest.raises(NotStored, match="belong to"):
            await client.write(known, positions=[NamedPosition(name, b"")])

    assert list(store.log.positions()) == []


async def test_any_key_is_stored(fabric: MemoryFabric, make_store: MakeStore) -> None:
    """Also maps whose own keys are no strings."""
    store, node = await make_store(), await fabric.open("node")
    orders = node.publisher("orders", durable=True, confirm="stored")
    await orders.wait_for(stores=1, timeout=TIMEOUT)
    for key in ({1: "one", "two": 2}, {"b": 1, "a": 2}, {"a": 2, "b": 1}, (1, 2)):
        await asyncio.wait_for(orders.publish("value", key=key), TIMEOUT)

    assert len(store.log.last_per_key("orders")) == 3


@pytest.mark.parametrize("failing", ["read", "enforce", "positions"])
async def test_a_log_may_fail_in_any_way(
    fabric: MemoryFabric, make_store: MakeStore, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    """Engines are others' code: what fails once is tried again, or told, and everything else goes on."""
    monkeypatch.setattr(service_module, "TIDY_S", 0.01)
    store, node = await make_store(retention=Retention(messages=5)), await fabric.open("node")
    orders = node.publisher("orders", durable=True, confirm="stored")
    await orders.wait_for(stores=1, timeout=TIMEOUT)
    member = node.subscribe("orders", group="billing", start="earliest")
    await member.wait_for(timeout=TIMEOUT)
    works, failures = getattr(store.log, failing), iter(range(1))

    def fails_first(*arguments: Any) -> Any:
        if next(failures, None) is not None:
            raise KeyError("an engine of somebody")
        return works(*arguments)

    monkeypatch.setattr(store.log, failing, fails_first)
    if failing == "positions":
        with pytest.raises(StoreDamaged, match="KeyError"):
            await node.schedules(timeout=TIMEOUT)
    for number in range(20):
        await asyncio.wait_for(orders.publish(number), TIMEOUT)

    while (await member.receive(TIMEOUT)).value < 19:
        pass
    await until(lambda: store.log.info("orders").first == 15, TIMEOUT)  # type: ignore[union-attr]


async def test_readers_do_not_wait_for_threads_of_others(fabric: MemoryFabric, make_store: MakeStore) -> None:
    """Whatever the program that a store lives in has at work in threads."""
    await make_store()
    node = await fabric.open("node")
    orders = node.publisher("orders", durable=True, confirm="stored")
    await orders.wait_for(stores=1, timeout=TIMEOUT)
    await orders.publish("stored")
    go = threading.Event()
    busy = [asyncio.create_task(asyncio.to_thread(go.wait)) for _ in range(40)]
    try:
        assert (await node.subscribe("orders", start="earliest").receive(TIMEOUT)).value == "stored"
    finally:
        go.set()
        await asyncio.gather(*busy)


async def test_a_store_reads_in_a_bounded_number_of_threads(fabric: MemoryFabric, make_store: MakeStore) -> None:
    """`Config.store_threads_max`."""
    store, node = await make_store(config=Config(store_threads_max=2)), await fabric.open("node")
    orders = [node.publisher(f"orders.{number}", durable=True, confirm="stored") for number in range(5)]
    for publisher in orders:
        await publisher.wait_for(stores=1, timeout=TIMEOUT)
        await publisher.publish("stored")
    readers = [node.subscribe(f"orders.{number}", start="earliest") for number in range(5)]
    for reader in readers:
        await reader.receive(TIMEOUT)

    assert 1 <= len(store._threads._threads) <= 2


async def test_opening_that_is_given_up_leaves_nothing(
    fabric: MemoryFabric, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The directory is free for the next one as soon as the log has opened that nobody waits for."""
    go, opened = threading.Event(), threading.Event()
    works = open_log

    def slow(*arguments: Any, **options: Any) -> Any:
        go.wait(TIMEOUT)
        log = works(*arguments, **options)
        opened.set()
        return log

    monkeypatch.setattr(node_module, "open_log", slow)
    store = Store(str(tmp_path / "data"), node=fabric.node("store"))
    opening = asyncio.create_task(store.open())
    await asyncio.sleep(0)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    go.set()
    await until(opened.is_set)
    monkeypatch.undo()
    log = await until_opened(tmp_path / "data")
    log.close()


async def until_opened(path: Path) -> SqliteLog:
    """The log of a directory, as soon as nobody else has it."""

    def attempt() -> SqliteLog | None:
        try:
            return SqliteLog(path)
        except StoreLocked:
            return None

    log = await until(attempt)
    assert log is not None
    return log


async def test_a_store_that_is_told_twice_to_end_ends(fabric: MemoryFabric, tmp_path: Path) -> None:
    """Cancelled while it closes, as by a second Ctrl-C: the log is let go, and closing it again is no error."""
    store = Store(str(tmp_path / "data"), node=fabric.node("store"))
    await store.open()
    closing = asyncio.create_task(store.close())
    await asyncio.sleep(0)
    closing.cancel()
    with suppress(asyncio.CancelledError):
        await closing
    (await until_opened(tmp_path / "data")).close()
    await store.close()


async def test_a_store_has_the_limits_of_its_node(fabric: MemoryFabric) -> None:
    """Where it is given one and nothing else."""
    async with Store("memory:", node=fabric.node("store", config=Config(store_streams_max=1))) as store:
        assert [
            isinstance(each, NotStored) for each in store.log.commit([Commit((append("a", 0), append("b", 0)))])
        ] == [True]


async def test_how_long_ago_is_told_by_the_clock_of_the_log(fabric: MemoryFabric, make_store: MakeStore) -> None:
    """Not by that of its host, which may have been set since the store opened."""
    store, node = await make_store(), await fabric.open("node")
    assert isinstance(store.log, MemoryLog)
    store.log._clock._behind -= 3600 * 10**9  # the host's was set an hour ahead
    orders = node.publisher("orders", durable=True, confirm="stored")
    await orders.wait_for(stores=1, timeout=TIMEOUT)
    await orders.publish("just now")
    start = timedelta(minutes=5)

    assert (await node.subscribe("orders", start=start).receive(TIMEOUT)).value == "just now"
    assert (await node.subscribe("orders", group="billing", start=start).receive(TIMEOUT)).value == "just now"


async def test_what_a_dead_publisher_left_on_its_way_to_the_disk_is_heard_of(
    fabric: MemoryFabric, make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A topic that nobody offers any more is let go when all of it is stored, and those who read it know."""
    monkeypatch.setattr(service_module, "TIDY_S", 0.01)
    config = Config(heartbeat_interval_s=0.1, peer_timeout_s=1.0, close_timeout_s=0.2)
    store = await make_store(config=config)
    reader, shop = await fabric.open("reader", config=config), await fabric.open("shop", config=config)
    orders = shop.publisher("orders", durable=True, confirm="stored")
    await orders.wait_for(stores=1, timeout=TIMEOUT)
    await orders.publish("first")
    member = reader.subscribe("orders", group="billing", start="earliest")
    await member.receive(TIMEOUT)
    commit, go, begun = store.log.commit, threading.Event(), threading.Event()

    def slow(commits: Any) -> Any:
        begun.set()
        go.wait(TIMEOUT)
        return commit(commits)

    monkeypatch.setattr(store.log, "commit", slow)
    orders.publish_nowait("last")
    assert store._service is not None
    keeper = store._service._keepers["orders"]
    await until(lambda: keeper.busy and begun.is_set())
    fabric.crash(shop)
    remote = store.node._driver.core.interests.remote  # type: ignore[union-attr]
    await until(lambda: not any(each.topics for each in remote.values()))
    topics = Mock(wraps=store.log.streams)
    monkeypatch.setattr(store.log, "streams", topics)
    await until(lambda: topics.call_count > 3)  # it has looked what is to be let go
    go.set()

    while (await member.receive(TIMEOUT)).value != "last":
        pass
    await until(lambda: "orders" not in store._service._keepers)  # type: ignore[union-attr]


async def test_a_topic_that_a_store_has_no_room_for_is_told(
    fabric: MemoryFabric, make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its publisher hears which limit it is, whether it was there first or comes late; others go on, and make room."""
    monkeypatch.setattr(service_module, "TIDY_S", 0.01)
    early = await fabric.open("early")
    topics = [early.publisher(f"topic.{number}", durable=True, confirm="stored") for number in range(4)]
    store = await make_store(config=Config(patterns_max=3))
    for topic in topics[:3]:
        await topic.wait_for(stores=1, timeout=TIMEOUT)
        await asyncio.wait_for(topic.publish("stored"), TIMEOUT)
    late = await fabric.open("late")
    other = late.publisher("other", durable=True, confirm="stored")

    for topic in (topics[3], other):
        keeping = topic._outbox.keeping
        await until(lambda keeping=keeping: "patterns_max" in keeping.trouble)  # type: ignore[misc]
        with pytest.raises(TimeoutError, match="patterns_max = 3"):
            await topic.wait_for(stores=1, timeout=0.1)
        with pytest.raises(NotStored, match="patterns_max = 3"):
            await topic.publish("for nobody")
    await topics[0].close()
    await topics[1].close()

    for topic in (topics[3], other):
        await topic.wait_for(stores=1, timeout=TIMEOUT)
        await asyncio.wait_for(topic.publish("stored"), TIMEOUT)
    assert len(store.log.streams()) == 5
