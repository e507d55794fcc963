"""The members of groups on this node: what they own, what they have in hand, how far they have come.

A share joins its group at the store, is assigned partitions, and gets parcels: batches with the places that are its
own. What it has processed it commits, under the epoch of its membership. A partition that the store asks back is let
go only when nothing of it is in hand any more. A membership that ended (the store fenced it, or was lost) takes
everything with it that was not committed: it comes again, to whoever owns it then.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict, deque
from collections.abc import Callable, Collection
from itertools import compress
from math import inf
from typing import Any, Protocol

from zfabric.config import Config
from zfabric.errors import RemoteProtocolError
from zfabric.protocol.peers import PeerRecord
from zfabric.wire.batch import Batch
from zfabric.wire.fields import Start
from zfabric.wire.group_records import (
    Assigned,
    Delivered,
    Fenced,
    GroupRecord,
    Join,
    Joined,
    Leave,
    Move,
    Progress,
    Released,
    Revoked,
    Skipped,
    Transact,
    Transacted,
    delivered_bytes,
)
from zfabric.wire.topics import Pattern

__all__ = ["Holder", "Parcel", "Share", "Shares", "Voice"]

RETRY_S = 1.0
"Pause before a share joins again that the store could not take."


class Holder(Protocol):
    """The subscription behind a share."""

    def arrived(self) -> None:
        """There is a parcel."""

    def dropped(self, partitions: Collection[int] | None) -> None:
        """What is in hand of these (None: of all) and not begun with is somebody else's now."""

    def skipped(self, record: Skipped) -> None:
        """Messages are gone for good."""

    def missing(self) -> None:
        """The store of the group's log is away for longer than Config.grace_s."""

    def transacted(self, error: str) -> None:
        """The transaction was stored if `error` is empty, else it is void, or its fate is unknown."""

    def ended(self, reason: str) -> None:
        """The share will never join."""


class Voice(Protocol):
    """How records reach the store: reliably, in order, until it is lost (`protocol.channels`)."""

    def tell(self, peer: PeerRecord, record: GroupRecord, nbytes: int, now: float) -> None:
        """Say something."""


class Parcel:
    """Messages of one batch that are this share's."""

    __slots__ = ("batch", "epoch", "nbytes", "offset", "partitions", "places", "stream", "unsettled")

    def __init__(self, delivered: Delivered, batch: Batch) -> None:
        self.batch = batch
        self.epoch = delivered.epoch
        self.stream = delivered.stream
        self.offset = delivered.offset
        self.nbytes = delivered_bytes(delivered)
        self.places = list(range(batch.count)) if delivered.places is None else delivered.places
        same = len(delivered.partitions) == 1
        self.partitions = delivered.partitions * len(self.places) if same else delivered.partitions
        self.unsettled = 0

    def without(self, partitions: Collection[int], after: int = -1) -> bool:
        """Take these partitions out, beyond the place `after`; returns whether anything is left."""
        if not set(self.partitions).isdisjoint(partitions):
            mask = [
                partition not in partitions or place <= after
                for place, partition in zip(self.places, self.partitions, strict=True)
            ]
            self.places = list(compress(self.places, mask))
            self.partitions = bytes(compress(self.partitions, mask))
        return bool(self.places)

    def trim(self, count: int) -> None:
        """The first `count` messages are done with and committed."""
        self.places = self.places[count:]
        self.partitions = self.partitions[count:]

    def ends(self, count: int) -> dict[int, int]:
        """Where each partition stands after the first `count` messages."""
        after = self.offset + 1
        last = dict(zip(self.partitions[:count], self.places, strict=False))
        return {partition: after + place for partition, place in last.items()}


class Share:
    """One subscription's part in a group."""

    def __init__(self, number: int, join: Join, holder: Holder, changed: Callable[[Share], None]) -> None:
        self.number = number
        self.request = join
        self.matches = Pattern(join.pattern).matches
        self.holder = holder
        self._changed = changed
        self._reset()
        self.retry_at = inf
        self.missing_at = inf
        self.final = ""
        self.store: PeerRecord | None = None
        self.log = b""
        "The log where its group is, once it has joined."
        self.asked = b""
        "The log whose store was asked last."

    def _reset(self) -> None:
        self.epoch = 0
        self.owned: set[int] = set()
        self.letting_go: set[int] = set()
        self.queue: deque[Parcel] = deque()
        self.hand: list[Parcel] = []
        self.nbytes = 0
        "Of parcels that wait."
        self.moves: dict[str, dict[int, int]] = {}
        "Done with, and the store has not been told."
        self.taken = self.told = 0
        self.joining = False
        self.commit_at = inf
        self.transaction = 0
        "The number of the one that is on its way; 0 for none."
        self.transactions = 0
        self.published: dict[str, int] = {}
        "Messages that its transactions have stored, by topic."
        self._open: dict[tuple[str, int], OrderedDict[int, Parcel]] = {}

    def reset(self, reason: str) -> None:
        """The membership has ended."""
        pending = self.transaction
        self._reset()
        self.holder.dropped(None)
        if pending:
            self.holder.transacted(reason)

    # -- what the subscription calls -----------------------------------------------------------

    def pop(self, *, manual: bool) -> Parcel | None:
        """The next parcel; with `manual` each of its messages must be settled, else `done` takes it back."""
        if not self.queue:
            return None
        parcel = self.queue.popleft()
        self.nbytes -= parcel.nbytes
        self.hand.append(parcel)
        if manual:
            parcel.unsettled = len(parcel.places)
            for place, partition in zip(parcel.places, parcel.partitions, strict=True):
                self._open.setdefault((parcel.stream, partition), OrderedDict())[parcel.offset + place] = parcel
        return parcel

    def progressed(self, parcel: Parcel, count: int) -> None:
        """The first `count` messages of a parcel in hand are done with."""
        if parcel.epoch == self.epoch and count:
            self.moves.setdefault(parcel.stream, {}).update(parcel.ends(count))
            self._changed(self)

    def done(self, parcel: Parcel) -> None:
        """Nothing of this parcel is in hand any more; what was not `progressed` comes to somebody else."""
        if parcel.epoch == self.epoch and parcel in self.hand:
            self.hand.remove(parcel)
            self.taken += parcel.nbytes
            self._changed(self)

    def settle(self, parcel: Parcel, place: int) -> bool:
        """One message, popped with `manual`, is done with. Returns False if it was already, or is lost."""
        if parcel.epoch != self.epoch:
            return False
        offset = parcel.offset + place
        partition = parcel.partitions[bisect_left(parcel.places, place)]
        waiting = self._open.get((parcel.stream, partition), OrderedDict())
        if waiting.pop(offset, None) is None:
            return False
        first = next(iter(waiting), None)
        if first is None:
            del self._open[parcel.stream, partition]
        if first is None or first > offset:
            self.moves.setdefault(parcel.stream, {})[partition] = offset + 1 if first is None else first
        parcel.unsettled -= 1
        if not parcel.unsettled:
            self.done(parcel)
        self._changed(self)
        return True

    def busy(self, partition: int) -> bool:
        """Whether something of a partition is in hand."""
        if self.transaction:
            return True
        if any(number == partition for _, number in self._open):
            return True
        return any(not parcel.unsettled and partition in parcel.partitions for parcel in self.hand)

    def take_moves(self) -> list[Move]:
        """What the store is to be told."""
        moves, self.moves = self.moves, {}
        return [Move(stream, ends) for stream, ends in moves.items()]


class Shares:
    """The machine of all shares of one node. Implements `protocol.channels.Machine`."""

    def __init__(
        self,
        config: Config,
        voice: Voice,
        parse: Callable[[list[bytes]], Batch],
        not_protocol: Callable[[str, RemoteProtocolError], None],
        find_store: Callable[[str, bytes], tuple[bytes, PeerRecord] | None],
    ) -> None:
        """`find_store` tells the log and the peer for a pattern, of a certain log unless that is empty."""
        self._config = config
        self._voice = voice
        self._parse = parse
        self._not_protocol = not_protocol
        self._find_store = find_store
        self._shares: dict[int, Share] = {}
        self._changed: dict[Share, None] = {}
        self._numbers = 0
        self.records: dict[type[Any], Callable[[PeerRecord, Any, float], None]] = {
            Joined: self._on_joined,
            Assigned: self._on_assigned,
            Revoked: self._on_revoked,
            Fenced: self._on_fenced,
            Delivered: self._on_delivered,
            Skipped: self._on_skipped,
            Transacted: self._on_transacted,
        }

    # -- what the node calls -------------------------------------------------------------------

    def join(
        self, group: str, pattern: str, member: str, start: Start, window_bytes: int, holder: Holder, now: float
    ) -> Share:
        """Take part in a group, as soon as there is a store."""
        self._numbers += 1
        join = Join(self._numbers, group, pattern, member, start, window_bytes)
        share = self._shares[self._numbers] = Share(self._numbers, join, holder, self._note)
        self._try_join(share, now)
        return share

    def leave(self, share: Share, now: float) -> None:
        """Commit what is done, and take part no more."""
        if self._shares.pop(share.number, None) is None:
            return
        self.commit(share, now)
        self._changed.pop(share, None)
        if share.epoch or share.joining:
            self._tell(share, Leave(share.number, share.epoch), now)
        share.reset("the subscription was closed")

    def rejoin(self, share: Share, now: float) -> None:
        """Drop what is in hand and not committed: it comes again."""
        if share.epoch:
            self._tell(share, Leave(share.number, share.epoch), now)
            share.reset("the membership was given up")
            self._try_join(share, now)

    def transact(self, share: Share, outputs: list[list[bytes]], now: float) -> None:
        """Store outputs, each the frames of a batch, together with all that is done; the holder hears the outcome."""
        assert share.epoch
        assert not share.transaction
        share.transactions += 1
        share.transaction = share.transactions
        nbytes = 64 + sum(len(frame) for frames in outputs for frame in frames)
        record = Transact(share.number, share.epoch, share.transaction, share.take_moves(), outputs)
        self._tell(share, record, now, nbytes)

    def stores_changed(self, now: float) -> None:
        """A store came or went: shares whose store is another one now begin anew there."""
        for share in list(self._shares.values()):
            found = self._home(share)
            if found is not None:
                share.missing_at = inf
            elif share.log and share.store is not None:
                share.missing_at = now + self._config.grace_s
            if found is not None and found[1] is share.store:
                continue
            share.store = None
            if share.epoch or share.joining:
                share.reset("the store was lost before it answered")
            self._try_join(share, now)

    def _home(self, share: Share) -> tuple[bytes, PeerRecord] | None:
        """Where its group is; one that never answered binds nobody once it is gone."""
        pattern = share.request.pattern
        found = self._find_store(pattern, share.log or share.asked)
        return self._find_store(pattern, b"") if found is None and not share.log else found

    # -- peers ---------------------------------------------------------------------------------

    def peer_joined(self, peer: PeerRecord, now: float) -> None:
        """A store says itself that it is one."""

    def peer_left(self, peer: PeerRecord, now: float) -> None:
        """Whoever knows the stores calls `stores_changed`."""

    def has_room(self, peer: PeerRecord, now: float) -> None:
        """What shares say is short."""

    def _tell(self, share: Share, record: GroupRecord, now: float, nbytes: int = 64) -> None:
        assert share.store is not None
        self._voice.tell(share.store, record, nbytes, now)

    def _try_join(self, share: Share, now: float) -> None:
        if share.final or share.joining or share.epoch:
            return
        found = self._home(share)
        if found is None:
            return
        share.asked, share.store = found
        share.joining = True
        share.retry_at = inf
        self._tell(share, share.request, now)

    # -- what the store says -------------------------------------------------------------------

    def _find(self, peer: PeerRecord, number: int, epoch: int) -> Share | None:
        share = self._shares.get(number)
        return share if share is not None and peer is share.store and share.epoch == epoch else None

    def _on_joined(self, peer: PeerRecord, joined: Joined, now: float) -> None:
        share = self._find(peer, joined.share, 0)
        if share is not None and share.joining:
            share.joining = False
            share.epoch = joined.epoch
            share.log = share.asked

    def _on_assigned(self, peer: PeerRecord, assigned: Assigned, now: float) -> None:
        share = self._find(peer, assigned.share, assigned.epoch)
        if share is not None:
            share.owned.update(assigned.partitions)

    def _on_revoked(self, peer: PeerRecord, revoked: Revoked, now: float) -> None:
        share = self._find(peer, revoked.share, revoked.epoch)
        if share is None:
            return
        share.letting_go.update(revoked.partitions)
        kept: deque[Parcel] = deque()
        for parcel in share.queue:
            if parcel.without(share.letting_go):
                kept.append(parcel)
            else:
                share.nbytes -= parcel.nbytes
                share.taken += parcel.nbytes
        share.queue = kept
        share.holder.dropped(share.letting_go)
        self._note(share)

    def _on_fenced(self, peer: PeerRecord, fenced: Fenced, now: float) -> None:
        share = self._find(peer, fenced.share, fenced.epoch)
        if share is None:
            return
        share.reset(fenced.reason)
        if fenced.final:
            share.final = fenced.reason
            share.holder.ended(fenced.reason)
        elif fenced.epoch:
            self._try_join(share, now)
        else:
            share.joining = False
            share.retry_at = now + RETRY_S

    def _on_delivered(self, peer: PeerRecord, delivered: Delivered, now: float) -> None:
        share = self._find(peer, delivered.share, delivered.epoch)
        if share is None:
            return
        try:
            parcel = Parcel(delivered, self._parse(delivered.frames))
            places, topic = parcel.places, parcel.batch.topic
            misfit = len(places) != len(parcel.partitions) or max(places, default=0) >= parcel.batch.count
            if misfit or places != sorted(set(places)):
                raise RemoteProtocolError("delivers places that its batch does not have")
            if topic != parcel.stream or not share.matches(topic):
                raise RemoteProtocolError("delivers what was not asked for")
        except RemoteProtocolError as error:
            self._not_protocol(peer.address, error)
            return
        if parcel.without(share.letting_go):
            share.queue.append(parcel)
            share.nbytes += parcel.nbytes
            share.holder.arrived()
        else:
            share.taken += parcel.nbytes
            self._note(share)

    def _on_skipped(self, peer: PeerRecord, skipped: Skipped, now: float) -> None:
        share = self._find(peer, skipped.share, skipped.epoch)
        if share is not None:
            share.holder.skipped(skipped)

    def _on_transacted(self, peer: PeerRecord, transacted: Transacted, now: float) -> None:
        share = self._find(peer, transacted.share, transacted.epoch)
        if share is not None and share.transaction == transacted.number:
            share.transaction = 0
            share.holder.transacted(transacted.error)
            self._note(share)

    # -- commits -------------------------------------------------------------------------------

    def _note(self, share: Share) -> None:
        if share.number in self._shares:
            self._changed[share] = None

    def commit(self, share: Share, now: float) -> None:
        """Tell the store what is done, at once."""
        share.commit_at = inf
        if share.epoch and not share.transaction and (share.moves or share.taken != share.told):
            share.told = share.taken
            self._tell(share, Progress(share.number, share.epoch, share.take_moves(), share.taken), now)

    def _release(self, share: Share, now: float) -> None:
        free = [partition for partition in share.letting_go if not share.busy(partition)]
        if free:
            self.commit(share, now)
            share.letting_go.difference_update(free)
            share.owned.difference_update(free)
            self._tell(share, Released(share.number, share.epoch, free), now)

    def flush(self, now: float) -> None:
        """Say what is due; to be called once a turn."""
        while self._changed:
            share, _ = self._changed.popitem()
            if not share.epoch:
                continue
            if share.taken - share.told >= share.request.window_bytes // 4:
                self.commit(share, now)
            elif share.moves or share.taken != share.told:
                share.commit_at = min(share.commit_at, now + self._config.group_commit_s)
            if share.letting_go:
                self._release(share, now)

    def timer(self) -> float:
        """When `handle_timer` has something to do."""
        dues = (min(share.retry_at, share.commit_at, share.missing_at) for share in self._shares.values())
        return min(dues, default=inf)

    def handle_timer(self, now: float) -> None:
        """Commit what is due; join where the store could not take us; tell of stores that stay away."""
        for share in self._shares.values():
            if share.missing_at <= now:
                share.missing_at = inf
                share.holder.missing()
            if share.commit_at <= now:
                self.commit(share, now)
            if share.retry_at <= now:
                self._try_join(share, now)
