"""Lines: jobs that wait for a worker, by priority, of those that one selector lets through."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from zfabric.protocol.jobs import PRIORITIES, Entry, Lease, Run
from zfabric.wire.selectors import Selector

__all__ = ["Line"]

TIDY_MIN = 64


class Line:
    """Entries in the order in which a worker gets them.

    Higher priorities come first, but `ageing_s` seconds of waiting count as one priority: nothing starves. An entry
    may stand in several lines; whoever takes it makes it not ready, and the other lines pass it over.
    """

    __slots__ = ("_ageing_s", "_levels", "_next_tidy", "_queue", "selector")

    def __init__(self, queue: str, selector: Selector | None, ageing_s: float) -> None:
        self.selector = selector
        self._queue = queue
        self._ageing_s = ageing_s
        self._levels: dict[int, deque[Entry]] = {}
        self._next_tidy = TIDY_MIN

    def matches(self, entry: Entry) -> bool:
        """Whether its workers take such jobs."""
        if self.selector is None:
            return True
        if isinstance(entry, Run):
            return self.selector.matches(None, priority=entry.priority, attempt=1, topic=self._queue)
        return self.selector.matches(
            entry.headers, key=entry.key, priority=entry.priority, attempt=entry.attempts + 1, topic=self._queue
        )

    def add(self, entry: Entry, *, first: bool = False) -> None:
        """Let an entry wait here, if it matches: behind the others of its priority, or before them."""
        if not self.matches(entry):
            return
        level = self._levels.get(entry.priority)
        if level is None:
            levels = {**self._levels, entry.priority: deque[Entry]()}
            self._levels = {
                priority: levels[priority] for priority in range(PRIORITIES - 1, -1, -1) if priority in levels
            }
            level = self._levels[entry.priority]
        if first:
            level.appendleft(entry)
        else:
            level.append(entry)
        if len(level) > self._next_tidy:
            self._tidy()

    def _tidy(self) -> None:
        """Drop what others took from the middle of the line."""
        for priority, level in self._levels.items():
            self._levels[priority] = deque(entry for entry in level if entry.ready)
        self._next_tidy = max(TIDY_MIN, 2 * max(map(len, self._levels.values())))

    def head(self) -> Entry | None:
        """Who is next."""
        best: Entry | None = None
        best_at = 0.0
        for priority, level in self._levels.items():
            while level and not level[0].ready:
                level.popleft()
            if level:
                since = level[0].ready_at - priority * self._ageing_s
                if best is None or since < best_at:
                    best, best_at = level[0], since
        return best

    def entries(self) -> Iterable[Entry]:
        """All of them."""
        return (entry for level in self._levels.values() for entry in level if entry.ready)

    def matches_lease(self, lease: Lease) -> bool:
        """Whether its workers would take any of these jobs."""
        if lease.block is None:
            return any(map(self.matches, lease.jobs))
        return self.matches(Run(lease.block, 0, 1, 0.0))
