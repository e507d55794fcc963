"""The bytes of a capture file: a stream of MessagePack arrays, each a block with a checksum.

    header | chunk | chunk | ... | index | end

A chunk holds batches as they came, with the names that they need, so that it can be read without any other. The index
and the end, which has a fixed length and so is found from the back, are only there if the file was closed.
`docs/capture.md` is the specification.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec

from zfabric.errors import DecodeFailed, RemoteProtocolError
from zfabric.model import Message, Source
from zfabric.wire import batch as wire
from zfabric.wire.codec import Codec

__all__ = [
    "END_BYTES",
    "FORMAT",
    "KIND_CHUNK",
    "KIND_END",
    "KIND_HEADER",
    "KIND_INDEX",
    "VERSION",
    "BadBlock",
    "Block",
    "CapturedBatch",
    "Chunk",
    "ChunkEntry",
    "Compression",
    "Header",
    "Index",
    "SignedBatch",
    "StreamEntry",
    "decode_payload",
    "encode_block",
    "encode_end",
    "open_block",
    "pack_values",
]

T = TypeVar("T")

FORMAT: Final = "zfabric capture"
VERSION = 1
KIND_HEADER, KIND_CHUNK, KIND_INDEX, KIND_END = range(4)
Compression = Literal["", "zlib"]

_ZLIB_LEVEL = 1
_END_HEAD = b"\x95\x03\xa0\x08\xce"
_END = struct.Struct(">5sI2sQ")
END_BYTES = _END.size
"Length of the last block of a closed file."

_Count = Annotated[int, msgspec.Meta(ge=0, le=2**62)]


class BadBlock(ValueError):
    """A block that is not what the format says."""


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """The first block: a map, so that later versions can add to it."""

    format: Literal["zfabric capture"] = FORMAT
    version: int = VERSION
    run: str
    "The same in all parts of a recording, 32 hexadecimal digits."
    part: _Count = 0
    "Counts the files of a recording."
    fabric: str = ""
    recorder: str = ""
    "Name of the node that recorded."
    patterns: tuple[str, ...] = ()
    "What it subscribed to."
    started: float = 0.0
    "When the recording began, by the recorder's clock: seconds since 1970, UTC."


class Batch(msgspec.Struct, array_like=True, forbid_unknown_fields=True, gc=False):
    """Consecutive messages of one publisher on one topic, in a chunk."""

    topic: _Count
    source: _Count
    base: _Count
    count: Annotated[int, msgspec.Meta(ge=1, lt=2**32)]
    timestamp: float
    received: float
    values: msgspec.Raw
    keys: dict[int, Any]
    headers: dict[int, dict[str, Any]]


class SignedBatch(Batch, array_like=True, forbid_unknown_fields=True, gc=False):
    """One that was signed. Others end without this field."""

    frames: list[bytes] = []


class Chunk(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """Batches in the order in which they came; they name topics and sources by position."""

    topics: list[str]
    sources: list[tuple[str, str]]
    batches: list[SignedBatch]


class ChunkEntry(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Where a chunk stands and what time it covers."""

    offset: _Count
    first_received: float
    last_received: float


class StreamEntry(msgspec.Struct, array_like=True, gc=False):
    """Totals of one publisher on one topic."""

    topic: str
    source_id: str
    source: str
    messages: _Count
    nbytes: _Count
    first_seq: _Count
    last_seq: _Count
    first_received: float
    last_received: float


class Index(msgspec.Struct, array_like=True):
    """The last block but one of a closed file."""

    chunks: list[ChunkEntry]
    streams: list[StreamEntry]


class Block(msgspec.Struct, array_like=True, forbid_unknown_fields=True, gc=False):
    """One MessagePack array of the file."""

    kind: Annotated[int, msgspec.Meta(ge=0, le=127)]
    compression: Compression
    size: _Count
    "Bytes of the payload when it is not compressed."
    crc: _Count
    payload: bytes


class CapturedBatch(msgspec.Struct, gc=False):
    """Consecutive messages of one publisher on one topic, as they arrived; the values are still encoded."""

    topic: str
    source: Source
    base: int
    "Number of the first message."
    count: int
    timestamp: float
    "By the publisher's clock: seconds since 1970, UTC."
    received: float
    "By the recorder's clock: seconds since 1970, UTC. Never goes backwards within a recording."
    values: msgspec.Raw
    "A MessagePack array."
    keys: dict[int, Any]
    "By position in the batch; only where a message has one."
    headers: dict[int, dict[str, Any]]
    "By position in the batch; only where a message has any."
    frames: list[bytes] = []
    "What was signed, as it was sent: values, keys and headers are in here. Empty where nothing was signed."

    @property
    def nbytes(self) -> int:
        """Bytes of the values; of a signed batch, of its frames."""
        return sum(map(len, self.frames)) or max(0, len(self.values) - _ARRAY_BYTES)

    def signed(self) -> wire.Batch:
        """What was signed. Raises DecodeFailed if it is not what this batch says to be."""
        try:
            signed = wire.parse_batch(self.frames, messages_max=2**32, buffers_max=2**32, topic_bytes_max=255)
        except RemoteProtocolError as error:
            raise DecodeFailed(str(error)) from None
        same = signed.signature and (signed.topic, signed.producer.hex()) == (self.topic, self.source.id)
        if not same or self.base < signed.base or self.base + self.count > signed.end:
            raise DecodeFailed("it is not the batch that was signed")
        return signed

    def messages(self) -> list[Message]:
        """The decoded messages. Raises DecodeFailed, also for an array where numpy is not installed."""
        if self.frames:
            return self._signed_messages()
        values = _CODEC.decode_many(self.values)
        if len(values) != self.count:
            raise DecodeFailed(f"batch of {len(values)} values says that it has {self.count}")
        key, headers = self.keys.get, self.headers.get
        return [
            Message(value, self.base + index, self.topic, self.timestamp, self.source, key(index), headers(index))
            for index, value in enumerate(values)
        ]

    def _signed_messages(self) -> list[Message]:
        batch = self.signed()
        values = _CODEC.decode_many(batch.body, batch.buffers)
        if len(values) != batch.count:
            raise DecodeFailed(f"batch of {len(values)} values says that it has {batch.count}")
        meta = wire.Meta() if batch.meta is None else batch.meta
        key, headers, timestamp = meta.keys.get, meta.headers.get, batch.published_ns / 1e9
        return [
            Message(values[at], batch.base + at, self.topic, timestamp, self.source, key(at), headers(at))
            for at in range(self.base - batch.base, self.base - batch.base + self.count)
        ]


_ARRAY_BYTES = 5
_CODEC = Codec(inline_bytes=2**62)  # keeps nothing between two calls, because nothing is out of band
_encode = msgspec.msgpack.Encoder().encode


def pack_values(values: Sequence[Any]) -> msgspec.Raw:
    """A MessagePack array of values that are encoded already (`msgspec.Raw`)."""
    return msgspec.Raw(b"".join((struct.pack(">BI", 0xDD, len(values)), *values)))


def encode_block(kind: int, content: Any, compression: Compression = "") -> bytes:
    """A whole block."""
    payload = _encode(content)
    head = _encode((kind, compression, len(payload)))
    stored = zlib.compress(payload, _ZLIB_LEVEL) if compression else payload
    crc = zlib.crc32(stored, zlib.crc32(head))
    return b"".join((b"\x95", head[1:], struct.pack(">BI", 0xCE, crc), _encode(stored)))


def encode_end(index_offset: int) -> bytes:
    """The last block, which says where the index begins."""
    crc = zlib.crc32(struct.pack(">Q", index_offset), zlib.crc32(_encode((KIND_END, "", 8))))
    return _END.pack(_END_HEAD, crc, b"\xc4\x08", index_offset)


def open_block(values: Any, bytes_max: int) -> tuple[int, bytes]:
    """The kind and the payload of a block that was unpacked. Raises BadBlock."""
    try:
        block = msgspec.convert(values, Block)
    except msgspec.ValidationError as error:
        raise BadBlock(f"not a block: {error}") from None
    head = _encode((block.kind, block.compression, block.size))
    if zlib.crc32(block.payload, zlib.crc32(head)) != block.crc:
        raise BadBlock("its checksum differs")
    if block.size > bytes_max:
        raise BadBlock(f"{block.size} bytes are over Config.capture_block_bytes_max = {bytes_max}")
    if not block.compression:
        return block.kind, block.payload
    unpacking = zlib.decompressobj()
    try:
        payload = unpacking.decompress(block.payload, block.size + 1)
    except zlib.error as error:
        raise BadBlock(f"cannot be decompressed: {error}") from None
    if len(payload) != block.size or not unpacking.eof:
        raise BadBlock("is not as long as it says")
    return block.kind, payload


def decode_payload(payload: bytes, expected: type[T]) -> T:
    """What a block holds. Raises BadBlock."""
    try:
        return msgspec.msgpack.decode(payload, type=expected)
    except (msgspec.MsgspecError, ValueError, RecursionError, TypeError) as error:
        raise BadBlock(f"bad content: {error}") from None
