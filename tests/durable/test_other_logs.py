"""A store that was wiped or put back from a backup while nodes run: it is another log, and everybody hears of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TypeVar

import pytest

from tests.durable.conftest import MakeStore
from tests.durable.test_queues import TIMEOUT, store_at
from tests.waiting import wait_until_async as until
from zfabric import (
    Config,
    Event,
    LogMissing,
    NotStored,
    ScheduleLost,
    StoreLacks,
    TransactionFailed,
)
from zfabric.store import Store
from zfabric.store.sqlite import SqliteLog
from zfabric.testing import MemoryFabric

CONFIG = Config(grace_s=0.3, heartbeat_interval_s=0.1, peer_timeout_s=0.5)
E = TypeVar("E", bound=Event)


async def told(events: AsyncIterator[Event], kind: type[E], count: int = 1) -> list[E]:
    """The next events of a kind."""
    found: list[E] = []
    async with asyncio.timeout(TIMEOUT):
        async for event in events:
            if isinstance(event, kind):
                found.append(event)
            if len(found) == count:
                break
    return found


async def test_a_store_that_was_put_back_is_another_log(fabric: MemoryFabric, tmp_path: Path) -> None:
    """Publishers go on behind what it lacks and say so; readers get what follows, positions of the former log wait."""
    shop, reader = await fabric.open("shop", config=CONFIG), await fabric.open("reader", config=CONFIG)
    at_shop, at_reader = shop.events(), reader.events()
    orders = shop.publisher("orders", durable=True, confirm="stored")
    async with store_at(fabric, tmp_path / "data", CONFIG) as store:
        await orders.wait_for(stores=1, timeout=TIMEOUT)
        await orders.publish_many(range(10))
        assert isinstance(store.log, SqliteLog)
        store.log.backup(tmp_path / "saved")
        await orders.publish_many(range(10, 20))
        live = reader.subscribe("orders", start="earliest")
        member = reader.subscribe("orders", group="billing", start="earliest")
        messages = [await live.receive(TIMEOUT) for _ in range(20)]
        shared = [await member.receive(TIMEOUT) for _ in range(20)]
        position = messages[-1].position
        assert position is not None
        resumed = reader.subscribe("orders", start=position)
    async with store_at(fabric, tmp_path / "saved", CONFIG) as store:
        await asyncio.wait_for(orders.publish_many(range(20, 30)), TIMEOUT)
        (lacks,) = await told(at_shop, StoreLacks)
        messages += [await live.receive(TIMEOUT) for _ in range(10)]
        missing = await told(at_reader, LogMissing, 2)
        late = reader.subscribe("orders", start="earliest")
        kept = [await late.receive(TIMEOUT) for _ in range(20)]
        await member.close()
        again = reader.subscribe("orders", group="billing", start="earliest")
        shared += [await again.receive(TIMEOUT) for _ in range(20)]

    assert [message.value for message in messages] == list(range(30))
    assert [message.value for message in kept] == [*range(10), *range(20, 30)]
    assert [message.value for message in shared] == [*range(20), *range(10), *range(20, 30)]
    assert (lacks.topic, lacks.first, lacks.last, lacks.elsewhere) == ("orders", 0, 19, False)
    assert {event.store for event in missing} == {position.store} != {store.log.id.hex()}
    assert not resumed.pending


async def test_a_store_that_was_away_for_long_goes_on_with_a_hole(
    fabric: MemoryFabric, make_store: MakeStore, tmp_path: Path
) -> None:
    """What another had confirmed meanwhile is not kept for it; that is told, and what follows is stored there too."""
    shop = await fabric.open("shop", config=CONFIG)
    events = shop.events()
    orders = shop.publisher("orders", durable=True, confirm="stored")
    await make_store(name="one", config=CONFIG)
    async with store_at(fabric, tmp_path, CONFIG) as two:
        await orders.wait_for(stores=2, timeout=TIMEOUT)
        await orders.publish_many(range(10))
        await until(lambda: stored_in(two) == 10, TIMEOUT)
    await until(lambda: orders.stores == 1, TIMEOUT)
    await orders.publish_many(range(10, 30))
    outbox = shop._driver.core.interests.outboxes["orders"]  # type: ignore[union-attr]
    await until(lambda: len(outbox.readers) == 1, TIMEOUT)
    async with store_at(fabric, tmp_path, CONFIG) as two:
        await orders.wait_for(stores=2, timeout=TIMEOUT)
        await orders.publish_many(range(30, 40))
        (lacks,) = await told(events, StoreLacks)
        await until(lambda: stored_in(two) == 20, TIMEOUT)

    assert (lacks.peer.name, lacks.first, lacks.last, lacks.elsewhere) == ("store", 10, 29, True)


def stored_in(store: Store) -> int:
    """How many orders it has."""
    info = store.log.info("orders")
    return 0 if info is None else info.next


async def test_jobs_that_went_with_their_log_are_told(fabric: MemoryFabric, make_store: MakeStore) -> None:
    """The pusher hears which they were, and its next ones go to the new log; acks of the old ones are refused."""
    store = await make_store()
    shop, worker = await fabric.open("shop", config=CONFIG), await fabric.open("worker", config=CONFIG)
    events = shop.events()
    jobs = shop.pusher("jobs", durable=True, without_store="buffer")
    await jobs.push_many(range(10))
    await jobs.push("later", delay=0.2)
    await shop.schedule("beat", queue="jobs", every=3600)
    puller = worker.puller("jobs", ack="manual")
    in_hand = await puller.receive(TIMEOUT)
    fabric.crash(store.node)
    await until(lambda: not worker.peers or all(not peer.stores for peer in worker.peers), TIMEOUT)
    with pytest.raises(NotStored, match=r"may come again|lease had ended"):
        await in_hand.ack()
    await make_store(name="second")
    await asyncio.wait_for(jobs.push_many(range(11, 14)), TIMEOUT)
    (lacks,) = await told(events, StoreLacks)
    (lost,) = await told(events, ScheduleLost)

    new = [await puller.receive(TIMEOUT) for _ in range(3)]
    assert [job.value for job in new if job.value in range(11, 14)] == [11, 12, 13]
    assert (lacks.peer.name, lacks.topic, lacks.first, lacks.last) == ("second", "jobs", 0, 10)
    assert (lost.name, lost.queue, lost.store) == ("beat", "jobs", store.log.id.hex())
    await shop.schedule("beat", queue="jobs", every=3600)
    assert [schedule.name for schedule in await shop.schedules()] == ["beat"]


async def test_a_transaction_does_not_outlive_its_log(fabric: MemoryFabric, make_store: MakeStore) -> None:
    """It fails, and the member hears that it waits; a new member of the group begins at the log that there is."""
    store = await make_store()
    node = await fabric.open("node", config=CONFIG)
    events = node.events()
    orders = node.publisher("orders", durable=True, confirm="stored")
    await orders.wait_for(stores=1, timeout=TIMEOUT)
    await orders.publish_many(range(10))
    inputs = node.subscribe("orders", group="copy", start="earliest", delivery="exactly-once")
    batch = await anext(inputs.batches())
    transaction = inputs.transaction()
    tx = await transaction.__aenter__()
    await tx.publish("copies", len(batch))
    fabric.crash(store.node)
    second = await make_store(name="second")
    await until(lambda: inputs.publishers == 0, TIMEOUT)
    with pytest.raises(TransactionFailed):
        await transaction.__aexit__(None, None, None)
    (missing,) = await told(events, LogMissing)
    await inputs.close()
    await orders.publish_many(range(10, 20))
    inputs = node.subscribe("orders", group="copy", start="earliest", delivery="exactly-once")
    batch = await anext(inputs.batches())
    async with inputs.transaction() as tx:
        await tx.publish("copies", len(batch))

    assert (missing.topic, missing.group, missing.waits) == ("orders", "copy", True)
    assert [message.value for message in batch] == list(range(10, 20))
    assert second.log.info("copies").next == 1  # type: ignore[union-attr]


async def test_a_table_and_an_outbox_at_another_log(
    fabric: MemoryFabric, make_store: MakeStore, tmp_path: Path
) -> None:
    """A table keeps what it knows and follows the new log; what an outbox has left is stored there."""
    store = await make_store()
    shop, reader = await fabric.open("shop", config=CONFIG), await fabric.open("reader", config=CONFIG)
    events = reader.events()
    limits = shop.publisher(
        "limits", durable=True, confirm="stored", outbox=tmp_path / "outbox", without_store="buffer"
    )
    await limits.wait_for(stores=1, timeout=TIMEOUT)
    await limits.publish(1, key="a")
    await limits.publish(2, key="b")
    async with reader.table("limits") as table:
        fabric.crash(store.node)
        publishing = asyncio.ensure_future(limits.publish(3, key="b"))
        second = await make_store(name="second")
        await asyncio.wait_for(publishing, TIMEOUT)
        await until(lambda: table["b"] == 3, TIMEOUT)
        await told(events, LogMissing)
        assert dict(table) == {"a": 1, "b": 3}
    assert second.log.info("limits").next == 1  # type: ignore[union-attr]
