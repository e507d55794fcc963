"""When a schedule has its jobs. Ticks are whole seconds since 1970, UTC."""

from __future__ import annotations

from datetime import UTC, datetime, tzinfo
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from zfabric.errors import NotStored

if TYPE_CHECKING:
    from cronsim import CronSim

__all__ = ["Ticks"]

WINDOW_S = 60


class Ticks:
    """The ticks of a cron expression in a time zone, or all multiples of some seconds."""

    def __init__(self, cron: str, every_s: int, timezone: str) -> None:
        """Raises ValueError for what makes no sense, NotStored where cron expressions cannot be read."""
        if bool(cron) == bool(every_s):
            raise ValueError("a schedule has either cron or every")
        self._cron = cron
        self._every_s = every_s
        self._timezone = _zone(timezone)
        if cron:
            _ = self._from(0)

    def after(self, time: int) -> int:
        """The first tick after a time. Raises ValueError when there is none within fifty years."""
        if self._every_s:
            return (time // self._every_s + 1) * self._every_s
        for tick in self._from(time):
            found = round(tick.timestamp())
            if found > time:  # a time that exists twice counts as the first of both, which may be past
                return found
        raise ValueError(f"cron {self._cron!r}: that never comes")

    def last(self, after: int, until: int) -> int:
        """The last tick after `after` and not after `until`, where there is one: long pauses are no long loops."""
        window = WINDOW_S
        while True:
            start, found = max(after, until - window), after
            while (tick := self.after(max(start, found))) <= until:
                found = tick
                if self._every_s:
                    return until // self._every_s * self._every_s
            if found > after or start == after:
                return found
            window *= 4

    def _from(self, time: int) -> CronSim:
        try:
            from cronsim import CronSim, CronSimError
        except ImportError:
            raise NotStored("the store reads no cron expressions: pip install 'zfabric[store]'") from None
        try:
            return CronSim(self._cron, datetime.fromtimestamp(time, self._timezone))
        except CronSimError as error:
            raise ValueError(f"cron {self._cron!r}: {error}") from None


def _zone(name: str) -> tzinfo:
    if name == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (LookupError, ValueError, OSError):
        raise ValueError(
            f"the store knows no time zone {name!r}: a name like 'Europe/Berlin'; pip install tzdata"
        ) from None
