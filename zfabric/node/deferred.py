"""What may run users' code, done once the core is done with what it does now."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from itertools import repeat, starmap
from typing import Any, TypeVar

__all__ = ["Deferred"]

T = TypeVar("T")

THINGS_PER_TURN = 64
"Of one kind, in one turn of the loop. Clients go on with the first replies while the next are made."


class Deferred:
    """Things of several kinds; those of one kind are dealt with together, in the order in which they were added."""

    def __init__(self, go_on: Callable[[], None]) -> None:
        """`go_on()` is called in the next turn of the loop if some are left; it is to call `run`."""
        self._go_on = go_on
        self._things: list[deque[Any]] = []
        self._kinds: list[tuple[deque[Any], Callable[[Iterator[Any]], object]]] = []
        self._left = False
        self.running = False
        "Whether some are being dealt with."

    def kind(self, deal: Callable[[Iterator[T]], object]) -> Callable[[T], object]:
        """One more kind: what `deal(things)` deals with; it may run users' code. Returns what adds one thing."""
        things: deque[T] = deque()
        self._things.append(things)
        self._kinds.append((things, deal))
        return things.append

    def waiting(self) -> bool:
        """Whether `run` has something to do."""
        return not self._left and any(self._things)

    def run(self, loop: asyncio.AbstractEventLoop) -> None:
        """As many as one turn of the loop has room for: what they say leaves together, while others wait for theirs."""
        self.running = True
        try:
            for things, deal in self._kinds:
                if things:
                    deal(_some(things))
        finally:
            self.running = False
            if any(self._things):
                self._left = True
                loop.call_soon(self._resume)

    def _resume(self) -> None:
        self._left = False
        self._go_on()


def _some(things: deque[T]) -> Iterator[T]:
    """Takes out each as it is asked for: what an error leaves is there still."""
    return starmap(things.popleft, repeat((), min(THINGS_PER_TURN, len(things))))
