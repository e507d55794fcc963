"""Writes capture files."""

from __future__ import annotations

import errno
import os
import uuid
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from zfabric.capture.format import (
    KIND_CHUNK,
    KIND_HEADER,
    KIND_INDEX,
    Batch,
    CapturedBatch,
    ChunkEntry,
    Compression,
    Header,
    Index,
    SignedBatch,
    StreamEntry,
    encode_block,
    encode_end,
)
from zfabric.capture.tally import Tally
from zfabric.config import Config
from zfabric.errors import LimitExceeded

__all__ = ["CaptureWriter", "part_path"]

_OPTION_BYTES_MIN = 1024
_BATCH_BYTES = 64
"About what a batch needs besides its values."


def part_path(path: Path, part: int) -> Path:
    """The file of a part: `run.zfr`, `run.1.zfr`, `run.2.zfr`."""
    return path if part == 0 else path.with_name(f"{path.stem}.{part}{path.suffix}")


class CaptureWriter:
    """Writes batches into a capture file, chunk by chunk, and goes on in another file where it is to be split.

    Files are made with mode 0600. An existing one is not touched (FileExistsError) unless `overwrite` is true. All
    methods may raise OSError; what was written by then can be read. Not for several threads at once.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        started: float,
        fabric: str = "",
        recorder: str = "",
        patterns: tuple[str, ...] = (),
        compress: bool = False,
        split_bytes: int | None = None,
        split_s: float | None = None,
        overwrite: bool = False,
        config: Config | None = None,
    ) -> None:
        if split_bytes is not None and split_bytes < _OPTION_BYTES_MIN:
            raise ValueError(f"split_bytes must be at least {_OPTION_BYTES_MIN}, not {split_bytes!r}")
        if split_s is not None and not split_s > 0:
            raise ValueError(f"split_s must be above 0, not {split_s!r}")
        self._config = Config() if config is None else config
        self._path = Path(path)
        self._split_bytes, self._split_s = split_bytes, split_s
        self._chunk_bytes = min(self._config.capture_chunk_bytes, split_bytes or self._config.capture_chunk_bytes)
        self._compression: Compression = "zlib" if compress else ""
        self._header = Header(
            run=uuid.uuid4().hex, fabric=fabric, recorder=recorder, patterns=patterns, started=started
        )
        self.paths: list[Path] = []
        "The files so far."
        self.nbytes = 0
        "Bytes in all of them."
        self._file = -1
        self._clear_chunk()
        self._refuse_or_remove(overwrite=overwrite)
        try:
            self._open_part()
        except BaseException:
            self._let_go()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def add(self, batch: CapturedBatch) -> None:
        """Append a batch; it is in the file at the latest after `flush`. Raises LimitExceeded for too large a one."""
        size = batch.nbytes + _BATCH_BYTES
        if batch.keys or batch.headers:
            size += len(msgspec.msgpack.encode((batch.keys, batch.headers)))
        if size > self._config.capture_block_bytes_max // 2:
            raise LimitExceeded("capture_block_bytes_max", 2 * size, self._config.capture_block_bytes_max)
        topic = self._topics.setdefault(batch.topic, len(self._topics))
        source = self._sources.setdefault((batch.source.id, batch.source.name), len(self._sources))
        # fmt: off
        row = (
            topic, source, batch.base, batch.count, batch.timestamp, batch.received, batch.values, batch.keys,
            batch.headers,
        )
        # fmt: on
        self._batches.append(SignedBatch(*row, batch.frames) if batch.frames else Batch(*row))
        self._streams.append(stream_entry(batch))
        self._size += size
        if self._size >= self._chunk_bytes:
            self.flush()

    def flush(self) -> None:
        """Write what is open as a chunk."""
        if not self._batches:
            return
        first, last = self._batches[0].received, self._batches[-1].received
        chunk = list(self._topics), list(self._sources), self._batches
        block = encode_block(KIND_CHUNK, chunk, self._compression)
        if self._chunks and self._is_full(len(block), last):
            self._close_part()
            self._open_part()
        entry = ChunkEntry(self._part_bytes, first, last)
        self._write(block)
        self._chunks.append(entry)
        self._tally.add_all(self._streams)
        self._clear_chunk()

    def close(self) -> None:
        """Write what is open, the index and the end. Closing again does nothing."""
        if self._file < 0:
            return
        try:
            self.flush()
            self._close_part()
        finally:
            self._let_go()

    def _let_go(self) -> None:
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)

    def _is_full(self, more_bytes: int, received: float) -> bool:
        over_bytes = self._split_bytes is not None and self._part_bytes + more_bytes > self._split_bytes
        over_s = self._split_s is not None and received - self._chunks[0].first_received >= self._split_s
        return over_bytes or over_s

    def _refuse_or_remove(self, *, overwrite: bool) -> None:
        """Parts of an older recording must neither stop this one in its middle nor be taken for parts of it."""
        splits = self._split_bytes is not None or self._split_s is not None
        part = 0
        while part < 1 + splits or (splits and os.path.lexists(part_path(self._path, part))):
            path = part_path(self._path, part)
            if os.path.lexists(path):
                if not overwrite:
                    raise FileExistsError(errno.EEXIST, "the file exists already", str(path))
                path.unlink()
            part += 1

    def _open_part(self) -> None:
        path = part_path(self._path, len(self.paths))
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
        self._file = os.open(path, flags, 0o600)
        self._part_bytes = 0
        self._chunks: list[ChunkEntry] = []
        self._tally = Tally()
        self._write(encode_block(KIND_HEADER, msgspec.structs.replace(self._header, part=len(self.paths))))
        self.paths.append(path)

    def _close_part(self) -> None:
        index_offset = self._part_bytes
        self._write(encode_block(KIND_INDEX, Index(self._chunks, self._tally.entries), self._compression))
        self._write(encode_end(index_offset))
        os.fsync(self._file)
        self._let_go()

    def _clear_chunk(self) -> None:
        self._topics: dict[str, int] = {}
        self._sources: dict[tuple[str, str], int] = {}
        self._batches: list[Batch] = []
        self._streams: list[StreamEntry] = []
        self._size = 0

    def _write(self, data: bytes) -> None:
        """Append a block as a whole: where the disk is full, what is there of it is taken back."""
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(self._file, rest) :]
        except OSError:
            os.ftruncate(self._file, self._part_bytes)
            os.lseek(self._file, self._part_bytes, os.SEEK_SET)
            raise
        self._part_bytes += len(data)
        self.nbytes += len(data)


def stream_entry(batch: CapturedBatch) -> StreamEntry:
    """The totals of one batch."""
    return StreamEntry(
        batch.topic,
        batch.source.id,
        batch.source.name,
        batch.count,
        batch.nbytes,
        batch.base,
        batch.base + batch.count - 1,
        batch.received,
        batch.received,
    )
