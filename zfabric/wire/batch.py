"""The batch: all that one publisher said on one topic in one turn, as one ZeroMQ message.

    topic NUL | header (MessagePack bin8 around a fixed-width array) | body (array32 of values) | meta (optional)
    | signature (optional)

The topic and its terminator stand in front because libzmq filters by prefix. The header has a fixed width, so
that a sealed batch costs one `pack_into` over placeholders and values are appended without knowing how many
will follow. Meta (keys, headers, ttl) is there only if a message has any. Large buffers follow as frames of
their own. `docs/protocol.md` is the specification.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any, TypeAlias
from zlib import crc32

import msgspec

from zfabric.errors import EncodeFailed, RemoteProtocolError
from zfabric.wire.fields import Count
from zfabric.wire.loans import Loan, decode_loan
from zfabric.wire.signatures import SIGNATURE_BYTES, digest

__all__ = [
    "FLAG_ACK_NOW",
    "FLAG_DURABLE",
    "FLAG_RELIABLE",
    "FLAG_SIGNED",
    "REPAIR_BYTES",
    "VERSION",
    "Batch",
    "BatchWriter",
    "Buffer",
    "Meta",
    "Sign",
    "StoredAt",
    "frame_bytes",
    "parse_batch",
    "plain_metadata",
]

VERSION = 1
FLAG_CRC = 1
FLAG_RELIABLE = 2
"The stream can be repaired: sequence numbers are acknowledged."
FLAG_ACK_NOW = 4
"Somebody waits for the acknowledgement."
FLAG_DURABLE = 8
"The stream is kept by stores."
FLAG_SIGNED = 16
"The first frame ends in a signature."

REPAIR_BYTES = 16 * 1024
"What a repair adds to the frames of a batch, at most."

TTL_S_MAX = 1e9
"Longest lifetime of a message: it fits the 64 bits of any clock."

Buffer: TypeAlias = bytes | bytearray | memoryview
Sign: TypeAlias = Callable[[Sequence[Buffer]], bytes]
"""The signature of a batch's frames."""

# Fixed-width MessagePack: array of 9, uint8 version, bin8 producer, uint32 epoch, uint64 base, uint32 count,
# uint64 nanoseconds, uint8 flags, uint32 body length, uint32 CRC of everything else.
_HEADER = struct.Struct(">BBB BB16s BI BQ BI BQ BB BI BI")
_META_BYTES_MIN = 24
_BODY = struct.Struct(">BI")
_CRC = struct.Struct(">I")
_WRAP = struct.Struct(">BB")
_PREFIX_BYTES = _WRAP.size + _HEADER.size + _BODY.size


class Header(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What the fixed-width array holds."""

    version: int
    producer: Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
    epoch: Count
    base: Count
    count: Annotated[int, msgspec.Meta(ge=1)]
    published_ns: Count
    flags: Annotated[int, msgspec.Meta(ge=0, le=255)]
    body_bytes: Annotated[int, msgspec.Meta(ge=1)]
    crc: Annotated[int, msgspec.Meta(ge=0)]


class Meta(msgspec.Struct, array_like=True, gc=False):
    """Sparse metadata, by position in the batch; costs nothing where absent."""

    keys: dict[int, Any] = {}
    headers: dict[int, dict[str, Any]] = {}
    ttl_ms: dict[int, int] = {}


class StoredAt(msgspec.Struct, frozen=True, gc=False):
    """The place of a batch in a store's log."""

    store: bytes
    "The log's id."
    offset: int
    "Of the first message."
    dropped: Sequence[tuple[int, int]] = ()
    "Places in the batch that are not to be delivered."
    reading: int = 0
    "The reading that it came by."


class Batch(msgspec.Struct, gc=False):
    """A received batch whose payloads nobody has looked at yet."""

    topic: str
    producer: bytes
    epoch: int
    base: int
    count: int
    published_ns: int
    body: Buffer
    meta: Meta | None
    buffers: Sequence[Buffer]
    nbytes: int
    flags: int = 0
    skip: int = 0
    "Messages at the front that the subscription has had already."
    frame: bytes = b""
    "All of the first frame."
    stored: StoredAt | None = None
    "Where a store keeps it, if it comes from there."
    signature: bytes = b""
    signer: str = ""
    "Who signed it, once that was checked."
    refused: str = ""
    "Why its signature makes it unfit to be delivered."
    loan: Loan | None = None
    "Where its buffers are, if they are not here yet."

    @property
    def reliable(self) -> bool:
        """Whether the stream can be repaired."""
        return bool(self.flags & FLAG_RELIABLE)

    @property
    def durable(self) -> bool:
        """Whether stores keep the stream."""
        return bool(self.flags & FLAG_DURABLE)

    @property
    def end(self) -> int:
        """The sequence number after the last message."""
        return self.base + self.count

    def digest(self, key: bytes = b"") -> bytes:
        """What its signature is about."""
        return digest([memoryview(self.frame)[: len(self.frame) - len(self.signature)], *self.buffers], key)


class BatchWriter:
    """The open batch of one stream: append values to `buffer`, count them, then `seal()`.

    The caller encodes straight into `buffer` and raises `count`: one call less per message.
    """

    # fmt: off
    __slots__ = (
        "_epoch", "_offset", "_prefix", "_producer", "buffer", "buffers", "buffers_counted", "count", "meta",
        "meta_bytes", "sign", "with_crc",
    )
    # fmt: on

    def __init__(
        self, topic: str, producer: bytes, epoch: int, *, with_crc: bool = False, sign: Sign | None = None
    ) -> None:
        head = topic.encode("ascii") + b"\0"
        self._offset = len(head)
        self._prefix = head + bytes(_PREFIX_BYTES)
        self._producer = producer
        self._epoch = epoch
        self.sign = sign
        self.with_crc = with_crc and sign is None  # a signature is made over all, and tells more
        self._clear()

    def _clear(self) -> None:
        self.buffer = bytearray(self._prefix)
        self.buffers: list[Buffer] = []
        self.buffers_counted = 0
        self.meta: Meta | None = None
        self.meta_bytes = 0 if self.sign is None else SIGNATURE_BYTES
        self.count = 0

    def begin_epoch(self, epoch: int) -> None:
        """What is sealed from now on is of this epoch."""
        self._epoch = epoch

    @property
    def body_bytes(self) -> int:
        """Bytes of the values so far, with what travels beside the body."""
        return len(self.buffer) - len(self._prefix) + self.meta_bytes + sum(map(len, self.buffers))

    def annotate(self, key: Any, headers: dict[str, Any] | None, ttl_ms: int | None, nbytes: int = 0) -> None:
        """Attach metadata, as `plain_metadata` gave it, to the message about to be counted."""
        meta = self.meta
        if meta is None:
            meta = self.meta = Meta({}, {}, {})
        if key is not None:
            meta.keys[self.count] = key
        if headers:
            meta.headers[self.count] = headers
        if ttl_ms is not None:
            meta.ttl_ms[self.count] = ttl_ms
        self.meta_bytes += nbytes

    def drain(self) -> bytearray:
        """Take the values out without a header, to travel in a bundle. There must be no metadata and no buffers."""
        start = len(self._prefix)
        values = self.buffer[start:]
        del self.buffer[start:]
        self.count = 0
        return values

    def seal(self, base: int, published_ns: int, flags: int = 0) -> list[Buffer]:
        """Return the frames of the finished batch, which starts at sequence number `base`; start a new one."""
        buffer, offset = self.buffer, self._offset
        body_start = offset + _WRAP.size + _HEADER.size
        body_bytes = len(buffer) - body_start
        _BODY.pack_into(buffer, body_start, 0xDD, self.count)
        if self.meta is not None:
            buffer += _encode_meta(self.meta)
        if self.sign is not None:
            flags |= FLAG_SIGNED
        _WRAP.pack_into(buffer, offset, 0xC4, _HEADER.size)
        # fmt: off
        _HEADER.pack_into(
            buffer, offset + _WRAP.size,
            0x99, 0xCC, VERSION, 0xC4, 16, self._producer, 0xCE, self._epoch, 0xCF, base, 0xCE, self.count,
            0xCF, published_ns, 0xCC, flags | (FLAG_CRC if self.with_crc else 0), 0xCE, body_bytes, 0xCE, 0,
        )
        # fmt: on
        if self.with_crc:
            _CRC.pack_into(buffer, body_start - _CRC.size, _checksum(buffer, body_start, self.buffers))
        elif self.sign is not None:
            buffer += self.sign([buffer, *self.buffers])
        frames: list[Buffer] = [buffer, *self.buffers]
        self.buffers.clear()  # a codec may still have the list
        self._clear()
        return frames


def frame_bytes(body_bytes: int, frames: Iterable[Buffer], *, repairable: bool) -> int:
    """The length of a batch's longest frame; of one that may be sent again, of the one frame that holds all of it."""
    lengths = [len(frame) for frame in frames]
    return REPAIR_BYTES + body_bytes + sum(lengths) if repairable else max(body_bytes, *lengths, 0)


def _checksum(frame: Buffer, body_start: int, buffers: Sequence[Buffer]) -> int:
    """The CRC of a batch: everything but the field where it stands, at the end of the header."""
    view = memoryview(frame)
    crc = crc32(view[body_start:], crc32(view[: body_start - _CRC.size]))
    for buffer in buffers:
        crc = crc32(buffer, crc)
    return crc


_encode_meta = msgspec.msgpack.Encoder().encode
_decode_header = msgspec.msgpack.Decoder(Header).decode
_decode_meta = msgspec.msgpack.Decoder(Meta).decode
_MALFORMED = (msgspec.MsgspecError, ValueError, RecursionError, TypeError)


def plain_metadata(
    key: Any, headers: dict[str, Any] | None, ttl_s: Any
) -> tuple[Any, dict[str, Any] | None, int | None, int]:
    """Key, headers and milliseconds as receivers will see them, safe from later changes, and about their size.

    Raises EncodeFailed without a topic, which the caller fills in: metadata that nobody can decode would take its
    whole batch with it.
    """
    ttl_ms = None
    if ttl_s is not None:
        if not isinstance(ttl_s, int | float) or not 0 <= ttl_s <= TTL_S_MAX:
            raise EncodeFailed("", f"ttl must be 0 to {TTL_S_MAX:.0f} seconds, not {ttl_s!r}")
        ttl_ms = max(1, round(ttl_s * 1000))
    if headers is None and (key is None or (key.__class__ is int and -(2**63) <= key < 2**63)):
        return key, None, ttl_ms, _META_BYTES_MIN
    try:
        sent = Meta({} if key is None else {0: key}, {} if headers is None else {0: headers})
        data = _encode_meta(sent)
        plain = _decode_meta(data)
    except (*_MALFORMED, OverflowError) as error:
        raise EncodeFailed("", f"its key or headers cannot travel: {error}") from error
    return plain.keys.get(0), plain.headers.get(0), ttl_ms, len(data) + _META_BYTES_MIN


def parse_batch(
    frames: Sequence[Buffer], *, messages_max: int, buffers_max: int, topic_bytes_max: int, loans: bool = False
) -> Batch:
    """Check everything about a batch except its payloads. Raises RemoteProtocolError, for a loan unless `loans`."""
    if not frames:
        raise RemoteProtocolError("not a batch: no frames")
    frame = bytes(frames[0])
    split = frame.find(b"\0", 0, topic_bytes_max + 1)
    header_start = split + 1 + _WRAP.size
    body_start = header_start + _HEADER.size
    if split <= 0 or len(frame) <= body_start or frame[split + 1] != 0xC4 or frame[split + 2] != _HEADER.size:
        raise RemoteProtocolError("not a batch: no topic and header in front")
    view = memoryview(frame)
    try:
        topic = frame[:split].decode("ascii")
        header = _decode_header(view[header_start:body_start])
        body_end = body_start + header.body_bytes
        end = len(frame) - SIGNATURE_BYTES if header.flags & FLAG_SIGNED else len(frame)
        meta = _decode_meta(view[body_end:end]) if body_end < end else None
    except _MALFORMED as error:
        raise RemoteProtocolError(f"malformed batch: {error}") from None
    if header.version != VERSION:
        raise RemoteProtocolError(f"batch of protocol version {header.version}; this node speaks {VERSION}")
    if body_end > end:
        raise RemoteProtocolError(f"truncated batch: {end} bytes of {body_end}")
    if header.count > messages_max:
        raise RemoteProtocolError(f"batch of {header.count} messages is over Config.batch_messages_max")
    loan = decode_loan(frames[2]) if len(frames) > 2 and not len(frames[1]) else None
    if loan is not None and not loans:
        raise RemoteProtocolError("batch lends its buffers where they have to be")
    buffers_count = len(frames) - 1 if loan is None else len(loan.blocks)
    if buffers_count > buffers_max:
        raise RemoteProtocolError(f"batch with {buffers_count} buffers is over Config.buffers_per_batch_max")
    if loan is None and header.flags & FLAG_CRC and _checksum(frame, body_start, frames[1:]) != header.crc:
        raise RemoteProtocolError("batch damaged on the way: its checksum differs")
    body, buffers = view[body_start:body_end], frames[1:]
    nbytes = len(frame) + sum(len(b) for b in buffers)
    # fmt: off
    return Batch(
        topic, header.producer, header.epoch, header.base, header.count, header.published_ns, body, meta, buffers,
        nbytes, header.flags, 0, frame, None, frame[end:], "", "", loan,
    )
    # fmt: on
