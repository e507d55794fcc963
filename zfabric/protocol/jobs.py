"""Jobs of a queue: many alike as a `Run`, one that differs as a `Job`, and the `Lease` that a worker holds."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import IntEnum
from math import inf
from typing import Any, TypeAlias

import msgspec

from zfabric.wire.batch import Buffer
from zfabric.wire.queue_records import JobMeta, Jobs
from zfabric.wire.ranges import RangeSet

__all__ = [
    "PRIORITIES",
    "PRIORITY_DEFAULT",
    "Block",
    "Counters",
    "Entry",
    "Job",
    "JobState",
    "Lease",
    "QueuePolicy",
    "Run",
    "Unreadable",
    "array_of",
    "lease_record",
]

PRIORITIES = 10
PRIORITY_DEFAULT = 4
JOB_BYTES_MIN = 64
"What a job costs beside its value, about."

_HEAD = struct.Struct(">BI")
_split = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode


def array_of(values: Sequence[Buffer]) -> bytes:
    """A MessagePack array of encoded values."""
    return _HEAD.pack(0xDD, len(values)) + b"".join(values)


class Unreadable(Exception):
    """The values of jobs `start` to before `stop` are on a disk that does not give them: never, or not now."""

    def __init__(self, start: int, stop: int, reason: str, *, lost: bool = True) -> None:
        super().__init__(reason)
        self.start = start
        self.stop = stop
        self.lost = lost


class QueuePolicy(msgspec.Struct, frozen=True):
    """What a pusher decides for its queue."""

    max_attempts: int = 5
    "Leases that may fail before a job is dead; 0 for no limit."
    backoff_s: float = 0.1
    "Rest after the first failure; doubles each time."
    backoff_s_max: float = 30.0
    dedupe_window_s: float = 300.0
    "How long the same dedupe id stands for the same job."
    queue_bytes: int = 64 * 1024 * 1024
    "Jobs that are not done, at most."


class Counters(msgspec.Struct):
    """What happened since the dispatcher began, in jobs."""

    pushed: int = 0
    done: int = 0
    redelivered: int = 0
    dead: int = 0
    expired: int = 0
    deduplicated: int = 0
    refused: int = 0
    "Acknowledgements that came after their lease had ended."
    lost: int = 0
    "Where jobs are delivered at most once: those that came to no reader, as far as is known."


class JobState(IntEnum):
    """What becomes of a job."""

    WAITING = 0
    "For a worker, for its time to come, or for the job of the same key before it."
    LEASED = 1
    DONE = 2
    DEAD = 3
    EXPIRED = 4


class Block:
    """Jobs that were pushed together: their values, which are looked at only if some of them are treated apart."""

    __slots__ = ("_values", "base", "body", "buffers", "count", "left", "nbytes", "pushed_ns")

    def __init__(self, base: int, count: int, body: Buffer, pushed_ns: int, buffers: Sequence[Buffer] = ()) -> None:
        """`body` is a MessagePack array; values with `buffers` of their own are alone in their block."""
        self.base = base
        self.count = count
        self.body = body
        self.buffers = buffers
        self.pushed_ns = pushed_ns
        self.nbytes = len(body) + sum(map(len, buffers))
        self.left = count
        "Jobs that are still kept here."
        self._values: list[Any] | None = None

    def values(self) -> list[Any]:
        """The encoded values."""
        if self._values is None:
            self._values = _split(self.body)
        return self._values

    def part(self, start: int, stop: int) -> Buffer:
        """The values at these positions as a MessagePack array."""
        if stop - start == self.count:
            return self.body
        return array_of(self.values()[start:stop])

    def job(self, position: int, ready_at: float) -> Job:
        """One of them as a job of its own."""
        value = bytes(self.values()[position])
        return Job(self.base + position, value, self.pushed_ns, ready_at, buffers=self.buffers)


class Run:
    """Jobs of a block that follow each other, wait together and are in no way special."""

    __slots__ = ("block", "ready_at", "start", "stop")
    priority = PRIORITY_DEFAULT

    def __init__(self, block: Block, start: int, stop: int, ready_at: float) -> None:
        self.block = block
        self.start = start
        self.stop = stop
        self.ready_at = ready_at

    @property
    def ready(self) -> bool:
        """Whether any of them still waits."""
        return self.start < self.stop


class Job:
    """One job that is special: by its metadata, or because it was leased before."""

    # fmt: off
    __slots__ = (
        "attempts", "blocked", "buffers", "ended", "expires_at", "group", "headers", "id", "key", "leased", "nbytes",
        "priority", "pushed_ns", "ready", "ready_at", "suspect", "value",
    )
    # fmt: on

    def __init__(
        self,
        number: int,
        value: Buffer,
        pushed_ns: int,
        ready_at: float,
        *,
        key: Any = None,
        headers: dict[str, Any] | None = None,
        priority: int = PRIORITY_DEFAULT,
        expires_at: float = inf,
        buffers: Sequence[Buffer] = (),
        nbytes: int = 0,
    ) -> None:
        self.id = number
        self.value = value
        self.buffers = buffers
        self.pushed_ns = pushed_ns
        self.key = key
        self.group: bytes | None = None
        "The key, in a form that can be compared."
        self.headers = headers
        self.priority = priority
        self.expires_at = expires_at
        self.nbytes = len(value) + sum(map(len, buffers)) + nbytes + JOB_BYTES_MIN
        self.attempts = 0
        "Leases of it that ended without success."
        self.suspect = False
        "A worker was lost that held it: it travels alone, so that it takes nobody with it."
        self.ready = False
        "It waits for a worker and for nothing else."
        self.ready_at = ready_at
        self.leased = False
        self.blocked = False
        "Another job of its key is before it."
        self.ended = False

    @property
    def alone(self) -> bool:
        """Whether it must be alone in a lease: values beside the body are numbered from 0."""
        return bool(self.buffers)

    def __repr__(self) -> str:
        return f"<Job {self.id} attempts={self.attempts} ready={self.ready} ended={self.ended}>"


Entry: TypeAlias = Run | Job


class Lease:
    """Jobs that a worker has."""

    __slots__ = ("block", "count", "first", "jobs", "left", "nbytes", "number", "since", "start")

    def __init__(
        self, number: int, since: float, count: int, *, block: Block | None, start: int, jobs: list[Job]
    ) -> None:
        """Either the positions from `start` on of a block, or `jobs`."""
        self.number = number
        self.since = since
        self.count = count
        self.nbytes = 0
        "As it travels."
        self.block = block
        self.start = start
        self.jobs = jobs
        self.first = jobs[0].id if block is None else block.base + start
        self.left = RangeSet([(0, count)])
        "Positions that nothing has been heard of."

    def has(self, start: int, stop: int) -> bool:
        """Whether nothing has been heard of any of these positions."""
        return start < stop and next(self.left.missing(start, stop), None) is None

    def ids(self, start: int, stop: int) -> Sequence[int]:
        """The numbers of the jobs at these positions."""
        if self.block is not None:
            return range(self.first + start, self.first + stop)
        return [job.id for job in self.jobs[start:stop]]


def lease_record(puller: int, lease: Lease, now: float, *, durable: bool = False) -> Jobs:
    """A lease as it travels. Raises Unreadable."""
    block = lease.block
    if block is not None:
        body = block.part(lease.start, lease.start + lease.count)
        buffers = list(block.buffers)
        head = puller, lease.number, block.pushed_ns, lease.count, lease.first
        return Jobs(*head, body, buffers, durable=durable)  # type: ignore[arg-type]
    jobs = lease.jobs
    first, count = jobs[0].id, lease.count
    in_order = jobs[-1].id - first == count - 1 and all(job.id == first + index for index, job in enumerate(jobs))
    ids = [] if in_order else [job.id for job in jobs]
    meta = JobMeta(
        {index: job.key for index, job in enumerate(jobs) if job.key is not None},
        {index: job.headers for index, job in enumerate(jobs) if job.headers},
        {index: _ms_left(job, now) for index, job in enumerate(jobs) if job.expires_at < inf},
        {index: job.priority for index, job in enumerate(jobs) if job.priority != PRIORITY_DEFAULT},
        {index: job.attempts + 1 for index, job in enumerate(jobs) if job.attempts},
    )
    body = array_of([job.value for job in jobs])
    head = puller, lease.number, jobs[0].pushed_ns, count, first
    return Jobs(*head, body, list(jobs[0].buffers), ids, meta, durable)  # type: ignore[arg-type]


def _ms_left(job: Job, now: float) -> int:
    return max(1, round((job.expires_at - now) * 1000))
