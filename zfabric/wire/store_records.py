"""What nodes and stores say to each other. Tags 64 to 79 and 128 to 130; all of it travels in letters.

Live batches are no part of it: a store subscribes to durable topics like every other reader (`PatternRequest.store`)
and acknowledges as processed what its disk has. Here is the rest: who is a store, writing out of turn, reading the log,
looking after its topics.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

import msgspec

from zfabric.wire.fields import Count, Id, Name

__all__ = [
    "STORE_NAME_BYTES",
    "TOPICS_MAX",
    "AskPositions",
    "AskStreams",
    "AskTopics",
    "Indexed",
    "Keeps",
    "NamedPosition",
    "Purge",
    "Read",
    "ReadEnd",
    "ReadMore",
    "ReadStop",
    "StoreOffer",
    "StoreRecord",
    "Stored",
    "Storing",
    "StreamTold",
    "ToldPositions",
    "ToldStreams",
    "ToldTopics",
    "TopicTold",
    "Unreadable",
    "Unwritten",
    "Write",
    "Written",
]

STORE_NAME_BYTES = 1000
"Length of the name of a position."

TOPICS_MAX = 1000
"Topics in one answer."

LongName = Annotated[str, msgspec.Meta(max_length=STORE_NAME_BYTES)]
Range = tuple[Count, Count]


class StoreOffer(msgspec.Struct, array_like=True, tag=64, frozen=True):
    """The sender is a store; said first, and again when it changes."""

    store: Id
    "Of the log, for as long as it lives: offsets are this log's."
    patterns: list[Name]
    "The durable topics that it keeps."


class Storing(msgspec.Struct, array_like=True, tag=65, frozen=True):
    """Whether the store stores what the receiver publishes on a topic. Said when that changes; it does at first."""

    topic: Name
    epoch: Count
    reason: LongName
    "Why it does not just now; empty when it does again."


# -- writing -----------------------------------------------------------------------------------


class NamedPosition(msgspec.Struct, array_like=True, frozen=True):
    """A named value. `value` nil deletes it; refused when the name has a higher epoch."""

    name: LongName
    value: bytes | None
    epoch: Count = 0


class Write(msgspec.Struct, array_like=True, tag=66, frozen=True):
    """Store all of this, or nothing; answered with WRITTEN or UNWRITTEN once it is safe."""

    request: Count
    batches: list[list[bytes]] = []
    "The frames of each, whoever published them."
    positions: list[NamedPosition] = []
    gone: Count | None = None
    """What the producer of the first batch numbered from here up to it was confirmed by another log and is not at hand;
    nil if nothing."""


class Written(msgspec.Struct, array_like=True, tag=67, frozen=True):
    """All of it is safe."""

    request: Count
    offsets: list[Count | None] = []
    "Of each batch; nil for what had been there."


class Unwritten(msgspec.Struct, array_like=True, tag=68, frozen=True):
    """Nothing of it was stored."""

    request: Count
    kind: Literal["refused", "fenced", "sequence", "position", "unknown", "invalid"]
    """`refused`: not now (a full disk), or never (no batch). `fenced`: a newer epoch of its producer has stored.
    `sequence`: something else comes next. `position`: a newer epoch has written that name. `unknown`: the disk
    failed, so it may be stored. `invalid`: it makes no sense, and never will."""
    reason: LongName
    name: LongName = ""
    "The topic or position that it is about."
    producer: bytes = b""
    epoch: Count = 0
    "Of the producer, or of who wrote the position."
    base: Count = 0
    current: Count = 0
    "The newer epoch, or the sequence number that comes next."


class AskPositions(msgspec.Struct, array_like=True, tag=69, frozen=True):
    """Tell the named values that begin with a prefix."""

    request: Count
    prefix: LongName


class ToldPositions(msgspec.Struct, array_like=True, tag=70, frozen=True):
    """The answer to ASK POSITIONS."""

    request: Count
    positions: list[NamedPosition]
    error: LongName = ""
    "Why there are none; else empty."


# -- reading -----------------------------------------------------------------------------------


class AskStreams(msgspec.Struct, array_like=True, tag=71, frozen=True):
    """Tell the streams that match a pattern, and, until READ STOP, each that is new."""

    reading: Count
    pattern: Name


class StreamTold(msgspec.Struct, array_like=True, frozen=True):
    """One stream of the log."""

    topic: Name
    first: Count
    next: Count


class ToldStreams(msgspec.Struct, array_like=True, tag=72, frozen=True):
    """Streams; said at least once."""

    reading: Count
    streams: list[StreamTold]


class Read(msgspec.Struct, array_like=True, tag=73, frozen=True):
    """Read a stream, and go on as it grows, until READ STOP. The reading's number is chosen by the reader.

    The answers are STORED, UNREADABLE or, without `bodies`, INDEXED in the order of offsets, and READ END.
    """

    reading: Count
    topic: Name
    kind: Literal["offset", "earliest", "latest", "last", "since", "last-per-key"]
    value: float | int = 0
    "The offset, the count of messages, or the age in seconds."
    credit: Count = 0
    "Bytes of answers to send before READ MORE; the last may go beyond."
    bodies: bool = True
    rate: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    "Send at the pace at which it was published, this much faster; 0 as fast as possible."


class ReadMore(msgspec.Struct, array_like=True, tag=74, frozen=True):
    """More credit."""

    reading: Count
    nbytes: Count


class ReadStop(msgspec.Struct, array_like=True, tag=75, frozen=True):
    """The reading is over; answers that are under way are to be ignored."""

    reading: Count


class Stored(msgspec.Struct, array_like=True, tag=76, frozen=True):
    """A batch of the log."""

    reading: Count
    offset: Count
    frames: list[bytes]
    dropped: list[Range] = []
    "Places in the batch that are not to be delivered: half-open ranges."


class Unreadable(msgspec.Struct, array_like=True, tag=77, frozen=True):
    """Offsets of the log that cannot be read, half-open."""

    reading: Count
    offset: Count
    next: Count
    reason: LongName


class ReadEnd(msgspec.Struct, array_like=True, tag=78, frozen=True):
    """All that is stored before `next` was sent; said whenever a reading comes to the end of the log."""

    reading: Count
    next: Count


class Indexed(msgspec.Struct, array_like=True, tag=79, frozen=True):
    """What stands in the log, without its bodies."""

    reading: Count
    entries: list[tuple[Count, Count, Id, Count, Count]]
    "Offset, count, producer, epoch and base of each batch."


# -- looking after topics --------------------------------------------------------------------------


class AskTopics(msgspec.Struct, array_like=True, tag=128, frozen=True):
    """Tell the topics that match a pattern, by name, those after one."""

    request: Count
    pattern: Name
    after: Name = ""


class Purge(msgspec.Struct, array_like=True, tag=129, frozen=True):
    """Remove the messages of a topic, or those before an offset; answered with how the topic is then."""

    request: Count
    topic: Name
    before: Count | None = None


class Keeps(msgspec.Struct, array_like=True, frozen=True):
    """How long a topic is kept; nil is no bound."""

    age_s: float | None
    bytes: Count | None
    messages: Count | None
    compact: bool
    tombstone_s: float


class TopicTold(msgspec.Struct, array_like=True, frozen=True):
    """A topic in the log."""

    topic: Name
    first: Count
    next: Count
    nbytes: Count
    keeps: Keeps


class ToldTopics(msgspec.Struct, array_like=True, tag=130, frozen=True):
    """The answer to ASK TOPICS, with 1,000 at most, and to PURGE; `error` says why nothing was done."""

    request: Count
    topics: Annotated[list[TopicTold], msgspec.Meta(max_length=TOPICS_MAX)]
    error: LongName = ""


StoreRecord: TypeAlias = (
    StoreOffer
    | Storing
    | Write
    | Written
    | Unwritten
    | AskPositions
    | ToldPositions
    | AskStreams
    | ToldStreams
    | Read
    | ReadMore
    | ReadStop
    | Stored
    | Unreadable
    | ReadEnd
    | Indexed
    | AskTopics
    | Purge
    | ToldTopics
)
