"""A topic as a table."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

import zfabric
from tests.node.test_groups import FAST
from tests.waiting import wait_until_async
from zfabric import Node
from zfabric.store import Store


async def test_a_table_has_what_the_store_has_and_follows(runtime_dir: Any) -> None:
    """Last values only, deletions, changes to watch; another process goes on from a snapshot."""
    options: dict[str, Any] = {"fabric": f"tables-{uuid.uuid4().hex[:8]}", "config": FAST}
    async with Store("memory:", **options), Node("admin", **options) as admin, Node("reader", **options) as reader:
        config = admin.publisher("config", durable=True, confirm="stored")
        await config.wait_for(stores=1, timeout=30)
        for number in range(3):
            for key in ("a", "b", "c"):
                await config.publish(f"{key}{number}", key=key)
        await config.publish(None, key="b")

        async with reader.table("config", timeout=10) as table:
            assert dict(table) == {"a": "a2", "c": "c2"}
            assert (table["a"], table.get("b"), len(table)) == ("a2", None, 2)
            snapshot = table.snapshot()
            watch = table.watch()  # from here on, whenever it is read
            await config.publish("d0", key="d")
            await config.publish(None, key="a")
            await wait_until_async(lambda: dict(table) == {"c": "c2", "d": "d0"}, 30)

        assert [change async for change in watch] == [zfabric.Change("d", "d0"), zfabric.Change("a", None)]
        assert snapshot.values == {"a": "a2", "c": "c2"}
        assert snapshot.position is not None
        async with reader.table("config", snapshot=snapshot, timeout=10) as continued:
            assert dict(continued) == {"c": "c2", "d": "d0"}
        async with reader.table("empty", timeout=10) as empty:
            assert not empty
        with pytest.raises(zfabric.LocalProtocolError, match="opened once"):
            async with table:
                raise AssertionError


async def test_a_table_without_a_store_waits_no_longer_than_told(runtime_dir: Any) -> None:
    """TimeoutError."""
    async with Node("alone", fabric=f"tables-{uuid.uuid4().hex[:8]}", config=FAST) as alone:
        with pytest.raises(TimeoutError):
            async with alone.table("config", timeout=0.1):
                raise AssertionError
