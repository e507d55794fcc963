"""Reads capture files, chunk by chunk, also those that were cut off or damaged."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import isfinite
from pathlib import Path
from typing import Any

import msgpack
import msgspec

from zfabric.capture.format import (
    END_BYTES,
    KIND_CHUNK,
    KIND_END,
    KIND_HEADER,
    KIND_INDEX,
    VERSION,
    BadBlock,
    CapturedBatch,
    Chunk,
    Header,
    Index,
    SignedBatch,
    decode_payload,
    open_block,
)
from zfabric.capture.tally import StreamTotals, Tally
from zfabric.capture.writer import part_path, stream_entry
from zfabric.config import Config
from zfabric.errors import CaptureError, DecodeFailed, LocalProtocolError
from zfabric.model import Message, Source
from zfabric.security.finding import find_credentials
from zfabric.wire.signatures import BadSignature

__all__ = ["CaptureReader", "CaptureSummary", "Problem", "Signatures"]

_READ_BYTES = 64 * 1024
_BLOCK_HEAD_BYTES = 64
_PROBLEMS_MAX = 1000


@dataclass(frozen=True, slots=True)
class Problem:
    """A place of a file that cannot be read."""

    path: Path
    offset: int
    reason: str
    torn: bool
    "The end is missing, as after a crash; everything before it was read."

    def __str__(self) -> str:
        return f"{self.path} at byte {self.offset}: {self.reason}"


class CaptureSummary(msgspec.Struct, frozen=True):
    """What a capture holds."""

    messages: int
    nbytes: int
    "Bytes of the values."
    file_bytes: int
    first_received: float | None
    last_received: float | None
    streams: tuple[StreamTotals, ...]

    @property
    def duration_s(self) -> float:
        """From the first message to the last."""
        if self.first_received is None or self.last_received is None:
            return 0.0
        return self.last_received - self.first_received


class Signatures(msgspec.Struct, frozen=True):
    """What the signatures in a capture are worth."""

    signers: dict[str, int]
    "Messages by who signed them: names of identities, or `member` where all share one key."
    unsigned: int
    "Messages without a signature."
    refused: int
    "Messages with one that is worth nothing; `problems` tells why."


class _Unreadable(Exception):
    """The blocks behind `offset` cannot be found."""

    def __init__(self, offset: int, reason: str, *, torn: bool) -> None:
        super().__init__(reason)
        self.offset = offset
        self.reason = reason
        self.torn = torn


class _Part:
    """One file of a recording."""

    def __init__(self, path: Path, config: Config) -> None:
        self.path = path
        self._bytes_max = config.capture_block_bytes_max
        self.nbytes = path.stat().st_size
        self.header = self._read_header()
        self.index = self._read_index()

    def _read_header(self) -> Header:
        try:
            for _, values in self._blocks(0):
                kind, payload = open_block(values, self._bytes_max)
                if kind != KIND_HEADER:
                    break
                header = decode_payload(payload, Header)
                if header.version != VERSION:
                    reason = f"a capture of version {header.version}; this zfabric reads version {VERSION}"
                    raise CaptureError(str(self.path), reason)
                return header
        except (_Unreadable, BadBlock):
            pass
        raise CaptureError(str(self.path), "not a capture file, or its beginning is damaged")

    def _read_index(self) -> Index | None:
        """The index, if the file was closed and nothing is wrong with it."""
        try:
            _, values = next(self._blocks(max(0, self.nbytes - END_BYTES)))
            kind, payload = open_block(values, self._bytes_max)
            if kind != KIND_END or len(payload) != 8:
                return None
            _, values = next(self._blocks(int.from_bytes(payload, "big")))
            kind, payload = open_block(values, self._bytes_max)
            index = decode_payload(payload, Index) if kind == KIND_INDEX else None
        except (_Unreadable, BadBlock, StopIteration, OverflowError):
            return None
        offsets = [chunk.offset for chunk in index.chunks] if index is not None else []
        return index if all(first < second for first, second in pairwise([0, *offsets, self.nbytes])) else None

    def _blocks(self, offset: int) -> Iterator[tuple[int, Any]]:
        """Offset and unpacked array of each block from there on, unchecked. Raises _Unreadable."""
        limit = self._bytes_max + _BLOCK_HEAD_BYTES
        with self.path.open("rb", buffering=0) as file:
            file.seek(min(offset, self.nbytes))
            unpacker = msgpack.Unpacker(
                file,
                read_size=min(_READ_BYTES, limit),
                max_buffer_size=limit + _READ_BYTES,
                max_bin_len=limit,
                max_str_len=_BLOCK_HEAD_BYTES,
                max_array_len=8,
                max_map_len=0,
                max_ext_len=0,
            )
            while True:
                begin = offset + unpacker.tell()
                try:
                    values = unpacker.unpack()
                except msgpack.OutOfData:
                    rest = os.fstat(file.fileno()).st_size - begin
                    if rest <= 0:
                        return
                    raise _Unreadable(begin, f"the last {rest} bytes are not a whole block", torn=True) from None
                except (msgpack.UnpackException, ValueError) as error:
                    raise _Unreadable(begin, f"not a block: {error!r}", torn=False) from None
                yield begin, values

    def chunks(self, since: float | None, problems: dict[tuple[Path, int | str], Problem]) -> Iterator[Chunk]:
        """The readable chunks from those of time `since` on; what is not readable goes into `problems`."""
        offset: int | None = 0
        if since is not None and self.index is not None:
            later = (chunk.offset for chunk in self.index.chunks if chunk.last_received >= since)
            offset = next(later, self.nbytes)
        while offset is not None:
            try:
                yield from self._chunks_from(offset, problems)
                return
            except _Unreadable as error:
                self._note(problems, error.offset, error.reason, torn=error.torn and self.index is None)
                offset = self._next_chunk(error.offset)

    def _chunks_from(self, offset: int, problems: dict[tuple[Path, int | str], Problem]) -> Iterator[Chunk]:
        """Chunk after chunk. Where one is damaged its length may be wrong: the index knows better, if there is one."""
        good = True
        for begin, values in self._blocks(offset):
            try:
                kind, payload = open_block(values, self._bytes_max)
                if kind == KIND_CHUNK:
                    yield _checked(decode_payload(payload, Chunk))
                good = True
            except BadBlock as error:
                if self.index is not None:
                    raise _Unreadable(begin, str(error), torn=False) from None
                if good:
                    self._note(problems, begin, str(error), torn=False)
                good = False

    def _note(self, problems: dict[tuple[Path, int | str], Problem], offset: int, reason: str, *, torn: bool) -> None:
        if len(problems) < _PROBLEMS_MAX:
            problems[self.path, offset] = Problem(self.path, offset, reason, torn)

    def _next_chunk(self, offset: int) -> int | None:
        chunks = self.index.chunks if self.index is not None else []
        return next((chunk.offset for chunk in chunks if chunk.offset > offset), None)


def _checked(chunk: Chunk) -> Chunk:
    """A chunk whose batches name what it has. Raises BadBlock."""
    topics, sources = len(chunk.topics), len(chunk.sources)
    if any(batch.topic >= topics or batch.source >= sources for batch in chunk.batches):
        raise BadBlock("bad content: a batch names a topic or source that is not there")
    if not all(isfinite(batch.received) and isfinite(batch.timestamp) for batch in chunk.batches):
        raise BadBlock("bad content: a batch without a time")
    return chunk


class CaptureReader:
    """A recording: the file that was named, and the parts that follow it where it was split.

    Nothing is read twice or kept: memory is that of one chunk. `problems` collects what could not be read.
    Raises CaptureError for a file that is no capture, and OSError.
    """

    def __init__(self, path: str | os.PathLike[str], config: Config | None = None) -> None:
        config = Config() if config is None else config
        self._parts = [_Part(Path(path), config)]
        self._problems: dict[tuple[Path, int | str], Problem] = {}
        self._follow(Path(path), config)

    def _follow(self, path: Path, config: Config) -> None:
        """Find the parts behind the first one, if that is what was named."""
        first = self._parts[0].header
        while first.part == 0:
            path_next = part_path(path, len(self._parts))
            try:
                part = _Part(path_next, config)
            except FileNotFoundError:
                return
            except CaptureError as error:
                self._problems[path_next, 0] = Problem(path_next, 0, error.reason, torn=False)
                return
            if part.header.run != first.run or part.header.part != len(self._parts):
                return
            self._parts.append(part)

    def __repr__(self) -> str:
        return f"<CaptureReader {self._parts[0].path} [{len(self._parts)} parts]>"

    @property
    def header(self) -> Header:
        """Who recorded what, and when."""
        return self._parts[0].header

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files."""
        return tuple(part.path for part in self._parts)

    @property
    def complete(self) -> bool:
        """Whether every file was closed and has its index. If not, the recorder was killed or still runs."""
        return all(part.index is not None for part in self._parts)

    @property
    def problems(self) -> tuple[Problem, ...]:
        """What could not be read so far: read everything to know all."""
        return tuple(self._problems.values())

    def chunks(self, start: float = 0.0, until: float | None = None) -> Iterator[list[CapturedBatch]]:
        """Batches in the order in which they came, as many at a time as stand in one chunk.

        `start` and `until` are seconds since the first batch.
        """
        index = self._parts[0].index
        origin = index.chunks[0].first_received if index is not None and index.chunks else None
        for part in self._parts:
            for chunk in part.chunks(None if origin is None else origin + start, self._problems):
                batches = list(_named(chunk))
                if not batches:
                    continue
                if origin is None:
                    origin = batches[0].received
                end = float("inf") if until is None else origin + until
                if batches[0].received > end:
                    return
                if wanted := [batch for batch in batches if origin + start <= batch.received <= end]:
                    yield wanted

    @property
    def origin(self) -> float | None:
        """When the first batch came: second 0 of the capture. None if there is none."""
        return next((batches[0].received for batches in self.chunks()), None)

    def batches(self, start: float = 0.0, until: float | None = None) -> Iterator[CapturedBatch]:
        """Batches in the order in which they came."""
        for batches in self.chunks(start, until):
            yield from batches

    def messages(self, start: float = 0.0, until: float | None = None) -> Iterator[Message]:
        """Message after message. Raises CaptureError for values that do not decode."""
        for batch in self.batches(start, until):
            try:
                yield from batch.messages()
            except DecodeFailed as error:
                raise CaptureError(str(self._parts[0].path), error.reason) from error

    def summary(self) -> CaptureSummary:
        """Totals: from the indexes, reading through the files that have none."""
        tally = Tally()
        for part in self._parts:
            if part.index is not None:
                tally.add_all(msgspec.structs.replace(entry) for entry in part.index.streams)
                continue
            for chunk in part.chunks(None, self._problems):
                tally.add_all(map(stream_entry, _named(chunk)))
        streams = tally.totals()
        return CaptureSummary(
            messages=sum(stream.messages for stream in streams),
            nbytes=sum(stream.nbytes for stream in streams),
            file_bytes=sum(part.nbytes for part in self._parts),
            first_received=min((stream.first_received for stream in streams), default=None),
            last_received=max((stream.last_received for stream in streams), default=None),
            streams=streams,
        )

    def check(self) -> tuple[Problem, ...]:
        """Read everything, decode every value, and return `problems`."""
        for part in self._parts:
            for chunk in part.chunks(None, self._problems):
                for batch in _named(chunk):
                    try:
                        batch.messages()
                    except DecodeFailed as error:
                        reason = f"{batch.topic}#{batch.base} does not decode: {error.reason}"
                        self._refuse(part.path, reason)
        return self.problems

    def _refuse(self, path: Path, reason: str) -> None:
        if len(self._problems) < _PROBLEMS_MAX:
            self._problems[path, reason] = Problem(path, 0, reason, torn=False)

    def signatures(self, key: str | bytes | Path | None = None) -> Signatures:
        """Read everything and check who signed it, as a node of the recorded fabric with this `key` would.

        Raises InvalidKey, and LocalProtocolError where signatures cannot be checked.
        """
        signer = find_credentials(self.header.fabric, key)
        if signer is None:
            raise LocalProtocolError(f"to check signatures needs a key of fabric {self.header.fabric!r}")
        signer.signs()
        signers: Counter[str] = Counter()
        unsigned = refused = 0
        for part in self._parts:
            for chunk in part.chunks(None, self._problems):
                for batch in _named(chunk):
                    if not batch.frames:
                        unsigned += batch.count
                        continue
                    try:
                        signers[signer.signer_of(batch.signed())] += batch.count
                    except (BadSignature, DecodeFailed) as error:
                        refused += batch.count
                        reason = f"the signature of {batch.topic}#{batch.base} is refused: {error}"
                        self._refuse(part.path, reason)
        return Signatures(dict(signers), unsigned, refused)


def _named(chunk: Chunk) -> Iterator[CapturedBatch]:
    sources = [Source(*source) for source in chunk.sources]
    for batch in chunk.batches:
        yield _captured(batch, chunk.topics[batch.topic], sources[batch.source])


def _captured(batch: SignedBatch, topic: str, source: Source) -> CapturedBatch:
    # fmt: off
    return CapturedBatch(
        topic, source, batch.base, batch.count, batch.timestamp, batch.received, batch.values, batch.keys,
        batch.headers, batch.frames,
    )
    # fmt: on
