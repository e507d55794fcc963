"""What nodes and stores say to each other about durable queues, beside what all queues have. Tags 112 to 127; letters.

Jobs come to a store by WRITE, as batches of the stream `$queue.` + queue, or of the queue `$dead.` + queue itself.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

import msgspec

from zfabric.wire.fields import Count, Name
from zfabric.wire.queue_records import DONE_MAX, LeaseNumber

__all__ = [
    "DEDUPE",
    "DELAY",
    "PRIORITY",
    "SCHEDULES",
    "Declaration",
    "DurableRecord",
    "JobsKept",
    "KeepQueue",
    "ScheduleState",
    "queue_of",
    "stream_of",
]

PRIORITY, DELAY, DEDUPE = "$priority", "$delay", "$dedupe"
"Headers of a job that is not plain: its priority, milliseconds that it rests once it is stored, its dedupe id."

SCHEDULES = "$schedule/"
"""Positions that begin so are schedules. WRITE with one of them alone, whose value is a Declaration, declares it, and
nil removes it; TOLD POSITIONS has a ScheduleState."""

_STREAM = "$queue."
_DEAD = "$dead."


def stream_of(queue: str) -> str:
    """The stream that a queue's jobs are in."""
    return queue if queue.startswith(_DEAD) else f"{_STREAM}{queue}"


def queue_of(stream: str) -> str | None:
    """The queue whose jobs are in a stream; None if it is no such stream."""
    return stream if stream.startswith(_DEAD) else stream.removeprefix(_STREAM) if stream.startswith(_STREAM) else None


class KeepQueue(msgspec.Struct, array_like=True, tag=112, frozen=True):
    """How the receiver, a store, treats the jobs of a queue; said before the first WRITE to it. The last one holds."""

    queue: Name
    max_attempts: Count
    "Leases that may fail before a job is dead; 0 for no limit."
    backoff_ms: Count
    backoff_ms_max: Count
    dedupe_window_ms: Count


class JobsKept(msgspec.Struct, array_like=True, tag=113, frozen=True):
    """The answer to JobsDone where jobs are durable: the sender's disk has it, as far as it was not refused."""

    puller: Count
    done: Annotated[list[tuple[LeaseNumber, Count, Count]], msgspec.Meta(max_length=DONE_MAX)]


class Declaration(msgspec.Struct, array_like=True, frozen=True):
    """A schedule as its node declares it: when there is a job, and which."""

    queue: Name
    value: bytes
    "The job's value, encoded."
    cron: Annotated[str, msgspec.Meta(max_length=200)] = ""
    every_s: Count = 0
    "One of these two is given."
    timezone: Annotated[str, msgspec.Meta(max_length=200)] = "UTC"
    missed: Literal["one", "none"] = "one"
    key: Any = None
    headers: dict[str, Any] | None = None
    ttl_ms: Count | None = None
    priority: Annotated[int, msgspec.Meta(ge=0, le=9)] = 4


class ScheduleState(msgspec.Struct, array_like=True, frozen=True):
    """A schedule as its store keeps it. Ticks are seconds since 1970, UTC."""

    declaration: Declaration
    next: Count
    "The first tick that nothing was done about."
    last: Count = 0
    "The tick of its last job; 0 for none."


DurableRecord: TypeAlias = KeepQueue | JobsKept
