"""The pytest plugin, in projects of users."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLUGIN = "zfabric.testing.plugin"

USER_TESTS = """
import asyncio
import pytest
from zfabric.testing import MemoryFabric

{mark}
async def test_memory(fabric):
    a, b = await fabric.open("a"), await fabric.open("b")
    await a.wait_for_peers(1, timeout=5)

{mark}
async def test_pair(fabric_pair):
    a, b = fabric_pair
    publisher, subscription = a.publisher("t"), b.subscribe("t")
    await publisher.wait_for(1, timeout=5)
    await publisher.publish("hello")
    assert (await subscription.receive(timeout=5)).value == "hello"

{mark}
async def test_real(real_fabric):
    a, b = await real_fabric.open("a"), await real_fabric.open("b")
    await a.wait_for_peers(1, timeout=10)
"""


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["auto", "strict"])
def test_fixtures_work_in_both_modes_of_pytest_asyncio(tmp_path: Path, mode: str) -> None:
    """Users may mark their coroutine tests or not; the fixtures work the same."""
    mark = "@pytest.mark.asyncio" if mode == "strict" else ""
    (tmp_path / "test_user.py").write_text(USER_TESTS.format(mark=mark), encoding="utf-8")

    outcome = pytest_in(tmp_path, "-o", f"asyncio_mode={mode}", "-o", "asyncio_default_fixture_loop_scope=function")

    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    assert "3 passed" in outcome.stdout


@pytest.mark.slow
def test_fixtures_are_listed_with_their_documentation(tmp_path: Path) -> None:
    """`pytest --fixtures` explains them."""
    outcome = pytest_in(tmp_path, "--fixtures")

    for name in ("fabric ", "fabric_pair ", "real_fabric "):
        assert f"\n{name}" in outcome.stdout, outcome.stdout[-3000:]
    assert "MemoryFabric" in outcome.stdout


@pytest.mark.slow
def test_the_plugin_loads_nothing_heavy(tmp_path: Path) -> None:
    """A test run that uses no fixture of ours does not pay for zeroconf, numpy or the command line."""
    (tmp_path / "test_user.py").write_text(
        "import sys\n"
        "def test_light():\n"
        "    heavy = {'numpy', 'zeroconf', 'click', 'rich', 'zfabric.cli', 'zfabric.testing.simulator'}\n"
        "    assert heavy & sys.modules.keys() == set()\n",
        encoding="utf-8",
    )

    outcome = pytest_in(tmp_path)

    assert outcome.returncode == 0, outcome.stdout + outcome.stderr


def pytest_in(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run pytest in a user's project, with our plugin whether it is installed or not."""
    installed = any(point.value == PLUGIN for point in entry_points(group="pytest11"))
    ours = () if installed else ("-p", PLUGIN)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *ours, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("PYTEST_ADDOPTS", None)
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=60)
