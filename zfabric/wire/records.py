"""The control plane's records: everything that one node says to one other, and its envelope.

All records for one peer in one turn of the event loop travel in one frame: `[version, sender, [record, ...]]`.
Every record is a MessagePack array whose first element is its tag, checked as it is decoded. `Refuse` and the
envelope keep their shape in all versions, so that two versions can tell each other why they do not talk.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

import msgspec

from zfabric.errors import RemoteProtocolError
from zfabric.wire.batch import VERSION

__all__ = [
    "Attached",
    "Goodbye",
    "Heartbeat",
    "Hello",
    "Identity",
    "Interest",
    "PatternRequest",
    "PeerAddress",
    "Peers",
    "Position",
    "Record",
    "Refuse",
    "TopicOffer",
    "Unknown",
    "Welcome",
    "decode_envelope",
    "encode_envelope",
]

Id = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
Name = Annotated[str, msgspec.Meta(max_length=255)]
Endpoint = Annotated[str, msgspec.Meta(max_length=255)]
Endpoints = Annotated[tuple[Endpoint, ...], msgspec.Meta(max_length=64)]
Count = Annotated[int, msgspec.Meta(ge=0)]


class Identity(msgspec.Struct, array_like=True, frozen=True):
    """Who a node is. The token tells a reconnecting incarnation from another node with the same id."""

    token: Id
    fabric: Name
    name: Name
    host: Name
    pid: Count
    inbox: Endpoints
    outlet: Endpoints


class Hello(msgspec.Struct, array_like=True, tag=1, frozen=True):
    """First record on every connection; `to` names the node that the dialler expects, if it knows."""

    to: Id | None
    identity: Identity


class Welcome(msgspec.Struct, array_like=True, tag=2, frozen=True):
    """The answer to HELLO, on the connection that HELLO came by."""

    identity: Identity


class Refuse(msgspec.Struct, array_like=True, tag=3, frozen=True):
    """The answer to HELLO when we cannot be peers. Its shape never changes."""

    code: Name
    detail: Annotated[str, msgspec.Meta(max_length=1000)]


class Unknown(msgspec.Struct, array_like=True, tag=4, frozen=True):
    """The answer to anything on a connection that has not said HELLO: say it (again)."""


class TopicOffer(msgspec.Struct, array_like=True, frozen=True):
    """A topic that the sender publishes."""

    topic: Name
    epoch: Count
    delivery: Name


class PatternRequest(msgspec.Struct, array_like=True, frozen=True):
    """A pattern that the sender subscribes to."""

    pattern: Name
    delivery: Name


class Interest(msgspec.Struct, array_like=True, tag=5, frozen=True):
    """What changed in the sender's topics and patterns; everything there is if `full`.

    `generation` numbers the states of the sender's patterns. Its feed subscribes to a marker with the same
    number after the patterns themselves, so a publisher knows from its own socket that they are in place.
    """

    full: bool
    generation: Count
    topics: list[TopicOffer] = []
    topics_gone: list[Name] = []
    patterns: list[PatternRequest] = []
    patterns_gone: list[Name] = []


class Position(msgspec.Struct, array_like=True, frozen=True):
    """The next sequence number of one stream."""

    topic: Name
    epoch: Count
    next_seq: Count


class Attached(msgspec.Struct, array_like=True, tag=6, frozen=True):
    """The receiver's subscriptions are in place at the sender: from these positions on it is sent everything."""

    positions: list[Position]


class Heartbeat(msgspec.Struct, array_like=True, tag=7, frozen=True):
    """Sent when nothing else was. `peers_digest` is the XOR of the first 8 bytes of all known ids."""

    peers_digest: Count


class PeerAddress(msgspec.Struct, array_like=True, frozen=True):
    """Where a peer of the sender can be dialled."""

    id: Id
    inbox: Endpoints


class Peers(msgspec.Struct, array_like=True, tag=8, frozen=True):
    """Peer exchange: sent after WELCOME, and when the digests of two nodes differ."""

    peers: list[PeerAddress]


class Goodbye(msgspec.Struct, array_like=True, tag=9, frozen=True):
    """The sender closes; its id will never be used again."""


Record: TypeAlias = Hello | Welcome | Refuse | Unknown | Interest | Attached | Heartbeat | Peers | Goodbye


class Envelope(msgspec.Struct, array_like=True, frozen=True):
    """One control frame."""

    version: int
    sender: Id
    records: list[Record]


class VersionProbe(msgspec.Struct, array_like=True, frozen=True):
    """The part of an envelope that every version shares."""

    version: int
    sender: Id


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Envelope).decode
_probe = msgspec.msgpack.Decoder(VersionProbe).decode
_MALFORMED = (msgspec.MsgspecError, ValueError, RecursionError, TypeError)


class VersionMismatch(RemoteProtocolError):
    """A control frame of another protocol version."""

    def __init__(self, version: int) -> None:
        super().__init__(f"speaks protocol version {version}; this node speaks {VERSION}")
        self.version = version


def encode_envelope(sender: bytes, records: list[Record]) -> bytes:
    """One frame with all records for one peer."""
    return _encode(Envelope(VERSION, sender, records))


def decode_envelope(frame: bytes, records_max: int) -> tuple[bytes, list[Record]]:
    """The sender's id and its records. Raises VersionMismatch or RemoteProtocolError."""
    try:
        envelope = _decode(frame)
    except _MALFORMED as error:
        try:
            version = _probe(frame).version
        except _MALFORMED:
            version = VERSION
        if version != VERSION:
            raise VersionMismatch(version) from None
        raise RemoteProtocolError(f"malformed control frame: {error}") from None
    if envelope.version != VERSION and not any(isinstance(record, Refuse) for record in envelope.records):
        raise VersionMismatch(envelope.version)
    if len(envelope.records) > records_max:
        raise RemoteProtocolError(f"{len(envelope.records)} records in a frame; Config.control_records_max is {records_max}")
    return envelope.sender, envelope.records
