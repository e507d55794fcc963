"""A fabric in memory, and stores in it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from zfabric import Config
from zfabric.store import Store
from zfabric.testing import MemoryFabric

MakeStore = Callable[..., Awaitable[Store]]


@pytest.fixture
async def fabric() -> AsyncIterator[MemoryFabric]:
    """A fabric in memory, in real time: stores have threads."""
    async with MemoryFabric(seed=1) as made:
        yield made


@pytest.fixture
async def make_store(fabric: MemoryFabric) -> AsyncIterator[MakeStore]:
    """Opens stores, and closes those that are left."""
    async with AsyncExitStack() as stack:

        async def make(url: str = "memory:", *, name: str = "store", **options: Any) -> Store:
            config = options.pop("config", Config())
            store = Store(url, node=fabric.node(name, config=config), config=config, **options)
            return await stack.enter_async_context(store)

        yield make
