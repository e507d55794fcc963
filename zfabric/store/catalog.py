"""What a store knows of its streams, in memory: where each one's offsets lie. Readers see it without a lock.

A `Stream` never changes; the catalog replaces it as a whole, so a reader works on one consistent view.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from zlib import crc32

import apsw
import msgspec

from zfabric.store.log import Retention, StreamInfo
from zfabric.store.records import unseal
from zfabric.store.segment import Range, Segment

__all__ = ["Catalog", "Stream", "header_crc"]

_HEADER_BYTES = 100
_decode_retention = msgspec.msgpack.Decoder(Retention).decode


class Stream(msgspec.Struct, frozen=True):
    """One stream as it is now."""

    id: int
    name: str
    first: int
    next: int
    sealed: tuple[Range, ...] = ()
    "In order of offsets."
    head: Range | None = None
    retention: Retention = Retention()

    @property
    def ranges(self) -> tuple[Range, ...]:
        """Where all of its offsets lie, in order."""
        return self.sealed if self.head is None else (*self.sealed, self.head)

    @property
    def bytes(self) -> int:
        """Bytes of its batches, about."""
        return sum(held.bytes for held in self.ranges)

    def info(self) -> StreamInfo:
        """For users."""
        return StreamInfo(name=self.name, first=self.first, next=self.next, bytes=self.bytes, retention=self.retention)

    def without_expired(self, first: int) -> Stream:
        """The stream after it forgot what is before `first`."""
        sealed = tuple(held for held in self.sealed if held.next > first)
        head = self.head if self.head is not None and self.head.next > first else None
        return msgspec.structs.replace(self, first=first, sealed=sealed, head=head)


def header_crc(path: Path) -> int:
    """A checksum over SQLite's header, which tells how many changes and pages the file has."""
    with path.open("rb") as file:
        return crc32(file.read(_HEADER_BYTES))


class Catalog:
    """All streams by name, and all sealed files."""

    def __init__(self) -> None:
        self.streams: dict[str, Stream] = {}
        self.files: dict[str, Segment] = {}

    def load(
        self, connection: apsw.Connection, head: Segment, seed: int, open_segment: Callable[[str], Segment]
    ) -> None:
        """Read it from the head; sealed files that are not what the manifest says are marked as damaged.

        Raises BadRow when the head itself is damaged.
        """
        for row in connection.execute("SELECT * FROM files"):
            name, nbytes, header = unseal(seed, row)
            segment = self.files[name] = open_segment(name)
            segment.damaged = _difference(segment.path, nbytes, header)
        sealed: dict[int, list[Range]] = {}
        for row in connection.execute("SELECT * FROM ranges ORDER BY stream, first"):
            stream, first, end, file, *rest = unseal(seed, row)
            sealed.setdefault(stream, []).append(Range(self.files[file], first, end, *rest))
        for row in connection.execute("SELECT * FROM streams"):
            number, name, first, end, start, *rest, retention = unseal(seed, row)
            held = Range(head, start, end, *rest) if end > max(start, first) else None
            kept = tuple(sealed.get(number, ()))
            self.streams[name] = Stream(number, name, first, end, kept, held, _decode_retention(retention))

    def put(self, stream: Stream) -> None:
        """Replace one stream."""
        self.streams[stream.name] = stream

    def live(self) -> dict[str, int]:
        """Bytes in each file that streams still need."""
        found: dict[str, int] = {}
        for stream in list(self.streams.values()):
            for held in stream.ranges:
                found[held.segment.name] = found.get(held.segment.name, 0) + held.bytes
        return found

    def rolled(self) -> None:
        """The head was sealed: what it held is sealed, and the new one holds nothing yet."""
        for stream in list(self.streams.values()):
            if stream.head is not None:
                self.put(msgspec.structs.replace(stream, sealed=stream.ranges, head=None))

    def __iter__(self) -> Iterator[Stream]:
        return iter(list(self.streams.values()))


def _difference(path: Path, nbytes: int, header: int) -> str:
    """How a sealed file differs from what the manifest says of it; empty when it does not."""
    try:
        size = path.stat().st_size
        if size != nbytes:
            return f"the file has {size} bytes instead of {nbytes}"
        if header_crc(path) != header:
            return "the file is another version of itself"
    except OSError as error:
        return f"the file cannot be read: {error.strerror}"
    return ""
