"""One file of the log, as readers see it: batches of a range of offsets, each verified, and gaps for what is bad."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import apsw
import msgspec

from zfabric.store.records import COLUMNS, BadRow, Row, check_row

__all__ = ["Missing", "Range", "Segment", "SegmentPool"]

_FROM = (
    f"SELECT {COLUMNS} FROM batches WHERE stream = ?1 AND offset >= coalesce((SELECT max(offset) FROM batches"
    " WHERE stream = ?1 AND offset <= ?2), ?2) AND offset < ?3 ORDER BY offset"
)
_LIGHT = COLUMNS.replace("sizes, body", "sizes, NULL")
_AT = f"SELECT {_LIGHT} FROM batches WHERE stream = ? AND offset <= ? ORDER BY offset DESC LIMIT 1"
_KEYED = f"SELECT {_LIGHT} FROM batches WHERE stream = ? AND offset >= ? AND keys IS NOT NULL ORDER BY offset DESC"
_SIZES = (
    f"SELECT {_LIGHT}, coalesce(length(body), 0) + coalesce(length(keys), 0) FROM batches"
    " WHERE stream = ? AND offset >= ? ORDER BY offset LIMIT 500"
)


class Missing(NamedTuple):
    """Offsets [start, stop) that a file should hold and does not, or not as they were written."""

    start: int
    stop: int
    reason: str


class Segment:
    """A file of the log, opened when somebody reads it. Its methods may be called from any thread."""

    def __init__(self, path: Path, vfs: str, seed: int, *, sealed: bool, on_damage: Callable[[str], None]) -> None:
        """`seed` starts every checksum: rows of another store do not pass. `on_damage` is told what is found bad."""
        self.path = path
        self.sealed = sealed
        self.damaged = ""
        "What is known to be wrong with the file as a whole."
        self.removed = False
        "Nothing needs the file any more; it may be gone."
        self._vfs = vfs
        self._seed = seed
        self._on_damage = on_damage
        self._lock = threading.Lock()
        self._connection: apsw.Connection | None = None

    @property
    def name(self) -> str:
        """Its file name."""
        return self.path.name

    def __repr__(self) -> str:
        return f"<Segment {self.name}{' sealed' if self.sealed else ''}{self.damaged and ' ' + self.damaged}>"

    def close(self) -> None:
        """Close the file; the next reader opens it again."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def seal(self) -> None:
        """Note that the file, which nobody has open any more, will not change."""
        self.close()
        self.sealed = True

    def rows(self, sql: str, *parameters: Any) -> list[Row]:
        """The answer to a query about the file."""
        with self._lock:
            return list(self._query(sql, parameters))

    def _query(self, sql: str, parameters: tuple[Any, ...]) -> Iterator[Row]:
        """Rows, with the lock held by the caller."""
        if self._connection is None:
            # A sealed file never changes: without locks and shared memory it can be read even when the disk is full.
            address = f"file:{quote(str(self.path.absolute()))}?mode=ro{'&immutable=1' if self.sealed else ''}"
            connection = apsw.Connection(
                address, flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI, vfs=self._vfs or None
            )
            connection.set_busy_timeout(5000)
            for name, value in (("cache_size", -1024), ("cell_size_check", "on"), ("trusted_schema", "off")):
                connection.pragma(name, value)
            self._connection = connection
        return self._connection.execute(sql, parameters)

    # -- reading -------------------------------------------------------------------------------

    def read(self, stream: int, offset: int, stop: int, max_bytes: int) -> list[Row | Missing]:
        """Rows of a stream from the one that covers `offset` to `stop`, verified, about `max_bytes` of them.

        What is missing or bad becomes a `Missing`. Holes are left out.
        """
        with self._lock:
            found: list[Row | Missing] = []
            at, taken, reason = offset, 0, self.damaged or "missing"
            while at < stop:
                try:
                    for row in self._query(_FROM, (stream, at, stop)):
                        try:
                            check_row(row, self._seed)
                        except BadRow as bad:
                            reason = str(bad)
                            continue
                        start, end = row[1], row[1] + row[2]
                        if end <= at:
                            continue
                        if start > at:
                            found.append(self._missing(at, start, reason))
                        at = end
                        if row[14] is not None:
                            found.append(row)
                            taken += len(row[14])
                            if taken >= max_bytes:
                                return found
                    resume = stop
                except (apsw.Error, OSError) as error:
                    reason = f"{type(error).__name__}: {error}"
                    resume = self._readable_after(stream, at, stop)
                if at < stop:
                    found.append(self._missing(at, resume, reason))
                at = max(at, resume)
            return found

    def _missing(self, start: int, stop: int, reason: str) -> Missing:
        if not self.removed:
            self._on_damage(f"{self.name}: offsets {start} to {stop} cannot be read: {reason}")
        return Missing(start, stop, reason)

    def _readable_after(self, stream: int, bad: int, stop: int) -> int:
        """Where reading may go on after a page that SQLite cannot make sense of: bisection finds the next good one."""
        low, high = bad, stop
        while high - low > 1:
            middle = (low + high) // 2
            try:
                row = next(iter(self._query(_FROM, (stream, middle, stop))), None)
                high = middle if row is None else max(middle, row[1])
            except (apsw.Error, OSError):
                low = middle
        return high

    def sizes(self, stream: int, offset: int) -> list[tuple[int, int, int]]:
        """(end, bytes, stored_ns) of the next few hundred batches from `offset` on; what is damaged is left out."""
        with self._lock:
            found: list[tuple[int, int, int]] = []
            try:
                for *row, nbytes in self._query(_SIZES, (stream, offset)):
                    if self._is_sound(row):
                        found.append((row[1] + row[2], nbytes, row[7]))
            except (apsw.Error, OSError) as error:
                self._on_damage(f"{self.name}: {error}")
            return found

    def keyed(self, stream: int, offset: int) -> list[Row]:
        """Rows that have keys, without their bodies, the newest first; what is damaged is left out."""
        with self._lock:
            found: list[Row] = []
            try:
                found += filter(self._is_sound, self._query(_KEYED, (stream, offset)))
            except (apsw.Error, OSError) as error:
                self._on_damage(f"{self.name}: {error}")
            return found

    def _is_sound(self, row: Sequence[Any]) -> bool:
        """Whether a row without its body is what was written."""
        try:
            check_row(row, self._seed, with_body=False)
        except BadRow as bad:
            self._on_damage(f"{self.name}: what is known of the batch at {row[1]} cannot be read: {bad}")
            return False
        return True

    def offset_at(self, stream: int, first: int, stop: int, time_ns: int) -> int:
        """The first offset in [first, stop) of a batch stored at or after a time, or `stop`; sooner where it is bad."""
        with self._lock:
            low, high = first, stop
            while low < high:
                middle = (low + high) // 2
                try:
                    row = next(iter(self._query(_AT, (stream, middle))), None)
                except (apsw.Error, OSError):
                    return low
                if row is None:
                    low = middle + 1
                elif not self._is_sound(row):
                    return low
                elif row[7] < time_ns:
                    low = max(middle + 1, row[1] + row[2])
                else:
                    high = max(low, row[1])
            return low

    def batches(self, stream: int, offset: int, stop: int) -> Iterator[Row]:
        """Every row of a stream from the one that covers `offset` to `stop`, without keeping readers out meanwhile.

        Raises BadRow for what is damaged or missing.
        """
        alone = Segment(self.path, self._vfs, self._seed, sealed=self.sealed, on_damage=self._on_damage)
        try:
            with alone._lock:
                for row in alone._query(_FROM, (stream, offset, stop)):
                    check_row(row, self._seed)
                    if row[1] + row[2] > offset:
                        if row[1] > offset:
                            raise BadRow(f"offsets {offset} to {row[1]} are missing")
                        offset = row[1] + row[2]
                        yield row
        except apsw.Error as error:
            raise BadRow(str(error)) from error
        finally:
            alone.close()
        if offset < stop:
            raise BadRow(f"offsets {offset} to {stop} are missing")


class Range(msgspec.Struct, frozen=True):
    """The offsets [first, next) of a stream that one file holds."""

    segment: Segment
    first: int
    next: int
    bytes: int
    first_ns: int
    last_ns: int


class SegmentPool:
    """Closes the files that were not read for longest, so that a long log needs few descriptors."""

    def __init__(self, files_max: int) -> None:
        self._files_max = files_max
        self._open: OrderedDict[Segment, None] = OrderedDict()
        self._lock = threading.Lock()

    def use(self, segment: Segment) -> Segment:
        """Note that a sealed file is about to be read."""
        with self._lock:
            self._open[segment] = None
            self._open.move_to_end(segment)
            idle = self._open.popitem(last=False)[0] if len(self._open) > self._files_max else None
        if idle is not None:
            idle.close()
        return segment

    def forget(self, segment: Segment) -> None:
        """Close a file that will be removed."""
        segment.removed = True
        with self._lock:
            self._open.pop(segment, None)
        segment.close()
