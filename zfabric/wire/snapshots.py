"""Copies of arrays that are about to be sent, in memory that is used again.

A fresh megabyte costs more than copying into it: the kernel has to find and clear 256 pages. A snapshot's memory comes
back when the last one who holds it lets go, which is libzmq, or the window of a reliable topic.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

__all__ = ["Snapshots"]

KEPT_BYTES = 32 * 1024 * 1024
"Free memory that is kept for one size of array, at most (one array if it is larger)."
SIZES_MAX = 2
"Sizes that free memory is kept for."


class Snapshots:
    """Makes snapshots; they may be freed in any thread."""

    def __init__(self) -> None:
        self._free: dict[int, deque[Any]] = {}

    def copy(self, numpy: Any, array: Any, room: Callable[[int], memoryview | None] | None = None) -> Any:
        """The bytes of a C-contiguous copy of the array, which nobody else changes; in `room` if it gives some."""
        view = None if room is None else room(array.nbytes)
        if view is not None:
            numpy.copyto(numpy.frombuffer(view, array.dtype).reshape(array.shape), array)
            return view
        free = self._free.get(array.nbytes)
        memory = free.pop() if free else numpy.empty(array.nbytes, numpy.uint8)
        snapshot = memory[:]  # what is sent refers to this view, and only the view to the memory
        numpy.copyto(snapshot.view(array.dtype).reshape(array.shape), array)
        weakref.finalize(snapshot, self._release, memory).atexit = False
        return snapshot

    def _release(self, memory: Any) -> None:
        free = self._free.get(memory.nbytes)
        if free is None:
            if len(self._free) >= SIZES_MAX:
                self._free = {}  # sizes have changed
            free = self._free.setdefault(memory.nbytes, deque(maxlen=max(1, KEPT_BYTES // memory.nbytes)))
        free.append(memory)
