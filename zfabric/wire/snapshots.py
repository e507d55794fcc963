"""Copies of arrays that are about to be sent, in memory that is used again.

A fresh megabyte costs more than copying into it: the kernel has to find and clear 256 pages. A snapshot's memory comes
back when the last one who holds it lets go, which is libzmq, or the window of a reliable topic.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

__all__ = ["Snapshots", "no_room"]

KEPT_BYTES = 32 * 1024 * 1024
"Free memory that is kept for one size of array, at most (one array if it is larger)."
SIZES_MAX = 2
"Sizes that free memory is kept for."


def no_room(_: int) -> memoryview | None:
    """There is no better memory than any."""
    return None


class Snapshots:
    """Makes snapshots; they may be freed in any thread."""

    def __init__(self) -> None:
        self._free: dict[int, deque[Any]] = {}
        self.room = no_room
        "Gives memory for a snapshot, where there is better memory than any."
        self.owns: Callable[[memoryview], bool] = lambda _: False
        "Whether `room` gave that memory."

    def take(self, numpy: Any, array: Any, *, frozen: bool = False) -> Any:
        """The bytes of the array, C-contiguous, which nobody else changes.

        A copy; if there is no `room` for one, the array itself where it is `frozen`. Or the array itself where it has
        all of the memory that `room` gave once: then it is read-only from now on.
        """
        memory = array.base
        while memory is not None and type(memory) is type(array):
            memory = memory.base
        whole = type(memory) is memoryview and memory.nbytes == array.nbytes and array.flags.c_contiguous
        if whole and self.owns(memory):
            array.flags.writeable = False
            return memory
        room = self.room(array.nbytes)
        if room is None:
            return array.reshape(-1).view(numpy.uint8) if frozen else self._copy(numpy, array)
        numpy.copyto(numpy.frombuffer(room, array.dtype).reshape(array.shape), array)
        return room

    def _copy(self, numpy: Any, array: Any) -> Any:
        free = self._free.get(array.nbytes)
        memory = free.pop() if free else numpy.empty(array.nbytes, numpy.uint8)
        # What is sent refers to this view, and only the view to the memory: numpy would go behind a plain slice.
        snapshot = numpy.frombuffer(memoryview(memory), numpy.uint8)
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
