"""Reading the log for others: each reading is a task that sends what there is, as far as its reader's credit goes."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import msgspec

from zfabric.errors import FabricError
from zfabric.store.log import Append, Gap, Log, StoredBatch
from zfabric.wire.letters import LetterRecord
from zfabric.wire.store_records import Indexed, Read, ReadEnd, Stored, Unreadable

__all__ = ["Link", "Reading", "Tail"]

logger = logging.getLogger("zfabric.store")

READ_BYTES = 1024 * 1024
"What is read from the log at a time."
ENTRY_BYTES = 64
"What a batch without its body takes of the credit."
RETRY_S = 5.0
"The pause after a look at the disk that failed."
TAIL_BYTES = 2 * 1024 * 1024
"Of each stream that is read: the newest batches, which need no look at the disk."


class Link(Protocol):
    """The way to the reader."""

    def tell(self, record: LetterRecord, nbytes: int) -> None:
        """Say something."""

    def has_room(self) -> bool:
        """Whether more can be said now; the reading is woken when that changes."""


class Entry(msgspec.Struct, frozen=True, gc=False):
    """A batch as readings need it."""

    offset: int
    count: int
    producer: bytes
    epoch: int
    base: int
    published_ns: int
    frames: tuple[bytes, ...]
    dropped: tuple[tuple[int, int], ...]
    nbytes: int

    @property
    def next(self) -> int:
        """The offset after its last message."""
        return self.offset + self.count


def entry_of(batch: StoredBatch) -> Entry:
    """A batch that was read from the log."""
    return Entry(
        batch.offset,
        batch.count,
        batch.producer,
        batch.epoch,
        batch.base,
        batch.published_ns,
        batch.frames,
        batch.dropped,
        sum(map(len, batch.frames)),
    )


class Tail:
    """The newest batches of one stream, in memory."""

    def __init__(self) -> None:
        self.readings: dict[Reading, None] = {}
        self._entries: deque[Entry] = deque()
        self._nbytes = 0

    def push(self, offset: int, append: Append) -> None:
        """A batch was stored."""
        if self._entries and self._entries[-1].next != offset:
            self.clear()
        frames = tuple(map(bytes, append.frames))
        nbytes = sum(map(len, frames))
        self._entries.append(
            Entry(
                offset,
                append.count,
                append.producer,
                append.epoch,
                append.base,
                append.published_ns,
                frames,
                (),
                nbytes,
            )
        )
        self._nbytes += nbytes
        while self._nbytes > TAIL_BYTES and len(self._entries) > 1:
            self._nbytes -= self._entries.popleft().nbytes

    def clear(self) -> None:
        """Forget what is here; the log has it."""
        self._entries.clear()
        self._nbytes = 0

    def from_offset(self, offset: int) -> list[Entry]:
        """Everything from there on, if it is here."""
        entries = self._entries
        if not entries or offset < entries[0].offset or offset >= entries[-1].next:
            return []
        found = []
        for entry in reversed(entries):
            found.append(entry)
            if entry.offset <= offset:
                break
        return found[::-1]

    def wake(self) -> None:
        """Let the readings look for more."""
        for reading in self.readings:
            reading.wake()


class Reading:
    """One reading of one stream."""

    def __init__(
        self, asked: Read, link: Link, log: Log, tail: Tail, run: Callable[..., Any], frame_bytes_max: int
    ) -> None:
        """`run` calls a function that blocks, see `Context.run`."""
        self._asked = asked
        self._link = link
        self._log = log
        self._tail = tail
        self._run = run
        self._frame_bytes_max = frame_bytes_max
        self._credit = asked.credit
        self._changed = asyncio.Event()
        self._paced_from: tuple[int, float] | None = None
        tail.readings[self] = None

    def __repr__(self) -> str:
        return f"<Reading {self._asked.topic} credit={self._credit}>"

    def grant(self, nbytes: int) -> None:
        """The reader takes more."""
        self._credit += nbytes
        self.wake()

    def wake(self) -> None:
        """Look again whether there is something to do."""
        self._changed.set()

    async def serve(self) -> None:
        """Send until cancelled; whoever cancels takes it out of its tail."""
        if self._asked.kind == "last-per-key":
            offset = await self._send_last_values()
        else:
            offset = await self._look(self._start)
        told = -1
        while True:
            await self._room()
            entries = self._tail.from_offset(offset)
            if not entries:
                # What is stored from here on wakes us, also while we look at the disk.
                self._changed.clear()
                entries = await self._look(self._read, offset)
            if entries:
                offset = await self._send(entries, offset)
                continue
            if told != offset:
                told = offset
                self._link.tell(ReadEnd(self._asked.reading, offset), ENTRY_BYTES)
            await self._changed.wait()

    async def _look(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Look into the log, however often it takes: the reader waits for what is there."""
        while True:
            try:
                return await self._run(function, *arguments)
            except FabricError as error:
                logger.error("%s could not be read, and is tried again: %s", self._asked.topic, error)
                await asyncio.sleep(RETRY_S)

    async def _room(self) -> None:
        while self._credit <= 0 or not self._link.has_room():
            self._changed.clear()
            await self._changed.wait()

    # -- where to begin ------------------------------------------------------------------------

    def _start(self) -> int:
        log, asked = self._log, self._asked
        info = log.info(asked.topic)
        if info is None:
            return int(asked.value) if asked.kind == "offset" else 0
        if asked.kind == "offset":
            return int(asked.value)
        if asked.kind == "latest":
            return info.next
        if asked.kind == "last":
            return log.offset_of_last(asked.topic, int(asked.value))
        if asked.kind == "since":
            return self._offset_since(info.first)
        return info.first

    def _offset_since(self, first: int) -> int:
        return max(first, self._log.offset_at(self._asked.topic, self._log.now_ns() - int(self._asked.value * 1e9)))

    async def _send_last_values(self) -> int:
        """The last message of each key; returns where the log goes on."""
        end, offsets = await self._look(self._last_values)
        position = 0
        while position < len(offsets):
            await self._room()
            items = await self._look(self._log.read, self._asked.topic, offsets[position], 1)
            batch = items[0] if items else None
            if not isinstance(batch, StoredBatch):
                position += 1
                continue
            wanted = set()
            while position < len(offsets) and offsets[position] < batch.next:
                wanted.add(offsets[position] - batch.offset)
                position += 1
            dropped = tuple((place, place + 1) for place in range(batch.count) if place not in wanted)
            self._tell(msgspec.structs.replace(entry_of(batch), dropped=dropped))
        return int(end)

    def _last_values(self) -> tuple[int, list[int]]:
        info = self._log.info(self._asked.topic)
        return 0 if info is None else info.next, sorted(self._log.last_per_key(self._asked.topic).values())

    # -- sending -------------------------------------------------------------------------------

    def _read(self, offset: int) -> list[Entry | Gap]:
        wanted = min(max(self._credit, 1), READ_BYTES)
        items = self._log.read(self._asked.topic, offset, wanted)
        return [item if isinstance(item, Gap) else entry_of(item) for item in items]

    async def _send(self, entries: Iterable[Entry | Gap], offset: int) -> int:
        """Send what is there, as far as the credit goes; returns where to go on."""
        index: list[tuple[int, int, bytes, int, int]] = []
        for entry in entries:
            if self._credit <= 0:
                break
            if isinstance(entry, Gap):
                self._tell_index(index)
                self._link.tell(Unreadable(self._asked.reading, entry.offset, entry.next, entry.reason), ENTRY_BYTES)
            elif not self._asked.bodies:
                index.append((entry.offset, entry.count, entry.producer, entry.epoch, entry.base))
                self._credit -= ENTRY_BYTES
            else:
                if self._asked.rate:
                    await self._pace(entry)
                self._tell(entry, offset)
            offset = entry.next
        self._tell_index(index)
        return offset

    def _tell_index(self, index: list[tuple[int, int, bytes, int, int]]) -> None:
        if index:
            self._link.tell(Indexed(self._asked.reading, index[:]), ENTRY_BYTES * len(index))
            index.clear()

    def _tell(self, entry: Entry, offset: int = 0) -> None:
        reading = self._asked.reading
        if entry.nbytes > self._frame_bytes_max:
            self._link.tell(Unreadable(reading, entry.offset, entry.next, "too-large"), ENTRY_BYTES)
            return
        dropped = list(entry.dropped)
        if offset > entry.offset:
            dropped.insert(0, (0, offset - entry.offset))
        self._credit -= entry.nbytes
        self._link.tell(Stored(reading, entry.offset, list(entry.frames), dropped), entry.nbytes + ENTRY_BYTES)

    async def _pace(self, entry: Entry) -> None:
        """Wait until it is this batch's turn, as it was published."""
        now = asyncio.get_running_loop().time()
        if self._paced_from is None:
            self._paced_from = entry.published_ns, now
        first_ns, begun = self._paced_from
        due = begun + (entry.published_ns - first_ns) / 1e9 / self._asked.rate
        if due > now:
            await asyncio.sleep(due - now)
