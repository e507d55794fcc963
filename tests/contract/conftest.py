"""One contract, every environment: memory and real sockets in their variants."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import fields
from typing import Any

import pytest

from tests.contract.support import TIMEOUT, MakeNode
from zfabric import Config, Node
from zfabric.testing import MemoryFabric, RealFabric

ENVIRONMENTS: dict[str, dict[str, Any]] = {
    "memory": {},
    "ipc": {},
    "tcp": {"ipc": False},
    "waker-thread": {"force_waker_thread": True},
}
_CONFIG_FIELDS = {field.name for field in fields(Config)}


@pytest.fixture(params=ENVIRONMENTS)
def environment(request: pytest.FixtureRequest) -> str:
    """The name of the environment that the test runs in."""
    name: str = request.param
    return name


@pytest.fixture
async def make_node(environment: str) -> AsyncIterator[MakeNode]:
    """Opens nodes that see each other and nobody else, and closes them at the end."""
    made = MemoryFabric() if environment == "memory" else RealFabric()

    async def make(name: str, **options: Any) -> Node:
        limits = {key: options.pop(key) for key in _CONFIG_FIELDS & options.keys()}
        defaults = {"mdns": environment == "memory", **ENVIRONMENTS[environment]}
        return await made.open(name, config=Config(**{**defaults, **limits}), **options)

    yield make
    await made.close()


@pytest.fixture
async def pair(make_node: MakeNode) -> tuple[Node, Node]:
    """Two nodes that are peers: one to publish, one to subscribe."""
    a, b = await make_node("a"), await make_node("b")
    await a.wait_for_peers(1, timeout=TIMEOUT)
    await b.wait_for_peers(1, timeout=TIMEOUT)
    return a, b
