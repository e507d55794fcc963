"""One group: its members' seats, how far it has come in each stream, and what each member is to be sent next."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import msgspec

from zfabric.protocol.peers import PeerRecord
from zfabric.store.cursors import Cursor, partitions_of
from zfabric.store.log import Commit, Gap, Log, Position, PositionUpdate, StoredBatch
from zfabric.store.sharing import Ask, Fence, Grant, Member, Sharing
from zfabric.wire.group_records import (
    Assigned,
    Delivered,
    Fenced,
    GroupRecord,
    Joined,
    Move,
    Revoked,
    Skipped,
    delivered_bytes,
)
from zfabric.wire.topics import Pattern

__all__ = ["PREFIX", "READ_BYTES", "TERM", "Group", "GroupState", "Read", "Seat", "Voice", "forget_stream"]

PREFIX = "group/"
"Positions whose names begin so belong to groups."
TERM = "$groups"
"The position whose epoch is the term of the store's last run."
READ_BYTES = 1024 * 1024
"What is read for one member at a time, about."
_ROUTES_MAX = 64

_encode = msgspec.msgpack.Encoder().encode


def forget_stream(log: Log, stream: str) -> None:
    """Let no group of a log that no store has open know a stream: the next one of that name has other offsets."""
    known = log.positions(PREFIX)
    rows = [name for name in known if name.split("/")[2:3] == [stream]]
    log.commit([Commit(positions=[PositionUpdate(name, None, known[name].epoch) for name in rows])])


class Voice(Protocol):
    """How records reach a peer: reliably, in order, until the peer is lost (`protocol.loopback`)."""

    def tell(self, peer: PeerRecord, record: GroupRecord, nbytes: int, now: float) -> None:
        """Say something."""

    def has_room(self, peer: PeerRecord) -> bool:
        """Whether the peer takes more than answers now."""


class GroupState(msgspec.Struct, array_like=True, frozen=True):
    """What the log keeps of a group beside its positions."""

    pattern: str
    partitions: int
    paused: bool = False


class Seat:
    """Where a present member sits: who speaks for it, and what is on its way to it."""

    __slots__ = ("behind", "member", "peer", "reading", "sent", "share", "taken", "window")

    def __init__(self, member: Member, peer: PeerRecord, share: int, window: int) -> None:
        self.member = member
        self.peer = peer
        self.share = share
        self.window = window
        self.sent = 0
        self.taken = 0
        self.behind: dict[str, None] = {}
        "Streams that may hold something for it, those longest waiting first."
        self.reading = False


class Read(msgspec.Struct, frozen=True):
    """Ask the log for this, and give the answer to `Group.serve`."""

    seat: Seat
    stream: str
    offset: int
    until: int
    "The stream's end as of now."
    max_bytes: int


class Group:
    """One group of a store."""

    def __init__(self, name: str, state: GroupState, term: int, sharing: Sharing, voice: Voice) -> None:
        self.name = name
        self.state = state
        self.pattern = Pattern(state.pattern)
        self.sharing = sharing
        self._term = term
        self.ready = False
        "Whether the log knows that it is open in this run of the store, and it is not being forgotten."
        self.cursors: dict[str, Cursor] = {}
        self.ends: dict[str, int] = {}
        "The next offset of each stream."
        self.seats: dict[int, Seat] = {}
        self.dirty: dict[str, set[int]] = {}
        "Partitions that have come further than the log knows, by stream."
        self.refused = 0
        "Commits of members that had lost their epoch, or their partitions."
        self._voice = voice
        self._routes: dict[tuple[str, int], bytes] = {}
        self._pending: dict[tuple[str, int], int] = {}
        "Where partitions were that a transaction has moved which is not stored yet."

    # -- streams -------------------------------------------------------------------------------

    def load(self, positions: Mapping[str, Position]) -> None:
        """Take over what an earlier run of the store had reached."""
        prefix = f"{PREFIX}{self.name}/"
        for name, position in positions.items():
            stream, _, partition = name.removeprefix(prefix).partition("/")
            if not partition:
                self.cursors[stream] = Cursor(
                    [msgspec.msgpack.decode(position.value, type=int)] * self.state.partitions
                )
        for name, position in positions.items():
            stream, _, partition = name.removeprefix(prefix).partition("/")
            if partition:
                cursor = self.cursors.setdefault(stream, Cursor([0] * self.state.partitions))
                offset = msgspec.msgpack.decode(position.value, type=int)
                cursor.seek(int(partition), offset)
                cursor.stored[int(partition)] = offset

    def begin_at(self, stream: str, offset: int) -> None:
        """Begin a stream there that was found when the group was made."""
        self.cursors[stream] = Cursor([offset] * self.state.partitions)

    def base_update(self, stream: str, offset: int) -> PositionUpdate:
        """Where all partitions of a stream begin that have no position of their own."""
        return PositionUpdate(f"{PREFIX}{self.name}/{stream}", _encode(offset), self._term)

    def state_update(self) -> PositionUpdate:
        """What the log keeps of the group beside its positions."""
        return PositionUpdate(PREFIX + self.name, _encode(self.state), self._term)

    def fence(self) -> PositionUpdate:
        """Part of every commit: an arbiter that was replaced can write nothing at all."""
        return PositionUpdate(TERM, b"", self._term)

    def grown(self, stream: str, end: int) -> None:
        """A stream that matches has messages before this offset."""
        self.ends[stream] = end
        if stream not in self.cursors:
            self.cursors[stream] = Cursor([0] * self.state.partitions)
        for seat in self.seats.values():
            seat.behind[stream] = None

    def seek(self, stream: str, offset: int) -> None:
        """Let the stream go on at this offset for everybody. Fence the members before."""
        for partition in range(self.state.partitions):
            self.cursors[stream].seek(partition, offset)
        self.dirty.setdefault(stream, set()).update(range(self.state.partitions))

    # -- members -------------------------------------------------------------------------------

    def join(self, peer: PeerRecord, share: int, name: str, window: int, now: float) -> None:
        """Seat a new member."""
        member = self.sharing.join((peer.id, share), name, now)
        self.seats[member.epoch] = Seat(member, peer, share, window)
        self._voice.tell(peer, Joined(share, member.epoch, self.state.partitions), 64, now)
        self.tell(now)

    def seat_of(self, peer: PeerRecord, share: int, epoch: int) -> Seat | None:
        """The seat that this peer speaks for, if that membership is in force."""
        seat = self.seats.get(epoch)
        return seat if seat is not None and seat.peer.id == peer.id and seat.share == share else None

    def unseat(self, seat: Seat) -> None:
        """Nothing is told to it any more."""
        self.seats.pop(seat.member.epoch, None)

    def tell(self, now: float) -> None:
        """Carry out what the sharing has decided."""
        while notices := self.sharing.notices():
            for notice in notices:
                seat = self.seats.get(notice.member.epoch)
                if isinstance(notice, Grant):
                    for cursor in self.cursors.values():
                        cursor.rewind(notice.partitions)
                if seat is None:
                    continue
                match notice:
                    case Grant(member, partitions):
                        seat.behind.update(dict.fromkeys(self.cursors))
                        assigned = Assigned(seat.share, member.epoch, list(partitions))
                        self._voice.tell(seat.peer, assigned, 64, now)
                    case Ask(member, partitions):
                        self._voice.tell(seat.peer, Revoked(seat.share, member.epoch, list(partitions)), 64, now)
                    case Fence(member, reason, final):
                        self.unseat(seat)
                        self._voice.tell(seat.peer, Fenced(seat.share, member.epoch, reason, final), 64, now)

    # -- what they are sent --------------------------------------------------------------------

    def reads(self) -> Iterable[Read]:
        """What to read for members that can take more. Each read must be served, or `failed`."""
        if self.state.paused or not self.ready:
            return
        for seat in self.seats.values():
            room = seat.window - (seat.sent - seat.taken)
            if seat.reading or room <= 0 or not self._voice.has_room(seat.peer):
                continue
            owned = seat.member.owned - seat.member.asked
            while owned and seat.behind:
                stream = next(iter(seat.behind))
                offset = self.cursors[stream].next_scan(owned)
                del seat.behind[stream]
                if offset < self.ends.get(stream, 0):
                    seat.behind[stream] = None
                    seat.reading = True
                    yield Read(seat, stream, offset, self.ends[stream], min(room, READ_BYTES))
                    break

    def serve(self, read: Read, items: Sequence[StoredBatch | Gap], now: float) -> None:
        """Send a member its messages of what was read."""
        seat, cursor = read.seat, self.cursors[read.stream]
        seat.reading = False
        if self.seats.get(seat.member.epoch) is not seat:
            return
        start = min(read.offset, items[0].offset) if items else read.offset
        # What was granted while the log was read may have to begin before it: that is for the next read.
        owned = [p for p in seat.member.owned - seat.member.asked if cursor.scanned[p] >= start]
        if not owned:
            return
        for item in items:
            if isinstance(item, Gap):
                self._skip(seat, cursor, owned, item, now)
            else:
                self._send(seat, cursor, owned, item, now)
        if not items:
            cursor.skip(owned, read.until)

    def _skip(self, seat: Seat, cursor: Cursor, owned: Sequence[int], gap: Gap, now: float) -> None:
        start = max(gap.offset, cursor.next_scan(owned))
        if start < gap.next:
            record = Skipped(seat.share, seat.member.epoch, gap.stream, start, gap.next, gap.reason)
            self._voice.tell(seat.peer, record, 64, now)
            cursor.skip(owned, gap.next)

    def _send(self, seat: Seat, cursor: Cursor, owned: Sequence[int], batch: StoredBatch, now: float) -> None:
        parcel = cursor.choose(owned, batch.offset, self._route(batch), batch.dropped)
        if parcel is None:
            return
        places, partitions = parcel
        epoch = seat.member.epoch
        delivered = Delivered(seat.share, epoch, batch.stream, batch.offset, places, partitions, list(batch.frames))
        nbytes = delivered_bytes(delivered)
        seat.sent += nbytes
        self._voice.tell(seat.peer, delivered, nbytes, now)

    def _route(self, batch: StoredBatch) -> bytes:
        """The partition of each message; members that read the same batch share the work."""
        known = self._routes.get((batch.stream, batch.offset))
        if known is None or len(known) != batch.count:
            known = partitions_of(batch.offset, batch.count, batch.keys, self.state.partitions)
            self._routes[batch.stream, batch.offset] = known
            if len(self._routes) > _ROUTES_MAX:
                del self._routes[next(iter(self._routes))]
        return known

    # -- what they have done -------------------------------------------------------------------

    def refusal(self, seat: Seat, moves: Iterable[Move]) -> str:
        """Why a member's moves cannot be committed; empty if they can."""
        for move in moves:
            cursor = self.cursors.get(move.stream)
            if cursor is None or not move.ends or max(move.ends) >= self.state.partitions or min(move.ends) < 0:
                return f"nothing of {move.stream!r} was sent to it"
            for partition in move.ends:
                if not self.sharing.owns(seat.member.epoch, partition):
                    return f"partition {partition} is not its own any more"
                if (move.stream, partition) in self._pending:
                    return f"partition {partition} waits for a transaction of its last owner"
            if refusal := cursor.refusal(move.ends):
                return refusal
        return ""

    def commit(self, seat: Seat, moves: Iterable[Move]) -> None:
        """Take over plain progress that was not refused; the log hears of it with `take_dirty`."""
        for move in moves:
            self.cursors[move.stream].commit(move.ends)
            idle = self.cursors[move.stream].idle(seat.member.owned)
            self.dirty.setdefault(move.stream, set()).update(move.ends, idle)

    def begin(self, moves: Iterable[Move]) -> list[PositionUpdate]:
        """Take over what a transaction does, and tell what the log must remember; `settle` it in the end."""
        updates = [self.fence()]
        for move in moves:
            cursor = self.cursors[move.stream]
            for partition, end in move.ends.items():
                self._pending[move.stream, partition] = cursor.committed[partition]
                updates.append(self._update(move.stream, partition, end))
            cursor.commit(move.ends)
        return updates

    def settle(self, epoch: int, moves: Iterable[Move], *, stored: bool, now: float) -> None:
        """A transaction was stored, or nothing of it: then whoever began after it must begin again."""
        for move in moves:
            cursor = self.cursors[move.stream]
            for partition in move.ends:
                before = self._pending.pop((move.stream, partition))
                if stored:
                    continue
                cursor.committed[partition] = cursor.stored[partition] = before
                owner = self.sharing.owner(partition)
                if owner is None or owner.epoch != epoch:
                    cursor.seek(partition, before)
                    if owner is not None:
                        self.sharing.fence(owner, "what it began after could not be stored", now)
        self.tell(now)

    def _update(self, stream: str, partition: int, offset: int) -> PositionUpdate:
        self.cursors[stream].stored[partition] = offset
        name = f"{PREFIX}{self.name}/{stream}/{partition}"
        return PositionUpdate(name, _encode(offset), self._term)

    def take_dirty(self) -> list[PositionUpdate]:
        """What the log must hear of all plain progress since the last call."""
        dirty, self.dirty = self.dirty, {}
        updates = [self.fence()]
        for stream, partitions in dirty.items():
            cursor = self.cursors[stream]
            for partition in partitions:
                if (stream, partition) in self._pending:
                    self.dirty.setdefault(stream, set()).add(partition)
                else:
                    updates.append(self._update(stream, partition, cursor.position(partition)))
        return updates
