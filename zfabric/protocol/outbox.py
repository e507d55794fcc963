"""The sending end of one stream: sequence numbers, the open batch, the window, and who has received what.

A reliable stream keeps every batch until all its readers acknowledged it, and `history` messages longer. What is
kept and not acknowledged is the window: when it is full, publishers wait. What is durable stays in the window until a
store has it, too.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import chain
from math import inf

import msgspec

from zfabric.config import Config
from zfabric.protocol.keeping import Keeping
from zfabric.protocol.lanes import Lane
from zfabric.wire.batch import FLAG_ACK_NOW, FLAG_DURABLE, FLAG_RELIABLE, BatchWriter, Buffer, Sign
from zfabric.wire.ranges import RangeSet
from zfabric.wire.records import Ack, PatternRequest, Start

__all__ = ["Outbox", "Reader", "Sealed"]

START_MAX = 2**62
"What a peer asks for beyond it is nonsense."


FAILURES_MAX = 1000
"Readers given up that nobody has asked about yet."


class Sealed(msgspec.Struct, frozen=True, gc=False):
    """A batch that left."""

    base: int
    end: int
    frames: list[Buffer]
    nbytes: int
    sealed_at: float
    "By the clock that never steps."


class Reader:
    """One subscription of one peer, as its publisher sees it."""

    # fmt: off
    __slots__ = (
        "away_since", "beyond", "lane", "name", "parted", "peer_id", "processed", "progress_at", "received", "request",
    )
    # fmt: on

    def __init__(self, peer_id: bytes, name: str, request: PatternRequest, start: int, now: float) -> None:
        self.peer_id = peer_id
        self.name = name
        self.lane = request.lane
        self.request = request
        self.received = start
        self.processed = start
        self.beyond = RangeSet()
        self.away_since: float | None = None
        self.parted = False
        "It is away and said goodbye: nobody waits for it when the window is full."
        self.progress_at = now

    def __repr__(self) -> str:
        away = "" if self.away_since is None else " away"
        return f"<Reader {self.name} lane={self.lane} received={self.received} processed={self.processed}{away}>"


class Outbox:
    """One topic that this node publishes.

    The publisher appends to `writer` and the driver calls `seal()` once per turn of the event loop. `remote` are the
    subscriptions of peers that are in place, `readers` those of them (and of peers away) that acknowledge, `local`
    the matching subscriptions of this very node.
    """

    # fmt: off
    __slots__ = (
        "_config",
        "_failures",
        "_floor",
        "_history",
        "_history_bytes",
        "_history_max",
        "_unacked",
        "ack_now",
        "audience",
        "base",
        "begun",
        "delivery",
        "denied",
        "epoch",
        "evicted",
        "full",
        "full_since",
        "keeping",
        "listeners",
        "local",
        "local_full",
        "position_at",
        "position_pause",
        "readers",
        "ready",
        "reliable",
        "remote",
        "skipped",
        "topic",
        "waiting_bytes",
        "waits",
        "window_bytes",
        "writer",
    )
    # fmt: on

    def __init__(
        self,
        topic: str,
        producer: bytes,
        epoch: int,
        delivery: str,
        config: Config,
        *,
        with_crc: bool,
        window_bytes: int | None = None,
        history: int = 0,
        keeping: Keeping | None = None,
        sign: Sign | None = None,
    ) -> None:
        self.topic = topic
        self.epoch = epoch
        self.delivery = delivery
        self.reliable = delivery != "at-most-once"
        self.keeping = keeping
        "There if the topic is durable."
        self.writer = BatchWriter(topic, producer, epoch, with_crc=with_crc, sign=sign)
        self.base = 0
        self.skipped = 0
        self.remote: dict[tuple[bytes, int], PatternRequest] = {}
        self.begun: dict[tuple[bytes, int], int] = {}
        "Where those of them that acknowledge nothing began."
        self.readers: dict[tuple[bytes, int], Reader] = {}
        self.evicted: set[tuple[bytes, int]] = set()
        self.audience: tuple[bytes, ...] = ()
        "The peers that a batch may reach in a bundle; empty if it must travel by itself."
        self.local: list[Lane] = []
        self.listeners = 0
        self.window_bytes = config.window_bytes if window_bytes is None else window_bytes
        self.waiting_bytes = 0
        self.full = False
        self.denied = False
        "This node's identity lost the right to publish it."
        self.ready = False
        "Somebody listens, and there is room: the one thing to look at before each message."
        self.local_full = False
        self.waits = False
        "Something else must be stored first."
        self._failures: deque[tuple[Reader, int, str]] = deque(maxlen=FAILURES_MAX)
        self.full_since = inf
        self.ack_now = False
        self.position_at = inf
        self.position_pause = config.position_interval_s
        self._config = config
        self._floor = 0
        self._unacked: deque[Sealed] = deque()
        self._history: deque[Sealed] = deque()
        self._history_bytes = 0
        self._history_max = history

    def __repr__(self) -> str:
        return f"<Outbox {self.topic} epoch={self.epoch} next={self.next_seq} listeners={self.listeners}>"

    @property
    def next_seq(self) -> int:
        """The number that the next message gets."""
        return self.base + self.writer.count

    @property
    def first_kept(self) -> int:
        """The oldest message that can still be sent again."""
        for batches in (self._history, self._unacked):
            if batches:
                return batches[0].base
        return self.base

    @property
    def subscribers(self) -> int:
        """Subscriptions in place: of peers, and this node's own; stores do not count."""
        stores = 0 if self.keeping is None else self.keeping.stores
        return len(self.remote) - stores + len(self.local)

    @property
    def has_history(self) -> bool:
        """Whether what everybody has is kept for late joiners."""
        return self._history_max > 0

    def count_listeners(self) -> None:
        """Call after any change to `remote`, `readers` or `local`."""
        self.listeners = self.subscribers
        if self.reliable and not self.listeners and (self.readers or self._history_max or self.keeping is not None):
            self.listeners = 1  # somebody may come, or come back, for what is published now
        alone = self.reliable or self.local or self.writer.sign is not None
        self.audience = () if alone else tuple(sorted({peer for peer, _ in self.remote}))
        self.judge()

    def judge(self) -> None:
        """Call after any change to what `ready` depends on."""
        stops = self.denied or self.full or (self.keeping is not None and self.keeping.stops)
        self.ready = self.listeners > 0 and not stops

    def permit(self, *, allowed: bool) -> None:
        """Whether this node's identity may publish it from now on."""
        self.denied = not allowed
        self.judge()

    def skip(self) -> int:
        """Number a message that nobody listens to."""
        seq = self.base
        self.base = seq + 1
        self.skipped += 1
        return seq

    def seal(self, published_ns: int, now: float) -> list[Buffer]:
        """Finish the open batch."""
        base, count = self.base, self.writer.count
        self.base = end = base + count
        if not self.reliable:
            if self.remote:
                self._expect_positions(now)
            return self.writer.seal(base, published_ns)
        flags = FLAG_RELIABLE if self.keeping is None else FLAG_RELIABLE | FLAG_DURABLE
        if self.ack_now or self.waiting_bytes * 2 > self.window_bytes:
            flags |= FLAG_ACK_NOW
        self.ack_now = False
        frames = self.writer.seal(base, published_ns, flags)
        nbytes = sum(map(len, frames))
        self._unacked.append(Sealed(base, end, frames, nbytes, now))
        self.waiting_bytes += nbytes
        if self.remote:
            self._expect_positions(now)
        self._settle(now)
        return frames

    def drain(self, now: float) -> tuple[int, int, bytearray]:
        """Finish the open batch, to travel in a bundle: its first number, how many values, and these."""
        writer, base = self.writer, self.base
        count = writer.count
        self.base = base + count
        self._expect_positions(now)
        return base, count, writer.drain()

    def _expect_positions(self, now: float) -> None:
        # The loss of a last message that nobody repairs needs no haste.
        config = self._config
        self.position_pause = config.position_interval_s if self.reliable else config.position_interval_s_max / 2
        self.position_at = now + self.position_pause

    # -- readers -------------------------------------------------------------------------------

    def start_of(self, start: Start, now: float) -> int:
        """The sequence number that a subscription begins at."""
        value = start.value if 0 <= start.value <= START_MAX else 0  # NaN fails, too
        if start.kind == "earliest":
            return self.first_kept
        if start.kind == "seq":
            return min(int(value), self.base)
        if start.kind == "last":
            return min(max(self.first_kept, self.next_seq - int(value)), self.base)
        if start.kind == "since":
            oldest = now - value
            return next((sealed.base for sealed in self._kept() if sealed.sealed_at >= oldest), self.base)
        return self.base

    def returning(self, peer_id: bytes, name: str, request: PatternRequest) -> Reader | None:
        """A reader away that this subscription continues: its own, or that of a node that was started again."""
        same = self.readers.get((peer_id, request.lane))
        if same is not None:
            return same
        for reader in self.readers.values():
            left_behind = reader.away_since is not None and reader.peer_id != peer_id
            if left_behind and (reader.name, reader.request.pattern) == (name, request.pattern):
                return reader
        return None

    def acknowledge(self, reader: Reader, ack: Ack, now: float) -> bool:
        """Take in an ack; False if it claims what was never sent. Old and repeated acks change nothing."""
        if ack.received > self.base or ack.processed > ack.received:
            return False
        if ack.received > reader.received or ack.processed > reader.processed:
            reader.progress_at = now
            self.position_pause = self._config.position_interval_s
        reader.received = max(reader.received, ack.received)
        reader.processed = max(reader.processed, ack.processed)
        if reader.request.store and self.keeping is not None:
            self.keeping.stored = max(self.keeping.stored, reader.processed)
        reader.beyond = RangeSet(r for r in ack.ranges if reader.received < r[0] < r[1] <= self.base)
        self._settle(now)
        return True

    def drop_reader(self, reader: Reader, now: float) -> tuple[int, int] | None:
        """No longer wait for a reader. Returns the range (first, stop) that it never acknowledged, if any."""
        self.readers.pop((reader.peer_id, reader.lane), None)
        missed = (reader.received, self.base) if reader.received < self.base else None
        self.count_listeners()
        self._settle(now)
        return missed

    def give_up(self, reader: Reader, reason: str, now: float) -> None:
        """No longer wait for a reader, and remember it for those who wait for confirmations."""
        self.drop_reader(reader, now)
        self._failures.append((reader, self.base, reason))

    def take_failures(self, before: int, *, processed: bool) -> tuple[tuple[str, int, int, str], ...]:
        """Who was given up and lacks (or has not processed) messages before this one: (name, first, last, reason)."""
        taken = []
        for failure in list(self._failures):
            reader, stop, reason = failure
            first = reader.processed if processed else reader.received
            if first < min(stop, before):
                self._failures.remove(failure)
                taken.append((reader.name, first, stop - 1, reason))
        return tuple(taken)

    def confirmed(self, level: str) -> int:
        """All messages before this one are confirmed: `received` or `processed` by every subscriber, or `stored`."""
        if level == "stored":
            return self.base if self.keeping is None else self.keeping.stored
        return self.received_by_all(processed=level == "processed")

    def received_by_all(self, *, processed: bool = False) -> int:
        """Every subscriber has received (or processed) all messages before this one."""
        subscribers = (reader for reader in self.readers.values() if not reader.request.store)
        return min((reader.processed if processed else reader.received for reader in subscribers), default=self.base)

    def slowest(self) -> Iterator[Reader]:
        """The readers that hold the window up. A store is waited for as long as no other store has what it lacks."""
        stored = self.confirmed("stored")
        for reader in self.readers.values():
            if reader.processed <= self._floor and (reader.processed < stored or not reader.request.store):
                yield reader

    def _settle(self, now: float) -> None:
        """Move what everybody has into history, and history beyond its bounds out; then judge the window."""
        # A subscriber that crashes and returns needs again what it had received and not processed.
        floor = self.received_by_all(processed=True)
        if self.keeping is not None:
            floor = min(floor, self.keeping.stored, *self._stores_processed(self.keeping))
        self._floor = floor
        unacked, history = self._unacked, self._history
        while unacked and unacked[0].end <= floor:
            sealed = unacked.popleft()
            self.waiting_bytes -= sealed.nbytes
            if self._history_max:
                history.append(sealed)
                self._history_bytes += sealed.nbytes
        oldest = self.base - self._history_max
        bytes_max = self._config.history_bytes_max
        # What a late joiner began with stays until it has it, as what is unacknowledged does.
        while history and history[0].end <= floor and (history[0].end <= oldest or self._history_bytes > bytes_max):
            self._history_bytes -= history.popleft().nbytes
        held_up = self.waiting_bytes >= self.window_bytes or self.base - floor >= self._config.window_messages_max
        if held_up and (parted := next((reader for reader in self.slowest() if reader.parted), None)) is not None:
            self.drop_reader(parted, now)
            return
        if held_up:
            self.full_since = min(self.full_since, now)
        elif not (self._config.evict_slow and self.waiting_bytes * 2 > self.window_bytes):
            self.full_since = inf  # a slow reader opens the window a little with each ack, and is slow all the same
        full = held_up or self.local_full or self.waits
        if full != self.full:
            self.full = full
            self.judge()

    def _stores_processed(self, keeping: Keeping) -> Iterator[int]:
        """How far each store has come, but for those that refuse what another one has."""
        for reader in self.readers.values():
            if reader.request.store and not keeping.refuses(reader.peer_id):
                yield reader.processed

    def set_local_full(self, full: bool, now: float) -> None:
        """A subscription of this very node is full, or has room again."""
        if full != self.local_full:
            self.local_full = full
            self._settle(now)

    def set_waiting(self, *, waiting: bool, now: float) -> None:
        """Something else must be stored before anything is published here, or that is done."""
        self.waits = waiting
        self._settle(now)

    def restart_grace(self, since: float) -> None:
        """Somebody made progress, or was given up: who holds the window up now has the grace from its last progress."""
        if self.full_since < inf:
            self.full_since = max(self.full_since, since)

    def timer(self) -> float:
        """When somebody must be told how far this stream has come, or somebody has waited long enough."""
        due = min(self.position_at, self.full_since + self._config.grace_s)
        if self.keeping is not None:
            due = min(due, self.keeping.timer())
        for reader in self.readers.values():
            if reader.away_since is not None:
                due = min(due, reader.away_since + self._config.grace_s)
        return due

    # -- repair --------------------------------------------------------------------------------

    def _kept(self) -> Iterator[Sealed]:
        return chain(self._history, self._unacked)

    def kept_between(self, start: int, stop: int) -> Iterator[Sealed]:
        """The batches that hold messages from `start` to before `stop`, in order."""
        for sealed in self._kept():
            if sealed.base >= stop:
                return
            if sealed.end > start:
                yield sealed
