"""The measurement of floods runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_what_curve_costs_is_measured() -> None:
    """Frames and handshakes arrive, plain and encrypted."""
    command = [sys.executable, "-m", "tests.hostile.curve", "--frames", "20", "--handshakes", "3", "--repeat", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["encryption", "plain:", "curve:"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="it counts in a memfd")
def test_a_flood_is_measured() -> None:
    """It attacks, good messages arrive meanwhile, and what became of them is a row of a table."""
    command = [sys.executable, "-m", "tests.hostile.floods", "--secure", "--seconds", "0.5", "garbage"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    row = [cell.strip() for cell in done.stdout.splitlines()[-1].split("|")[1:-1]]
    assert row[0] == "garbage"
    assert [cell for cell in row[1:] if not cell.strip("0123456789.,%-")] == row[1:]
    assert "nan" not in done.stdout
