"""Wakes a sender at fixed times, finer than an event loop's own timers (which count milliseconds)."""

from __future__ import annotations

import asyncio
import ctypes
import os
import struct
import sys
import time
from types import TracebackType

__all__ = ["Ticker"]

CLOCK_MONOTONIC = 1


class Ticker:
    """Ticks every `interval_s`. Late ticks are merged, as a late program would meet them. Linux has a timer that can
    be read and polled (timerfd); elsewhere it sleeps.
    """

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._fd = _open_timer(interval_s) if sys.platform == "linux" else None
        self._ticked: asyncio.Event | None = None

    def __enter__(self) -> Ticker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._fd is not None:
            if self._ticked is not None:
                asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)

    def wait(self) -> None:
        """Block until the next tick."""
        if self._fd is None:
            time.sleep(self._interval_s)
        else:
            os.read(self._fd, 8)

    async def wait_async(self) -> None:
        """The same without blocking the event loop."""
        if self._fd is None:
            await asyncio.sleep(self._interval_s)
            return
        if self._ticked is None:
            self._ticked = asyncio.Event()
            asyncio.get_running_loop().add_reader(self._fd, self._on_tick, self._fd, self._ticked)
        self._ticked.clear()
        await self._ticked.wait()

    @staticmethod
    def _on_tick(fd: int, ticked: asyncio.Event) -> None:
        os.read(fd, 8)
        ticked.set()


def _open_timer(interval_s: float) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    fd: int = libc.timerfd_create(CLOCK_MONOTONIC, os.O_CLOEXEC)
    seconds, rest = divmod(interval_s, 1.0)
    spec = struct.pack("@qqqq", int(seconds), round(rest * 1e9), int(seconds), round(rest * 1e9))
    if fd < 0 or libc.timerfd_settime(fd, 0, spec, None) != 0:
        raise OSError(ctypes.get_errno(), "no timerfd")
    return fd
