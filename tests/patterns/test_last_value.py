"""The last value cache, with real nodes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing
from typing import Any

import pytest
from zfabric.patterns.last_value import LastValueCache, last_values

from tests.waiting import wait_until_async
from zfabric import Config, LocalProtocolError, Message, Node, TopicError

QUIET = Config(mdns=False)


@pytest.fixture
async def nodes() -> AsyncIterator[list[Node]]:
    """A publisher, a cache's node, a late comer."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(Node(name, config=QUIET)) for name in ("sensor", "cache", "late")]


async def take(node: Node, pattern: str, count: int, **options: Any) -> list[Message]:
    """The first messages of `last_values`."""
    found = []
    async with aclosing(last_values(node, pattern, **options)) as messages:
        async for message in messages:
            found.append(message)
            if len(found) == count:
                break
    return found


async def test_late_comers_get_the_newest_values(nodes: list[Node]) -> None:
    """Who comes late gets the newest of each topic and key, as it was published, before anything new is said."""
    sensor, middle, late = nodes
    async with LastValueCache(middle, "plant.#") as cache:
        temp, state = sensor.publisher("plant.temp"), sensor.publisher("plant.state")
        await temp.wait_for(1, 30)
        await state.wait_for(1, 30)
        for step in range(3):
            await temp.publish(step, key="line1", headers={"n": step})
            await temp.publish(step * 10, key=["a", "list"])
        await state.publish("on")
        await wait_until_async(lambda: cache.updates == 7)

        found = {(m.topic, str(m.key)): m for m in await take(late, "plant.#", 3, required=True)}
        only = await take(late, "plant.temp", 2, required=True)

    first = found["plant.temp", "line1"]
    assert (first.value, first.seq, first.headers, first.source.name) == (2, 4, {"n": 2}, "sensor")
    assert found["plant.temp", "['a', 'list']"].value == 20
    assert found["plant.state", "None"].value == "on"
    assert {message.topic for message in only} == {"plant.temp"}


async def test_nothing_twice_and_nothing_older(nodes: list[Node]) -> None:
    """Live messages that the cache told already are left out; those that follow come, in order."""
    sensor, middle, late = nodes
    publisher = sensor.publisher("plant.temp", delivery="at-least-once", history=100)
    for step in range(5):
        await publisher.publish(step)
    async with LastValueCache(middle, "plant.#") as cache:
        await publisher.wait_for(1, 30)
        await publisher.publish(5)
        await wait_until_async(lambda: len(cache) == 1)
        messages = last_values(late, "plant.#", publishers=1, required=True)
        async with aclosing(messages):
            values = [(await anext(messages)).value]
            for step in range(6, 9):
                await publisher.publish(step)
            while values[-1] != 8:
                values.append((await anext(messages)).value)

    assert values == [5, 6, 7, 8]


async def test_without_a_cache(nodes: list[Node]) -> None:
    """Where no cache is there live messages come all the same, or it is an error if one is required."""
    sensor, _, late = nodes
    publisher = sensor.publisher("plant.temp", delivery="at-least-once", history=5)
    with pytest.raises(TimeoutError):
        await take(late, "#", 1, required=True, timeout=0.2)
    with pytest.raises(TimeoutError):
        await take(late, "nobody.says.this", 1, publishers=1, timeout=0.2)

    messages = last_values(late, "plant.#", publishers=1)
    async with aclosing(messages):
        task = asyncio.ensure_future(anext(messages))
        await publisher.wait_for(1, 30)
        await publisher.publish("live")
        assert (await task).value == "live"


async def test_the_cache_is_bounded(nodes: list[Node]) -> None:
    """Beyond `entries_max` what was updated longest ago is forgotten."""
    sensor, middle, late = nodes
    async with LastValueCache(middle, "t", name="small", entries_max=3) as cache:
        publisher = sensor.publisher("t")
        await publisher.wait_for(1, 30)
        for key in (1, 2, 3, 1, 4):
            await publisher.publish(key, key=key)
        await wait_until_async(lambda: cache.updates == 5)

        assert len(cache) == 3
        assert [m.value for m in await take(late, "#", 3, cache="small", required=True)] == [3, 1, 4]


async def test_a_slow_reader_gets_all_that_was_cached(nodes: list[Node]) -> None:
    """`timeout` is for the cache's answer, however long the reader takes for each value."""
    sensor, middle, late = nodes
    async with LastValueCache(middle, "t") as cache:
        publisher = sensor.publisher("t")
        await publisher.wait_for(1, 30)
        for key in range(20):
            await publisher.publish("x" * 200_000, key=key)  # more of it than a stream may be ahead
        await wait_until_async(lambda: cache.updates == 20)

        async with aclosing(last_values(late, "t", required=True, timeout=1)) as messages:
            keys = [(await anext(messages)).key]
            late_s = asyncio.get_running_loop().time() + 1.5
            await wait_until_async(lambda: asyncio.get_running_loop().time() > late_s)
            keys += [(await asyncio.wait_for(anext(messages), 30)).key for _ in range(19)]
        assert keys == list(range(20))


async def test_a_cache_that_cannot_be_opened_leaves_nothing_open(nodes: list[Node]) -> None:
    """Its name is taken, or its pattern is none."""
    middle = nodes[1]
    before = asyncio.all_tasks()
    with pytest.raises(ValueError, match="entries_max"):
        LastValueCache(middle, "t", entries_max=0)
    async with LastValueCache(middle, "t"):
        with pytest.raises(LocalProtocolError, match="already"):
            await LastValueCache(middle, "u").__aenter__()
        with pytest.raises(TopicError):
            await LastValueCache(middle, "u..v", name="other").__aenter__()
        async with LastValueCache(middle, "v", name="other"):
            pass
    assert [t.get_name() for t in asyncio.all_tasks() - before if "standby" not in t.get_name()] == []
