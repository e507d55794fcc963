"""Thinning: what is still needed of some sealed files goes into a new one, which takes their place.

So room comes back although a file holds streams that are kept for different times (`mostly_dead`), and of each key
only the last value is kept (`superseded_in`). The heavy work needs no lock but the one that keeps files in place.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from zfabric.errors import RemoteProtocolError
from zfabric.store.catalog import Catalog, Stream
from zfabric.store.head import new_file
from zfabric.store.records import INSERT, PAGE_BYTES, Row, decode_dropped, decode_keys, hole_row, thinned_row
from zfabric.store.rules import may_go, ranges_of, superseded
from zfabric.store.segment import Range, Segment
from zfabric.wire.batch import FLAG_CRC, BatchWriter, Meta, parse_batch
from zfabric.wire.topics import TOPIC_BYTES_MAX

__all__ = ["Piece", "groups", "mostly_dead", "pieces_of", "retained_from", "superseded_in", "write_pack"]

_OVERHEAD_BYTES = 16 * PAGE_BYTES
"What an almost empty file takes; nobody gains by rewriting that."
_NIL = b"\xc0"
_decode_values = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode
_SMALL_FILES = 4
"So many small files are worth one larger one."


class Piece(NamedTuple):
    """The offsets [first, next) of a stream in one file."""

    stream: Stream
    held: Range


def mostly_dead(catalog: Catalog, segment_bytes: int) -> list[Segment]:
    """Files worth rewriting: less than half of each is needed, or they are many and small."""
    live = catalog.live()
    thin, small = [], []
    for segment in catalog.files.values():
        if segment.damaged:
            continue
        size = segment.path.stat().st_size
        if live.get(segment.name, 0) < size // 2 - _OVERHEAD_BYTES:
            thin.append(segment)
        elif size < segment_bytes // 4:
            small.append(segment)
    return thin + small if thin or len(small) >= _SMALL_FILES else []


def pieces_of(catalog: Catalog, segments: Iterable[Segment]) -> list[Piece]:
    """What streams still need of these files."""
    wanted = set(segments)
    return [Piece(stream, held) for stream in catalog for held in stream.sealed if held.segment in wanted]


def groups(segments: Sequence[Segment], live: Mapping[str, int], segment_bytes: int) -> Iterator[list[Segment]]:
    """The files in groups that make one new file each."""
    group: list[Segment] = []
    total = 0
    for segment in segments:
        nbytes = live.get(segment.name, 0)
        if group and total + nbytes > segment_bytes:
            yield group
            group, total = [], 0
        group.append(segment)
        total += nbytes
    if group:
        yield group


def superseded_in(
    stream: Stream, now_ns: int, open_segment: Callable[[Range], Segment]
) -> tuple[list[Segment], dict[tuple[int, int], set[int]]]:
    """Places in sealed batches that later messages of the same key replace: (stream, offset of the batch) -> places.

    Only batches that lose something by it are listed, after the files that hold them.
    """
    tombstones_before = now_ns - round(stream.retention.tombstone_s * 1e9)
    seen: set[bytes] = set()
    segments: dict[Segment, None] = {}
    found = {}
    for held in reversed(stream.ranges):
        for row in open_segment(held).keyed(stream.id, held.first):
            dropped = decode_dropped(row)
            gone = superseded(seen, decode_keys(row), dropped, stored_ns=row[7], tombstones_before_ns=tombstones_before)
            if held.segment.sealed and len(gone) > sum(stop - start for start, stop in dropped):
                found[stream.id, row[1]] = gone
                segments[held.segment] = None
    return list(segments), found


def retained_from(stream: Stream, now_ns: int) -> int:
    """The first offset that a stream's retention keeps."""
    first, total = stream.first, stream.bytes

    def goes(end: int, nbytes: int, stored_ns: int) -> bool:
        nonlocal first, total
        if not may_go(
            stream.retention,
            end=end,
            nbytes=nbytes,
            stored_ns=stored_ns,
            next_offset=stream.next,
            total=total,
            now_ns=now_ns,
        ):
            return False
        first, total = end, total - nbytes
        return True

    for held in stream.ranges:
        if not goes(held.next, held.bytes, held.last_ns):
            while sizes := held.segment.sizes(stream.id, max(first, held.first)):
                for end, nbytes, stored_ns in sizes:
                    if not goes(end, nbytes, stored_ns):
                        return first
            return first  # what is left of it cannot be read, and stands before the rest
    return first


def write_pack(
    path: Path, vfs: str, seed: int, pieces: Sequence[Piece], dropping: Mapping[tuple[int, int], set[int]]
) -> list[tuple[Stream, int, int, int, int, int]]:
    """Write what is needed of these pieces into a new file.

    `dropping` says what else to leave out: (stream, offset of a batch) -> places. Returns a range for each piece of
    which something is left: stream, first, next, bytes, first_ns, last_ns. Raises BadRow for a damaged row.
    """
    connection = new_file(path, vfs)
    ranges: list[tuple[Stream, int, int, int, int, int]] = []
    try:
        connection.execute("BEGIN")
        for stream, held in pieces:
            first, nbytes = None, 0
            for row in _survivors(stream, held, seed, dropping):
                connection.execute(INSERT, row)
                first = row[1] if first is None else first
                nbytes += len(row[14] or b"") + len(row[11] or b"")
            if first is not None and ranges and ranges[-1][0] is stream and ranges[-1][2] == first:
                _, start, _, before, first_ns, _ = ranges.pop()
                ranges.append((stream, start, held.next, before + nbytes, first_ns, held.last_ns))
            elif first is not None:
                ranges.append((stream, first, held.next, nbytes, held.first_ns, held.last_ns))
        connection.execute("COMMIT")
    finally:
        connection.close()
    return ranges


def _survivors(stream: Stream, held: Range, seed: int, dropping: Mapping[tuple[int, int], set[int]]) -> Iterator[Row]:
    """The rows of a piece as they will be; neighbouring holes become one."""
    hole: tuple[int, int, int] | None = None
    for row in held.segment.batches(stream.id, max(held.first, stream.first), held.next):
        offset, count, stored_ns = row[1], row[2], row[7]
        gone = dropping.get((stream.id, offset), ())
        if row[14] is None or len(gone) == count:
            hole = (offset, count, stored_ns) if hole is None else (hole[0], offset + count - hole[0], stored_ns)
            continue
        if hole is not None:
            yield hole_row(stream.id, *hole, seed)
            hole = None
        yield thinned_row(row, ranges_of(set(gone)), _blanked(row, gone), seed) if gone else row
    if hole is not None:
        yield hole_row(stream.id, *hole, seed)


def _blanked(row: Row, gone: Collection[int]) -> bytes:
    """The body with the dropped values replaced by nil, without their keys and headers; the numbers stay.

    A body that is no batch, is signed, or has buffers beside it, stays as it is.
    """
    body = bytes(row[14])
    if row[13] is not None:
        return body
    try:
        batch = parse_batch([body], messages_max=row[2], buffers_max=0, topic_bytes_max=TOPIC_BYTES_MAX)
        if batch.signature:
            return body
        values = _decode_values(batch.body)
    except (RemoteProtocolError, msgspec.MsgspecError):
        return body
    writer = BatchWriter(batch.topic, batch.producer, batch.epoch, with_crc=bool(batch.flags & FLAG_CRC))
    meta = batch.meta or Meta()
    for place, value in enumerate(values):
        if place in gone:
            writer.buffer += _NIL
        else:
            about = meta.keys.get(place), meta.headers.get(place), meta.ttl_ms.get(place)
            if about != (None, None, None):
                writer.annotate(*about)
            writer.buffer += value
        writer.count += 1
    return bytes(writer.seal(batch.base, batch.published_ns, batch.flags & ~FLAG_CRC)[0])
