"""The shop: orders go through although a process of each service is killed."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name == "nt", reason="POSIX signals")]


def test_the_books_agree() -> None:
    """Every order is shipped or refunded, once."""
    command = [sys.executable, "-m", "zfabric.examples.shop", "28"]
    outcome = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    assert "28 orders: 24 shipped, 4 refunded" in outcome.stdout
    assert "the books agree" in outcome.stdout
