"""A publisher's own file: what no store confirmed outlives the process, and is resent as what it was."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import apsw
import pytest

from tests.durable.conftest import MakeStore
from tests.waiting import wait_until_async as until
from zfabric import Config, Event, LocalProtocolError, Node, NotStored, StoreLacks, Undelivered, WindowFull
from zfabric.node.outboxfile import OutboxFile
from zfabric.store import Append, Commit, PositionUpdate, Store, StoredBatch, rules
from zfabric.store.records import FORGOT_MARKS
from zfabric.store.sqlite import SqliteLog
from zfabric.testing import MemoryFabric
from zfabric.wire.batch import BatchWriter

TIMEOUT = 30.0
CONFIG = Config(grace_s=0.3)


def stored(store: Store, topic: str = "orders") -> int:
    """How many messages a store has."""
    info = store.log.info(topic)
    return 0 if info is None else info.next


async def test_what_was_not_stored_is_resent(fabric: MemoryFabric, make_store: MakeStore, tmp_path: Path) -> None:
    """By the next process with the file, before its own messages, as what it was; then it is forgotten."""
    path = tmp_path / "orders.outbox"
    first = await fabric.open("shop", config=Config(close_timeout_s=0.2))
    orders = first.publisher("orders", durable=True, outbox=path, without_store="buffer")
    for number in range(5):
        await orders.publish(number)
    fabric.crash(first)
    await first.close()
    assert path.stat().st_mode & 0o777 == 0o600

    second = await fabric.open("shop")
    again = second.publisher("orders", durable=True, outbox=path, confirm="stored", without_store="buffer")
    with pytest.raises(WindowFull):
        again.publish_nowait("too early")
    waiting = asyncio.create_task(again.publish(5))
    store = await make_store()
    await waiting
    subscription = (await fabric.open("reader")).subscribe("orders", start="earliest")
    messages = [await subscription.receive(TIMEOUT) for _ in range(6)]
    await again.close()

    assert [message.value for message in messages] == list(range(6))
    assert [message.source.id for message in messages] == [first.id] * 5 + [second.id]
    assert [message.seq for message in messages] == [0, 1, 2, 3, 4, 0]
    assert stored(store) == 6
    third = OutboxFile(path, "orders", b"3" * 16)
    assert third.left() == []
    third.close()


async def test_what_had_been_stored_is_recognised(fabric: MemoryFabric, make_store: MakeStore, tmp_path: Path) -> None:
    """A confirmation that never came back costs no double."""
    path = tmp_path / "orders.outbox"
    store = await make_store()
    first = await fabric.open("shop")
    orders = first.publisher("orders", durable=True, outbox=path)
    await orders.wait_for(stores=1, timeout=TIMEOUT)
    file = first._topics["orders"]._file
    assert file is not None and first._driver is not None
    first._driver.files.clear()  # it neither writes nor hears of confirmations
    for number in range(20):
        await orders.publish(number)
    await orders.flush()
    for batch in store.log.read("orders", 0, 10**6):
        assert isinstance(batch, StoredBatch)
        file.keep(batch.epoch, batch.base, batch.base + batch.count, batch.frames)
    fabric.crash(first)
    await first.close()

    second = await fabric.open("shop")
    again = second.publisher("orders", durable=True, outbox=path, confirm="stored")
    await again.wait_for(stores=1, timeout=TIMEOUT)
    await again.publish(20)

    assert stored(store) == 21


def leave(path: Path, producer: bytes, *numbers: int) -> None:
    """An outbox with these messages of an earlier process in it, each a batch; all before them was confirmed."""
    file = OutboxFile(path, "orders", producer)
    for number in numbers:
        writer = BatchWriter("orders", producer, 1)
        writer.buffer += bytes([number])
        writer.count = 1
        file.keep(1, number, number + 1, writer.seal(number, 1))
    file.close()


class Shop:
    """A publisher that finds an outbox, and hears what became of what was in it."""

    def __init__(self, node: Node, path: Path) -> None:
        self.told: list[Undelivered | StoreLacks] = []
        self._node = node
        self._listening = asyncio.create_task(self._listen(node.events()))
        self.orders = node.publisher("orders", durable=True, outbox=path, confirm="stored", without_store="buffer")

    async def _listen(self, events: AsyncIterator[Event]) -> None:
        self.told += [event async for event in events if isinstance(event, Undelivered | StoreLacks)]

    async def publish(self) -> None:
        """Publish a message, which is stored after what was left; then close."""
        await asyncio.wait_for(self.orders.publish(99), TIMEOUT)
        await self._node.close()
        await self._listening


def numbers_in(store: Store, producer: bytes = b"1" * 16) -> list[int]:
    """The numbers of the batches that a store has of a producer."""
    batches = store.log.read("orders", 0, 10**6)
    return [batch.base for batch in batches if isinstance(batch, StoredBatch) and batch.producer == producer]


async def test_another_log_gets_what_is_left(fabric: MemoryFabric, make_store: MakeStore, tmp_path: Path) -> None:
    """What it lacks of what was confirmed before is told; nothing that was not confirmed is lost, or stands twice."""
    path = tmp_path / "orders.outbox"
    leave(path, b"1" * 16, 10, 11, 12)
    leave(path, b"2" * 16, 5, 6)
    leave(path, b"3" * 16, 0, 1)
    store = await make_store()
    shop = Shop(await fabric.open("shop", config=CONFIG), path)
    await shop.publish()

    assert [numbers_in(store, digit * 16) for digit in (b"1", b"2", b"3")] == [[10, 11, 12], [5, 6], [0, 1]]
    assert stored(store) == 8
    assert [(type(event), event.first, event.last) for event in shop.told] == [(StoreLacks, 0, 9), (StoreLacks, 0, 4)]
    leave(path, b"1" * 16, 11, 12)
    shop = Shop(await fabric.open("again", config=CONFIG), path)
    await shop.publish()
    assert (stored(store), shop.told) == (9, [])


@pytest.mark.parametrize("late", [False, True])
async def test_the_log_that_had_the_rest_gets_it(
    fabric: MemoryFabric, make_store: MakeStore, tmp_path: Path, *, late: bool
) -> None:
    """Among several stores, and if it comes within the grace: what belongs together stays together."""
    logs = [SqliteLog(tmp_path / name, create=True) for name in "ab"]
    empty, known = sorted(logs, key=lambda log: log.id)  # who is asked first is empty
    before = Append(stream="orders", producer=b"1" * 16, epoch=1, base=0, count=10, published_ns=1, frames=(b"x",))
    known.commit([Commit((before,))])
    paths = [str(log._directory.path) for log in (empty, known)]
    for log in logs:
        log.close()
    path = tmp_path / "orders.outbox"
    leave(path, b"1" * 16, 10, 11, 12)
    other = await make_store(paths[0], name="other")
    if not late:
        store = await make_store(paths[1])
    shop = Shop(await fabric.open("shop", config=Config(grace_s=60)), path)
    await shop.orders.wait_for(stores=1, timeout=TIMEOUT)
    if late:
        store = await make_store(paths[1])
    await shop.publish()

    assert (numbers_in(store), numbers_in(other)) == ([0, 10, 11, 12], [])
    assert shop.told == []


async def resend_what_nobody_may_store(
    fabric: MemoryFabric, make_store: MakeStore, path: Path
) -> tuple[list[tuple[int, str]], int]:
    """Resend batches of a fenced producer, and of one that the log may have forgotten; what is told, and its count."""
    store = await make_store(str(path.with_name("data")))
    fenced = b"f" * 16
    newer = Append(stream="orders", producer=fenced, epoch=9, base=0, count=1, published_ns=1, frames=(b"x",))
    store.log.commit([Commit((newer,), [PositionUpdate(FORGOT_MARKS, b"")])])
    leave(path, fenced, 0)
    leave(path, b"u" * 16, 10)
    shop = Shop(await fabric.open("shop", config=CONFIG), path)
    await shop.publish()
    return [
        (event.first, event.reason.split(" ")[-1]) for event in shop.told if isinstance(event, Undelivered)
    ], stored(store)


async def test_what_cannot_be_stored_any_more_is_told(
    fabric: MemoryFabric, make_store: MakeStore, tmp_path: Path
) -> None:
    """A producer that was fenced, or that the log may have known and forgotten, is Undelivered."""
    told, count = await resend_what_nobody_may_store(fabric, make_store, tmp_path / "orders.outbox")

    assert told == [(0, "9"), (10, "next")]
    assert count == 2


async def test_without_fencing_it_is_caught(
    fabric: MemoryFabric, make_store: MakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A log that does not look at epochs and numbers takes both."""
    monkeypatch.setattr(rules, "_is_new", lambda append, mark: True)
    told, count = await resend_what_nobody_may_store(fabric, make_store, tmp_path / "orders.outbox")

    assert (told, count) == ([], 4)


async def test_a_file_that_forgets_nothing_is_resent_once(
    fabric: MemoryFabric, make_store: MakeStore, tmp_path: Path
) -> None:
    """Its disk is full, say: what a store has by now is not resent for ever."""
    path = tmp_path / "orders.outbox"
    leave(path, b"1" * 16, 0, 1)
    connection = apsw.Connection(str(path))
    connection.execute("CREATE TRIGGER full BEFORE DELETE ON batches BEGIN SELECT RAISE(ABORT, 'full'); END")
    connection.close()
    store = await make_store()
    shop = Shop(await fabric.open("shop", config=CONFIG), path)
    await shop.publish()

    assert stored(store) == 3


async def test_a_file_belongs_to_one_topic_and_one_process(fabric: MemoryFabric, tmp_path: Path) -> None:
    """Others are refused, with a reason."""
    path = tmp_path / "orders.outbox"
    node = await fabric.open("shop")
    node.publisher("orders", durable=True, outbox=path)
    other = await fabric.open("other")
    with pytest.raises(LocalProtocolError, match="another process"):
        other.publisher("orders", durable=True, outbox=path)
    await node.close()
    with pytest.raises(LocalProtocolError, match="that of 'orders'"):
        other.publisher("invoices", durable=True, outbox=path)
    (tmp_path / "letter").write_text("dear\n" * 1000)
    with pytest.raises(LocalProtocolError, match="is no outbox"):
        other.publisher("invoices", durable=True, outbox=tmp_path / "letter")
    with pytest.raises(ValueError, match="durable"):
        other.publisher("invoices", outbox=path)
    other.publisher("orders", durable=True, outbox=path)


async def test_a_file_that_cannot_be_written_stops_the_publisher(
    fabric: MemoryFabric, make_store: MakeStore, tmp_path: Path
) -> None:
    """Nothing is published that would not survive."""
    await make_store()
    node = await fabric.open("shop")
    orders = node.publisher("orders", durable=True, outbox=tmp_path / "orders.outbox", confirm="stored")
    await orders.wait_for(stores=1, timeout=TIMEOUT)
    await orders.publish(1)
    file = node._topics["orders"]._file
    assert file is not None
    await until(lambda: file._forgotten == 1)  # later than the turn that confirmed it: in that one nobody is overlooked
    file._connection.execute("DROP TABLE batches")

    with pytest.raises(NotStored, match="cannot be written"):
        await orders.publish(2)
    with pytest.raises(NotStored, match="cannot be written"):
        orders.publish_nowait(3)
    await until(lambda: bool(file.failure))
