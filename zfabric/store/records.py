"""How batches are kept in a file of the log: its tables, and a row for each batch with two checksums."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, TypeAlias
from zlib import crc32

import msgspec

from zfabric.store.log import Append, Key, StoredBatch

__all__ = [
    "APPLICATION_ID",
    "BATCHES",
    "COLUMNS",
    "DELETE_POSITION",
    "FORGOT_MARKS",
    "FORMAT",
    "HEAD_TABLES",
    "INSERT",
    "INSERT_FILE",
    "INSERT_MARK",
    "INSERT_POSITION",
    "INSERT_RANGE",
    "INSERT_STATE",
    "INSERT_STREAM",
    "PAGE_BYTES",
    "BadRow",
    "Row",
    "append_row",
    "check_row",
    "decode_dropped",
    "decode_keys",
    "hole_row",
    "seal",
    "stored_batch",
    "thinned_row",
    "unseal",
]

APPLICATION_ID = 0x7A464C31
FORMAT = 1
PAGE_BYTES = 8192
FORGOT_MARKS = "$marks"
"Name of a position that is there once marks were forgotten."

BATCHES = """
CREATE TABLE batches (
    stream INTEGER NOT NULL, offset INTEGER NOT NULL, count INTEGER NOT NULL,
    producer BLOB, epoch INTEGER NOT NULL, base INTEGER NOT NULL,
    published_ns INTEGER NOT NULL, stored_ns INTEGER NOT NULL, flags INTEGER NOT NULL,
    body_crc INTEGER NOT NULL, crc INTEGER NOT NULL,
    keys BLOB, dropped BLOB, sizes BLOB, body BLOB,
    PRIMARY KEY (stream, offset)
)
"""
"""In every file. A row without body is a hole: compaction took its offsets away. The rows of a stream follow each
other without a gap from where the file's range of the stream begins to where it ends; anything else is damage."""

HEAD_TABLES = """
CREATE TABLE streams (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, first INTEGER NOT NULL, next INTEGER NOT NULL,
    start INTEGER NOT NULL, bytes INTEGER NOT NULL, first_ns INTEGER NOT NULL, last_ns INTEGER NOT NULL,
    retention BLOB NOT NULL, crc INTEGER NOT NULL
);
CREATE TABLE marks (
    producer BLOB NOT NULL, stream INTEGER NOT NULL, epoch INTEGER NOT NULL, next INTEGER NOT NULL,
    used INTEGER NOT NULL, crc INTEGER NOT NULL, PRIMARY KEY (producer, stream)
) WITHOUT ROWID;
CREATE TABLE positions (
    name TEXT PRIMARY KEY, value BLOB, epoch INTEGER NOT NULL, crc INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE files (
    name TEXT PRIMARY KEY, bytes INTEGER NOT NULL, header INTEGER NOT NULL, crc INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE ranges (
    stream INTEGER NOT NULL, first INTEGER NOT NULL, next INTEGER NOT NULL, file TEXT NOT NULL,
    bytes INTEGER NOT NULL, first_ns INTEGER NOT NULL, last_ns INTEGER NOT NULL, crc INTEGER NOT NULL,
    PRIMARY KEY (stream, first)
) WITHOUT ROWID;
CREATE TABLE state (
    id INTEGER PRIMARY KEY CHECK (id = 1), commits INTEGER NOT NULL, stored_ns INTEGER NOT NULL,
    next_file INTEGER NOT NULL, next_stream INTEGER NOT NULL, crc INTEGER NOT NULL
);
"""
"""In the head: what the log knows beside its batches. `streams.start`, `bytes`, `first_ns`, `last_ns` are about the
head itself; `files` and `ranges` are the manifest of the sealed files, which keep these tables as they were. The last
column of a row is a checksum of the others (`seal`, `unseal`)."""

COLUMNS = (
    "stream, offset, count, producer, epoch, base, published_ns, stored_ns, flags,"
    " body_crc, crc, keys, dropped, sizes, body"
)
INSERT = f"INSERT INTO batches ({COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)"

INSERT_STATE = "INSERT OR REPLACE INTO state VALUES (?,?,?,?,?,?)"
INSERT_STREAM = "INSERT OR REPLACE INTO streams VALUES (?,?,?,?,?,?,?,?,?,?)"
INSERT_MARK = "INSERT OR REPLACE INTO marks VALUES (?,?,?,?,?,?)"
INSERT_POSITION = "INSERT OR REPLACE INTO positions VALUES (?,?,?,?)"
DELETE_POSITION = "DELETE FROM positions WHERE name = ?"
INSERT_FILE = "INSERT INTO files VALUES (?,?,?,?)"
INSERT_RANGE = "INSERT INTO ranges VALUES (?,?,?,?,?,?,?,?)"

Row: TypeAlias = tuple[Any, ...]
"""The values of `COLUMNS`."""

_HEAD = struct.Struct(">QQIIQQQII")
_encode = msgspec.msgpack.Encoder().encode
_decode_keys = msgspec.msgpack.Decoder(tuple[Key, ...]).decode
_decode_ranges = msgspec.msgpack.Decoder(tuple[tuple[int, int], ...]).decode
_decode_sizes = msgspec.msgpack.Decoder(tuple[int, ...]).decode


class BadRow(Exception):
    """The row is not what was written."""


def _crc(row: Sequence[Any], seed: int) -> int:
    stream, offset, count, producer, epoch, base, published_ns, stored_ns, flags, body_crc, _, *blobs = row
    crc = crc32(_HEAD.pack(stream, offset, count, epoch, base, published_ns, stored_ns, flags, body_crc), seed)
    crc = crc32(producer or b"", crc)
    for blob in blobs[:3]:
        crc = crc32(b"\0" if blob is None else blob, crc)
    return crc


def _sealed(row: Row, seed: int) -> Row:
    return (*row[:10], _crc(row, seed), *row[11:])


def seal(seed: int, *values: object) -> tuple[Any, ...]:
    """The values of a row of the head, with their checksum behind them."""
    return (*values, crc32(_encode(values), seed))


def unseal(seed: int, row: Row) -> Row:
    """The values of such a row. Raises BadRow when they are not what was written."""
    *values, crc = row
    if crc != crc32(_encode(values), seed):
        raise BadRow("a row of the head has another checksum")
    return tuple(values)


def append_row(append: Append, stream: int, offset: int, stored_ns: int, seed: int) -> tuple[Row, int]:
    """The row of a new batch, and about how many bytes it takes."""
    frames = append.frames
    body = frames[0] if len(frames) == 1 else b"".join(frames)
    sizes = None if len(frames) == 1 else _encode([len(frame) for frame in frames])
    keys = _encode(append.keys) if append.keys else None
    # fmt: off
    row = (
        stream, offset, append.count, append.producer, append.epoch, append.base, append.published_ns, stored_ns,
        append.flags, crc32(body), 0, keys, None, sizes, body,
    )
    # fmt: on
    return _sealed(row, seed), len(body) + len(keys or b"")


def hole_row(stream: int, offset: int, count: int, stored_ns: int, seed: int) -> Row:
    """The row of offsets that are gone for good."""
    return _sealed((stream, offset, count, None, 0, 0, 0, stored_ns, 0, 0, 0, None, None, None, None), seed)


def thinned_row(row: Row, dropped: Sequence[tuple[int, int]], body: bytes, seed: int) -> Row:
    """The row with other places dropped, and what is left of its body."""
    return _sealed((*row[:9], crc32(body), 0, row[11], _encode(dropped), row[13], body), seed)


def check_row(row: Sequence[Any], seed: int, *, with_body: bool = True) -> None:
    """Raise BadRow when a row that was read is not what was written."""
    try:
        sound = row[10] == _crc(row, seed) and (not with_body or row[9] == crc32(row[14] or b""))
    except (struct.error, TypeError, ValueError):
        sound = False
    if not sound:
        raise BadRow("its checksum differs")


def decode_keys(row: Row) -> tuple[Key, ...]:
    """The keys of a checked row."""
    return _decode_keys(row[11]) if row[11] is not None else ()


def decode_dropped(row: Row) -> tuple[tuple[int, int], ...]:
    """What compaction took from a checked row."""
    return _decode_ranges(row[12]) if row[12] is not None else ()


def stored_batch(row: Row, name: str) -> StoredBatch:
    """The batch of a checked row."""
    body = row[14]
    if row[13] is None:
        frames: tuple[bytes, ...] = (body,)
    else:
        start, parts = 0, []
        for size in _decode_sizes(row[13]):
            parts.append(body[start : start + size])
            start += size
        frames = tuple(parts)
    return StoredBatch(
        stream=name,
        offset=row[1],
        count=row[2],
        producer=row[3],
        epoch=row[4],
        base=row[5],
        published_ns=row[6],
        stored_ns=row[7],
        flags=row[8],
        frames=frames,
        keys=decode_keys(row),
        dropped=decode_dropped(row),
    )
