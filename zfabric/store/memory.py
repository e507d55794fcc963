"""The log in memory: the same contract without a disk, for tests and for stores that need not outlive the process."""

from __future__ import annotations

import os
import threading
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from zfabric.config import Config
from zfabric.errors import NotStored, StoreFailed
from zfabric.store.clock import SteadyClock
from zfabric.store.log import (
    Append,
    Commit,
    Gap,
    Log,
    Mark,
    Outcome,
    Position,
    Retention,
    StoredBatch,
    StreamInfo,
)
from zfabric.store.rules import Judge, may_go, ranges_of, superseded
from zfabric.wire.topics import check_topic

__all__ = ["MemoryLog", "open_memory"]


@dataclass
class _Stream:
    first: int = 0
    next: int = 0
    batches: list[StoredBatch] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    retention: Retention = field(default_factory=Retention)


def open_memory(_url: str, config: Config, _create: bool) -> MemoryLog:
    """The engine of `memory:`; every log is new and empty."""
    return MemoryLog(config)


class MemoryLog(Log):
    """A log that is lost with the process."""

    def __init__(self, config: Config | None = None, *, clock: SteadyClock | None = None) -> None:
        self._config = config or Config()
        self._clock = clock or SteadyClock()
        self._id = os.urandom(16)
        self._lock = threading.RLock()
        self._streams: dict[str, _Stream] = {}
        self._marks: dict[tuple[bytes, str], Mark] = {}
        "Those that were not used for longest come first."
        self._forgot = False
        "Whether there were more than it may keep."
        self._positions: dict[str, Position] = {}
        self._closed = False

    # -- writing -------------------------------------------------------------------------------

    def commit(self, commits: Sequence[Commit]) -> list[Outcome]:
        """See `Log.commit`."""
        with self._lock:
            self._check_open()
            return [self._commit(commit) for commit in commits]

    def _commit(self, commit: Commit) -> Outcome:
        judge = Judge(
            lambda producer, stream: self._marks.get((producer, stream)),
            lambda name: self._positions[name].epoch if name in self._positions else -1,
            lambda name: self._streams[name].next if name in self._streams else None,
            self._config.store_streams_max - len(self._streams),
            lambda: self._forgot,
        )
        try:
            outcome = judge.decide(commit)
        except NotStored as refusal:
            return refusal
        now = self._clock()
        for append, appended in zip(commit.appends, outcome, strict=True):
            if appended.offset is not None:
                self._append(append, appended.offset, now)
        for name in judge.nexts:
            self._streams.setdefault(name, _Stream())
        for origin, mark in judge.marks.items():
            self._marks.pop(origin, None)
            self._marks[origin] = mark
        while len(self._marks) > self._config.store_marks_max:
            del self._marks[next(iter(self._marks))]
            self._forgot = True
        for name, update in judge.positions.items():
            if update.value is None:
                self._positions.pop(name, None)
            else:
                self._positions[name] = Position(update.value, update.epoch)
        return outcome

    def _append(self, append: Append, offset: int, now_ns: int) -> None:
        stream = self._streams.setdefault(append.stream, _Stream())
        frames = tuple(bytes(frame) for frame in append.frames)
        stream.batches.append(
            StoredBatch(
                stream=append.stream,
                offset=offset,
                count=append.count,
                producer=append.producer,
                epoch=append.epoch,
                base=append.base,
                published_ns=append.published_ns,
                stored_ns=append.stored_ns or now_ns,
                flags=append.flags,
                frames=frames,
                keys=tuple(append.keys),
            )
        )
        stream.sizes.append(sum(map(len, frames)))
        stream.next = offset + append.count

    def trim(self, stream: str, before: int) -> int:
        """See `Log.trim`."""
        with self._lock:
            self._check_open()
            known = self._streams.get(stream)
            if known is None:
                return 0
            known.first = max(known.first, min(before, known.next))
            gone = 0
            while gone < len(known.batches) and known.batches[gone].next <= known.first:
                gone += 1
            del known.batches[:gone], known.sizes[:gone]
            return known.first

    def purge(self, stream: str) -> int:
        """See `Log.purge`."""
        known = self._streams.get(stream)
        return self.trim(stream, known.next if known else 0)

    def delete(self, stream: str) -> None:
        """See `Log.delete`."""
        with self._lock:
            self._check_open()
            self._streams.pop(stream, None)
            for origin in [origin for origin in self._marks if origin[1] == stream]:
                del self._marks[origin]

    def skip(self, stream: str, to: int) -> None:
        """See `Log.skip`."""
        with self._lock:
            self._check_open()
            known = self._create(stream)
            if known.first == known.next:
                known.first = max(known.first, to)
            known.next = max(known.next, to)

    def retain(self, stream: str, retention: Retention) -> None:
        """See `Log.retain`."""
        with self._lock:
            self._check_open()
            self._create(stream).retention = retention

    def _create(self, name: str) -> _Stream:
        return self._streams.setdefault(check_topic(name, reserved=True), _Stream())

    def enforce(self) -> None:
        """See `Log.enforce`."""
        with self._lock:
            now = self._clock()
            for name, stream in self._streams.items():
                total, before = sum(stream.sizes), stream.first
                for batch, nbytes in zip(stream.batches, stream.sizes, strict=True):
                    if not may_go(
                        stream.retention,
                        end=batch.next,
                        nbytes=nbytes,
                        stored_ns=batch.stored_ns,
                        next_offset=stream.next,
                        total=total,
                        now_ns=now,
                    ):
                        break
                    total, before = total - nbytes, batch.next
                self.trim(name, before)
                if stream.retention.compact:
                    self.compact(name)

    def compact(self, stream: str) -> None:
        """See `Log.compact`. Here all is compacted that is not the newest batch."""
        with self._lock:
            self._check_open()
            known = self._streams.get(stream)
            if known is None:
                return
            oldest_tombstone = self._clock() - round(known.retention.tombstone_s * 1e9)
            seen: set[bytes] = set()
            kept = []
            for batch in reversed(known.batches):
                gone = superseded(
                    seen,
                    batch.keys,
                    batch.dropped,
                    stored_ns=batch.stored_ns,
                    tombstones_before_ns=oldest_tombstone,
                )
                if len(gone) < batch.count:
                    kept.append(msgspec.structs.replace(batch, dropped=ranges_of(gone)))
            known.batches = kept[::-1]
            known.sizes = [sum(map(len, batch.frames)) for batch in known.batches]

    # -- reading -------------------------------------------------------------------------------

    def streams(self) -> list[StreamInfo]:
        """See `Log.streams`."""
        with self._lock:
            return [_info(name, stream) for name, stream in sorted(self._streams.items())]

    def info(self, stream: str) -> StreamInfo | None:
        """See `Log.info`."""
        with self._lock:
            known = self._streams.get(stream)
            return None if known is None else _info(stream, known)

    def read(self, stream: str, offset: int, max_bytes: int) -> list[StoredBatch | Gap]:
        """See `Log.read`."""
        with self._lock:
            known = self._streams.get(stream)
            if known is None or offset >= known.next:
                return []
            found: list[StoredBatch | Gap] = []
            if offset < known.first:
                found.append(Gap(stream, offset, known.first, "expired"))
                offset = known.first
            taken = 0
            place = max(0, bisect_right(known.batches, offset, key=lambda batch: batch.offset) - 1)
            for index in range(place, len(known.batches)):
                if known.batches[index].next > offset:
                    if taken and taken >= max_bytes:
                        break
                    found.append(known.batches[index])
                    taken += known.sizes[index]
            return found

    def offset_at(self, stream: str, time_ns: int) -> int:
        """See `Log.offset_at`."""
        with self._lock:
            known = self._streams.get(stream, _Stream())
            for batch in known.batches:
                if batch.stored_ns >= time_ns:
                    return max(batch.offset, known.first)
            return known.next

    def offset_of_last(self, stream: str, messages: int) -> int:
        """See `Log.offset_of_last`."""
        with self._lock:
            known = self._streams.get(stream, _Stream())
            return max(known.first, known.next - messages)

    def last_per_key(self, stream: str) -> dict[bytes, int]:
        """See `Log.last_per_key`."""
        with self._lock:
            found: dict[bytes, int] = {}
            known = self._streams.get(stream, _Stream())
            for batch in known.batches:
                for key in batch.keys:
                    if key.tombstone:
                        found.pop(key.key, None)
                    elif batch.offset + key.index >= known.first:
                        found[key.key] = batch.offset + key.index
            return found

    def mark(self, producer: bytes, stream: str) -> Mark | None:
        """See `Log.mark`."""
        return self._marks.get((producer, stream))

    def marks(self, stream: str) -> dict[bytes, Mark]:
        """See `Log.marks`."""
        with self._lock:
            return {producer: mark for (producer, name), mark in self._marks.items() if name == stream}

    def position(self, name: str) -> Position | None:
        """See `Log.position`."""
        return self._positions.get(name)

    def positions(self, prefix: str = "") -> dict[str, Position]:
        """See `Log.positions`."""
        with self._lock:
            return {name: value for name, value in sorted(self._positions.items()) if name.startswith(prefix)}

    # -- the whole -----------------------------------------------------------------------------

    @property
    def id(self) -> bytes:
        """See `Log.id`."""
        return self._id

    def now_ns(self) -> int:
        """See `Log.now_ns`."""
        return self._clock()

    @property
    def damage(self) -> tuple[str, ...]:
        """Memory is never damaged."""
        return ()

    def close(self) -> None:
        """See `Log.close`."""
        self._closed = True

    def _check_open(self) -> None:
        if self._closed:
            raise StoreFailed("the log is closed")


def _info(name: str, stream: _Stream) -> StreamInfo:
    return StreamInfo(
        name=name, first=stream.first, next=stream.next, bytes=sum(stream.sizes), retention=stream.retention
    )
