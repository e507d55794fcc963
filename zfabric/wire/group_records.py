"""What nodes and the store say to each other about groups. Tags 80 to 95; all of it travels in letters.

A *share* is one subscription's part in a group. Its node joins, the store answers with an *epoch*: the number of this
membership, never given twice. From then on both name it in everything, and the store refuses whatever carries an
epoch that has ended.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

import msgspec

from zfabric.wire.fields import Count, Name, Start

__all__ = [
    "APPENDS_MAX",
    "PARTITIONS_MAX",
    "AskGroups",
    "Assigned",
    "Delivered",
    "Fenced",
    "GroupRecord",
    "GroupTold",
    "Join",
    "Joined",
    "Leave",
    "MemberTold",
    "Move",
    "Progress",
    "ProgressTold",
    "Released",
    "Revoked",
    "Skipped",
    "ToldGroups",
    "Transact",
    "Transacted",
    "delivered_bytes",
]

PARTITIONS_MAX = 256
"A partition's number fits a byte."
APPENDS_MAX = 10_000

Partitions = Annotated[list[Annotated[int, msgspec.Meta(ge=0, lt=PARTITIONS_MAX)]], msgspec.Meta(max_length=256)]
Text = Annotated[str, msgspec.Meta(max_length=1000)]


class Join(msgspec.Struct, array_like=True, tag=80, frozen=True):
    """Let this subscription take part."""

    share: Count
    "How the sender names it."
    group: Name
    pattern: Name
    member: Name
    "A name that survives a restart of the member; empty for none."
    start: Start
    "Where a group begins that is not there yet."
    window_bytes: Count
    "Bytes of messages that may be on their way to it, or wait there, at one time."


class Leave(msgspec.Struct, array_like=True, tag=81, frozen=True):
    """The subscription takes part no more."""

    share: Count
    epoch: Count
    "0: it has not heard of one yet."


class Joined(msgspec.Struct, array_like=True, tag=82, frozen=True):
    """It takes part, in this epoch, and will be assigned some of so many partitions."""

    share: Count
    epoch: Count
    partitions: Annotated[int, msgspec.Meta(ge=1, le=PARTITIONS_MAX)]


class Assigned(msgspec.Struct, array_like=True, tag=83, frozen=True):
    """From now on it has these partitions, beside those that it has already."""

    share: Count
    epoch: Count
    partitions: Partitions


class Revoked(msgspec.Struct, array_like=True, tag=84, frozen=True):
    """Let these partitions go: finish what is in hand, tell how far it came, and say RELEASED."""

    share: Count
    epoch: Count
    partitions: Partitions


class Released(msgspec.Struct, array_like=True, tag=85, frozen=True):
    """Nothing of these partitions is in hand any more."""

    share: Count
    epoch: Count
    partitions: Partitions


class Fenced(msgspec.Struct, array_like=True, tag=86, frozen=True):
    """The membership has ended: drop everything. It may join anew, unless the end is `final`."""

    share: Count
    epoch: Count
    reason: Text
    final: bool = False


class Delivered(msgspec.Struct, array_like=True, tag=87, frozen=True):
    """A batch of the log, some of whose messages are this share's."""

    share: Count
    epoch: Count
    stream: Name
    offset: Count
    "Of the batch's first message."
    places: list[Count] | None
    "Places of this share's messages in the batch, in order; all of them if null."
    partitions: bytes
    "The partition of each; one byte where it is the same for all."
    frames: list[bytes]


class Skipped(msgspec.Struct, array_like=True, tag=88, frozen=True):
    """The log has lost these offsets, or retention took them before the group came there."""

    share: Count
    epoch: Count
    stream: Name
    offset: Count
    next: Count
    reason: Text


class Move(msgspec.Struct, array_like=True, frozen=True):
    """What a share is done with in one stream: each partition's messages before an offset."""

    stream: Name
    ends: dict[int, Count]


class Progress(msgspec.Struct, array_like=True, tag=89, frozen=True):
    """The share is done with so much, and has let go of `taken` bytes since it joined."""

    share: Count
    epoch: Count
    moves: list[Move]
    taken: Count


class Transact(msgspec.Struct, array_like=True, tag=90, frozen=True):
    """Store these outputs and these moves together, or neither."""

    share: Count
    epoch: Count
    number: Count
    "Of the share's transactions in this epoch."
    moves: list[Move]
    outputs: Annotated[list[list[bytes]], msgspec.Meta(max_length=APPENDS_MAX)]
    "The frames of each batch."


class Transacted(msgspec.Struct, array_like=True, tag=91, frozen=True):
    """What became of a transaction: stored if `error` is empty, else nothing of it is."""

    share: Count
    epoch: Count
    number: Count
    error: Text


class AskGroups(msgspec.Struct, array_like=True, tag=92, frozen=True):
    """Tell about the groups, after doing something with one of them."""

    request: Count
    verb: Literal["list", "seek", "pause", "resume", "forget"]
    group: Name = ""
    start: Start = Start()
    "Where the group is to go on, with `seek`."
    streams: list[Name] = []
    "Of the group, with `seek`; all if empty."


class MemberTold(msgspec.Struct, array_like=True, frozen=True):
    """One member of a group."""

    node: Name
    "Empty while it is away."
    member: Name
    partitions: Count


class ProgressTold(msgspec.Struct, array_like=True, frozen=True):
    """How far a group has come in one stream."""

    position: Count
    "Everything before this offset is done with."
    next: Count
    "The offset that the stream's next message gets."


class GroupTold(msgspec.Struct, array_like=True, frozen=True):
    """One group as it is now."""

    name: Name
    pattern: Name
    partitions: Count
    paused: bool
    members: list[MemberTold]
    streams: dict[str, ProgressTold]
    refused: Count
    "Commits that came from members which had lost their partitions."


class ToldGroups(msgspec.Struct, array_like=True, tag=93, frozen=True):
    """The answer to ASK GROUPS: the group that it was about, or all; `error` says why nothing was done."""

    request: Count
    groups: list[GroupTold]
    error: Text = ""


GroupRecord: TypeAlias = (
    Join
    | Leave
    | Joined
    | Assigned
    | Revoked
    | Released
    | Fenced
    | Delivered
    | Skipped
    | Progress
    | Transact
    | Transacted
    | AskGroups
    | ToldGroups
)

DELIVERED_BYTES = 128


def delivered_bytes(delivered: Delivered) -> int:
    """What a delivery takes of its share's window."""
    return DELIVERED_BYTES + sum(map(len, delivered.frames))
