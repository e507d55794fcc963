"""Makers of batches and readers of logs for the store's tests."""

from __future__ import annotations

from collections.abc import Sequence

from zfabric.store import Append, Commit, Gap, Key, Log, StoredBatch
from zfabric.store.log import Appended

__all__ = ["P1", "P2", "append", "keyed", "messages", "one", "read_all", "stored"]

P1, P2 = b"1" * 16, b"2" * 16


def append(
    stream: str,
    base: int,
    count: int = 1,
    *,
    producer: bytes = P1,
    epoch: int = 1,
    frames: Sequence[bytes] | None = None,
    keys: Sequence[Key] = (),
) -> Append:
    """A batch whose frame tells who it is."""
    return Append(
        stream=stream,
        producer=producer,
        epoch=epoch,
        base=base,
        count=count,
        published_ns=1,
        frames=frames or (f"{stream} {producer[:1].decode()} {epoch} {base}+{count} ".encode().ljust(64, b"."),),
        keys=keys,
    )


def keyed(stream: str, base: int, keys: Sequence[str], *, deletes: str = "") -> Append:
    """A batch with one message for each key; those in `deletes` are tombstones."""
    marked = [Key(index, key.encode(), tombstone=key in deletes) for index, key in enumerate(keys)]
    return append(stream, base, len(keys), keys=marked)


def one(log: Log, *appends: Append) -> tuple[Appended, ...]:
    """Commit some appends together; raises what they are refused with."""
    (outcome,) = log.commit([Commit(appends)])
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def stored(log: Log, stream: str, bases: range) -> None:
    """Append batches of one message each, each in a commit of its own."""
    for base in bases:
        one(log, append(stream, base))


def read_all(log: Log, stream: str, offset: int = 0, max_bytes: int = 1000) -> list[StoredBatch | Gap]:
    """Everything from `offset` on, in as many reads as it takes."""
    found: list[StoredBatch | Gap] = []
    while items := log.read(stream, offset, max_bytes):
        found += items
        offset = items[-1].next
    return found


def messages(log: Log, stream: str, offset: int = 0) -> list[int]:
    """The offsets of all messages that can be read, from `offset` on."""
    return [
        place
        for item in read_all(log, stream, offset)
        if isinstance(item, StoredBatch)
        for place in range(item.offset, item.next)
        if place >= offset and not any(start <= place - item.offset < stop for start, stop in item.dropped)
    ]
