"""A schedule that does not drift: slot `n` is due at `start + n / rate`, however late the last one was."""

from __future__ import annotations

__all__ = ["Pace"]


class Pace:
    """Says how many readings are due; reads no clock itself.

    Timers wake a little late, so at high rates two slots may be due at once: both are given, which
    keeps the asked rate. Who is later than `catch_up_s` has lost those slots: they count as `skipped`.
    """

    def __init__(self, rate_hz: float, start_s: float, *, catch_up_s: float = 0.05) -> None:
        if rate_hz <= 0:
            raise ValueError(f"rate_hz must be above 0, not {rate_hz!r}")
        self.rate_hz = rate_hz
        self.skipped = 0
        self._start_s = start_s
        self._slot = 0
        self._catch_up_slots = max(1, int(catch_up_s * rate_hz))

    @property
    def next_s(self) -> float:
        """When the next slot is due."""
        return self._start_s + self._slot / self.rate_hz

    def due(self, now_s: float) -> int:
        """Slots that have become due since the last call; they now count as used."""
        # The smallest slack keeps a wake-up exactly on the slot from being rounded to "not yet".
        passed = int((now_s - self._start_s) * self.rate_hz + 1e-6) + 1
        count = passed - self._slot
        if count <= 0:
            return 0
        self._slot = passed
        given = min(count, self._catch_up_slots)
        self.skipped += count - given
        return given
