"""Counts what a capture holds, stream by stream: while it is written, and again where a file lost its index."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from zfabric.capture.format import StreamEntry
from zfabric.model import Source

__all__ = ["StreamTotals", "Tally"]


class StreamTotals(msgspec.Struct, frozen=True):
    """What one publisher said on one topic."""

    topic: str
    source: Source
    messages: int
    nbytes: int
    "Bytes of the values."
    first_seq: int
    last_seq: int
    first_received: float
    last_received: float

    @property
    def missing(self) -> int:
        """Messages between the first and the last that are not in the capture: lost, expired or filtered out."""
        return max(0, self.last_seq - self.first_seq + 1 - self.messages)


class Tally:
    """Running totals of each stream."""

    def __init__(self) -> None:
        self._streams: dict[tuple[str, str], StreamEntry] = {}

    def add(self, entry: StreamEntry) -> None:
        """Add the totals of a batch, or of a part."""
        known = self._streams.get((entry.topic, entry.source_id))
        if known is None:
            self._streams[entry.topic, entry.source_id] = entry
            return
        known.messages += entry.messages
        known.nbytes += entry.nbytes
        known.first_seq = min(known.first_seq, entry.first_seq)
        known.last_seq = max(known.last_seq, entry.last_seq)
        known.first_received = min(known.first_received, entry.first_received)
        known.last_received = max(known.last_received, entry.last_received)

    def add_all(self, entries: Iterable[StreamEntry]) -> None:
        """Add many."""
        for entry in entries:
            self.add(entry)

    @property
    def entries(self) -> list[StreamEntry]:
        """As they stand in an index, in the order in which they appeared."""
        return list(self._streams.values())

    def totals(self) -> tuple[StreamTotals, ...]:
        """For users, by topic and source."""
        found = (
            StreamTotals(
                topic=entry.topic,
                source=Source(entry.source_id, entry.source),
                messages=entry.messages,
                nbytes=entry.nbytes,
                first_seq=entry.first_seq,
                last_seq=entry.last_seq,
                first_received=entry.first_received,
                last_received=entry.last_received,
            )
            for entry in self._streams.values()
        )
        return tuple(sorted(found, key=lambda totals: (totals.topic, totals.source.name, totals.source.id)))
