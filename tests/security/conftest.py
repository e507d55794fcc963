"""Fabrics whose nodes have identities."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.security.town import Opened, Town
from zfabric import Node
from zfabric.testing import RealFabric


@pytest.fixture
def town(tmp_path: Path, real_fabric: RealFabric) -> Town:
    """A fabric with one identity, the mayor."""
    return Town(tmp_path, real_fabric)


@pytest.fixture
def opened(town: Town) -> Opened:
    """Invite and open in one."""

    async def open_(name: str, *roles: str, **options: Any) -> Node:
        if not (town.root / name).exists():
            town.invite(name, *roles)
        return await town.open(name, **options)

    return open_
