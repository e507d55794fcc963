"""Calls that may run users' code, made once the core is done with what it does now."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

__all__ = ["Deferred", "Gathered"]

T = TypeVar("T")

CALLS_PER_TURN = 64
"In one turn of the loop. Clients go on with the first replies while the next are made."


class Deferred:
    """Calls in the order in which they were added."""

    def __init__(self, go_on: Callable[[], None]) -> None:
        """`go_on()` is called in the next turn of the loop if some are left; it is to call `run`."""
        self._go_on = go_on
        self._calls: deque[Callable[[], object]] = deque()
        self._left = False
        self.running = False
        "Whether one of them is being made."
        self.add: Callable[[Callable[[], object]], object] = self._calls.append

    @property
    def waiting(self) -> bool:
        """Whether `run` has something to do."""
        return bool(self._calls) and not self._left

    def run(self, loop: asyncio.AbstractEventLoop) -> None:
        """As many as one turn of the loop has room for: what they say leaves together, while others wait for theirs."""
        calls = self._calls
        self.running = True
        try:
            for _ in range(min(CALLS_PER_TURN, len(calls))):
                calls.popleft()()
        finally:
            self.running = False
            if calls:
                self._left = True
                loop.call_soon(self._resume)

    def _resume(self) -> None:
        self._left = False
        self._go_on()

    def leave(self, loop: asyncio.AbstractEventLoop) -> None:
        """Nobody calls `run` any more: the loop makes these calls, and those that are still added."""
        while self._calls:
            loop.call_soon(self._calls.popleft())
        self.add = loop.call_soon


class Gathered(Generic[T]):
    """Things of one kind that are dealt with by one deferred call, as many as one turn of the loop has room for."""

    def __init__(self, defer: Callable[[Callable[[], object]], object], deal: Callable[[Iterable[T]], object]) -> None:
        """`deal(things)` may run users' code; `defer(call)` is `Deferred.add`."""
        self._defer = defer
        self._deal = deal
        self._things: deque[T] = deque()
        self._waiting = False

    def add(self, thing: T) -> None:
        """Deal with it soon, after those that were added before."""
        self._things.append(thing)
        if not self._waiting:
            self._waiting = True
            self._defer(self._run)

    def _run(self) -> None:
        try:
            self._deal(self._some())
        finally:
            self._waiting = bool(self._things)
            if self._waiting:
                self._defer(self._run)

    def _some(self) -> Iterator[T]:
        things = self._things
        for _ in range(min(CALLS_PER_TURN, len(things))):
            yield things.popleft()
