"""Clocks of the roles: what a throughput sender and receiver return."""

from __future__ import annotations

import time
from collections.abc import Mapping

__all__ = ["Reception", "Transmission"]


class Transmission:
    """A sender's clock: created when sending starts, `result` called when it is done."""

    def __init__(self) -> None:
        self._cpu = time.process_time()
        self._start = time.perf_counter()

    def result(self) -> Mapping[str, float]:
        """CPU time of the whole process, library threads included, and the time it took."""
        return {"cpu_s": time.process_time() - self._cpu, "seconds": time.perf_counter() - self._start}


class Reception:
    """A receiver's clock: created before the first message, told of the first and of the end.

    The rate is that of the messages after the first arrival (which may be a batch), over the time from
    the first arrival to the last. When everything came in one arrival, it is all of them over the time since
    the receiver was ready: slower than the truth, and only seen in tiny runs. `start` and `stop` are on the system-wide
    clock, so that the rates of several receivers can be added up over the time that they took together.
    """

    def __init__(self) -> None:
        self._cpu = time.process_time()
        self._ready = self._first = time.perf_counter()
        self._count_first = 0

    def first(self, count: int) -> None:
        """The first arrival brought `count` messages."""
        self._first = time.perf_counter()
        self._count_first = count

    def result(self, count: int, expected: int, quiet_s: float = 0.0) -> Mapping[str, float]:
        """`count` of `expected` messages came; the last `quiet_s` seconds brought none of them."""
        stop = time.perf_counter() - quiet_s
        if count > self._count_first:
            start, counted = self._first, count - self._count_first
        else:
            start, counted = self._ready, count
        return {
            "received": count,
            "lost": expected - count,
            "counted": counted,
            "start": start,
            "stop": stop,
            "rate": counted / (stop - start) if stop > start else 0.0,
            "cpu_s": time.process_time() - self._cpu,
        }
