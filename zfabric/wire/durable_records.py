"""What nodes and stores say to each other about durable queues, beside what all queues have. Tags 112 to 127; letters.

Jobs come to a store by WRITE, as batches of the stream `$queue.` + queue, or of the queue `$dead.` + queue itself.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

import msgspec

from zfabric.wire.fields import Count, Name
from zfabric.wire.queue_records import DONE_MAX, LeaseNumber

__all__ = ["DEDUPE", "DELAY", "PRIORITY", "DurableRecord", "JobsKept", "KeepQueue", "queue_of", "stream_of"]

PRIORITY, DELAY, DEDUPE = "$priority", "$delay", "$dedupe"
"Headers of a job that is not plain: its priority, milliseconds that it rests once it is stored, its dedupe id."

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


DurableRecord: TypeAlias = KeepQueue | JobsKept
