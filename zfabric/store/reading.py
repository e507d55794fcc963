"""The reading half of the log on disk: it needs no lock of the writer's and goes on when writing has ended."""

from __future__ import annotations

from abc import abstractmethod
from bisect import bisect_right

import apsw

from zfabric.errors import StoreDamaged
from zfabric.store.catalog import Catalog, Stream
from zfabric.store.log import Gap, Log, Mark, Position, StoredBatch, StreamInfo
from zfabric.store.records import BadRow, Row, decode_keys, stored_batch, unseal
from zfabric.store.segment import Missing, Range, Segment, SegmentPool

__all__ = ["ReadableLog"]


class ReadableLog(Log):
    """Reads what the catalog knows of."""

    _catalog: Catalog
    _pool: SegmentPool
    _seed: int

    @property
    @abstractmethod
    def _head(self) -> Segment:
        """The file that is written to."""

    def streams(self) -> list[StreamInfo]:
        """See `Log.streams`."""
        return sorted((stream.info() for stream in self._catalog), key=lambda info: info.name)

    def info(self, stream: str) -> StreamInfo | None:
        """See `Log.info`."""
        known = self._catalog.streams.get(stream)
        return None if known is None else known.info()

    def read(self, stream: str, offset: int, max_bytes: int) -> list[StoredBatch | Gap]:
        """See `Log.read`."""
        while True:
            known = self._catalog.streams.get(stream)
            if known is None or offset >= known.next:
                return []
            found = self._read(known, offset, max_bytes)
            # A file may have gone while it was read, because retention or compaction replaced it: look again.
            if not any(held.segment.removed for held in known.ranges):
                return found

    def _read(self, known: Stream, offset: int, max_bytes: int) -> list[StoredBatch | Gap]:
        found: list[StoredBatch | Gap] = []
        if offset < known.first:
            found.append(Gap(known.name, offset, known.first, "expired"))
            offset = known.first
        ranges = known.ranges
        taken = 0
        for held in ranges[max(0, bisect_right(ranges, offset, key=lambda held: held.first) - 1) :]:
            if held.first > offset:
                found.append(Gap(known.name, offset, held.first, "lost"))
                offset = held.first
            for item in self._segment_of(held).read(known.id, offset, held.next, max_bytes - taken):
                if isinstance(item, Missing):
                    found.append(Gap(known.name, item.start, item.stop, item.reason))
                else:
                    taken += len(item[14])
                    found.append(stored_batch(item, known.name))
            if taken and taken >= max_bytes:
                return found
            offset = max(offset, held.next)
        if offset < known.next:
            found.append(Gap(known.name, offset, known.next, "lost"))
        return found

    def _segment_of(self, held: Range) -> Segment:
        return self._pool.use(held.segment) if held.segment.sealed else held.segment

    def offset_at(self, stream: str, time_ns: int) -> int:
        """See `Log.offset_at`."""
        known = self._catalog.streams.get(stream)
        if known is None:
            return 0
        for held in known.ranges:
            if held.last_ns >= time_ns:
                first = max(held.first, known.first)
                return self._segment_of(held).offset_at(known.id, first, held.next, time_ns)
        return known.next

    def offset_of_last(self, stream: str, messages: int) -> int:
        """See `Log.offset_of_last`."""
        known = self._catalog.streams.get(stream)
        return 0 if known is None else max(known.first, known.next - messages)

    def last_per_key(self, stream: str) -> dict[bytes, int]:
        """See `Log.last_per_key`."""
        known = self._catalog.streams.get(stream)
        found: dict[bytes, int | None] = {}
        if known is None:
            return {}
        for held in reversed(known.ranges):
            for row in self._segment_of(held).keyed(known.id, held.first):
                for key in reversed(decode_keys(row)):
                    if key.key not in found:
                        offset = row[1] + key.index
                        found[key.key] = None if key.tombstone or offset < known.first else offset
        return {key: offset for key, offset in reversed(found.items()) if offset is not None}

    def mark(self, producer: bytes, stream: str) -> Mark | None:
        """See `Log.mark`."""
        known = self._catalog.streams.get(stream)
        if known is None:
            return None
        rows = self._sealed_rows("SELECT * FROM marks WHERE producer = ? AND stream = ?", producer, known.id)
        return Mark(rows[0][2], rows[0][3]) if rows else None

    def marks(self, stream: str) -> dict[bytes, Mark]:
        """See `Log.marks`."""
        known = self._catalog.streams.get(stream)
        if known is None:
            return {}
        rows = self._sealed_rows("SELECT * FROM marks WHERE stream = ?", known.id)
        return {producer: Mark(epoch, end) for producer, _, epoch, end, _ in rows}

    def position(self, name: str) -> Position | None:
        """See `Log.position`."""
        rows = self._sealed_rows("SELECT * FROM positions WHERE name = ? AND value NOT NULL", name)
        return Position(rows[0][1], rows[0][2]) if rows else None

    def positions(self, prefix: str = "") -> dict[str, Position]:
        """See `Log.positions`."""
        sql = "SELECT * FROM positions WHERE name >= ?1 AND substr(name, 1, ?2) = ?1 AND value NOT NULL ORDER BY name"
        rows = self._sealed_rows(sql, prefix, len(prefix))
        return {name: Position(value, epoch) for name, value, epoch in rows}

    def _sealed_rows(self, sql: str, *parameters: str | bytes | int) -> list[Row]:
        """Rows of the head's own tables. Raises StoreDamaged."""
        try:
            return [unseal(self._seed, row) for row in self._head.rows(sql, *parameters)]
        except (apsw.Error, BadRow, ValueError) as error:
            raise StoreDamaged(str(self._head.path), str(error)) from error
