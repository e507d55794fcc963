"""A store that runs bounds what it keeps."""

from __future__ import annotations

import uuid

import pytest

from tests.waiting import wait_until_async
from zfabric import Config, Gap, Node
from zfabric.store import Retention, Store

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
            await publisher.wait_for(stores=1, timeout=10)
            for number in range(30):
                await publisher.publish(number)

        await wait_until_async(lambda: any(known.first == 20 for known in store.log.streams()))
        assert {known.name: known.first for known in store.log.streams()} == {"audit": 0, "orders": 20}
        events = node.events()
        async with node.subscribe("orders", start="earliest") as orders:
            assert [(await orders.receive(timeout=10)).value for _ in range(10)] == list(range(20, 30))
        events.close()
        assert [event async for event in events if isinstance(event, Gap)] == []
