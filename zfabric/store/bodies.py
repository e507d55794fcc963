"""The values of a durable queue's jobs, read from the log when they are leased."""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from zfabric.errors import FabricError, RemoteProtocolError
from zfabric.protocol.jobs import Unreadable, array_of
from zfabric.store.log import Gap, Log
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
    """A small cache in front of one stream: what was just pushed, or follows each other, is read once."""

    def __init__(self, log: Log, stream: str, cache_bytes: int, parse: Callable[[Sequence[Buffer]], Batch]) -> None:
        self._log = log
        self._stream = stream
        self._cache_bytes = cache_bytes
        self._parse = parse
        self._held: OrderedDict[int, _Held] = OrderedDict()
        "By offset; the one that was used last is at the end."
        self._offsets: list[int] = []
        self._nbytes = 0

    def keep(self, offset: int, batch: Batch) -> _Held:
        """A batch that will be needed soon."""
        held = _Held(offset, batch)
        if offset not in self._held:
            self._held[offset] = held
            insort(self._offsets, offset)
            self._nbytes += batch.nbytes
            while self._nbytes > self._cache_bytes and len(self._held) > 1:
                oldest, gone = self._held.popitem(last=False)
                del self._offsets[bisect_right(self._offsets, oldest) - 1]
                self._nbytes -= gone.batch.nbytes
        return held

    def _find(self, number: int) -> _Held:
        index = bisect_right(self._offsets, number) - 1
        if index >= 0:
            held = self._held[self._offsets[index]]
            if number < held.next:
                self._held.move_to_end(held.offset)
                return held
        try:
            (item, *_) = self._log.read(self._stream, number, 1) or [Gap(self._stream, number, number + 1, "lost")]
            if isinstance(item, Gap):
                raise Unreadable(item.offset, item.next, item.reason)
            return self.keep(item.offset, self._parse(item.frames))
        except RemoteProtocolError as error:
            raise Unreadable(item.offset, item.next, error.reason) from None
        except (FabricError, OSError) as error:
            raise Unreadable(number, number + 1, str(error), lost=False) from error

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
