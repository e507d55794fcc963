"""What a subscription reads from the log of a store, and how that is joined with what is published live.

Every message has one identity, (producer, epoch, topic, number), in the log and on the way. So the two can be joined
without a hole and without a double. For each durable topic a `Joint` knows

- `offset`: everything in the log before it was delivered,
- for each producer the number that comes next.

It reads the log *with bodies* from where the subscription begins, and holds what comes live meanwhile. At the end of
the log what was held continues it: the subscription is live, and the log goes on being read *without bodies*, as an
index, which costs a few bytes for each batch. The index tells when something is in the log that did not come live; then
the log is read with bodies again, from `offset`. What is held is only a cache: whatever is dropped there comes from the
log.
"""

from __future__ import annotations

from collections import deque
from enum import Enum, auto
from math import inf

import msgspec

from zfabric.config import Config
from zfabric.events import Gap, LogMissing
from zfabric.model import Source
from zfabric.protocol.lanes import Sink
from zfabric.protocol.reports import Reports
from zfabric.protocol.stores import KnownStore, Stores
from zfabric.wire.batch import Batch
from zfabric.wire.records import Start
from zfabric.wire.store_records import StreamTold

__all__ = ["History", "Joint"]

ENTRIES_MAX = 10_000
"Batches that the index told of and that did not come live: more are read from the log at once."
_INDEX_BYTES = 1024 * 1024
"Credit of an index."


class Phase(Enum):
    """Where a joint stands."""

    WAITING = auto()
    "No store that has the topic."
    REPLAYING = auto()
    "The log is read with bodies; what comes live is held."
    LIVE = auto()
    "What comes live is delivered; the log is read as an index."


class Joint:
    """One durable topic of one subscription; a `protocol.stores.LogReader`."""

    def __init__(self, history: History, topic: str, kind: str, value: float | int) -> None:
        self.topic = topic
        self.phase = Phase.WAITING
        self.offset: int | None = int(value) if kind == "offset" else None
        self._began_at = self.offset
        self.reading = 0
        self._history = history
        self._kind = kind
        self._value = value
        self._next: dict[bytes, tuple[int, int]] = {}
        self._held: deque[tuple[Batch, Source]] = deque()
        self.held_bytes = 0
        self.caught_up = False
        "Whether everything was handed over that the log had when it was first read."
        self._entries: deque[tuple[int, int, bytes, int, int]] = deque()
        self._late_at = inf
        self._missing: dict[bytes, tuple[float, int, Gap]] = {}
        self._stuck_at = inf
        self._store: KnownStore | None = None
        self.store_id: bytes | None = None
        "Of the log that `offset` is about."
        self.moves = self._moved = False
        "Whether it may go on with another log, and did."
        self._missing_at = inf

    def __repr__(self) -> str:
        return f"<Joint {self.topic} {self.phase.name} offset={self.offset} held={self.held_bytes}>"

    @property
    def signed(self) -> bool:
        """Whether the subscription takes nothing but what is signed."""
        return self._history.signed

    # -- where the log is read -----------------------------------------------------------------

    def attach(self) -> None:
        """Read the log, from where we are, if its store is there."""
        if self._store is None:
            self._store = self._history.store_of(self.topic)
            if self._store is not None:
                if self.store_id not in (None, self._store.id):
                    self._begin_anew()
                self.store_id = self._store.id
                self.moves, self._missing_at = False, inf
                self._read(bodies=self.phase is not Phase.LIVE)

    def _begin_anew(self) -> None:
        """Another log has offsets of its own: all of it is looked at, and what was delivered is left out."""
        assert self.store_id is not None
        self._history.missing(self.store_id, waits=False)
        self.offset = self._began_at = None
        self._moved = True
        if self._kind != "last-per-key" or self.phase is Phase.LIVE:
            self._kind, self._value = "earliest", 0

    def _read(self, *, bodies: bool) -> None:
        """Begin, or go on, in one way or the other."""
        history, stores = self._history, self._history.stores
        stores.stop(self.reading)
        self._late_at = inf
        self._entries.clear()
        if self._store is None:
            self.phase = Phase.WAITING if bodies else Phase.LIVE
            return
        self.phase = Phase.REPLAYING if bodies else Phase.LIVE
        kind, value = (self._kind, self._value) if self.offset is None else ("offset", self.offset)
        credit, rate = (history.credit_bytes, history.rate) if bodies else (_INDEX_BYTES, 0.0)
        self.reading = stores.read(self._store, self, self.topic, kind, value, credit=credit, bodies=bodies, rate=rate)

    def close(self) -> None:
        """Read no more."""
        self._history.stores.stop(self.reading)

    def lost(self, now: float) -> None:
        """The store left; whatever is live goes on."""
        self._store = None
        if self.offset == self._began_at:
            self.store_id = None  # nothing of that log was handed over, so any will do
        if self.store_id is not None:
            self._missing_at = now + self._history.patience_s
            self._history.timed[self] = None
        if self.phase is Phase.REPLAYING:
            self.phase = Phase.WAITING

    # -- from the log --------------------------------------------------------------------------

    def stored(self, batch: Batch, now: float) -> None:
        """A batch of the log."""
        stored = batch.stored
        assert stored is not None
        self.offset = stored.offset + batch.count
        if self._moved:
            self._cross(batch, now)
        fresh = self._fresh(batch)
        if fresh is None:
            self._history.consumed(batch)
            return
        self._deliver(fresh, self._history.reports.source(batch.producer))
        if self._held and self._held[0][0].producer == batch.producer:
            self._release(now)

    def _fresh(self, batch: Batch) -> Batch | None:
        """The part of a batch that was not delivered yet."""
        epoch, expected = self._next.get(batch.producer, (batch.epoch, batch.base))
        if batch.epoch < epoch or (batch.epoch == epoch and batch.end <= expected):
            return None
        if batch.epoch == epoch and batch.base < expected:
            return msgspec.structs.replace(batch, skip=max(batch.skip, expected - batch.base))
        return batch

    def _cross(self, batch: Batch, now: float) -> None:
        """Go over what the former log had, and neither this one nor what is held has."""
        producer, epoch, base = batch.producer, batch.epoch, batch.base
        known, expected = self._next.get(producer, (epoch, -1))
        if known == epoch and base > expected:
            held = [each.base for each, _ in self._held if (each.producer, each.epoch) == (producer, epoch)]
            for before in (*(start for start in held if start < base), base):
                self._give_up(producer, epoch, before, "store", now)

    def _deliver(self, batch: Batch, source: Source) -> None:
        producer = batch.producer
        self._next[producer] = batch.epoch, batch.end
        if producer in self._missing:
            _, epoch, gap = self._missing[producer]
            if batch.epoch > epoch or gap.last < batch.end:
                del self._missing[producer]
        self._history.reports.delivered(batch)
        self._history.sink.deliver(batch, source)

    def unreadable(self, offset: int, end: int, reason: str, now: float) -> None:
        """Offsets that are gone."""
        self.offset = end
        source = Source("", "") if self._store is None else self._store.peer.source
        self._history.reports.count_lost(Gap(source, self.topic, offset, end - 1, reason))

    def ended(self, end: int, now: float) -> None:
        """The end of the log, for now."""
        self.caught_up = True
        if self.phase is not Phase.REPLAYING:
            return
        self.offset = max(self.offset or 0, end)
        self._release(now)
        if self._held and self._stuck_at == inf:
            self._stuck_at = now + self._history.patience_s
            self._history.timed[self] = None
        if not self._held and self._history.live:
            self._read(bodies=False)

    def indexed(self, entries: list[tuple[int, int, bytes, int, int]], now: float) -> None:
        """What stands in the log, while we are live."""
        self._history.stores.more(self.reading, 64 * len(entries))
        self._entries.extend(entries)
        self._cover(now)

    def streams(self, streams: list[StreamTold], now: float) -> None:
        """Joints watch no streams."""

    def _cover(self, now: float) -> None:
        """Move `offset` over what was delivered live."""
        entries = self._entries
        while entries:
            offset, count, producer, epoch, base = entries[0]
            known, expected = self._next.get(producer, (-1, 0))
            if epoch > known or (epoch == known and base + count > expected):
                break
            entries.popleft()
            self.offset = offset + count
            self._late_at = inf
        if len(entries) > ENTRIES_MAX:
            self._read(bodies=True)
        elif entries and self._late_at == inf:
            self._late_at = now + self._history.settle_s
            self._history.timed[self] = None

    # -- live ----------------------------------------------------------------------------------

    def take(self, batch: Batch, source: Source, now: float) -> None:
        """A batch that came live."""
        fresh = self._fresh(batch)
        if fresh is None:
            self._history.reports.processed(batch, now)
        elif self._store is not None and not self._store.covers(self.topic):
            self._deliver(fresh, source)
        elif self.phase is Phase.LIVE and self._continues(batch):
            self._deliver(fresh, source)
            self._cover(now)
        else:
            self._held.append((batch, source))
            self.held_bytes += batch.nbytes
            while self.phase is Phase.REPLAYING and self.held_bytes > self._history.held_bytes_max:
                self._drop(now)
            if self.phase is Phase.LIVE:
                self._read(bodies=True)

    def _continues(self, batch: Batch) -> bool:
        epoch, expected = self._next.get(batch.producer, (-1, 0))
        return batch.base <= expected if batch.epoch == epoch else batch.base == 0

    def _drop(self, now: float) -> None:
        """Make room: the log has it, or will have it."""
        batch, _ = self._held.popleft()
        self.held_bytes -= batch.nbytes
        self._history.reports.processed(batch, now)

    def _release(self, now: float) -> None:
        """Deliver what continues the log."""
        held, self._held = self._held, deque()
        for batch, source in held:
            fresh = self._fresh(batch)
            if fresh is not None and not self._continues(batch):
                self._held.append((batch, source))
                continue
            self.held_bytes -= batch.nbytes
            if fresh is None:
                self._history.reports.processed(batch, now)
            else:
                self._deliver(fresh, source)
        if not self._held:
            self._stuck_at = inf

    def missed(self, epoch: int, gap: Gap, now: float) -> None:
        """What the publisher can no longer repair: the log is looked at before it counts as lost."""
        producer = bytes.fromhex(gap.source.id)
        known, expected = self._next.get(producer, (epoch, 0))
        if epoch < known or (epoch == known and gap.last < expected):
            return
        self._missing[producer] = now + self._history.patience_s, epoch, gap
        self._history.timed[self] = None
        if self.phase is Phase.LIVE:
            self._read(bodies=True)

    # -- time ----------------------------------------------------------------------------------

    def timer(self) -> float:
        """When `handle_timer` has something to do."""
        missing = min((due for due, _, _ in self._missing.values()), default=inf)
        return min(self._late_at, self._stuck_at, self._missing_at, missing)

    def handle_timer(self, now: float) -> None:
        """What did not come live in time is read from the log; what is nowhere is lost."""
        if now >= self._missing_at:
            self.moves, self._missing_at = True, inf
            self.attach()
            if self._store is None and self.store_id is not None:
                self._history.missing(self.store_id, waits=True)
        if now >= self._late_at:
            self._late_at = now + self._history.settle_s
            if self._store is not None and not self._history.sink.full:
                self._read(bodies=True)
        for producer, (due, epoch, gap) in list(self._missing.items()):
            if now >= due:
                del self._missing[producer]
                self._give_up(producer, epoch, gap.last + 1, gap.cause, now)
        if now >= self._stuck_at:
            self._stuck_at = inf
            for batch in {batch.producer: batch for batch, _ in reversed(self._held)}.values():
                self._give_up(batch.producer, batch.epoch, batch.base, "unanswered", now)

    def _give_up(self, producer: bytes, epoch: int, before: int, cause: str, now: float) -> None:
        """Go on behind messages that neither the publisher nor the log has."""
        known, expected = self._next.get(producer, (epoch, before))
        if known == epoch and expected < before:
            source = self._history.reports.source(producer)
            self._history.reports.count_lost(Gap(source, self.topic, expected, before - 1, cause))
        if known <= epoch:
            self._next[producer] = epoch, max(before, expected if known == epoch else 0)
        self._release(now)


class History:
    """The log behind one subscription: the sink of its lane, if it is live, and the reader of all its joints."""

    def __init__(
        self,
        stores: Stores,
        pattern: str,
        sink: Sink,
        reports: Reports,
        config: Config,
        *,
        start: Start,
        offsets: dict[str, int] | None = None,
        store_id: bytes | None = None,
        live: bool = True,
        signed: bool = False,
        credit_bytes: int,
        rate: float = 0.0,
    ) -> None:
        """`offsets` say where topics begin, the others at `start`; `live=False` reads the log only."""
        self.stores = stores
        self.sink = sink
        self.reports = reports
        self.live = live
        self.rate = rate
        self.credit_bytes = credit_bytes
        self.held_bytes_max = credit_bytes
        self.settle_s = config.gap_settle_s
        self.patience_s = config.grace_s
        self.signed = signed
        self.topic = pattern
        self._start = start
        self._offsets = offsets or {}
        self._store_id = store_id
        self._joints: dict[str, Joint] = {}
        self._watched: dict[bytes, tuple[KnownStore, int]] = {}
        self._spent: dict[int, int] = {}
        self._told = False
        self._said: LogMissing | None = None
        self.timed: dict[Joint, None] = {}
        "Those that have a deadline."
        stores.watch(self._stores_changed)

    def __repr__(self) -> str:
        return f"<History {self.topic} {len(self._joints)} topics>"

    def store_of(self, topic: str) -> KnownStore | None:
        """The store that this subscription reads a topic from: the same one if it can be, as offsets are its log's."""
        joint = self._joints.get(topic)
        store_id = self._store_id if joint is None or joint.store_id is None else joint.store_id
        store = None if store_id is None else self.stores.named(store_id)
        free = store_id is None or (self._store_id is None and joint is not None and joint.moves)
        return self.stores.keeping(topic) if store is None and free else store

    def missing(self, log: bytes, *, waits: bool) -> None:
        """A log is not there: said once for all topics."""
        event = LogMissing(self.topic, "", log.hex(), waits=waits)
        if event != self._said:
            self._said = event
            self.reports.emit(event)

    def _stores_changed(self, now: float) -> None:
        self._said = None
        there = {store.peer.id: store for store in self.stores.all() if self._store_id in (None, store.id)}
        self._watched = {peer_id: item for peer_id, item in self._watched.items() if there.get(peer_id) is item[0]}
        for peer_id, store in there.items():
            if peer_id not in self._watched:
                self._watched[peer_id] = store, self.stores.watch_streams(store, self, self.topic)
        for joint in self._joints.values():
            joint.attach()

    @property
    def complete(self) -> bool:
        """Whether a store was found, and all that it had then was handed over."""
        return self._told and all(joint.caught_up for joint in self._joints.values())

    def begin(self, now: float) -> None:
        """Look for stores."""
        self._stores_changed(now)

    def close(self) -> None:
        """Read no more."""
        self.stores.unwatch(self._stores_changed)
        for _, number in self._watched.values():
            self.stores.stop(number)
        for joint in self._joints.values():
            joint.close()

    def _joint(self, topic: str) -> Joint:
        joint = self._joints.get(topic)
        if joint is None:
            kind, value = self._start.kind, self._start.value
            if topic in self._offsets:
                kind, value = "seq", self._offsets[topic]
            joint = self._joints[topic] = Joint(self, topic, "offset" if kind == "seq" else kind, value)
            joint.attach()
        return joint

    # -- what comes live -----------------------------------------------------------------------

    @property
    def full(self) -> bool:
        """Whether live streams must wait."""
        joints = self._joints.values()
        held = any(joint.phase is Phase.WAITING and joint.held_bytes > self.held_bytes_max for joint in joints)
        return held or self.sink.full

    def take(self, batch: Batch, source: Source, now: float) -> None:
        """A batch that came live."""
        if batch.durable:
            self._joint(batch.topic).take(batch, source, now)
        else:
            self.reports.delivered(batch)
            self.sink.deliver(batch, source)

    def missed(self, epoch: int, gap: Gap, now: float) -> bool:
        """A live stream has a hole that its publisher cannot fill. Returns whether the log is asked."""
        if gap.topic not in self._joints and not self.stores.is_kept(gap.source.id, gap.topic):
            return False
        self._joint(gap.topic).missed(epoch, gap, now)
        return True

    # -- protocol.stores.LogReader, of the streams that there are ------------------------------

    def streams(self, streams: list[StreamTold], now: float) -> None:
        """Topics that a store has."""
        self._told = True
        for stream in streams:
            self._joint(stream.topic)

    def lost(self, now: float) -> None:
        """A store left."""

    def stored(self, batch: Batch, now: float) -> None:
        """Joints read."""

    def indexed(self, entries: list[tuple[int, int, bytes, int, int]], now: float) -> None:
        """Joints read."""

    def unreadable(self, offset: int, end: int, reason: str, now: float) -> None:
        """Joints read."""

    def ended(self, end: int, now: float) -> None:
        """Joints read."""

    # -- credit --------------------------------------------------------------------------------

    def consumed(self, batch: Batch) -> None:
        """A batch of the log needs no room any more: give its credit back, not too often."""
        if batch.stored is None:
            return
        reading = batch.stored.reading
        spent = self._spent.pop(reading, 0) + batch.nbytes
        if spent * 4 >= self.credit_bytes:
            self.stores.more(reading, spent)
        else:
            self._spent[reading] = spent

    # -- time ----------------------------------------------------------------------------------

    def timer(self) -> float:
        """When `handle_timer` has something to do."""
        return min((joint.timer() for joint in self.timed), default=inf)

    def handle_timer(self, now: float) -> None:
        """Time has passed."""
        for joint in list(self.timed):
            if joint.timer() <= now:
                joint.handle_timer(now)
            if joint.timer() == inf:
                del self.timed[joint]
