"""The store's clock: the time of day when it was opened, and from then on only what has passed since.

So a clock that is set while the store runs neither empties it (retention by age) nor turns its order around. Across
a restart a time of day before the last one stored counts as that one.
"""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["SteadyClock"]


class SteadyClock:
    """Call it for nanoseconds since 1970; it never runs backwards and does not notice when the clock is set."""

    def __init__(
        self,
        wall_ns: Callable[[], int] = time.time_ns,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._monotonic_ns = monotonic_ns
        self._behind = wall_ns() - monotonic_ns()

    def __call__(self) -> int:
        """Now."""
        return self._monotonic_ns() + self._behind

    def not_before(self, time_ns: int) -> None:
        """Run on from `time_ns` when that is later than now."""
        self._behind = max(self._behind, time_ns - self._monotonic_ns())
