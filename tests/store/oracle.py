"""Who sent what, what was confirmed, and whether a log is true to it.

A producer writes transactions: the same number on each of two streams, and a position that tells the number. Every
payload names its place, so a log can be judged without knowing what happened to it.
"""

from __future__ import annotations

from zfabric.errors import NotStored
from zfabric.store import Append, Commit, Gap, Log, PositionUpdate, StoredBatch

__all__ = ["POSITION", "STREAMS", "Oracle", "batch", "confirmed", "transaction"]

STREAMS = ("left", "right")
POSITION = "done"
PRODUCER = b"p" * 16
BATCH = 3
"Messages in a batch."


def payload(stream: str, number: int) -> bytes:
    """What batch `number` of a stream holds; of different lengths, so that rows lie differently in their pages."""
    return f"{stream} {number} ".encode() * (1 + number * 7 % 90)


def batch(stream: str, number: int, epoch: int = 1) -> Append:
    """Batch `number` of a stream."""
    return Append(
        stream=stream,
        producer=PRODUCER,
        epoch=epoch,
        base=number * BATCH,
        count=BATCH,
        published_ns=number,
        frames=(payload(stream, number),),
    )


def transaction(number: int, epoch: int = 1) -> Commit:
    """Batch `number` on both streams, and the position that says so."""
    return Commit(
        [batch(stream, number, epoch) for stream in STREAMS],
        [PositionUpdate(POSITION, str(number).encode(), epoch)],
    )


def confirmed(log: Log, number: int, epoch: int = 1) -> bool:
    """Commit transaction `number`; whether it was confirmed."""
    (outcome,) = log.commit([transaction(number, epoch)])
    return not isinstance(outcome, NotStored)


class Oracle:
    """Judges a log: `complaints` names what is wrong with it."""

    def __init__(self) -> None:
        self.sent = 0
        "Transactions that were begun."
        self.confirmed = 0
        "Transactions that were confirmed: all below this number."

    def complaints(self, log: Log, *, gaps_allowed: bool = False) -> set[str]:
        """`lost`, `invented`, `duplicate`, `disorder`, `torn` (half a transaction), `gap`; empty when all is well."""
        found: set[str] = set()
        lengths = []
        for stream in STREAMS:
            numbers, gaps = _numbers(log, stream, found)
            if gaps and not gaps_allowed:
                found.add("gap")
            if len(set(numbers)) < len(numbers):
                found.add("duplicate")
            if numbers != sorted(numbers):
                found.add("disorder")
            if any(number >= self.sent for number in numbers):
                found.add("invented")
            if set(range(self.confirmed)) - set(numbers) - gaps:
                found.add("lost")
            lengths.append(max([*numbers, *gaps], default=-1))
        position = log.position(POSITION)
        done = -1 if position is None or position.value is None else int(position.value)
        if len({*lengths, done}) > 1:
            found.add("torn")
        return found


def _numbers(log: Log, stream: str, found: set[str]) -> tuple[list[int], set[int]]:
    """The numbers of the batches that a stream holds, and of those that it says are missing."""
    numbers: list[int] = []
    gaps: set[int] = set()
    offset = 0
    while items := log.read(stream, offset, 100_000):
        for item in items:
            if isinstance(item, Gap):
                gaps |= set(range(item.offset // BATCH, -(-item.next // BATCH)))
            elif _is_true(item):
                numbers.append(item.base // BATCH)
            else:
                found.add("invented")
        offset = items[-1].next
    return numbers, gaps


def _is_true(item: StoredBatch) -> bool:
    number = item.base // BATCH
    return item.frames == (payload(item.stream, number),) and item.count == BATCH and item.producer == PRODUCER
