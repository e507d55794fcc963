"""The groups of a store: the arbiter of who may read and commit what.

A state machine without I/O of its own: records of members, outcomes of commits and `now` come in; records, commits and
`reads()` go out. The log is asked for what is at hand (positions, streams); batches are read by whoever drives it.
What the members have done is a position for each partition of each stream. Every commit carries the *term*, which
rises with every run of the store, and the log refuses a lower one: an arbiter that was replaced writes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import count
from math import inf
from typing import Any

import msgspec

from zfabric.config import Config
from zfabric.errors import FabricError, LimitExceeded, LocalProtocolError, StoreDamaged
from zfabric.protocol.gate import Gate
from zfabric.protocol.peers import PeerRecord
from zfabric.store.group import PREFIX, TERM, Group, GroupState, Read, Seat, Voice
from zfabric.store.keeper import append_of
from zfabric.store.log import Append, Commit, Gap, Log, PositionUpdate, StoredBatch
from zfabric.store.sharing import Sharing
from zfabric.wire.batch import parse_batch
from zfabric.wire.durable_records import queue_of
from zfabric.wire.fields import Start
from zfabric.wire.group_records import (
    AskGroups,
    Fenced,
    GroupTold,
    Join,
    Leave,
    MemberTold,
    Progress,
    ProgressTold,
    Released,
    ToldGroups,
    Transact,
    Transacted,
)
from zfabric.wire.topics import Pattern, check_topic

__all__ = ["Done", "Groups"]

EPOCHS = 2**32
"That one run of the store may give."

Done = Callable[[FabricError | None], None]
"""Called with None once a commit is safe, else with why nothing of it is."""


class _Waiting(msgspec.Struct, frozen=True):
    peer: PeerRecord
    join: Join


class Groups:
    """All groups of one store. Implements `protocol.channels.Machine`."""

    def __init__(
        self,
        log: Log,
        config: Config,
        voice: Voice,
        commit: Callable[[Commit, Done], None],
        wake: Callable[[], None],
        gate: Gate | None = None,
    ) -> None:
        """`commit` writes to the log in order; `wake` is called when `flush` or `reads` have something.

        `gate` tells what a peer may do.
        """
        self._log = log
        self._config = config
        self._voice = voice
        self._commit = commit
        self._wake = wake
        self._gate = gate
        self._groups: dict[str, Group] = {}
        self._waiting: dict[str, list[_Waiting]] = {}
        self._streams: dict[str, list[Group]] = {}
        "The groups that each known stream matches."
        self._now = 0.0
        self.records: dict[type[Any], Callable[[PeerRecord, Any, float], None]] = {
            Join: self._on_join,
            Leave: self._on_leave,
            Released: self._on_released,
            Progress: self._on_progress,
            Transact: self._on_transact,
            AskGroups: self._on_ask,
        }
        known = {**log.positions(TERM), **log.positions(PREFIX)}  # which have the term, too
        self._term = 1 + max((position.epoch for position in known.values()), default=0)
        self._epochs = count(self._term * EPOCHS + 1)
        for name in known:
            group = name.removeprefix(PREFIX)
            if group != name and "/" not in group:
                self._open(group, None)

    # -- opening groups ------------------------------------------------------------------------

    def _open(self, name: str, join: Join | None) -> Group:
        """Take over a group from the log, or make a new one; it is ready when the log knows the term.

        Raises StoreDamaged, LimitExceeded.
        """
        config = self._config
        known = self._log.position(PREFIX + name)
        if known is not None:
            state = msgspec.msgpack.decode(known.value, type=GroupState)
        else:
            assert join is not None
            if len(self._groups) >= config.store_groups_max:
                raise LimitExceeded("store_groups_max", len(self._groups) + 1, config.store_groups_max)
            state = GroupState(join.pattern, config.group_partitions)
        sharing = Sharing(
            state.partitions, self._epochs, release_s=config.group_release_s, return_s=config.group_return_s
        )
        group = Group(name, state, self._term, sharing, self._voice)
        group.load(self._log.positions(f"{PREFIX}{name}/"))
        self._groups[name] = group
        updates = [group.fence(), group.state_update()]
        for info in self._log.streams():
            if group.pattern.matches(info.name):
                if known is None and join is not None:
                    offset = self._start(info.name, join.start)
                    group.begin_at(info.name, offset)
                    updates.append(group.base_update(info.name, offset))
                group.grown(info.name, info.next)
                self._streams.setdefault(info.name, []).append(group)
        self._commit(Commit(positions=updates), lambda error: self._opened(group, error))
        return group

    def _start(self, stream: str, start: Start) -> int:
        info = self._log.info(stream)
        first, end = (0, 0) if info is None else (info.first, info.next)
        match start.kind:
            case "earliest":
                return first
            case "seq":
                return min(max(first, int(start.value)), end)
            case "last":
                return self._log.offset_of_last(stream, int(start.value))
            case "since":
                return self._log.offset_at(stream, self._log.now_ns() - round(start.value * 1e9))
        return end

    def _opened(self, group: Group, error: FabricError | None) -> None:
        if error is None:
            group.ready = True
            self._admit(group.name)
            return
        self._drop(group)
        for entry in self._waiting.pop(group.name, []):
            self._refuse(entry.peer, entry.join.share, f"the group could not be opened: {error}", final=False)

    def _admit(self, name: str) -> None:
        for entry in self._waiting.pop(name, []):
            self._on_join(entry.peer, entry.join, self._now)

    def _drop(self, group: Group) -> None:
        del self._groups[group.name]
        for groups in self._streams.values():
            if group in groups:
                groups.remove(group)

    def appended(self, stream: str, end: int) -> None:
        """The log has more of a stream."""
        groups = self._streams.get(stream)
        if groups is None:
            groups = [group for group in self._groups.values() if group.pattern.matches(stream)]
            self._streams[stream] = groups
        for group in groups:
            group.grown(stream, end)
        if groups:
            self._wake()

    # -- members -------------------------------------------------------------------------------

    def peer_joined(self, peer: PeerRecord, now: float) -> None:
        """Members speak first."""

    def peer_left(self, peer: PeerRecord, now: float) -> None:
        """Its members are lost; those with a name may come back."""
        self._now = now
        for name, waiting in self._waiting.items():
            self._waiting[name] = [entry for entry in waiting if entry.peer.id != peer.id]
        for group in self._groups.values():
            for seat in [seat for seat in group.seats.values() if seat.peer.id == peer.id]:
                group.unseat(seat)
                group.sharing.lost(seat.member, now)
            group.tell(now)
        self._wake()

    def has_room(self, peer: PeerRecord, now: float) -> None:
        """It can take more."""
        self._wake()

    def _refuse(self, peer: PeerRecord, share: int, reason: str, *, final: bool) -> None:
        self._voice.tell(peer, Fenced(share, 0, reason, final), 64, self._now)

    def _on_join(self, peer: PeerRecord, join: Join, now: float) -> None:
        self._now = now
        try:
            check_topic(join.group)
            Pattern(join.pattern)
        except LocalProtocolError as error:
            self._refuse(peer, join.share, str(error), final=True)
            return
        group = self._groups.get(join.group)
        try:
            self._check_members(group, join.member)
            group = group or self._open(join.group, join)
        except StoreDamaged as error:
            self._refuse(peer, join.share, str(error)[:1000], final=True)
            return
        except LimitExceeded as error:
            cure = "; zfabric store groups forget GROUP makes room" if error.limit == "store_groups_max" else ""
            self._refuse(peer, join.share, f"the store is full: {error}{cure}", final=True)
            return
        if group.state.pattern != join.pattern:
            reason = f"group {join.group!r} reads {group.state.pattern!r}, not {join.pattern!r}"
            self._refuse(peer, join.share, reason, final=True)
        elif not group.ready:
            self._waiting.setdefault(join.group, []).append(_Waiting(peer, join))
        else:
            group.join(peer, join.share, join.member, join.window_bytes, now)
            self._wake()

    def _check_members(self, group: Group | None, name: str) -> None:
        """Raise LimitExceeded for one too many, unless it takes another's place."""
        if name and group is not None and any(member.name == name for member in group.sharing.members.values()):
            return
        members = 1 + sum(len(group.sharing.members) for group in self._groups.values())
        members += sum(map(len, self._waiting.values()))
        if members > self._config.store_members_max:
            raise LimitExceeded("store_members_max", members, self._config.store_members_max)

    def _on_leave(self, peer: PeerRecord, leave: Leave, now: float) -> None:
        self._now = now
        for name, waiting in self._waiting.items():
            mine = (peer.id, leave.share)
            self._waiting[name] = [entry for entry in waiting if (entry.peer.id, entry.join.share) != mine]
        group, seat = self._find(peer, leave.share, leave.epoch)
        if seat is not None and group is not None:
            group.unseat(seat)
            group.sharing.leave(seat.member, now)
            group.tell(now)
            self._wake()

    def _find(self, peer: PeerRecord, share: int, epoch: int) -> tuple[Group | None, Seat | None]:
        for group in self._groups.values():
            seat = group.seat_of(peer, share, epoch)
            if seat is not None:
                return group, seat
        return None, None

    # -- what members have done ----------------------------------------------------------------

    def _on_released(self, peer: PeerRecord, released: Released, now: float) -> None:
        self._now = now
        group, seat = self._find(peer, released.share, released.epoch)
        if seat is not None and group is not None:
            group.sharing.released(seat.member, released.partitions, now)
            group.tell(now)
            self._wake()

    def _on_progress(self, peer: PeerRecord, progress: Progress, now: float) -> None:
        self._now = now
        group, seat = self._find(peer, progress.share, progress.epoch)
        if seat is None or group is None:
            return  # it is told, or was, that it is fenced
        seat.taken = max(seat.taken, min(progress.taken, seat.sent))
        if refusal := group.refusal(seat, progress.moves):
            group.refused += 1
            group.sharing.fence(seat.member, refusal, now)
            group.tell(now)
        else:
            group.commit(seat, progress.moves)
        self._wake()

    def _on_transact(self, peer: PeerRecord, transact: Transact, now: float) -> None:
        self._now = now
        group, seat = self._find(peer, transact.share, transact.epoch)
        if seat is None or group is None:
            return
        error = group.refusal(seat, transact.moves)
        appends: list[Append] = []
        if error:
            group.refused += 1
        else:
            try:
                appends = [self._append(peer, frames) for frames in transact.outputs]
            except FabricError as refusal:
                error = str(refusal)
        if error:
            self._answer(group, seat, transact.number, error)
            return
        updates = group.begin(transact.moves)

        def done(failure: FabricError | None) -> None:
            group.settle(seat.member.epoch, transact.moves, stored=failure is None, now=self._now)
            self._answer(group, seat, transact.number, "" if failure is None else str(failure))
            self._wake()

        self._commit(Commit(appends, updates), done)

    def _answer(self, group: Group, seat: Seat, number: int, error: str) -> None:
        if group.seats.get(seat.member.epoch) is seat:
            record = Transacted(seat.share, seat.member.epoch, number, error[:1000])
            self._voice.tell(seat.peer, record, 64, self._now)

    def _append(self, peer: PeerRecord, frames: list[bytes]) -> Append:
        config = self._config
        batch = parse_batch(
            frames,
            messages_max=config.batch_messages_max,
            buffers_max=config.buffers_per_batch_max,
            topic_bytes_max=config.topic_bytes_max,
        )
        check_topic(batch.topic)
        if self._gate is not None:
            self._gate.check_writes(peer, batch, queue_of(batch.topic))
        return append_of(batch)

    # -- driving -------------------------------------------------------------------------------

    def reads(self) -> Iterable[tuple[Group, Read]]:
        """What to read from the log now; give each answer to `serve`."""
        for group in self._groups.values():
            for read in group.reads():
                yield group, read

    def serve(self, group: Group, read: Read, items: Sequence[StoredBatch | Gap], now: float) -> None:
        """The answer to a read."""
        self._now = now
        group.serve(read, items, now)
        self._wake()

    def flush(self, now: float) -> None:
        """Let the log know what was done; to be called once a turn."""
        self._now = now
        updates: list[PositionUpdate] = []
        for group in self._groups.values():
            if group.dirty:
                updates += group.take_dirty()
        if updates:
            self._commit(Commit(positions=updates), _no_matter)

    def timer(self) -> float:
        """When `handle_timer` has something to do."""
        return min((group.sharing.timer() for group in self._groups.values()), default=inf)

    def handle_timer(self, now: float) -> None:
        """Give up members that did not come back, or did not let go."""
        self._now = now
        for group in self._groups.values():
            if group.sharing.timer() <= now:
                group.sharing.handle_timer(now)
                group.tell(now)
        self._wake()

    # -- operating -----------------------------------------------------------------------------

    def describe(self) -> list[GroupTold]:
        """Every group, by name."""
        return [self._describe(group) for _, group in sorted(self._groups.items())]

    def _describe(self, group: Group) -> GroupTold:
        partitions = range(group.state.partitions)
        members = [
            MemberTold(
                group.seats[member.epoch].peer.identity.name if member.epoch in group.seats else "",
                member.name,
                len(member.owned),
            )
            for member in group.sharing.members.values()
        ]
        streams = {
            stream: ProgressTold(min(map(cursor.position, partitions)), group.ends.get(stream, 0))
            for stream, cursor in sorted(group.cursors.items())
        }
        state = group.state
        return GroupTold(group.name, state.pattern, state.partitions, state.paused, members, streams, group.refused)

    def _on_ask(self, peer: PeerRecord, ask: AskGroups, now: float) -> None:
        self._now = now

        def done(error: FabricError | None) -> None:
            groups = [g for g in self.describe() if ask.group in ("", g.name) and self._shows(peer, g)]
            told = ToldGroups(ask.request, groups, "" if error is None else str(error)[:1000])
            self._voice.tell(peer, told, 256 * (1 + sum(1 + len(group.streams) for group in groups)), self._now)

        try:
            pattern = self._known(ask.group).state.pattern if ask.group else "#"
            if ask.group and self._gate is not None and not self._gate.may_read(peer, pattern):
                raise LocalProtocolError("it reads what you may not subscribe to")
            if ask.verb == "seek":
                self.seek(ask.group, ask.start, ask.streams, done, now)
            elif ask.verb in ("pause", "resume"):
                self.pause(ask.group, done, paused=ask.verb == "pause")
            elif ask.verb == "forget":
                self.forget(ask.group, done)
            else:
                done(None)
        except LocalProtocolError as error:
            done(error)

    def _shows(self, peer: PeerRecord, group: GroupTold) -> bool:
        return self._gate is None or self._gate.reads(peer, group.pattern)

    def _known(self, name: str) -> Group:
        group = self._groups.get(name)
        if group is None or not group.ready:
            raise LocalProtocolError(f"no group {name!r} here; there are: {', '.join(sorted(self._groups)) or 'none'}")
        return group

    def seek(self, name: str, start: Start, streams: Sequence[str], done: Done, now: float) -> None:
        """Let a group go on elsewhere, in these streams (none: in all); its members drop what they have.

        Raises LocalProtocolError for a group or stream that is not there.
        """
        self._now = now
        group = self._known(name)
        for stream in streams:
            if stream not in group.cursors:
                raise LocalProtocolError(f"group {name!r} reads no stream {stream!r}")
        for member in list(group.sharing.members.values()):
            group.sharing.fence(member, "its group's position was set", now)
        group.tell(now)
        for stream in streams or list(group.cursors):
            group.seek(stream, self._start(stream, start))
        self._commit(Commit(positions=group.take_dirty()), done)

    def pause(self, name: str, done: Done, *, paused: bool) -> None:
        """Send a group's members nothing, or go on. Raises LocalProtocolError for a group that is not there."""
        group = self._known(name)
        group.state = msgspec.structs.replace(group.state, paused=paused)
        self._commit(Commit(positions=[group.fence(), group.state_update()]), done)
        self._wake()

    def forget(self, name: str, done: Done) -> None:
        """Let a group be no more; whoever joins from now on makes a new one.

        Raises LocalProtocolError for a group that is not there, or has members.
        """
        group = self._known(name)
        if group.sharing.members:
            raise LocalProtocolError("it has members: close their subscriptions; lost ones go by themselves")

        def forgotten(error: FabricError | None) -> None:
            if error is None:
                self._drop(group)
            group.ready = error is not None
            self._admit(name)
            done(error)

        group.ready = False
        rows = [PREFIX + name, *self._log.positions(f"{PREFIX}{name}/")]
        self._commit(
            Commit(positions=[group.fence(), *(PositionUpdate(row, None, self._term) for row in rows)]), forgotten
        )


def _no_matter(_: FabricError | None) -> None:
    """Plain progress that was not stored is told again with what follows; at worst messages come twice."""
