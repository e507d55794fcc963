"""Scatter and gather: enough, all, or as many as there were in time."""

from __future__ import annotations

import asyncio

import pytest
from zfabric.patterns.scatter_gather import scatter_gather

from zfabric import Node, NoResponders, RemoteError, RequestTimeout
from zfabric.testing import MemoryFabric, run


async def three(fabric: MemoryFabric) -> Node:
    """A client, and providers that answer after 1, 2 and 3 seconds; one fails if it is asked to."""
    client = await fabric.open("client")
    for seconds in (1, 2, 3):
        node = await fabric.open(f"p{seconds}")

        @node.service("search")
        async def search(what: str, seconds: int = seconds) -> int:
            await asyncio.sleep(seconds)
            if what == "trouble" and seconds == 2:
                raise ValueError(what)
            return seconds

    await client.wait_for_service("search", 5, providers=3)
    return client


def test_enough_is_enough() -> None:
    """The first two count; the third is not waited for."""

    async def scenario() -> None:
        async with MemoryFabric() as fabric:
            client = await three(fabric)
            began = fabric.clock.time()
            found = await scatter_gather(client, "search", "shoes", enough=2, timeout=10)

            assert [reply.value for reply in found.replies] == [1, 2]
            assert found.complete
            assert fabric.clock.time() - began == pytest.approx(2, abs=0.2)

    run(scenario())


def test_all_are_waited_for() -> None:
    """Errors do not count as replies."""

    async def scenario() -> None:
        async with MemoryFabric() as fabric:
            client = await three(fabric)

            found = await scatter_gather(client, "search", "trouble", timeout=10)
            few = await scatter_gather(client, "search", "trouble", timeout=10, enough=3)

            assert [reply.value for reply in found.replies] == [1, 3]
            assert isinstance(found.failed[0].error, RemoteError)
            assert (found.complete, few.complete) == (False, False)

    run(scenario())


def test_the_timeout_ends_it() -> None:
    """With what there is; nobody at all is an error."""

    async def scenario() -> None:
        async with MemoryFabric() as fabric:
            client = await three(fabric)

            found = await scatter_gather(client, "search", "shoes", timeout=1.5)

            assert [reply.value for reply in found.replies] == [1]
            assert all(isinstance(reply.error, RequestTimeout) for reply in found.failed)
            assert len(found.failed) == 2
            with pytest.raises(NoResponders):
                await scatter_gather(client, "nothing")
            with pytest.raises(ValueError, match="enough"):
                await scatter_gather(client, "search", "x", enough=0)

    run(scenario())
