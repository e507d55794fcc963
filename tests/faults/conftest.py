"""Fixtures of the fault tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.children import Crew, crew
from tests.faults.proxy import Proxy, can_serve


@pytest.fixture
def team(tmp_path: Path, runtime_dir: Path) -> Iterator[Crew]:
    """Child processes that end with the test."""
    with crew(tmp_path, runtime_dir) as children:
        yield children


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    """A TCP proxy in a thread of its own."""
    if not can_serve():
        reason = "the proxy needs addresses like 127.0.0.2"
        if os.environ.get("CI"):
            pytest.fail(f"{reason}: required in CI")
        pytest.skip(reason)
    with Proxy() as running:
        yield running
