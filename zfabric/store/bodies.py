"""The values of a durable queue's jobs, which are read from the log before they are leased."""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from zfabric.errors import RemoteProtocolError
from zfabric.protocol.jobs import Unreadable, array_of
from zfabric.store.log import Gap, StoredBatch
from zfabric.wire.batch import Batch, Buffer

__all__ = ["Bodies"]

_split = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode


class _Held:
    """A batch of the stream."""

    __slots__ = ("_values", "batch", "offset")

    def __init__(self, offset: int, batch: Batch) -> None:
        self.offset = offset
        self.batch = batch
        self._values: list[Any] | None = None

    @property
    def next(self) -> int:
        return self.offset + self.batch.count

    def values(self) -> list[Any]:
        if self._values is None:
            try:
                values = _split(self.batch.body)
            except msgspec.DecodeError as error:
                raise Unreadable(self.offset, self.next, f"its values are no MessagePack: {error}") from None
            if len(values) != self.batch.count:
                raise Unreadable(self.offset, self.next, f"{self.batch.count} jobs with {len(values)} values")
            self._values = values
        return self._values


class Bodies:
    """A small cache in front of one stream: what was just pushed, or follows each other, is read once.

    It does not read: `read` is called with the number of a job that is not here, and `arrived` or `failed` answers.
    """

    def __init__(
        self, cache_bytes: int, parse: Callable[[Sequence[Buffer]], Batch], read: Callable[[int], None]
    ) -> None:
        self._reading = False
        self._wanted: int | None = None
        "Who needs something else while it reads comes next, lest one worker's jobs keep another's from being read."
        self._cache_bytes = cache_bytes
        self._parse = parse
        self._read = read
        self._held: OrderedDict[int, _Held] = OrderedDict()
        "By offset; the one that was used last is at the end."
        self._offsets: list[int] = []
        self._nbytes = 0
        self._failure: Unreadable | None = None
        "What reading found last, until somebody is told."

    def keep(self, offset: int, batch: Batch) -> None:
        """A batch that will be needed soon."""
        if offset in self._held:
            self._held.move_to_end(offset)
            return
        self._held[offset] = _Held(offset, batch)
        insort(self._offsets, offset)
        self._nbytes += batch.nbytes
        while self._nbytes > self._cache_bytes and len(self._held) > 1:
            oldest, gone = self._held.popitem(last=False)
            del self._offsets[bisect_right(self._offsets, oldest) - 1]
            self._nbytes -= gone.batch.nbytes

    def arrived(self, number: int, items: Sequence[StoredBatch | Gap]) -> None:
        """What the log has from a job on."""
        found: list[tuple[int, Batch]] = []
        self._failure = Unreadable(number, number + 1, "lost")
        for item in items:
            try:
                if isinstance(item, Gap):
                    raise Unreadable(item.offset, item.next, item.reason)
                found.append((item.offset, self._parse(item.frames)))
            except Unreadable as failure:
                self._failure = failure
                break
            except RemoteProtocolError as error:
                self._failure = Unreadable(item.offset, item.next, error.reason)
                break
        for offset, batch in reversed(found):  # what is needed first is forgotten last
            self.keep(offset, batch)
        self._go_on()

    def failed(self, number: int, reason: str) -> None:
        """The disk does not give a job just now."""
        self._failure = Unreadable(number, number + 1, reason, lost=False)
        self._go_on()

    def _go_on(self) -> None:
        self._reading = False
        wanted, self._wanted = self._wanted, None
        if wanted is not None:
            self.at_hand(wanted, 1)

    def at_hand(self, start: int, count: int) -> int:
        """See `protocol.durable.Bodies`."""
        number = start
        while number < start + count and (held := self._cached(number)) is not None:
            number = held.next
        if number > start:
            return min(number - start, count)
        if self._failure is not None and self._failure.start <= start < self._failure.stop:
            return count
        if self._reading:
            self._wanted = start if self._wanted is None else self._wanted
        else:
            self._reading = True
            self._read(start)
        return 0

    def _cached(self, number: int) -> _Held | None:
        index = bisect_right(self._offsets, number) - 1
        if index < 0:
            return None
        held = self._held[self._offsets[index]]
        if number >= held.next:
            return None
        self._held.move_to_end(held.offset)
        return held

    def _find(self, number: int) -> _Held:
        held = self._cached(number)
        if held is not None:
            return held
        failure, self._failure = self._failure, None
        if failure is not None and failure.start <= number < failure.stop:
            raise failure
        raise Unreadable(number, number + 1, "it was not read", lost=False)

    def array(self, start: int, stop: int) -> tuple[Buffer, int]:
        """See `protocol.durable.Bodies`."""
        held = self._find(start)
        pushed_ns = held.batch.published_ns
        if start == held.offset and stop == held.next:
            return bytes(held.batch.body), pushed_ns
        values: list[Any] = []
        while True:
            values += held.values()[start - held.offset : stop - held.offset]
            start = held.next
            if start >= stop:
                return array_of(values), pushed_ns
            held = self._find(start)

    def value(self, number: int) -> Buffer:
        """See `protocol.durable.Bodies`."""
        held = self._find(number)
        return bytes(held.values()[number - held.offset])

    def buffers(self, number: int) -> Sequence[Buffer]:
        """See `protocol.durable.Bodies`."""
        return [bytes(buffer) for buffer in self._find(number).batch.buffers]
