"""Clocks of the roles: what a sender and a receiver return."""

from __future__ import annotations

import sys
import time
from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["Reception", "Transmission", "memory_peak_mb"]


def memory_peak_mb() -> float:
    """The most resident memory that this process ever had, in MB."""
    status = Path("/proc/self/status")
    if status.exists():  # What getrusage tells on Linux may be the parent's, from before exec.
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    import resource  # Windows has no such module.

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


class Transmission:
    """A sender's clock: created when sending starts, `result` called when it is done."""

    def __init__(self) -> None:
        self._cpu = time.process_time()
        self._memory = memory_peak_mb()
        self._start = time.perf_counter()

    def result(self) -> Mapping[str, float]:
        """CPU time of the whole process, library threads included, the time it took, and memory."""
        seconds, peak = time.perf_counter() - self._start, memory_peak_mb()
        return {
            "cpu_s": time.process_time() - self._cpu,
            "seconds": seconds,
            "memory_mb": peak,
            "grown_mb": peak - self._memory,
        }


class Reception:
    """A receiver's clock: created before the first message, told of the first and of the end.

    The rate is that of the messages after the first arrival (which may be a batch), over the time from
    the first arrival to the last. When everything came in one arrival, it is all of them over the time since
    the receiver was ready: slower than the truth, and only seen in tiny runs. `start` and `stop` are on the system-wide
    clock, so that the rates of several receivers can be added up over the time that they took together.
    """

    def __init__(self) -> None:
        self._cpu = time.process_time()
        self._memory = memory_peak_mb()
        self._ready = self._first = time.perf_counter()
        self._count_first = 0
        self.count = 0
        "How many came so far, where the receiver keeps it."
        self.latencies = array("d")
        "Seconds from when each message was due until the program had it, where the run has a rate."

    def first(self, count: int) -> None:
        """The first arrival brought `count` messages."""
        self._first = time.perf_counter()
        self._count_first = count

    def result(self, count: int, expected: int, quiet_s: float = 0.0) -> Mapping[str, Any]:
        """`count` of `expected` messages came; the last `quiet_s` seconds brought none of them."""
        stop = time.perf_counter() - quiet_s
        if count > self._count_first:
            start, counted = self._first, count - self._count_first
        else:
            start, counted = self._ready, count
        peak = memory_peak_mb()
        return {
            "received": count,
            "lost": expected - count,
            "counted": counted,
            "start": start,
            "stop": stop,
            "rate": counted / (stop - start) if stop > start else 0.0,
            "cpu_s": time.process_time() - self._cpu,
            "memory_mb": peak,
            "grown_mb": peak - self._memory,
            "latencies": self.latencies.tobytes(),
        }
