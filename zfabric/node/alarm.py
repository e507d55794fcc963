"""Calls when the core has something to do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from math import inf

__all__ = ["Alarm"]

ASK_PAUSE_S = 0.002
"Between two questions when something is due, which then may be that much late."


class Alarm:
    """One timer for all that is ever due. To ask after every frame when that is would cost more than the frame."""

    def __init__(self, next_due: Callable[[], float], ring: Callable[[float], None]) -> None:
        """`next_due` tells when `ring(now)` is to be called next; infinity if never."""
        self._next_due = next_due
        self._ring = ring
        self._timer: asyncio.TimerHandle | None = None
        self._at = inf
        self._asked_at = -inf

    def set(self, loop: asyncio.AbstractEventLoop) -> None:
        """What is due may have changed."""
        due = self._asked_at + ASK_PAUSE_S
        if due < self._at:
            now = loop.time()
            self._arm(loop, due if now < due else self._ask(now))

    def by(self, loop: asyncio.AbstractEventLoop, due: float) -> None:
        """Nothing but this may be due earlier than before."""
        self._arm(loop, due)

    def cancel(self) -> None:
        """Ring no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _ask(self, now: float) -> float:
        self._asked_at = now
        return self._next_due()

    def _arm(self, loop: asyncio.AbstractEventLoop, due: float) -> None:
        if due < self._at:  # a look too early costs less than a new timer
            self.cancel()
            self._at = due
            self._timer = loop.call_at(due, self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self._at, self._timer = inf, None
        now = loop.time()
        due = self._ask(now)
        if due <= now:
            self._ring(now)
        else:
            self._arm(loop, due)
