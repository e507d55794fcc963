"""Fixtures for pytest: `fabric`, `fabric_pair` and `real_fabric`. Installing zfabric installs the plugin.

They are asynchronous and need pytest-asyncio, in its auto or its strict mode. Tests in virtual time make their own
`MemoryFabric` inside of `zfabric.testing.run()`.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pytest_asyncio import fixture as async_fixture

    from zfabric.node.node import Node
    from zfabric.testing.memory import MemoryFabric
    from zfabric.testing.real import RealFabric
else:
    try:
        from pytest_asyncio import fixture as async_fixture
    except ImportError:
        async_fixture = pytest.fixture

__all__ = ["fabric", "fabric_pair", "private_runtime_dir", "real_fabric"]


@async_fixture
async def fabric() -> AsyncIterator[MemoryFabric]:
    """A `zfabric.testing.MemoryFabric`: `node = await fabric.open("name")`; its nodes are closed at the end."""
    from zfabric.testing.memory import MemoryFabric

    async with MemoryFabric() as made:
        yield made


@async_fixture
async def fabric_pair(fabric: MemoryFabric) -> tuple[Node, Node]:
    """Two nodes in memory, `a` and `b`, that are peers already."""
    a, b = await fabric.open("a"), await fabric.open("b")
    await a.wait_for_peers(1, timeout=5)
    await b.wait_for_peers(1, timeout=5)
    return a, b


@pytest.fixture
def private_runtime_dir(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A same-host registry that only this test sees. Its path is short: an ipc address has 107 bytes at most."""
    path = Path(tempfile.mkdtemp(prefix="zf"))
    monkeypatch.setenv("ZFABRIC_RUNTIME_DIR", str(path))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@async_fixture
async def real_fabric(private_runtime_dir: Path) -> AsyncIterator[RealFabric]:  # noqa: ARG001
    """Real nodes over ZeroMQ: `node = await real_fabric.open("name")`; they are closed at the end."""
    from zfabric.testing.real import RealFabric

    made = RealFabric()
    yield made
    await made.close()
