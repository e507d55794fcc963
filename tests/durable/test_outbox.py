"""A publisher's own file: what no store confirmed outlives the process, and is resent as what it was."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.durable.conftest import MakeStore
from tests.waiting import wait_until_async as until
from zfabric import Config, LocalProtocolError, NotStored, Undelivered, WindowFull
from zfabric.node.outboxfile import OutboxFile
from zfabric.store import Append, Commit, Store, StoredBatch, rules
from zfabric.testing import MemoryFabric
from zfabric.wire.batch import BatchWriter

TIMEOUT = 30.0


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


async def resend_what_nobody_may_store(
    fabric: MemoryFabric, make_store: MakeStore, path: Path
) -> tuple[list[tuple[int, str]], int]:
    """Resend batches of a fenced and of an unknown producer; returns what is told, and how many messages are stored."""
    store = await make_store()
    fenced, unknown = b"f" * 16, b"u" * 16
    newer = Append(stream="orders", producer=fenced, epoch=9, base=0, count=1, published_ns=1, frames=(b"x",))
    store.log.commit([Commit((newer,))])
    for producer, base in ((fenced, 0), (unknown, 10)):
        file = OutboxFile(path, "orders", producer)
        writer = BatchWriter("orders", producer, 1)
        writer.buffer += b"\x01"
        writer.count = 1
        file.keep(1, base, base + 1, writer.seal(base, 1))
        file.close()
    node = await fabric.open("shop")
    events = node.events()
    told: list[tuple[int, str]] = []

    async def listen() -> None:
        refused = [event async for event in events if isinstance(event, Undelivered)]
        told.extend((event.first, event.reason.split(" ")[-1]) for event in refused)

    listening = asyncio.create_task(listen())
    orders = node.publisher("orders", durable=True, outbox=path, confirm="stored")
    await orders.wait_for(stores=1, timeout=TIMEOUT)
    await orders.publish("goes on")
    await node.close()
    await listening
    return told, stored(store)


async def test_what_cannot_be_stored_any_more_is_told(
    fabric: MemoryFabric, make_store: MakeStore, tmp_path: Path
) -> None:
    """A producer that was fenced, or that the store does not know beyond its first messages, is Undelivered."""
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
