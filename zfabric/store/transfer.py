"""A log as a stream of records, to look into it or take it to another engine; and a check of all that is in it.

In MessagePack one value follows the other; in JSON it is one object a line, with bytes in base64. Offsets, marks,
positions, retention and times are kept. What was missing is a `gap` in the stream, and offsets left out in the copy.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, BinaryIO, TypeAlias

import msgpack
import msgspec

from zfabric.config import Config
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
from zfabric.wire.fields import Count

__all__ = ["Findings", "read_records", "records", "restore_records", "verify", "write_records"]

_READ_BYTES = 1024 * 1024
_PIECE_BYTES = 64 * 1024
_GROUP_BYTES = 4 * 1024 * 1024
_VERSION = 2
"Of the first version there is no last record."


class Begin(msgspec.Struct, tag="log", tag_field="kind", frozen=True):
    """The first record."""

    version: int = _VERSION


class StreamRecord(msgspec.Struct, tag="stream", tag_field="kind", frozen=True):
    """A stream begins; its batches follow."""

    name: str
    first: Count
    retention: Retention


class BatchRecord(msgspec.Struct, tag="batch", tag_field="kind", frozen=True):
    """A batch of the stream."""

    offset: Count
    count: Annotated[int, msgspec.Meta(ge=1, le=2**32)]
    producer: bytes
    epoch: int
    base: int
    published_ns: int
    stored_ns: int
    flags: int
    frames: tuple[bytes, ...]
    keys: tuple[Key, ...] = ()

    def __post_init__(self) -> None:
        if any(not 0 <= key.index < self.count for key in self.keys):
            raise ValueError("a key of a message that is not there")


class GapRecord(msgspec.Struct, tag="gap", tag_field="kind", frozen=True):
    """Offsets of the stream that could not be read."""

    offset: int
    next: int
    reason: str


class EndRecord(msgspec.Struct, tag="end", tag_field="kind", frozen=True):
    """The stream ends, with the offset that comes next and its marks."""

    next: Count
    marks: dict[Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$")], tuple[Count, Count]]
    "Producer, in hexadecimal, to epoch and sequence number."


class PositionRecord(msgspec.Struct, tag="position", tag_field="kind", frozen=True):
    """A named value."""

    name: str
    value: bytes | None
    epoch: Count


class Complete(msgspec.Struct, tag="complete", tag_field="kind", frozen=True):
    """The last record: nothing is missing before it."""


Record: TypeAlias = Begin | StreamRecord | BatchRecord | GapRecord | EndRecord | PositionRecord | Complete


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
    yield Complete()


def write_records(found: Iterable[Record], file: BinaryIO, *, as_json: bool) -> int:
    """Write records to a file; returns how many."""
    encode = msgspec.json.Encoder().encode if as_json else msgspec.msgpack.Encoder().encode
    total = 0
    for record in found:
        file.write(encode(record) + b"\n" if as_json else encode(record))
        total += 1
    return total


# -- in --------------------------------------------------------------------------------------------


def read_records(file: BinaryIO, *, as_json: bool, config: Config | None = None) -> Iterator[Record]:
    """The records of a file. Raises RemoteProtocolError for anything else, also for a file that ends too early.

    One record is in memory at a time, of `Config.store_record_bytes_max` at most.
    """
    bytes_max = (config or Config()).store_record_bytes_max
    decode = msgspec.json.Decoder(Record).decode if as_json else msgspec.msgpack.Decoder(Record).decode
    first: Begin | None = None
    record: Record | None = None
    try:
        for raw in _lines(file, bytes_max) if as_json else _values(file, bytes_max):
            record = decode(raw)
            if first is None:
                if not isinstance(record, Begin) or not 1 <= record.version <= _VERSION:
                    raise RemoteProtocolError("not an export of a log, or one of a later version")
                first = record
            yield record
    except (msgspec.MsgspecError, msgpack.UnpackException, ValueError, RecursionError) as error:
        raise RemoteProtocolError(f"not an export of a log: {error!r}") from error
    if first is None:
        raise RemoteProtocolError("not an export of a log: it is empty")
    if first.version > 1 and not isinstance(record, Complete):
        raise RemoteProtocolError("the export was cut off, or is not finished; what is there was imported")


def _lines(file: BinaryIO, bytes_max: int) -> Iterator[bytes]:
    while line := file.readline(bytes_max + 1):
        _check_size(len(line), bytes_max)
        yield line


def _values(file: BinaryIO, bytes_max: int) -> Iterator[bytes]:
    """MessagePack values, still encoded: what they claim to hold is looked at when all of it is there."""
    tee = _Tee(file, bytes_max)
    unpacker = msgpack.Unpacker(tee, read_size=_PIECE_BYTES, max_buffer_size=bytes_max + 2 * _PIECE_BYTES)
    taken = 0
    while True:
        try:
            unpacker.skip()
        except msgpack.OutOfData:
            if tee.kept:
                raise RemoteProtocolError("not an export of a log: it ends in the middle of a record") from None
            return
        size, taken = unpacker.tell() - taken, unpacker.tell()
        _check_size(size, bytes_max)
        yield bytes(tee.kept[:size])
        del tee.kept[:size]


class _Tee:
    """A file that keeps what was read of it, until somebody takes that away."""

    def __init__(self, file: BinaryIO, bytes_max: int) -> None:
        self._file = file
        self._bytes_max = bytes_max
        self.kept = bytearray()

    def read(self, nbytes: int) -> bytes:
        """As of any file."""
        _check_size(len(self.kept), self._bytes_max)
        data = self._file.read(nbytes)
        self.kept += data
        return data


def _check_size(nbytes: int, bytes_max: int) -> None:
    if nbytes > bytes_max:
        raise RemoteProtocolError(f"a record is longer than Config.store_record_bytes_max = {bytes_max}")


def restore_records(found: Iterable[Record], log: Log) -> int:
    """Write an export into a log that has none of its streams yet; returns how many batches.

    Raises StoreNotFound when it has one of them, RemoteProtocolError when the export has no end or no order, and what
    the log raises, TopicError and NotStored among it.
    """
    waiting: list[Commit] = []
    total = nbytes = 0
    stream: str | None = None
    first = at = 0
    for record in found:
        if isinstance(record, StreamRecord):
            if stream is not None:
                raise RemoteProtocolError(f"the export has no end of {stream!r}")
            stream, first, at = record.name, record.first, 0
            if log.info(stream) is not None:
                raise StoreNotFound(stream, "this stream is in the log already; import into an empty one")
            log.retain(stream, record.retention)
        elif isinstance(record, BatchRecord):
            if stream is None or record.offset < at:
                raise RemoteProtocolError(f"the export has a batch at offset {record.offset} where none can be")
            if record.offset > at or nbytes > _GROUP_BYTES:
                _store(log, waiting)
                waiting, nbytes = [], 0
                log.skip(stream, record.offset)
            waiting.append(_commit(stream, record))
            nbytes += waiting[-1].nbytes
            at = record.offset + record.count
            total += 1
        elif isinstance(record, EndRecord):
            if stream is None or record.next < at:
                raise RemoteProtocolError(f"the export has an end at offset {record.next} where none can be")
            marks = [MarkUpdate(stream, bytes.fromhex(key), Mark(*mark)) for key, mark in record.marks.items()]
            _store(log, [*waiting, Commit(marks=marks)])
            waiting, nbytes = [], 0
            log.skip(stream, record.next)
            log.trim(stream, first)  # which may be within the first batch
            stream = None
        elif isinstance(record, PositionRecord):
            _store(log, [Commit(positions=[PositionUpdate(record.name, record.value, record.epoch)])])
    if stream is not None:
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
