"""Exactly-once with real processes: consume, transform, produce while both sides are killed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.timeout(300)


def run(directory: Path, *arguments: str) -> dict[str, Any]:
    """Run the experiment in a process of its own."""
    command = [sys.executable, "-m", "tests.store.exactly_once", str(directory), "--timeout", "150", *arguments]
    told = subprocess.run([*command, "--kill-every", "0"], capture_output=True, text=True, timeout=240, check=False)
    assert told.stdout, told.stderr
    found: dict[str, Any] = json.loads(told.stdout)
    return found


def test_results_equal_those_of_a_run_without_faults(tmp_path: Path, runtime_dir: Path) -> None:
    """The store and the processor get SIGKILL three times each: the same bytes in the same order."""
    found = run(tmp_path / "data", "--messages", "60000", "--kills", "6")

    assert (found["store_kills"], found["processor_kills"]) == (3, 3)
    assert found["results"] == 60_000
    assert found["equal"]


def test_without_transactions_the_results_differ(tmp_path: Path, runtime_dir: Path) -> None:
    """Outputs and position in two commits: a kill between them is seen."""
    found = run(tmp_path / "data", "--messages", "60000", "--kills", "2", "--without-transactions")

    assert found["results"] > 60_000
    assert not found["equal"]
