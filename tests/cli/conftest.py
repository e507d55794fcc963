"""Real `zfabric` processes, each test's on a registry of its own, and none left behind."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

import zfabric
from tests.cli.processes import Commands


@pytest.fixture
async def cli() -> AsyncIterator[Commands]:
    """Starts commands; what still runs at the end is killed."""
    commands = Commands()
    yield commands
    await commands.kill_all()


@pytest.fixture
async def node() -> AsyncIterator[zfabric.Node]:
    """A node for commands to talk to, without a process of its own."""
    async with zfabric.Node("friend", config=zfabric.Config(mdns=False)) as opened:
        yield opened
