"""A log as a stream of records, to look into it or take it to another engine; and a check of all that is in it.

In MessagePack one value follows the other; in JSON it is one object a line, with bytes in base64. Offsets, marks,
positions, retention and times are kept. What was missing is a `gap` in the stream, and offsets left out in the copy.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO, TypeAlias

import msgpack
import msgspec

from zfabric.errors import NotStored, RemoteProtocolError, StoreNotFound
from zfabric.store.log import (
    Append,
    Commit,
    Gap,
    Key,
    Log,
    Mark,
    MarkUpdate,
    PositionUpdate,
    Retention,
    StoredBatch,
)

__all__ = ["Findings", "read_records", "records", "restore_records", "verify", "write_records"]

_READ_BYTES = 1024 * 1024
_GROUP_BYTES = 4 * 1024 * 1024
_VERSION = 1


class Begin(msgspec.Struct, tag="log", tag_field="kind", frozen=True):
    """The first record."""

    version: int = _VERSION


class StreamRecord(msgspec.Struct, tag="stream", tag_field="kind", frozen=True):
    """A stream begins; its batches follow."""

    name: str
    first: int
    retention: Retention


class BatchRecord(msgspec.Struct, tag="batch", tag_field="kind", frozen=True):
    """A batch of the stream."""

    offset: int
    count: int
    producer: bytes
    epoch: int
    base: int
    published_ns: int
    stored_ns: int
    flags: int
    frames: tuple[bytes, ...]
    keys: tuple[Key, ...] = ()


class GapRecord(msgspec.Struct, tag="gap", tag_field="kind", frozen=True):
    """Offsets of the stream that could not be read."""

    offset: int
    next: int
    reason: str


class EndRecord(msgspec.Struct, tag="end", tag_field="kind", frozen=True):
    """The stream ends, with the offset that comes next and its marks."""

    next: int
    marks: dict[str, tuple[int, int]]
    "Producer, in hexadecimal, to epoch and sequence number."


class PositionRecord(msgspec.Struct, tag="position", tag_field="kind", frozen=True):
    """A named value."""

    name: str
    value: bytes | None
    epoch: int


Record: TypeAlias = Begin | StreamRecord | BatchRecord | GapRecord | EndRecord | PositionRecord


def items(log: Log, stream: str, offset: int, stop: int) -> Iterator[StoredBatch | Gap]:
    """What a stream holds from an offset up to another."""
    while offset < stop and (found := log.read(stream, offset, _READ_BYTES)):
        for item in found:
            if item.offset < stop:
                yield item
        offset = found[-1].next


# -- out -------------------------------------------------------------------------------------------


def records(log: Log) -> Iterator[Record]:
    """The whole log. Streams that are written to meanwhile end where they ended when their turn came."""
    yield Begin()
    for known in log.streams():
        yield StreamRecord(known.name, known.first, known.retention)
        marks = log.marks(known.name)
        for item in items(log, known.name, known.first, known.next):
            if isinstance(item, Gap):
                yield GapRecord(item.offset, item.next, item.reason)
            else:
                yield msgspec.convert(item, BatchRecord, from_attributes=True)
        yield EndRecord(known.next, {producer.hex(): (mark.epoch, mark.next) for producer, mark in marks.items()})
    for name, position in log.positions().items():
        yield PositionRecord(name, position.value, position.epoch)


def write_records(found: Iterable[Record], file: BinaryIO, *, as_json: bool) -> int:
    """Write records to a file; returns how many."""
    encode = msgspec.json.Encoder().encode if as_json else msgspec.msgpack.Encoder().encode
    total = 0
    for record in found:
        file.write(encode(record) + b"\n" if as_json else encode(record))
        total += 1
    return total


# -- in --------------------------------------------------------------------------------------------


def read_records(file: BinaryIO, *, as_json: bool) -> Iterator[Record]:
    """The records of a file. Raises RemoteProtocolError for anything else, also for a file that ends too early."""
    values: Iterable[Any] = file if as_json else msgpack.Unpacker(file, max_buffer_size=2**31 - 1)
    decode = msgspec.json.Decoder(Record).decode if as_json else None
    first: Record | None = None
    try:
        for value in values:
            record: Record = decode(value) if decode is not None else msgspec.convert(value, Record)
            if first is None:
                first = record
                if record != Begin():
                    raise RemoteProtocolError("not an export of a log, or one of a later version")
            yield record
    except (msgspec.MsgspecError, msgpack.UnpackException, ValueError) as error:
        raise RemoteProtocolError(f"not an export of a log: {error}") from error
    if first is None:
        raise RemoteProtocolError("not an export of a log: it is empty")


def restore_records(found: Iterable[Record], log: Log) -> int:
    """Write an export into a log that has none of its streams yet; returns how many batches.

    Raises StoreNotFound when it has one of them, RemoteProtocolError when the export has no end, NotStored.
    """
    waiting: list[Commit] = []
    total = nbytes = 0
    stream, at = "", 0
    for record in found:
        if isinstance(record, StreamRecord):
            stream, at = record.name, record.first
            if log.info(stream) is not None:
                raise StoreNotFound(stream, "this stream is in the log already; import into an empty one")
            log.retain(stream, record.retention)
            log.skip(stream, at)
        elif isinstance(record, BatchRecord):
            if record.offset > at or nbytes > _GROUP_BYTES:
                _store(log, waiting)
                waiting, nbytes = [], 0
                log.skip(stream, record.offset)
            waiting.append(_commit(stream, record))
            nbytes += waiting[-1].nbytes
            at = record.offset + record.count
            total += 1
        elif isinstance(record, EndRecord):
            marks = [MarkUpdate(stream, bytes.fromhex(key), Mark(*mark)) for key, mark in record.marks.items()]
            _store(log, [*waiting, Commit(marks=marks)])
            waiting, nbytes = [], 0
            log.skip(stream, record.next)
        elif isinstance(record, PositionRecord):
            _store(log, [Commit(positions=[PositionUpdate(record.name, record.value, record.epoch)])])
    if waiting:
        raise RemoteProtocolError(f"the export ends in the middle of {stream!r}; what is there was imported")
    return total


def _commit(stream: str, record: BatchRecord) -> Commit:
    """The batch as it was, with the mark that lets it in: batches before it may have expired."""
    mark = MarkUpdate(stream, record.producer, Mark(record.epoch, record.base))
    fields = {name: getattr(record, name) for name in BatchRecord.__struct_fields__ if name != "offset"}
    return Commit([Append(stream=stream, **fields)], marks=[mark])


def _store(log: Log, commits: list[Commit]) -> None:
    for outcome in log.commit(commits):
        if isinstance(outcome, NotStored):
            raise outcome


# -- looking ---------------------------------------------------------------------------------------


class Findings(msgspec.Struct):
    """What was found in one stream by reading all of it."""

    stream: str
    batches: int = 0
    messages: int = 0
    bytes: int = 0
    gaps: list[Gap] = []


def verify(log: Log) -> Iterator[Findings]:
    """Read everything, stream by stream, with all checksums; `log.damage` then tells what is wrong with which file.

    Raises StoreDamaged when marks or positions cannot be read.
    """
    for known in log.streams():
        found = Findings(known.name)
        for item in items(log, known.name, known.first, known.next):
            if isinstance(item, Gap):
                found.gaps.append(item)
            else:
                found.batches += 1
                found.messages += item.count - sum(stop - start for start, stop in item.dropped)
                found.bytes += sum(map(len, item.frames))
        log.marks(known.name)
        yield found
    log.positions()
