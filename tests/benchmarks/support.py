"""What the tests of the benchmarks share."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import peers
from benchmarks.model import Entry

ROOT = Path(__file__).parents[2]

Lines = list[dict[str, Any]]


def run_tiny(*arguments: str, **environment: str) -> Lines:
    """Run the command and return its JSON lines."""
    command = [sys.executable, "-m", "benchmarks", *arguments, "--tiny", "--json"]
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=150,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        pytest.fail(f"did not finish; it said: {(error.stderr or b'').decode()}")

    assert done.returncode == 0, done.stdout + done.stderr

    return [json.loads(line) for line in done.stdout.splitlines()]


def rows_of(lines: Lines) -> Lines:
    """The rows among the lines."""
    return [line for line in lines if line["type"] == "row"]


def entries_of(workload: str) -> list[Entry]:
    """What the peer files offer for a workload."""
    return [entry for entry in peers.load()[0] if workload in entry.workloads]
