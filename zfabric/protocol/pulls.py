"""The receiving end of queues: a `Pull` for each puller of this node, with the jobs that it has and the credit it gave.

All that a puller has been granted or sent, by all pushers together, never exceeds its credit. Pushers that have jobs
share it; those that have none keep a part, so that their first job needs no question, and return the rest.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from math import inf
from typing import Any

from zfabric.config import Config
from zfabric.protocol.deliveries import Delivery, Followed, PullSource, Unkept
from zfabric.wire import queue_records
from zfabric.wire.queue_records import (
    Credit,
    CreditRecall,
    Jobs,
    JobsDone,
    JobsUndone,
    PullEnd,
    QueueRecord,
    Renew,
    Undone,
)

__all__ = ["CLOSED", "TOO_LATE", "Pull"]

TOO_LATE = "its lease had ended: somebody else has the job, or gets it"
CLOSED = "the node closed before the store answered: the job may come again"
LEFT = "the store left before it answered: the job may come again"

DONE_PER_RECORD_MAX = 5000
CREDIT_MIN = 2
"An adaptive puller's credit, at least, beside what its concurrency needs."
CREDIT_FIRST = 16
DELAY_S_MAX = 1e9


class Pull:
    """One puller."""

    def __init__(
        self,
        number: int,
        queue: str,
        config: Config,
        tell: Callable[[bytes, QueueRecord], None],
        wake: Callable[[], None],
        *,
        credit: int | None,
        concurrency: int,
        selector: str,
        lease_s: float,
        handler_timeout_s: float,
    ) -> None:
        """`tell(peer_id, record)` says something to a pusher; `wake()` tells that `take` has something."""
        self.number = number
        self.queue = queue
        self.held = 0
        "Jobs that are not settled."
        self.changed = False
        "There may be something to say."
        self.closed = False
        self.stuck = False
        "All handlers hang: nobody takes jobs."
        self.readers = 0
        "Who waits for jobs."
        self.seen = False
        "What the reader took since `follow` or since it cleared this was looked at."
        self.begun = 0
        "Jobs that were taken."
        self.sources: dict[bytes, PullSource] = {}
        self.refused: list[tuple[bytes, int]] = []
        "Settled too late: (pusher, jobs)."
        self._config = config
        self._tell = tell
        self._wake = wake
        self._adaptive = credit is None
        self._shrink_at = -inf
        self._starved = False
        "A pusher had more jobs than credit."
        self._credit = CREDIT_FIRST + concurrency if credit is None else credit
        self._credit_min = CREDIT_MIN + concurrency
        self._selector = selector
        self._lease_s = lease_s
        self._handler_timeout_s = handler_timeout_s
        self._granted = 0
        self._waiting: deque[Delivery] = deque()
        self._dirty: dict[int, Delivery] = {}
        self._check_at = inf
        self._tell_at = inf
        "When what is done is told, though it could wait for more."
        self._followed: Followed | None = None
        self._now = 0.0
        self.unkept = Unkept()

    def __repr__(self) -> str:
        return f"<Pull {self.queue}/{self.number} held={self.held} credit={self._credit} sources={len(self.sources)}>"

    @property
    def unanswered(self) -> bool:
        """Whether acks wait for a store."""
        return bool(self.unkept)

    @property
    def finished(self) -> bool:
        """Whether it is closed, and nobody will say or hear anything of its jobs any more."""
        return self.closed and not self.held and not self.unkept

    @property
    def credit(self) -> int:
        """Jobs that it may have, now."""
        return self._credit

    # -- pushers -------------------------------------------------------------------------------

    def offered(self, peer_id: bytes, now: float) -> None:
        """A node has this queue."""
        if peer_id not in self.sources and not self.closed:
            self.sources[peer_id] = PullSource(peer_id, now + self._lease_s / 3)
            self.changed = True
            self._tell(
                peer_id,
                queue_records.Pull(
                    self.number,
                    self.queue,
                    max(1, round(self._lease_s * 1000)),
                    self._config.credit_bytes,
                    self._selector,
                ),
            )

    def lost(self, peer_id: bytes) -> int:
        """A pusher is gone: nobody wants what came from it. Returns how many jobs it waits for in vain."""
        source = self.sources.pop(peer_id, None)
        if source is None:
            return 0
        self.catch_up()
        self._granted -= source.granted
        self.changed = True
        self.unkept.give_up(LEFT, peer_id)
        lost = 0
        for delivery in source.deliveries.values():
            lost += delivery.left
            delivery.alive = False
            if self._followed is not None and self.followed is delivery:
                self._followed.cut(delivery.started)
            self._forget(delivery)
        self._waiting = deque(delivery for delivery in self._waiting if delivery.alive)
        return lost

    def _forget(self, delivery: Delivery) -> None:
        self.held -= delivery.left
        self._dirty.pop(id(delivery), None)

    def received(self, peer_id: bytes, jobs: Jobs, now: float) -> bool:
        """A lease. False if it is more than was granted."""
        source = self.sources.get(peer_id)
        if source is None or jobs.count > source.granted or jobs.lease in source.deliveries:
            return False
        delivery = Delivery(source, jobs, now)
        self.changed = True
        source.granted -= jobs.count
        self._granted -= jobs.count
        source.deliveries[jobs.lease] = delivery
        self.held += jobs.count
        self._waiting.append(delivery)
        if self.stuck:
            self.return_all()
        else:
            self._wake()
        return True

    def backlog(self, peer_id: bytes) -> None:
        """A pusher has jobs and no credit."""
        if peer_id in self.sources:
            self.sources[peer_id].hungry = self.changed = self._starved = True

    def returned(self, peer_id: bytes, jobs: int) -> None:
        """A pusher has no jobs, and does not need so much credit."""
        source = self.sources.get(peer_id)
        if source is not None:
            jobs = min(jobs, source.granted)
            source.granted -= jobs
            self._granted -= jobs
            self.changed = True

    def recalled(self, peer_id: bytes, jobs: int, now: float) -> None:
        """Somebody else has nothing to do: give back what nobody has begun with, the newest first."""
        self._now = now
        self.catch_up()
        for delivery in reversed(self._waiting):
            if delivery.source.peer_id == peer_id and jobs > 0:
                some = min(jobs, delivery.stop - delivery.started)
                self._give_back(delivery, delivery.stop - some)
                jobs -= some

    def _give_back(self, delivery: Delivery, start: int) -> None:
        stop, followed = delivery.stop, self._followed
        if followed is not None and followed.delivery is delivery:
            start = followed.cut(start)
        if start < stop:
            delivery.stop = start
            self.undone(delivery, start, stop, "returned")

    # -- jobs ----------------------------------------------------------------------------------

    def head(self) -> Delivery | None:
        """The lease whose jobs are next."""
        if self.stuck:
            self.stuck, self.changed = False, True
        while self._waiting:
            delivery = self._waiting[0]
            if delivery.started < delivery.stop and delivery.alive:
                return delivery
            self._waiting.popleft()
        return None

    def take(self, jobs_max: int | None, now: float) -> tuple[Delivery, int, int] | None:
        """The next jobs, from one lease: (delivery, start, stop). They are in hand from now on."""
        delivery = self.head()
        if delivery is None:
            return None
        if self._adaptive:
            self._adapt(delivery, now)
        start, stop = delivery.started, delivery.stop
        if jobs_max is not None:
            stop = min(stop, start + jobs_max)
        self.begun += stop - start
        self._in_hand(delivery, start, stop, now)
        return delivery, start, stop

    def _in_hand(self, delivery: Delivery, start: int, stop: int, now: float) -> None:
        delivery.started = stop
        delivery.hands[start] = stop, now
        self._check_at = min(self._check_at, now + self._handler_timeout_s)

    def follow(self, delivery: Delivery, jobs: list[Any], now: float) -> Iterator[Any]:
        """Let a reader take the jobs of the first lease one by one: each is done when it takes the next one.

        `jobs` stand for the positions that nobody has begun with; those that are given back vanish from it. Call
        `settle_followed` when the reader is through, or wants to go on in another way.
        """
        if self._adaptive:
            self._adapt(delivery, now)
        self._now = now
        self._followed = followed = Followed(delivery, jobs)
        self.seen, self.changed = False, True
        return followed.rest

    @property
    def followed(self) -> Delivery | None:
        """The lease whose jobs a reader takes one by one."""
        return None if self._followed is None else self._followed.delivery

    def catch_up(self) -> None:
        """See how far the reader has come."""
        followed = self._followed
        if followed is None:
            return
        self.seen = True
        delivery, begun = followed.delivery, followed.begun
        started = delivery.started
        if begun == started:
            return
        first = started - 1 if started > followed.base and started - 1 in delivery.hands else started
        self.begun += begun - started
        self._in_hand(delivery, begun - 1, begun, self._now)
        if first < begun - 1:
            self.done(delivery, first, begun - 1)

    def settle_followed(self, reason: str | None = None) -> None:
        """The reader is done with what it took; with a reason, the last of it failed. It takes no more in this way."""
        if self._followed is None:
            return
        self.catch_up()
        delivery = self._followed.delivery
        self._followed.cut(delivery.started)
        self.catch_up()
        self._followed = None
        last = delivery.started - 1
        if last in delivery.hands and reason is None:
            self.done(delivery, last, last + 1)
        elif last in delivery.hands:
            self.undone(delivery, last, last + 1, "nack", reason=reason or "")

    def _adapt(self, delivery: Delivery, now: float) -> None:
        """Jobs shall wait here long enough to bridge the way to their pushers, and not much longer."""
        config = self._config
        if now - delivery.received_at > config.prefetch_s:
            if now >= self._shrink_at:
                self._shrink_at = now + config.prefetch_s
                self._credit = max(self._credit_min, self._credit * 3 // 4)
        elif self._starved and len(self._waiting) <= 2:
            self._grow()

    def single_out(self, delivery: Delivery, start: int) -> None:
        """Jobs that were taken together will be settled one by one."""
        stop, since = delivery.hands.pop(start)
        delivery.hands.update({position: (position + 1, since) for position in range(start, stop)})

    def done(self, delivery: Delivery, start: int, stop: int) -> bool:
        """Jobs in hand are done. False if they are nobody's business here any more."""
        if not self._settled(delivery, start, stop):
            return False
        unsaid = delivery.unsaid
        if unsaid and unsaid[-1][1] == start:
            unsaid[-1] = unsaid[-1][0], stop
        else:
            unsaid.append((start, stop))
            self._dirty[id(delivery)] = delivery
        return True

    def tell_by(self, delivery: Delivery, now: float) -> float:
        """When a job that is done, of that lease, must be told of: now, unless there is more to do here meanwhile."""
        if delivery.jobs.durable or not self._has_plenty:
            self._tell_at = now
        elif self._tell_at == inf:
            self._tell_at = now + self._config.ack_delay_s
        return self._tell_at

    @property
    def _has_plenty(self) -> bool:
        """Whether handlers will not soon have to wait for jobs."""
        return self.held * 2 > self._credit and self.head() is not None

    def undone(
        self,
        delivery: Delivery,
        start: int,
        stop: int,
        why: Undone,
        *,
        delay_s: float | None = None,
        reason: str = "",
    ) -> bool:
        """Jobs are given back, or up."""
        delay_ms = None if delay_s is None else round(min(max(0.0, delay_s), DELAY_S_MAX) * 1000)
        record = JobsUndone(self.number, delivery.jobs.lease, start, stop, why, delay_ms, reason[:1000])
        if not self._settled(delivery, start, stop):
            return False
        source = delivery.source
        self._tell(source.peer_id, record)
        return True

    def _settled(self, delivery: Delivery, start: int, stop: int) -> bool:
        if not delivery.alive or (delivery.late and not delivery.late.isdisjoint(range(start, stop))):
            self.refused.append((delivery.source.peer_id, stop - start))
            return False
        delivery.hands.pop(start, None)
        self.changed = True
        count = stop - start
        delivery.left -= count
        self.held -= count
        if not delivery.left:
            del delivery.source.deliveries[delivery.jobs.lease]
        return True

    def kept(self, peer_id: bytes, ranges: list[tuple[int, int, int]], reason: str = "") -> None:
        """A store has noted that these are done; with a reason, it has not."""
        self.unkept.end(peer_id, ranges, reason)
        self.changed = self.changed or self.finished

    def renew(self, delivery: Delivery, start: int, now: float) -> None:
        """The handler of a job that is in hand lives."""
        self._now = now
        self.catch_up()
        if start in delivery.hands:
            delivery.hands[start] = delivery.hands[start][0], now

    def close(self) -> None:
        """Take no more, and give back what nobody has begun with. What is in hand can still be settled."""
        if not self.closed:
            self.closed = True
            self.changed = True
            self.return_all()
            for peer_id in self.sources:
                self._tell(peer_id, PullEnd(self.number))

    def give_up(self, reason: str) -> None:
        """Give back what is in hand: nobody will settle it."""
        self.catch_up()
        for source in self.sources.values():
            for delivery in list(source.deliveries.values()):
                for start, (stop, _) in list(delivery.hands.items()):
                    self.undone(delivery, start, stop, "nack", delay_s=0.0, reason=reason)

    def return_all(self) -> None:
        """Give back what nobody has begun with."""
        self.catch_up()
        for delivery in reversed(self._waiting):
            self._give_back(delivery, delivery.started)
        self._waiting.clear()

    # -- time, and what to say -----------------------------------------------------------------

    def timer(self) -> float:
        """When `handle_timer` has something to do."""
        renewals = (source.renew_at for source in self.sources.values() if source.deliveries)
        return min(min(renewals, default=inf), self._check_at, self._tell_at)

    def handle_timer(self, now: float) -> None:
        """Renew leases; give up handlers that show no sign of life."""
        self._now = now
        self.catch_up()
        for source in self.sources.values():
            if source.renew_at <= now:
                source.renew_at = now + self._lease_s / 3
                if source.deliveries:
                    self._tell(source.peer_id, Renew(self.number))
        if self._check_at <= now:
            self._check_hands(now)
        if self._tell_at <= now:
            self.changed = True

    def _check_hands(self, now: float) -> None:
        oldest, hung = inf, False
        for source in self.sources.values():
            for delivery in list(source.deliveries.values()):
                for start, (stop, since) in list(delivery.hands.items()):
                    if since + self._handler_timeout_s > now:
                        oldest = min(oldest, since)
                        continue
                    hung = True
                    self.undone(delivery, start, stop, "hung", reason="its handler showed no sign of life")
                    delivery.late.update(range(start, stop))
        self._check_at = oldest + self._handler_timeout_s
        if hung and not self.readers:
            self.stuck = True
            self.return_all()
            for peer_id in self.sources:
                self._tell(peer_id, CreditRecall(self.number))

    def flush(self, now: float) -> None:
        """Say what is done, and grant what credit is free."""
        self._now = now
        self.catch_up()
        self.changed = False
        if self._tell_at <= now or self._tell_at == inf or self.closed or self.stuck or not self._has_plenty:
            self._tell_done()
        if self.sources and not (self.stuck or self.closed):
            if self.readers and self._adaptive and self._starved and self.held >= self._credit and self.head() is None:
                self._grow()  # it is all in hand, and not enough: it will be settled together
            self._grant()

    def _tell_done(self) -> None:
        self._tell_at = inf
        dirty, self._dirty = self._dirty, {}
        done: dict[bytes, list[tuple[int, int, int]]] = {}
        for delivery in dirty.values():
            told = done.setdefault(delivery.source.peer_id, [])
            told += [(delivery.jobs.lease, start, stop) for start, stop in delivery.unsaid]
            delivery.unsaid.clear()
        for peer_id, ranges in done.items():
            for first in range(0, len(ranges), DONE_PER_RECORD_MAX):
                self._tell(peer_id, JobsDone(self.number, ranges[first : first + DONE_PER_RECORD_MAX]))

    def _grow(self) -> None:
        self._starved = False
        self._credit = min(self._config.credit_jobs_max, self._credit * 2)

    def _grant(self) -> None:
        sources = list(self.sources.values())
        credit = self._credit
        free = credit - self.held - self._granted
        alone = len(sources) == 1
        keep = credit if alone else credit // (2 * len(sources))
        hungry = sum(source.hungry for source in sources)
        for source in sources:
            want = self._wanted(source, free, keep, hungry, alone=alone)
            if not want and (source.keep == keep or (alone and source.keep >= 0)):
                continue
            if want and source.hungry:
                hungry -= 1
                source.hungry = False
                self.sources[source.peer_id] = self.sources.pop(source.peer_id)  # the others are served before it
            free -= want
            source.keep = keep
            source.granted += want
            self._granted += want
            self._tell(source.peer_id, Credit(self.number, want, keep))

    def _wanted(self, source: PullSource, free: int, keep: int, hungry: int, *, alone: bool) -> int:
        """How much more credit this pusher shall get."""
        if free <= 0:
            return 0
        if alone:
            little = source.granted <= self._credit // 2
            return free if little and (free * 4 >= self._credit or not source.granted) else 0
        if source.hungry:
            return max(1, free // hungry)
        return min(free, keep - source.granted) if not hungry and source.granted * 2 <= keep else 0
