"""The receiving end of one stream: which messages are new, and which will never come.

`Inbox` is for at-most-once streams: it notices what is missing and goes on. `ReliableInbox` puts batches into order,
asks for what is missing, acknowledges what has arrived, and never delivers a message twice.
"""

from __future__ import annotations

from bisect import insort
from math import inf
from typing import Protocol

from msgspec.structs import replace

from zfabric.config import Config
from zfabric.wire.batch import FLAG_ACK_NOW, Batch
from zfabric.wire.ranges import RangeSet
from zfabric.wire.records import RANGES_MAX, Ack, Repair

__all__ = ["Inbox", "Jitter", "ReliableInbox"]

LOST_RANGES_MAX = 4096
"Ranges beyond the next message that the publisher cannot repair; it is asked again for what is more."
UNANCHORED_BYTES_MAX = 4 * 1024 * 1024
"What may wait for the publisher's ATTACHED."


class Jitter(Protocol):
    """A source of randomness, such as `random.Random`."""

    def random(self) -> float:
        """A number from 0 to before 1."""


class Inbox:
    """Position in one producer's stream of one topic, at-most-once.

    `expected` is the next sequence number; None until the first batch or the producer's ATTACHED anchors it.
    """

    __slots__ = ("_anchored", "_before", "_first", "_known", "_since", "epoch", "expected")

    def __init__(self, epoch: int) -> None:
        self._begin(epoch)

    def _begin(self, epoch: int) -> None:
        self.epoch = epoch
        self.expected: int | None = None
        self._before: tuple[int, int | None] = (-1, None)
        self._anchored = False
        self._first = 0
        self._known = 0
        self._since = inf

    def __repr__(self) -> str:
        return f"<Inbox epoch={self.epoch} expected={self.expected}>"

    def renew(self, epoch: int) -> tuple[int, int] | None:
        """A new incarnation of the stream begins. Returns the range (first, last) of the old one that is missing."""
        lost = self.close()
        before = self.epoch, self.expected
        self._begin(epoch)
        self._before = before
        self.expected = 0
        self._anchored = True
        return lost

    def late(self, batch: Batch) -> tuple[int, int] | None:
        """A batch of the incarnation before: the range (first, last) that is lost with it and was not reported yet."""
        lost, self._before = _late(self._before, batch)
        return lost

    def anchor(self, epoch: int, next_seq: int, now: float) -> tuple[int, int] | None:
        """The producer sends everything from `next_seq` on. Returns the range (first, last) that this shows as lost.

        What comes before the first batch that arrived was lost; what comes after the last one may be under way.
        """
        if epoch != self.epoch:
            return None
        lost = None
        if self.expected is None:
            self.expected = next_seq
        elif not self._anchored and next_seq < self._first:
            lost = next_seq, self._first - 1
        self._anchored = True
        self.heard(epoch, next_seq, now)
        return lost

    def accept(self, batch: Batch) -> tuple[bool, tuple[int, int] | None]:
        """Whether the batch is new, and the range (first, last) of messages lost before it."""
        expected = self.expected
        if batch.epoch != self.epoch or (expected is not None and batch.base < expected):
            return False, None
        self.expected = batch.end
        if expected is None:
            self._first = batch.base
            return True, None
        return True, (expected, batch.base - 1) if batch.base > expected else None

    def heard(self, epoch: int, next_seq: int, now: float) -> None:
        """The producer has come as far as `next_seq`: if that does not arrive soon, it is lost."""
        if epoch == self.epoch and self.expected is not None and next_seq > max(self.expected, self._known):
            self._known, self._since = next_seq, now

    @property
    def behind(self) -> bool:
        """Whether the producer told of messages that did not arrive yet."""
        return self.expected is not None and self._known > self.expected

    def close(self) -> tuple[int, int] | None:
        """The producer is gone: the range (first, last) that it told of and that did not arrive."""
        if self.expected is None or self._known <= self.expected:
            return None
        lost = self.expected, self._known - 1
        self.expected = self._known
        return lost

    def timer(self, config: Config) -> float:
        """When `overdue` has something to say."""
        if self.expected is None or self._known <= self.expected:
            self._since = inf
        return self._since + config.gap_settle_s

    def overdue(self, config: Config, now: float) -> tuple[int, int] | None:
        """The range (first, last) at the stream's end that counts as lost now."""
        if now < self.timer(config) or self.expected is None:
            return None
        lost = self.expected, self._known - 1
        self.expected = self._known
        self._since = inf
        return lost


class ReliableInbox:
    """One subscription's position in one producer's reliable stream."""

    # fmt: off
    __slots__ = (
        "_ack_at", "_attempts", "_before", "_config", "_have", "_jitter", "_known", "_lost", "_passed", "_pending",
        "_pending_bytes", "_renewed", "_repair_at", "_unacked_bytes", "_urgent_before", "duplicates", "ended",
        "epoch", "expected", "lane", "processed", "stores", "topic",
    )
    # fmt: on

    def __init__(
        self, lane: int, topic: str, epoch: int, config: Config, jitter: Jitter, *, stores: bool = False
    ) -> None:
        """One that `stores` is waited for until it has processed: that it has received is no news to haste with."""
        self.lane = lane
        self.topic = topic
        self.stores = stores
        self.duplicates = 0
        self._config = config
        self._jitter = jitter
        self._begin(epoch)

    def _begin(self, epoch: int) -> None:
        self.epoch = epoch
        self.expected: int | None = None
        self.processed = 0
        self.ended = False
        self._known = 0
        self._pending: list[Batch] = []
        self._pending_bytes = 0
        self._have = RangeSet()
        self._lost: list[tuple[int, int, str]] = []
        self._repair_at = inf
        self._attempts = 0
        self._ack_at = inf
        self._unacked_bytes = 0
        self._urgent_before = 0
        self._before: tuple[int, int | None] = (-1, None)
        self._renewed = False
        self._passed: list[tuple[int, int]] = []

    def __repr__(self) -> str:
        return f"<ReliableInbox {self.topic} lane={self.lane} epoch={self.epoch} expected={self.expected}>"

    @property
    def pending_bytes(self) -> int:
        """Bytes that wait for an earlier batch, or for room in the subscription."""
        return self._pending_bytes

    @property
    def behind(self) -> bool:
        """Whether the producer told of messages that were not handed on yet."""
        return self.expected is not None and self._known > self.expected

    @property
    def idle(self) -> bool:
        """Whether the subscription is done with everything that it was handed."""
        return self.expected is None or self.processed >= self.expected

    # -- what arrives --------------------------------------------------------------------------

    def renew(self, epoch: int) -> tuple[int, int] | None:
        """A new incarnation of the stream begins. Returns the range (first, last) of the old one that is missing."""
        missing = None
        if self.expected is not None and self._known > self.expected:
            missing = self.expected, self._known - 1
        before = self.epoch, None if self.expected is None else max(self.expected, self._known)
        self._begin(epoch)
        self._before = before
        self._renewed = True
        return missing

    def late(self, batch: Batch) -> tuple[int, int] | None:
        """A batch of the incarnation before: the range (first, last) that is lost with it and was not reported yet."""
        lost, self._before = _late(self._before, batch)
        return lost

    def anchor(self, position: int, now: float) -> None:
        """The publisher sends everything from `position` on; where we stand already, we stay and ask for the rest.

        Of a new incarnation of a stream that we follow, we miss whatever came before `position`.
        """
        if self.expected is None and self._renewed:
            self.expected = 0
        elif self.expected is None:
            self.expected = self.processed = position
            if position > 0:
                self._have.add(0, position)
            self._pending = [batch for batch in self._pending if batch.end > position]
            self._pending_bytes = sum(batch.nbytes for batch in self._pending)
        self._learn(position, now)
        self._ack_at = now

    def accept(self, batch: Batch, now: float) -> None:
        """Take a batch in, whatever its place; what was had already only makes the ack due."""
        expected = self.expected
        if self.ended:
            self._known = max(self._known, batch.end)  # asked for when the stream goes on, else reported
            return
        if batch.flags & FLAG_ACK_NOW:
            self._urgent_before = max(self._urgent_before, batch.end)
        if expected is not None and (batch.end <= expected or (batch.base >= expected and batch.base in self._have)):
            self.duplicates += 1
            self._ack_at = min(self._ack_at, now + self._config.ack_delay_s)
            return
        limit = UNANCHORED_BYTES_MAX if expected is None else self._config.reorder_bytes
        if self._pending_bytes + batch.nbytes > limit and (expected is None or batch.base > expected):
            self._learn(batch.end, now)
            return
        insort(self._pending, batch, key=_base)
        self._pending_bytes += batch.nbytes
        self._have.add(batch.base, batch.end)
        self._learn(batch.end, now)

    def next_gap(self) -> tuple[int, int, str] | None:
        """The range (first, stop, reason) at our position that will never come, if so; it is skipped from now on."""
        lost, expected = self._lost, self.expected
        while expected is not None and lost and lost[0][0] <= expected:
            _, stop, reason = lost.pop(0)
            if stop > expected:
                self.expected = stop
                self._passed.append((expected, stop))
                self._pass_gaps()
                return expected, stop, reason
        return None

    def next_batch(self) -> Batch | None:
        """The batch that continues the stream, if it is here. It counts as received from now on."""
        pending, expected = self._pending, self.expected
        if expected is None:
            return None
        while pending and pending[0].base <= expected:
            batch = pending.pop(0)
            self._pending_bytes -= batch.nbytes
            if batch.end > expected:
                self.expected = batch.end
                self._unacked_bytes += batch.nbytes
                return batch if batch.base == expected else replace(batch, skip=expected - batch.base)
        return None

    def pass_over(self, batch: Batch) -> None:
        """What `next_batch` gave is not fit to be delivered, and needs no processing."""
        self._passed.append((batch.base + batch.skip, batch.end))
        self._pass_gaps()

    def delivered(self, now: float) -> None:
        """Call after `next_batch` and `next_gap` gave something: plans the ack, and repair of what is missing next."""
        config, expected = self._config, self.expected
        if expected is None:
            return
        if (self._urgent_before and not self.stores) or self._unacked_bytes >= config.ack_bytes:
            self._ack_at = now
            if self._urgent_before <= expected and self._urgent_before <= self.processed:
                self._urgent_before = 0
        else:
            self._ack_at = min(self._ack_at, now + config.ack_delay_s)
        self._attempts = 0
        if self._known <= expected:
            self._repair_at = inf
        elif self._repair_at < inf:
            self._repair_at = now + config.repair_delay_s * self._jitter.random()

    def was_processed(self, before: int, now: float) -> None:
        """The subscription is done with all messages before `before`."""
        if before > self.processed:
            self.processed = before
            self._pass_gaps()
            urgent = before <= self._urgent_before
            self._ack_at = min(self._ack_at, now if urgent else now + self._config.ack_delay_s)

    def _pass_gaps(self) -> None:
        """What will never come needs no processing."""
        passed = self._passed
        while passed and passed[0][0] <= self.processed:
            self.processed = max(self.processed, passed.pop(0)[1])

    def heard(self, first_kept: int, next_seq: int, now: float) -> None:
        """How far the publisher has come, and what it can still repair."""
        expected = self.expected
        if expected is None or self.ended:
            return
        self._learn(next_seq, now)
        if next_seq <= expected:
            self._ack_at = min(self._ack_at, now + self._config.ack_delay_s)  # it has not heard our ack
        if first_kept > expected:
            self.missing(expected, first_kept, "expired", now)

    def missing(self, start: int, stop: int, reason: str, now: float) -> None:
        """What of a range has not arrived will not come; `next_gap` tells it when its turn comes."""
        if self.expected is None or start >= stop or len(self._lost) >= LOST_RANGES_MAX:
            return
        self._learn(stop, now)
        self._attempts = 0
        for first, end in list(self._have.missing(max(start, self.expected), stop)):
            self._have.add(first, end)
            insort(self._lost, (first, end, reason))

    def close(self, now: float) -> None:
        """The producer is gone: what has not arrived will not come."""
        if self.expected is not None:
            self.missing(self.expected, self._known, "closed", now)

    def _learn(self, known: int, now: float) -> None:
        self._known = max(self._known, known)
        if self.expected is not None and self._known > self.expected and self._repair_at == inf:
            self._repair_at = now + self._config.repair_delay_s * (0.5 + self._jitter.random())

    # -- what is due ---------------------------------------------------------------------------

    def timer(self) -> float:
        """When `take_ack` or `take_repair` has something."""
        return min(self._ack_at, self._repair_at)

    def take_ack(self, now: float) -> Ack | None:
        """The ack that is due now, if one is."""
        if now < self._ack_at or self.expected is None:
            return None
        self._ack_at = inf
        self._unacked_bytes = 0
        beyond = [(start, stop) for start, stop in self._have if start > self.expected][:RANGES_MAX]
        return Ack(self.lane, self.topic, self.epoch, self.expected, min(self.processed, self.expected), beyond)

    def take_repair(self, now: float, *, has_room: bool) -> Repair | None:
        """The repair request that is due now, if one is. Without room nothing is asked for."""
        if now < self._repair_at or self.expected is None:
            return None
        if self.ended:
            self._repair_at = inf
            return None
        config = self._config
        gaps = list(self._have.missing(self.expected, self._known))[:RANGES_MAX]
        if not gaps:
            self._repair_at = inf
            return None
        pause = min(config.repair_retry_s * 2 ** min(self._attempts, 16), config.repair_retry_s_max)
        self._repair_at = now + pause * (0.75 + self._jitter.random() / 2)
        if not has_room:
            return None
        self._attempts += 1
        return Repair(self.lane, self.topic, self.epoch, gaps)

    def give_up(self, now: float) -> bool:
        """After too many requests without an answer the first gap counts as lost."""
        if self._attempts <= self._config.repair_attempts_max or self.expected is None:
            return False
        for start, stop in self._have.missing(self.expected, self._known):
            self.missing(start, stop, "unanswered", now)
            return True
        return False


def _late(before: tuple[int, int | None], batch: Batch) -> tuple[tuple[int, int] | None, tuple[int, int | None]]:
    epoch, known = before
    if batch.epoch != epoch or known is None or batch.end <= known:
        return None, before
    return (known, batch.end - 1), (epoch, batch.end)


def _base(batch: Batch) -> int:
    return batch.base
