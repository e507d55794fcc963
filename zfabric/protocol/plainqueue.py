"""One queue of one node whose jobs are delivered at most once: libzmq deals them out, and this counts them.

Jobs leave as batches. Whichever puller got one tells so once its reader is through with it, and how far it has come:
each connection keeps the order of batches, so what is behind all of them, and was not told of, is lost.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from math import inf
from typing import Any

from zfabric.config import Config
from zfabric.errors import LocalProtocolError
from zfabric.protocol.jobs import PRIORITY_DEFAULT, Counters, QueuePolicy
from zfabric.protocol.workers import WorkerKey
from zfabric.wire.batch import BatchWriter, Buffer

__all__ = ["PlainQueue", "Target"]

ARRAY_HEAD_BYTES = 5
"A body begins with the head of a MessagePack array, which the batch writes itself."


class Target:
    """One puller, as the pusher sees it."""

    __slots__ = ("before", "endpoint", "marked")

    def __init__(self, endpoint: str, before: int) -> None:
        self.endpoint = endpoint
        self.before = before
        "No job before this one will come to it any more."
        self.marked = before
        "It was asked to tell when it has come as far as this."


class Parcel:
    """Jobs that travel together."""

    __slots__ = ("count", "first", "frames", "nbytes")

    def __init__(self, first: int, count: int, frames: list[Buffer]) -> None:
        self.first = first
        self.count = count
        self.frames = frames
        self.nbytes = sum(map(len, frames))


class PlainQueue:
    """The pushing end."""

    durable = False

    def __init__(self, queue: str, config: Config, policy: QueuePolicy, writer: BatchWriter) -> None:
        self.queue = queue
        self.policy = policy
        self.counters = Counters()
        self.nbytes = 0
        "Of all jobs that no reader has dealt with, and that are not lost."
        self.next_id = 0
        self.targets: dict[WorkerKey, Target] = {}
        self.blocked = False
        "No puller has room."
        self._config = config
        self._writer = writer
        self._unsent: deque[Parcel] = deque()
        self._sent: dict[int, Parcel] = {}
        self._lost = 0
        self._mark_at = inf

    def __repr__(self) -> str:
        return f"<PlainQueue {self.queue} depth={self.depth} targets={len(self.targets)} blocked={self.blocked}>"

    @property
    def depth(self) -> int:
        """Jobs that no reader has dealt with, and that are not lost."""
        return self.counters.pushed - self.counters.done - self.counters.lost

    @property
    def in_flight(self) -> int:
        """Of those, jobs that were sent."""
        return sum(parcel.count for parcel in self._sent.values())

    @property
    def pullers(self) -> Collection[WorkerKey]:
        """Who takes jobs."""
        return self.targets

    @property
    def full(self) -> bool:
        """Whether pushers must wait."""
        stands = self.blocked or not self.targets
        return (stands and bool(self._unsent)) or self.nbytes >= self.policy.queue_bytes

    @property
    def floor(self) -> int:
        """All jobs before this one are done or lost."""
        return min(next(iter(self._sent), self._unsent_from), self._unsent_from)

    @property
    def _unsent_from(self) -> int:
        return self._unsent[0].first if self._unsent else self.next_id

    def is_finished(self, job_id: int) -> bool:
        """Whether this job is done or lost."""
        return job_id < self.floor

    # -- jobs in -------------------------------------------------------------------------------

    def push_block(self, count: int, body: Buffer, pushed_ns: int, now: float, buffers: Sequence[Buffer] = ()) -> int:
        """Some jobs. Returns the first one's number."""
        writer = self._writer
        writer.buffer += memoryview(body)[ARRAY_HEAD_BYTES:]
        writer.buffers = list(buffers)
        writer.count = count
        parcel = Parcel(self.next_id, count, writer.seal(self.next_id, pushed_ns))
        self._unsent.append(parcel)
        self.next_id += count
        self.nbytes += parcel.nbytes
        self.counters.pushed += count
        return parcel.first

    def push(
        self,
        value: Buffer,
        pushed_ns: int,
        now: float,
        *,
        key: Any = None,
        headers: dict[str, Any] | None = None,
        priority: int = PRIORITY_DEFAULT,
        ttl_s: float = inf,
        delay_s: float = 0.0,
        dedupe_id: str | None = None,
        buffers: Sequence[Buffer] = (),
        nbytes: int = 0,
    ) -> int:
        """One job with metadata. Raises LocalProtocolError for what needs a queue that keeps its jobs."""
        if priority != PRIORITY_DEFAULT or delay_s > 0 or dedupe_id is not None:
            raise LocalProtocolError(
                f"{self.queue!r} is pushed to at-most-once: priority, delay, not_before and dedupe_id need "
                'delivery="at-least-once"'
            )
        self._writer.annotate(key, headers, None if ttl_s == inf else round(ttl_s * 1000))
        return self.push_block(1, bytes(ARRAY_HEAD_BYTES) + value, pushed_ns, now, buffers)

    # -- jobs out ------------------------------------------------------------------------------

    @property
    def wants_to_send(self) -> bool:
        """Whether `head` has something that may find room."""
        return bool(self._unsent) and not self.blocked and bool(self.targets)

    def head(self) -> list[Buffer] | None:
        """What goes next."""
        return self._unsent[0].frames if self._unsent else None

    def sent(self, now: float) -> None:
        """It went to one of the pullers."""
        parcel = self._unsent.popleft()
        parcel.frames = []
        self._sent[parcel.first] = parcel
        self._mark_later(now)

    def _mark_later(self, now: float) -> None:
        self._mark_at = now + self._config.gap_settle_s if self._sent else inf

    # -- pullers -------------------------------------------------------------------------------

    def join(self, key: WorkerKey, endpoint: str) -> None:
        """A puller takes jobs from now on, or at another address than before."""
        known = self.targets.get(key)
        if known is None:
            self.targets[key] = Target(endpoint, self._unsent_from)
        else:
            known.endpoint = endpoint

    def leave(self, key: WorkerKey) -> Target | None:
        """A puller is gone, with all that was on the way to it."""
        target = self.targets.pop(key, None)
        if target is not None:
            self._judge()
        return target

    def taken(self, key: WorkerKey, ranges: Sequence[tuple[int, int]], before: int, now: float) -> None:
        """A puller's reader is through with some."""
        target = self.targets.get(key)
        if target is None:
            return
        for first, stop in ranges:
            parcel = self._sent.get(first)
            if parcel is not None and parcel.count == stop - first:
                self._end(parcel)
                self.counters.done += parcel.count
        target.before = max(target.before, min(before, self._unsent_from))
        self._judge()
        self._mark_later(now)

    def _judge(self) -> None:
        """What is behind all pullers came to none."""
        floor = min((target.before for target in self.targets.values()), default=self._unsent_from)
        for first, parcel in list(self._sent.items()):
            if first >= floor:
                return
            self._end(parcel)
            self.counters.lost += parcel.count
            self._lost += parcel.count

    def _end(self, parcel: Parcel) -> None:
        del self._sent[parcel.first]
        self.nbytes -= parcel.nbytes

    def take_lost(self) -> int:
        """Jobs that were lost since the last time."""
        lost, self._lost = self._lost, 0
        return lost

    # -- time ----------------------------------------------------------------------------------

    def timer(self) -> float:
        """When `to_mark` has something."""
        return self._mark_at

    def to_mark(self, now: float) -> list[tuple[WorkerKey, int]]:
        """Nothing was heard for a while: whom to ask, and how far it must have come before it answers."""
        if now < self._mark_at:
            return []
        self._mark_at = inf
        end = self._unsent_from
        behind = [(key, target) for key, target in self.targets.items() if target.before < end > target.marked]
        for _, target in behind:
            target.marked = end
        return [(key, end) for key, _ in behind]
