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
from zfabric.wire.fields import Count, Digest, Endpoints, Id, Name, Start
from zfabric.wire.letters import Broken, Letter, LetterAck
from zfabric.wire.loans import MemoryOffer

__all__ = [
    "RANGES_MAX",
    "Ack",
    "Attached",
    "Data",
    "Denied",
    "Evicted",
    "Goodbye",
    "Heartbeat",
    "Hello",
    "Identity",
    "Incompatible",
    "Interest",
    "Mapped",
    "Missing",
    "PatternRequest",
    "PeerAddress",
    "Peers",
    "Position",
    "Positions",
    "Record",
    "Refuse",
    "Repair",
    "Resume",
    "Returned",
    "Start",
    "TopicOffer",
    "Unknown",
    "VersionMismatch",
    "Welcome",
    "decode_envelope",
    "encode_envelope",
]

RANGES_MAX = 64
Ranges = Annotated[list[tuple[Count, Count]], msgspec.Meta(max_length=RANGES_MAX)]
"Half-open ranges of sequence numbers."


class Identity(msgspec.Struct, array_like=True, frozen=True):
    """Who a node is. The token tells a reconnecting incarnation from another node with the same id."""

    token: Id
    fabric: Name
    name: Name
    host: Name
    pid: Count
    inbox: Endpoints
    outlet: Endpoints
    frame_bytes_max: Count = 64 * 1024 * 1024
    "A longer frame ends the connection."
    memory: MemoryOffer | None = None
    "How peers on the same host can map what it lends them."


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
    durable: bool = False
    "Stores are to keep it."


class PatternRequest(msgspec.Struct, array_like=True, frozen=True):
    """One subscription of the sender. Its lane is how both sides name it from then on."""

    lane: Count
    pattern: Name
    delivery: Name
    "What it needs at least; empty for whatever is offered."
    start: Start = Start()
    store: bool = False
    "The sender is a store: processed means that its disk has it. It is given durable topics only."


class Interest(msgspec.Struct, array_like=True, tag=5, frozen=True):
    """What changed in the sender's topics and patterns; everything there is if `full`.

    `generation` numbers the states of the sender's patterns. Its feed subscribes to a marker with the same
    number after the patterns themselves, so a publisher knows from its own socket that they are in place.
    """

    full: bool
    more: bool
    "Further INTEREST records belong to the same change."
    generation: Count
    serial: Count
    "Numbers the states of topics and patterns together, so that a change that is lost or late is noticed."
    topics: list[TopicOffer] = []
    topics_gone: list[Name] = []
    patterns: list[PatternRequest] = []
    patterns_gone: list[Count] = []
    "Lanes."


class Position(msgspec.Struct, array_like=True, frozen=True):
    """Where a subscription stands in one stream."""

    lane: Count
    topic: Name
    epoch: Count
    first_kept: Count
    "The oldest message that can still be repaired."
    next_seq: Count


class Attached(msgspec.Struct, array_like=True, tag=6, frozen=True):
    """The receiver's subscriptions are in place: from `next_seq` on each gets everything."""

    positions: list[Position]


class Positions(msgspec.Struct, array_like=True, tag=10, frozen=True):
    """How far each stream has come, so that the loss of a last message is noticed."""

    positions: list[Position]


class Ack(msgspec.Struct, array_like=True, tag=11, frozen=True):
    """All messages before `received` have arrived, and those in `ranges`; all before `processed` are dealt with."""

    lane: Count
    topic: Name
    epoch: Count
    received: Count
    processed: Count
    ranges: Ranges = []


class Repair(msgspec.Struct, array_like=True, tag=12, frozen=True):
    """Send these messages again, or say that they are gone."""

    lane: Count
    topic: Name
    epoch: Count
    ranges: Ranges


class Data(msgspec.Struct, array_like=True, tag=13, frozen=True):
    """The frames of a batch that was asked for again."""

    lane: Count
    frames: list[bytes]


class Missing(msgspec.Struct, array_like=True, tag=14, frozen=True):
    """These messages will not come."""

    lane: Count
    topic: Name
    epoch: Count
    start: Count
    stop: Count
    reason: Name


class Evicted(msgspec.Struct, array_like=True, tag=15, frozen=True):
    """The publisher no longer waits for this subscription, which held everybody up."""

    lane: Count
    topic: Name
    epoch: Count
    reason: Name


class Incompatible(msgspec.Struct, array_like=True, tag=16, frozen=True):
    """The subscription asks for more than the topic offers, and gets nothing."""

    lane: Count
    topic: Name
    offered: Name
    requested: Name


class Denied(msgspec.Struct, array_like=True, tag=21, frozen=True):
    """The receiver of this may not do that here."""

    action: Name
    name: Name


class Mapped(msgspec.Struct, array_like=True, tag=22, frozen=True):
    """The sender can map the receiver's memory, or (empty) cannot any more: then it gets buffers as frames."""

    proof: Annotated[bytes, msgspec.Meta(max_length=16)]


class Returned(msgspec.Struct, array_like=True, tag=23, frozen=True):
    """Which of the receiver's loans the sender still holds. All others up to `horizon` it does not, or never will."""

    horizon: Count
    held: list[Count] = []
    kept: list[Count] = []
    "Held for good: a copy of the sender's process may look at them, too."


class Heartbeat(msgspec.Struct, array_like=True, tag=7, frozen=True):
    """Sent when nothing else was. `peers_digest` is the XOR of the first 8 bytes of all known ids."""

    peers_digest: Digest


class PeerAddress(msgspec.Struct, array_like=True, frozen=True):
    """Where a peer of the sender can be dialled."""

    id: Id
    inbox: Endpoints


class Peers(msgspec.Struct, array_like=True, tag=8, frozen=True):
    """Peer exchange: sent after WELCOME, and when the digests of two nodes differ."""

    peers: list[PeerAddress]


class Goodbye(msgspec.Struct, array_like=True, tag=9, frozen=True):
    """The sender closes; its id will never be used again."""


class Resume(msgspec.Struct, array_like=True, tag=17, frozen=True):
    """An evicted subscription has room again."""

    lane: Count
    topic: Name


Record: TypeAlias = (
    Hello
    | Welcome
    | Refuse
    | Unknown
    | Interest
    | Attached
    | Heartbeat
    | Peers
    | Goodbye
    | Positions
    | Ack
    | Repair
    | Data
    | Missing
    | Evicted
    | Incompatible
    | Resume
    | Letter
    | LetterAck
    | Broken
    | Denied
    | Mapped
    | Returned
)


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
        raise RemoteProtocolError(
            f"{len(envelope.records)} records in a frame; Config.control_records_max is {records_max}"
        )
    return envelope.sender, envelope.records
