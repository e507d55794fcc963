"""The role of start-up time: a short program in a fresh interpreter, timed from outside."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

from benchmarks import bytecode
from benchmarks.model import Link, Role, Run

__all__ = ["starting"]


def starting(text: str) -> Role:
    """The role that runs this Python program, which prints when its first message has come through."""
    return partial(_start, text)


def _start(text: str, run: Run, link: Link) -> Mapping[str, Any]:
    """The second of two starts: after the first one all modules are compiled, and in the system's memory."""
    link.meet()
    for _ in range(2):
        start = time.perf_counter()
        command, environment = [sys.executable, "-c", text], bytecode.environment()
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            said = process.stdout.readline()
            seconds = time.perf_counter() - start
        if not said or process.returncode:
            raise RuntimeError(f"the program ended with {process.returncode} and said {said!r}")
    return {"seconds": seconds}
