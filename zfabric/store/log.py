"""The log: streams of batches that survive, whatever keeps them.

A *stream* has the name of its topic. Its messages have *offsets* 0, 1, 2, ... A batch of `count` messages is kept as
one opaque record that covers [offset, offset + count). `Log.commit` takes any number of `Commit`s; each is atomic:
all of its appends and position updates are there after a crash, or none. All that are given in one call share one
flush to the disk (group commit), and one of them may be refused without harm to the others.

*Marks* make appends exactly-once. For each (producer, stream) the log knows the epoch and the sequence number that
comes next, changed in the transaction of the append itself:

    | the batch                                     | what happens                                    |
    |-----------------------------------------------|-------------------------------------------------|
    | starts at the mark, in its epoch              | appended                                        |
    | ends at or before the mark, in its epoch      | confirmed as a duplicate: it is there already   |
    | overlaps the mark, in its epoch               | refused: `OutOfSequence`, with what was expected|
    | starts behind the mark, in its epoch          | refused likewise, unless it says that all that  |
    |                                               | was between is `gone`                           |
    | of an unknown producer or a newer epoch, at 0 | appended; the older epoch is fenced             |
    | of an unknown producer or a newer epoch, later| refused: `OutOfSequence(expected=0)`, unless all|
    |                                               | before is `gone` and no marks were ever         |
    |                                               | forgotten                                       |
    | of an older epoch                             | refused: `ProducerFenced`                       |

*Positions* are named values of the user of the log (cursors of groups, states of jobs), written with the same
guarantee. Each remembers the highest epoch that wrote it and refuses a lower one (`PositionFenced`) until it is
deleted.

Reading gives what is there in order, and a `Gap` for what is not: messages never go missing silently. Offsets that
compaction removed are no loss and are stepped over.

`open_log(url)` in `zfabric.store` finds the engine; `zfabric.store.writer.Writer` is the thread that groups commits.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from types import TracebackType
from typing import Self, TypeAlias

import msgspec

from zfabric.errors import NotStored
from zfabric.model import Retention
from zfabric.wire.batch import Buffer

__all__ = [
    "Append",
    "Appended",
    "Commit",
    "Gap",
    "Key",
    "Log",
    "Mark",
    "MarkUpdate",
    "Outcome",
    "Position",
    "PositionUpdate",
    "Retention",
    "StoredBatch",
    "StreamInfo",
]


class Key(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """The key of one message of a batch, for compaction and for the last value of each key."""

    index: int
    "Place of the message in its batch."
    key: bytes
    "Its key, encoded; equal bytes are equal keys."
    tombstone: bool = False
    "The message deletes the key (its value is None)."


class Append(msgspec.Struct, frozen=True, kw_only=True):
    """A batch to be kept."""

    stream: str
    "The topic."
    producer: bytes
    "16 bytes: whose marks count."
    epoch: int
    "The producer's epoch; a newer one fences the older."
    base: int
    "Sequence number of the first message in this epoch."
    count: int
    "Messages in the batch, at least 1."
    published_ns: int
    "When the producer published it, by its own clock."
    frames: Sequence[Buffer]
    "The batch as it travels; opaque to the log."
    flags: int = 0
    "Kept with the batch, opaque to the log: 0 to 2**31 - 1."
    keys: Sequence[Key] = ()
    "Keys of those messages that have one, in the order of their index."
    gone: int | None = None
    "What its producer numbered from here up to `base` cannot come any more."
    stored_ns: int = 0
    "When it was stored first, where a log is copied, in order within a stream; 0 is now."


class PositionUpdate(msgspec.Struct, frozen=True):
    """A named value to be written. `value=None` deletes it, with its epoch."""

    name: str
    value: bytes | None
    epoch: int = 0
    "Refused when lower than the highest epoch that wrote this name."


class Mark(msgspec.Struct, frozen=True, gc=False):
    """How far a producer has come in a stream."""

    epoch: int
    next: int
    "The sequence number that must come next."


class MarkUpdate(msgspec.Struct, frozen=True):
    """A mark to be set, whatever it was: for copies of a log."""

    stream: str
    producer: bytes
    mark: Mark


class Commit(msgspec.Struct, frozen=True):
    """What happens together or not at all."""

    appends: Sequence[Append] = ()
    positions: Sequence[PositionUpdate] = ()
    marks: Sequence[MarkUpdate] = ()
    "Set before the appends are looked at."

    @property
    def nbytes(self) -> int:
        """About what it occupies."""
        total = 128 * (len(self.appends) + len(self.positions))
        for append in self.appends:
            for frame in append.frames:
                total += len(frame)
        return total + sum(len(update.value or b"") for update in self.positions)


class Appended(msgspec.Struct, frozen=True, gc=False):
    """Where one batch of a commit is; `offset` is None for a duplicate, which is there already."""

    offset: int | None
    count: int

    @property
    def duplicate(self) -> bool:
        """Whether an earlier commit had stored it."""
        return self.offset is None


Outcome: TypeAlias = tuple[Appended, ...] | NotStored
"""What became of one commit: one `Appended` for each append, in order, or why none of it was done."""


class StoredBatch(msgspec.Struct, frozen=True, kw_only=True):
    """A batch as the log gives it back, its checksum verified."""

    stream: str
    offset: int
    count: int
    producer: bytes
    epoch: int
    base: int
    published_ns: int
    stored_ns: int
    "When the log stored it, by a clock that never runs backwards."
    flags: int
    frames: tuple[bytes, ...]
    keys: tuple[Key, ...] = ()
    dropped: tuple[tuple[int, int], ...] = ()
    "Messages in it that compaction took away: ranges [start, stop) of places in the batch."

    @property
    def next(self) -> int:
        """The offset after its last message."""
        return self.offset + self.count


class Gap(msgspec.Struct, frozen=True):
    """Offsets [offset, next) of a stream cannot be read."""

    stream: str
    offset: int
    next: int
    reason: str
    """`expired`: retention, `trim` or `purge` took them away. `lost`: they were lost when a damaged log was repaired.
    Anything else says how the file was found damaged."""


class Position(msgspec.Struct, frozen=True, gc=False):
    """A named value."""

    value: bytes
    epoch: int


class StreamInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One stream as it is now."""

    name: str
    first: int
    "The oldest offset that may still be read."
    next: int
    "The offset that the next message gets."
    bytes: int
    "Bytes of its batches, about."
    retention: Retention = Retention()


class Log(ABC):
    """One engine's log. All methods may be called from any thread; they block for the disk.

    All raise `StoreFailed` once a write has failed in a way that leaves the disk in doubt, except those that only
    read, which go on. A name that is no topic raises `TopicError`.
    """

    # -- writing -------------------------------------------------------------------------------

    @abstractmethod
    def commit(self, commits: Sequence[Commit]) -> list[Outcome]:
        """Store them with one flush; returns when they are safe, with one outcome for each.

        A full disk refuses them (`NotStored`) and whatever had room is safe. Raises StoreFailed when it is unknown
        whether they were stored.
        """

    @abstractmethod
    def trim(self, stream: str, before: int) -> int:
        """Forget the offsets below `before`, which may be beyond the end; returns the first that is left.

        A batch that straddles `before` stays readable as a whole.
        """

    @abstractmethod
    def purge(self, stream: str) -> int:
        """Forget all messages of a stream, not its offsets nor its marks; returns the next offset."""

    @abstractmethod
    def delete(self, stream: str) -> None:
        """Forget a stream with its offsets, marks and retention. Nothing happens when there is none."""

    @abstractmethod
    def skip(self, stream: str, to: int) -> None:
        """Let the next offset of a stream be `to`, not before its end: the offsets between are compacted away.

        A stream that is empty begins there.
        """

    @abstractmethod
    def retain(self, stream: str, retention: Retention) -> None:
        """Set what a stream may keep, from the next `enforce()` on; creates the stream."""

    @abstractmethod
    def enforce(self) -> None:
        """Apply the retention of every stream and give the room back to the disk. To be called now and then."""

    @abstractmethod
    def compact(self, stream: str) -> None:
        """Of each key keep only the last value, in all that is not written to any more."""

    # -- reading -------------------------------------------------------------------------------

    @abstractmethod
    def streams(self) -> list[StreamInfo]:
        """Every stream, sorted by name."""

    @abstractmethod
    def info(self, stream: str) -> StreamInfo | None:
        """One stream, or None when there is none."""

    @abstractmethod
    def read(self, stream: str, offset: int, max_bytes: int) -> list[StoredBatch | Gap]:
        """What is there from `offset` on, in order: at least one item unless it is the end, then up to `max_bytes`.

        The first batch may begin before `offset`, when it covers it. Continue at `.next` of the last item.
        """

    @abstractmethod
    def offset_at(self, stream: str, time_ns: int) -> int:
        """The first offset that was stored at or after a time; the next offset when there is none."""

    @abstractmethod
    def offset_of_last(self, stream: str, messages: int) -> int:
        """Where the newest `messages` messages begin; the first offset when there are fewer."""

    @abstractmethod
    def last_per_key(self, stream: str) -> dict[bytes, int]:
        """The offset of the last message of each key, without those that a tombstone ended."""

    @abstractmethod
    def mark(self, producer: bytes, stream: str) -> Mark | None:
        """How far a producer has come in a stream; None when it is unknown."""

    @abstractmethod
    def marks(self, stream: str) -> dict[bytes, Mark]:
        """All marks of a stream, by producer."""

    @abstractmethod
    def position(self, name: str) -> Position | None:
        """A named value; None when there is none."""

    @abstractmethod
    def positions(self, prefix: str = "") -> dict[str, Position]:
        """Named values that begin with `prefix`, sorted by name."""

    # -- the whole -----------------------------------------------------------------------------

    @property
    @abstractmethod
    def id(self) -> bytes:
        """16 bytes that name this log for as long as it lives: offsets mean nothing in another one."""

    def now_ns(self) -> int:
        """The time, in nanoseconds since 1970, by the clock that says when batches are stored."""
        return time.time_ns()

    @property
    @abstractmethod
    def damage(self) -> tuple[str, ...]:
        """What was found damaged since the log was opened; reading gives `Gap`s there."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the files. May be called twice."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
