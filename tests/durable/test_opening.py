"""Stores that cannot open, or are not open."""

from __future__ import annotations

import asyncio
import threading

import pytest

from zfabric import LocalProtocolError, StoreFailed
from zfabric.node.driver import Driver
from zfabric.store import Store
from zfabric.testing import MemoryFabric

TIMEOUT = 30.0


async def test_a_store_whose_node_cannot_open_leaves_nothing(
    fabric: MemoryFabric, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No task, no thread, and the log is closed; closing it changes nothing."""

    def refuse(*_: object) -> None:
        raise OSError("no such address")

    monkeypatch.setattr(Driver, "open", refuse)
    store, before = Store("memory:", node=fabric.node("store")), asyncio.all_tasks()

    with pytest.raises(OSError, match="no such address"):
        await store.open()

    assert asyncio.all_tasks() == before
    assert not [thread for thread in threading.enumerate() if "store-writer" in thread.name]
    with pytest.raises(StoreFailed):
        store.log.commit([])
    await store.close()


async def test_a_store_that_is_not_open_says_what_to_do(fabric: MemoryFabric) -> None:
    """Waiting for it is refused, closing it is nothing, and it opens once."""
    store = Store("memory:", node=fabric.node("store"))
    with pytest.raises(LocalProtocolError, match="open the store first"):
        await store.wait()
    await store.close()

    await store.open()
    with pytest.raises(LocalProtocolError, match="opens once"):
        await store.open()
    await store.close()


async def test_what_stores_are_asked_for_is_checked_first(fabric: MemoryFabric) -> None:
    """A record that a store refuses blocks all that comes after it; and one topic is not its letters."""
    async with Store("memory:", node=fabric.node("store"), topics="orders"), fabric.node("a") as node:
        orders = node.publisher("orders", durable=True, confirm="stored")
        await orders.wait_for(stores=1, timeout=TIMEOUT)
        await orders.publish(1)
        for before, error in ((-1, ValueError), (1.5, TypeError), (2**70, ValueError)):
            with pytest.raises(error):
                await node.stores.purge("orders", before=before)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="UTF-8"):
            await node.schedule("caf\udce9", queue="jobs", every=1)
        with pytest.raises(ValueError, match="at most"):
            await node.groups.seek("group", 2**70)
        (stored,) = await node.stores.topics(timeout=TIMEOUT)
        assert (stored.topic, stored.next) == ("orders", 1)
