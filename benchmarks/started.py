"""The role of start-up time: a short program in a fresh interpreter, timed from outside."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

from benchmarks.model import Link, Role, Run

__all__ = ["starting"]


def starting(text: str) -> Role:
    """The role that runs this Python program, which prints when its first message has come through."""
    return partial(_start, text)


def _start(text: str, run: Run, link: Link) -> Mapping[str, Any]:
    link.meet()
    start = time.perf_counter()
    with subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        said = process.stdout.readline()
        seconds = time.perf_counter() - start
    if not said or process.returncode:
        raise RuntimeError(f"the program ended with {process.returncode} and said {said!r}")
    return {"seconds": seconds}
