"""The bundle: small batches of many topics for one node, as one ZeroMQ message of one frame.

    FE | node id | tag | CRC (uint32) | header bytes (uint32) | header (MessagePack array) | body (array32 of values)

libzmq filters by prefix, so the address of the one node that is to have it stands in front; no topic begins with FE.
The header has a column for each thing that differs between the batches, so that all of them are encoded, and
decoded, in a few C calls. `docs/protocol.md` is the specification.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from itertools import accumulate
from typing import Annotated, ClassVar, TypeAlias
from zlib import crc32

import msgspec

from zfabric.errors import RemoteProtocolError
from zfabric.wire.batch import FLAG_CRC, VERSION, Batch, Buffer, StoredAt
from zfabric.wire.fields import Count, Id

__all__ = ["ADDRESS", "Bundle", "BundleWriter", "address", "addressee", "is_address", "parse_bundle", "tagged"]

ADDRESS = b"\xfe"
"First byte of the subscription to what is for one node only: no topic begins with it, and markers come behind it."
_ID_BYTES = 16
_TAG_BYTES = 8
_NO_TAG = bytes(_TAG_BYTES)
_ADDRESS_BYTES = 1 + _ID_BYTES + _TAG_BYTES
_FRONT = struct.Struct(">II")
_HEADER_AT = _ADDRESS_BYTES + _FRONT.size
_BODY = struct.Struct(">BI")
_MALFORMED = (msgspec.MsgspecError, ValueError, RecursionError, TypeError)

_Counts: TypeAlias = list[Annotated[int, msgspec.Meta(ge=1, le=2**32)]]


class _Header(msgspec.Struct, array_like=True, gc=False):
    version: int
    producer: Id
    published_ns: Count
    flags: Count
    topics: list[str]
    epochs: list[Count]
    bases: list[Count]
    counts: _Counts


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Header).decode
_split = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode


def address(node_id: bytes) -> bytes:
    """What a node subscribes to for its bundles."""
    return ADDRESS + node_id


def is_address(prefix: bytes) -> bool:
    """Whether a subscription is to bundles for one node."""
    return prefix.startswith(ADDRESS) and len(prefix) == 1 + _ID_BYTES


def tagged(address: bytes, user: str) -> bytes:
    """The address as it stands in front of bundles: only connections of this identity may subscribe to it."""
    return address + (blake2b(user.encode(), digest_size=_TAG_BYTES).digest() if user else _NO_TAG)


def addressee(frames: Sequence[Buffer]) -> bytes | None:
    """The node that a message from the feed is for, if it is a bundle."""
    front = bytes(frames[0][: 1 + _ID_BYTES]) if frames else b""
    return front[1:] if front.startswith(ADDRESS) else None


class Bundle(msgspec.Struct, gc=False):
    """Received batches of different streams, all at-most-once, whose payloads nobody has looked at yet."""

    producer: bytes
    published_ns: int
    topics: list[str]
    epochs: list[int]
    bases: list[int]
    counts: list[int]
    count: int
    "Messages in all of them."
    body: Buffer
    nbytes: int

    # What it has in common with a batch.
    reliable: ClassVar[bool] = False
    skip: ClassVar[int] = 0
    stored: ClassVar[StoredAt | None] = None

    def batch(self, index: int, body: Buffer = b"") -> Batch:
        """One of the batches by itself."""
        # fmt: off
        return Batch(
            self.topics[index], self.producer, self.epochs[index], self.bases[index], self.counts[index],
            self.published_ns, body, None, (), self.nbytes * self.counts[index] // self.count + 1,
        )
        # fmt: on

    def batches(self) -> Iterator[Batch]:
        """Each of the batches by itself."""
        return map(self.batch, range(len(self.topics)), self._bodies())

    def select(self, indices: list[int]) -> Bundle:
        """Some of the batches."""
        if len(indices) == len(self.topics):
            return self
        bodies = list(self._bodies())
        counts = [self.counts[index] for index in indices]
        count = sum(counts)
        body = _BODY.pack(0xDD, count) + b"".join(bodies[index][_BODY.size :] for index in indices)
        topics = [self.topics[index] for index in indices]
        epochs = [self.epochs[index] for index in indices]
        bases = [self.bases[index] for index in indices]
        return Bundle(self.producer, self.published_ns, topics, epochs, bases, counts, count, body, len(body))

    def _bodies(self) -> Iterator[bytes]:
        """The body of each batch; ones that do not decode if their borders cannot be found."""
        try:
            values = _split(self.body)
        except _MALFORMED:
            values = []
        if len(values) != self.count:
            return iter([b""] * len(self.topics))
        stops = accumulate(self.counts)
        return (
            _BODY.pack(0xDD, count) + b"".join(values[stop - count : stop])
            for count, stop in zip(self.counts, stops, strict=True)
        )


class BundleWriter:
    """Collects open batches; `seal` gives everything but the address."""

    __slots__ = ("bases", "bodies", "count", "counts", "epochs", "nbytes", "topics")

    def __init__(self) -> None:
        self.topics: list[str] = []
        self.epochs: list[int] = []
        self.bases: list[int] = []
        self.counts: list[int] = []
        self.bodies: list[Buffer] = []
        self.count = 0
        self.nbytes = 0

    def seal(self, producer: bytes, published_ns: int, *, with_crc: bool) -> bytes:
        """The frame from its checksum on."""
        flags = FLAG_CRC if with_crc else 0
        columns = self.topics, self.epochs, self.bases, self.counts
        header = _encode((VERSION, producer, published_ns, flags, *columns))
        rest = b"".join((header, _BODY.pack(0xDD, self.count), *self.bodies))
        return _FRONT.pack(_checksum(len(header), rest) if with_crc else 0, len(header)) + rest


def _checksum(header_bytes: int, rest: Buffer) -> int:
    """The CRC of everything behind it."""
    return crc32(rest, crc32(header_bytes.to_bytes(4, "big")))


def parse_bundle(frames: Sequence[Buffer], *, messages_max: int) -> Bundle:
    """Check everything about a bundle except its topics and payloads. Raises RemoteProtocolError."""
    frame = bytes(frames[0])
    if len(frames) > 1 or len(frame) <= _HEADER_AT:
        raise RemoteProtocolError("malformed bundle: it is one frame with an address, a header and a body")
    crc, header_bytes = _FRONT.unpack_from(frame, _ADDRESS_BYTES)
    view = memoryview(frame)
    body = view[_HEADER_AT + header_bytes :]
    try:
        header = _decode(view[_HEADER_AT : _HEADER_AT + header_bytes])
    except _MALFORMED as error:
        raise RemoteProtocolError(f"malformed bundle: {error}") from None
    if header.version != VERSION:
        raise RemoteProtocolError(f"bundle of protocol version {header.version}; this node speaks {VERSION}")
    if header.flags & FLAG_CRC and _checksum(header_bytes, view[_HEADER_AT:]) != crc:
        raise RemoteProtocolError("bundle damaged on the way: its checksum differs")
    if not len(header.topics) == len(header.epochs) == len(header.bases) == len(header.counts) > 0:
        raise RemoteProtocolError("malformed bundle: its columns differ in length, or are empty")
    if len(set(header.topics)) < len(header.topics):
        raise RemoteProtocolError("malformed bundle: it has a topic twice")
    count = sum(header.counts)
    if count > messages_max:
        raise RemoteProtocolError(f"bundle of {count} messages is over Config.batch_messages_max")
    # fmt: off
    return Bundle(
        header.producer, header.published_ns, header.topics, header.epochs, header.bases, header.counts, count,
        body, len(frame),
    )
    # fmt: on
