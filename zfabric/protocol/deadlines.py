"""Times at which something is due, for crowds of things that are nearly all done before.

Adding and removing cost the same however many wait; a time is met within a millisecond after it.
"""

from __future__ import annotations

from heapq import heappop, heappush
from math import floor, inf
from typing import Generic, Protocol, TypeVar

__all__ = ["Deadlines", "Timed"]

T = TypeVar("T")

TICKS_PER_S = 1000.0


class Timed(Protocol):
    """A state machine for which time matters."""

    def timer(self) -> float:
        """When `handle_timer` has something to do; infinity if never."""

    def handle_timer(self, now: float) -> None:
        """Time has passed."""


class Deadlines(Generic[T]):
    """Buckets of a millisecond each."""

    __slots__ = ("_buckets", "_ticks")

    def __init__(self) -> None:
        self._buckets: dict[int, dict[T, None]] = {}
        self._ticks: list[int] = []
        "A heap of the buckets' keys."

    def add(self, when: float, thing: T) -> dict[T, None]:
        """Let the thing be due then, which may be never. Take it out of what is returned once it is done."""
        if when == inf:
            return {thing: None}
        tick = floor(when * TICKS_PER_S) + 1
        bucket = self._buckets.get(tick)
        if bucket is None:
            bucket = self._buckets[tick] = {}
            heappush(self._ticks, tick)
        bucket[thing] = None
        return bucket

    def timer(self) -> float:
        """When the next thing is due."""
        ticks, buckets = self._ticks, self._buckets
        while ticks and not buckets[ticks[0]]:
            del buckets[heappop(ticks)]
        return ticks[0] / TICKS_PER_S if ticks else inf

    def due(self, now: float) -> list[T]:
        """Take out what is due, in order."""
        things: list[T] = []
        while self._ticks and self._ticks[0] / TICKS_PER_S <= now:
            things += self._buckets.pop(heappop(self._ticks))
        return things
