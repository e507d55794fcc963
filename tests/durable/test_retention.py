"""A store that runs bounds what it keeps."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from tests.waiting import wait_until_async
from zfabric import Config, Gap, Node, NotStored, TopicError
from zfabric.store import Append, Commit, Retention, Store
from zfabric.store.memory import MemoryLog

FAST = Config(mdns=False)


async def test_topics_that_nothing_was_set_for_are_kept_as_the_store_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Old messages go while it runs, and readers from the beginning are told; another topic keeps its own rule."""
    monkeypatch.setattr("zfabric.store.service.TIDY_S", 0.05)
    fabric = f"retention-{uuid.uuid4().hex[:8]}"
    async with (
        Store("memory:", retention=Retention(messages=10), fabric=fabric, config=FAST) as store,
        Node("shop", fabric=fabric, config=FAST) as node,
    ):
        store.log.retain("audit", Retention(age_s=3600.0))
        for topic in ("orders", "audit"):
            publisher = node.publisher(topic, durable=True, confirm="stored")
            await publisher.wait_for(stores=1, timeout=30)
            for number in range(30):
                await publisher.publish(number)

        await wait_until_async(lambda: any(known.first == 20 for known in store.log.streams()))
        assert {known.name: known.first for known in store.log.streams()} == {"audit": 0, "orders": 20}
        events = node.events()
        async with node.subscribe("orders", start="earliest") as orders:
            assert [(await orders.receive(timeout=30)).value for _ in range(10)] == list(range(20, 30))
        events.close()
        assert [event async for event in events if isinstance(event, Gap)] == []


async def test_a_program_looks_at_topics_and_removes_from_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several answers make one list; purging removes whole batches, and readers begin with the rest."""
    monkeypatch.setattr("zfabric.store.service.TOPICS_MAX", 2)
    monkeypatch.setattr("zfabric.node.stores.TOPICS_MAX", 2)
    options: dict[str, Any] = {"fabric": f"topics-{uuid.uuid4().hex[:8]}", "config": FAST}
    kept = Retention(messages=1000)
    async with Store("memory:", **options) as store, Node("shop", **options) as node:
        for topic in ("orders.b", "orders.a", "orders.c", "offers"):
            publisher = node.publisher(topic, durable=True, confirm="stored")
            await publisher.wait_for(stores=1, timeout=30)
            await publisher.publish_many(range(10))
            await publisher.publish(10)
        await node.pusher("orders.jobs", durable=True).push("a job")
        store.log.retain("orders.a", kept)

        every = await node.stores.topics()
        some = await node.stores.topics("orders.*")
        (trimmed,) = await node.stores.purge("orders.a", before=10)
        (purged,) = await node.stores.purge("orders.b")
        async with node.subscribe("orders.a", start="earliest") as orders:
            assert (await orders.receive(timeout=30)).value == 10
        for refused in ("orders.d", "$queue.orders.jobs"):
            with pytest.raises((NotStored, TopicError)):
                await node.stores.purge(refused)
        async with Store("memory:", name="second", topics=("orders.a",), **options) as second:
            orders_a = node.publisher("orders.a", durable=True, confirm="stored")
            await orders_a.wait_for(stores=2, timeout=30)
            await orders_a.publish(11)
            await wait_until_async(lambda: second.log.info("orders.a") is not None)
            with pytest.raises(ValueError, match=second.log.id.hex()):
                await node.stores.purge("orders.a", before=10)
            (there,) = await node.stores.purge("orders.a", store=second.log.id.hex())

    assert [each.topic for each in every] == ["offers", "orders.a", "orders.b", "orders.c"]
    assert [(each.topic, each.first, each.next, each.retention == kept) for each in some] == [
        ("orders.a", 0, 11, True), ("orders.b", 0, 11, False), ("orders.c", 0, 11, False)
    ]  # fmt: skip
    assert all(each.bytes > 0 and each.store == store.log.id.hex() for each in every)
    assert (trimmed.first, trimmed.next, trimmed.retention) == (10, 11, kept)
    assert (purged.first, purged.next, there.store) == (11, 11, second.log.id.hex())


async def test_retention_goes_on_after_the_disk_refused_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a file of the log did to its reader: it is looked at again, and told in the program's log."""
    monkeypatch.setattr("zfabric.store.service.TIDY_S", 0.02)
    enforce, refused = MemoryLog.enforce, list[MemoryLog]()

    def refuse_once(log: MemoryLog) -> None:
        if not refused:
            refused.append(log)
            raise FileNotFoundError("pack-00000002.db")
        enforce(log)

    monkeypatch.setattr(MemoryLog, "enforce", refuse_once)
    async with Store(
        "memory:", retention=Retention(messages=1), fabric=f"retention-{uuid.uuid4().hex[:8]}", config=FAST
    ) as store:
        await wait_until_async(lambda: refused)
        frames = [bytes(10)]
        appends = [
            Append(stream="t", producer=bytes(16), epoch=1, base=at, count=1, published_ns=0, frames=frames)
            for at in range(3)
        ]
        store.log.commit([Commit(appends)])

        await wait_until_async(lambda: store.log.streams()[0].first == 2)
