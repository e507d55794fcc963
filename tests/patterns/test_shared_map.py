"""The shared map: in memory and virtual time where faults and time are the point, with real nodes for one round."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack, aclosing
from typing import Any

import numpy as np
import pytest
from zfabric.patterns.shared_map import Change, MapOwner, SharedMap

from tests.waiting import wait_until_async
from zfabric import Config, LocalProtocolError, Node, NoResponders, RemoteError
from zfabric.testing import MemoryFabric, eventually, run


def in_memory(scenario: Callable[[MemoryFabric], Coroutine[Any, Any, None]]) -> None:
    """Run a scenario in a fabric in memory and in virtual time."""

    async def whole() -> None:
        async with MemoryFabric(seed=1) as fabric:
            await scenario(fabric)

    run(whole())


async def test_every_process_sees_the_same() -> None:
    """What one replica sets every other one reads, also the owner's own and one that comes late; deleted is deleted."""
    config = Config(mdns=False)
    async with AsyncExitStack() as stack:
        nodes = [await stack.enter_async_context(Node(name, config=config)) for name in ("owner", "one", "two")]
        await stack.enter_async_context(MapOwner(nodes[0], "config", initial={"from.before": 1}))
        here, one = [await stack.enter_async_context(SharedMap(node, "config")) for node in nodes[:2]]
        await one.set("lamps.kitchen", {"on": True})
        assert one["lamps.kitchen"] == {"on": True} and one["from.before"] == 1
        await here.set("picture", np.arange(3))
        await one.delete("from.before")
        await one.delete("never.there")
        two = await stack.enter_async_context(SharedMap(nodes[2], "config"))

        for replica in (here, one, two):
            await wait_until_async(lambda replica=replica: set(replica) == {"lamps.kitchen", "picture"})  # type: ignore[misc]
            assert list(replica["picture"]) == [0, 1, 2] and len(replica) == 2
        assert two.age < 5


def test_keys_live_for_their_time() -> None:
    """A key with a ttl ends everywhere by itself; setting it again begins its time anew, or ends it."""

    async def scenario(fabric: MemoryFabric) -> None:
        owner, reader = await fabric.open("owner"), await fabric.open("reader")
        async with MapOwner(owner, "m"), SharedMap(reader, "m") as replica:
            for key in ("short", "renewed", "kept"):
                await replica.set(key, 1, ttl=10)
            await fabric.clock.advance(6)
            await replica.set("renewed", 2, ttl=10)
            await replica.set("kept", 2)
            await fabric.clock.advance(5)
            assert set(replica) == {"renewed", "kept"}
            await fabric.clock.advance(6)
            assert set(replica) == {"kept"}

    in_memory(scenario)


def test_a_key_that_is_set_again_outlives_its_former_end() -> None:
    """Although that came meanwhile, and waited for its turn behind the new value."""

    async def scenario(fabric: MemoryFabric) -> None:
        owner, reader = await fabric.open("owner", config=Config(window_bytes=1)), await fabric.open("reader")
        async with MapOwner(owner, "m", beat_s=1000), SharedMap(reader, "m", timeout=60) as replica:
            await replica.set("first", 1, ttl=2)
            await replica.set("again", 1, ttl=4)
            async with reader.subscribe("map.m", ack="manual") as stuck:
                await stuck.wait_for(publishers=1, timeout=5)
                await replica.set("full", 1)  # nothing else leaves until it is acknowledged
                await fabric.clock.advance(3)  # so the end of the first key waits, and has the turn
                setting = asyncio.create_task(replica.set("again", 2))
                await fabric.clock.advance(3)
                await (await stuck.receive(timeout=5)).ack()
                for _ in range(2):
                    await (await stuck.receive(timeout=5)).ack()
                await setting
            await fabric.clock.advance(1)
            assert dict(replica) == {"again": 2, "full": 1}

    in_memory(scenario)


def test_an_owner_whose_closing_is_cancelled_has_closed() -> None:
    """It waited for a change in progress; the next owner takes its place all the same."""

    async def scenario(fabric: MemoryFabric) -> None:
        node, reader = await fabric.open("owner", config=Config(window_bytes=1)), await fabric.open("reader")
        before = asyncio.all_tasks()
        owner = await MapOwner(node, "m").__aenter__()
        async with SharedMap(reader, "m") as replica, reader.subscribe("map.m", ack="manual") as stuck:
            await stuck.wait_for(publishers=1, timeout=5)
            settings = [asyncio.create_task(replica.set("key", number)) for number in range(2)]
            await eventually(lambda: len(owner) == 1)
            closing = asyncio.create_task(owner.__aexit__(None, None, None))
            await fabric.clock.advance(0.1)
            closing.cancel()
            await asyncio.wait([closing, *settings])
            assert closing.cancelled()
        async with MapOwner(node, "m"), SharedMap(reader, "m") as replica:
            await replica.set("key", 3)
        left = {task.get_name() for task in asyncio.all_tasks() - before}
        assert left <= {"zfabric-standby"}

    in_memory(scenario)


def test_subtrees_and_watches() -> None:
    """A replica of a subtree has nothing else; a watch tells changes below its key, the newest of each when slow."""

    async def scenario(fabric: MemoryFabric) -> None:
        owner, reader = await fabric.open("owner"), await fabric.open("reader")
        async with MapOwner(owner, "m", initial={"a.x": 1, "ab": 2, "a": 3}), AsyncExitStack() as stack:
            part = await stack.enter_async_context(SharedMap(reader, "m", subtree="a"))
            whole = await stack.enter_async_context(SharedMap(owner, "m"))
            assert dict(part) == {"a.x": 1, "a": 3} and len(whole) == 3
            watch = await stack.enter_async_context(aclosing(part.watch("a.x")))
            first = asyncio.create_task(anext(watch))
            await asyncio.sleep(0)
            await whole.set("b", 0)
            await whole.set("a", 1)
            await whole.set("a.x.deep", 5)
            assert await first == Change("a.x.deep", 5, deleted=False, number=3)
            for value in range(10):
                await part.set("a.x", value)
            await part.delete("a.x.deep")
            changes = [await anext(watch), await anext(watch)]
            assert [(c.key, c.value, c.deleted) for c in changes] == [("a.x", 9, False), ("a.x.deep", None, True)]
            assert "b" not in part

    in_memory(scenario)


def test_a_cut_off_replica_catches_up() -> None:
    """While it is cut off a replica reads what it has and cannot change it; afterwards it has everything again."""

    async def scenario(fabric: MemoryFabric) -> None:
        owner, reader = await fabric.open("owner"), await fabric.open("reader")
        async with MapOwner(owner, "m"), SharedMap(reader, "m") as replica, SharedMap(owner, "m") as local:
            await local.set("k", 1)
            await eventually(lambda: replica.get("k") == 1)
            fabric.partition({"owner"}, {"reader"})
            await fabric.clock.advance(60)
            for value in range(2, 50):
                await local.set("k", value)
            await local.set("new", 1)
            assert dict(replica) == {"k": 1} and replica.age > 50
            with pytest.raises((NoResponders, TimeoutError)):
                await replica.set("k", "mine")
            fabric.heal()
            await eventually(lambda: dict(replica) == {"k": 49, "new": 1})
            await replica.set("k", "mine")
            assert local["k"] == "mine" and replica.age < 5

    in_memory(scenario)


def test_a_new_owner_is_followed() -> None:
    """When the owner crashes its replicas go on reading; the next owner's map replaces theirs, told as changes."""

    async def scenario(fabric: MemoryFabric) -> None:
        first, reader = await fabric.open("first"), await fabric.open("reader")
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(MapOwner(first, "m", initial={"old": 1, "same": 1}))
            replica = await stack.enter_async_context(SharedMap(reader, "m"))
            watch = await stack.enter_async_context(aclosing(replica.watch()))
            fabric.crash(first)
            await fabric.clock.advance(30)
            assert dict(replica) == {"old": 1, "same": 1}

            second = await fabric.open("second")
            await stack.enter_async_context(MapOwner(second, "m", initial={"same": 1, "new": 2}))
            await eventually(lambda: dict(replica) == {"same": 1, "new": 2})
            changes = [await anext(watch), await anext(watch)]
            assert [(c.key, c.deleted) for c in changes] == [("old", True), ("new", False)]
            await replica.set("same", 3)
            assert replica["same"] == 3

    in_memory(scenario)


def test_limits_and_absence() -> None:
    """A full map refuses new keys but not changes; without an owner a replica does not open."""

    async def scenario(fabric: MemoryFabric) -> None:
        owner, reader = await fabric.open("owner"), await fabric.open("reader")
        with pytest.raises(TimeoutError):
            await SharedMap(reader, "nothing", timeout=1).__aenter__()
        async with MapOwner(owner, "m", entries_max=2) as owned, SharedMap(reader, "m") as replica:
            await replica.set("a", 1)
            await replica.set("b", 1)
            with pytest.raises(RemoteError, match="full: 2 entries"):
                await replica.set("c", 1)
            await replica.set("a", 2)
            await replica.delete("b")
            await replica.set("c", 1)
            assert dict(replica) == {"a": 2, "c": 1} and len(owned) == 2

    in_memory(scenario)


async def test_what_makes_no_sense_is_refused() -> None:
    """Times that are none, and a replica that is closed: it had waited for its timeout."""
    async with MemoryFabric(seed=1) as fabric:
        node = await fabric.open("a")
        for options in ({"beat_s": 0}, {"entries_max": 0}):
            with pytest.raises(ValueError, match="beat_s"):
                MapOwner(node, "m", **options)  # type: ignore[arg-type]
        async with MapOwner(node, "m"), SharedMap(node, "m") as replica:
            for ttl in (0, float("nan"), float("inf")):
                with pytest.raises(ValueError, match="ttl"):
                    await replica.set("key", 1, ttl=ttl)
        with pytest.raises(LocalProtocolError, match="while it is open"):
            await replica.set("key", 1)
        with pytest.raises(LocalProtocolError, match="while it is open"):
            replica.watch()  # which would wait for ever
