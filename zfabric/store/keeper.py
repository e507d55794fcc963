"""Storing what is published live: one durable topic, as a reliable subscription that acknowledges after the flush."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec

from zfabric.errors import LimitExceeded, NotStored, OutOfSequence, ProducerFenced, StoreFailed
from zfabric.model import Source
from zfabric.protocol.lanes import Lane
from zfabric.store.log import Append, Appended, Commit, Key
from zfabric.store.writer import Writer
from zfabric.wire.batch import Batch
from zfabric.wire.bundle import Bundle

__all__ = ["Keeper", "append_of"]

ORIGINS_MAX = 10_000
"Streams whose last batch is remembered; one that is forgotten begins again, which changes nothing once it is stored."
RETRY_S = 0.5
"Pause before what was not stored is tried again."

_split = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode
_encode = msgspec.msgpack.Encoder().encode
_encode_sorted = msgspec.msgpack.Encoder(order="deterministic").encode
_NIL = b"\xc0"


def append_of(batch: Batch) -> Append:
    """A batch as the log keeps it: as it travelled."""
    return Append(
        stream=batch.topic,
        producer=batch.producer,
        epoch=batch.epoch,
        base=batch.base,
        count=batch.count,
        published_ns=batch.published_ns,
        frames=(batch.frame, *map(bytes, batch.buffers)),
        keys=() if batch.meta is None or not batch.meta.keys else _keys(batch, batch.meta.keys),
    )


def _keys(batch: Batch, keys: dict[int, Any]) -> tuple[Key, ...]:
    """Its keys; a message without a value deletes its key."""
    try:
        values = _split(batch.body)
    except msgspec.DecodeError:
        values = []  # each reader will find out; the log does not care
    return tuple(
        Key(index, _encode_key(key), index < len(values) and bytes(values[index]) == _NIL)
        for index, key in sorted(keys.items())
        if 0 <= index < batch.count
    )


def _encode_key(key: Any) -> bytes:
    """Equal keys give equal bytes, but for maps whose own keys are not all strings: their order counts."""
    try:
        return _encode_sorted(key)
    except TypeError:
        return _encode(key)


class Keeper:
    """The sink of one durable topic; implements `protocol.lanes.Sink`."""

    def __init__(
        self,
        topic: str,
        writer: Writer,
        *,
        queue_bytes: int,
        done: Callable[[Lane, Batch, Append, Appended], None],
        told: Callable[[bytes, str, int, str], None],
        has_room: Callable[[Lane], None],
        check: Callable[[Batch], bool],
    ) -> None:
        """`done` is called for each batch that is safe, `told(producer, topic, epoch, reason)` when storing stops.

        `check` tells whether the signature of a batch, or its lack, lets it be stored.
        """
        self.lane: Lane
        self.full = False
        self._topic = topic
        self._writer = writer
        self._queue_bytes = queue_bytes
        self._done = done
        self._told = told
        self._has_room = has_room
        self._check = check
        self._loop = asyncio.get_running_loop()
        self._outstanding = 0
        "Batches that the writer has."
        self._again: deque[tuple[Batch, Append]] = deque()
        "What was refused and may be stored later, in the order in which it came."
        self._refused: dict[tuple[bytes, int], str] = {}
        self._ends: dict[tuple[bytes, int], int] = {}
        "Streams, (producer, epoch), and the number after the last one that came; who was silent longest comes first."
        self._retry: asyncio.TimerHandle | None = None
        self._closed = False

    def __repr__(self) -> str:
        return f"<Keeper {self._topic} outstanding={self._outstanding} again={len(self._again)}>"

    def deliver(self, batch: Batch, _source: Source) -> None:
        """Take a batch."""
        origin = batch.producer, batch.epoch
        before = self._ends.pop(origin, 0)
        self._ends[origin] = batch.end
        if len(self._ends) > ORIGINS_MAX:
            del self._ends[next(iter(self._ends))]
        if not self._check(batch):
            self._told(batch.producer, self._topic, batch.epoch, f"a message was refused: {batch.refused}")
            return  # not acknowledged: its publisher finds no other store in this one
        append = append_of(batch)
        if before < batch.base:  # it came in order, so its publisher has nothing in between any more
            append = msgspec.structs.replace(append, gone=before)
        if self._again:
            self._again.append((batch, append))
        else:
            self._submit(batch, append)
        if self._again or self._writer.waiting_bytes > self._queue_bytes:
            self.full = True

    def deliver_bundle(self, _bundle: Bundle, _source: Source) -> None:
        """What is durable never travels in a bundle."""

    def _submit(self, batch: Batch, append: Append) -> None:
        try:
            future = self._writer.commit(Commit((append,)))
        except LimitExceeded:
            self._put_off(batch, append, "the store has more to write than its disk takes")
            return
        except StoreFailed:
            return  # nothing is acknowledged any more
        self._outstanding += 1
        future.add_done_callback(lambda done: self._settled(batch, append, done))

    def _settled(self, batch: Batch, append: Append, future: asyncio.Future[tuple[Appended, ...]]) -> None:
        self._outstanding -= 1
        error = None if future.cancelled() else future.exception()
        if self._closed or future.cancelled() or isinstance(error, StoreFailed):
            return
        if error is None:
            self._stored(batch, append, future.result()[0])
        elif isinstance(error, NotStored):
            self._not_stored(batch, append, error)
        self._look()

    def _look(self) -> None:
        """Take more when there is room. While nothing is out that will tell, look again soon: others fill the queue."""
        if self.full and not self._again and self._writer.waiting_bytes <= self._queue_bytes // 2:
            self.full = False
            self._has_room(self.lane)
        if not self._outstanding and (self._again or self.full) and self._retry is None:
            self._retry = self._loop.call_later(RETRY_S, self._try_again)

    def _stored(self, batch: Batch, append: Append, appended: Appended) -> None:
        self._done(self.lane, batch, append, appended)
        if self._refused and not self._again:
            for producer, epoch in self._refused:
                self._told(producer, self._topic, epoch, "")
            self._refused.clear()

    def _not_stored(self, batch: Batch, append: Append, error: NotStored) -> None:
        if isinstance(error, ProducerFenced) or (isinstance(error, OutOfSequence) and not self._follows(batch)):
            self._told(batch.producer, self._topic, batch.epoch, error.reason)
        else:
            self._put_off(batch, append, error.reason)

    def _follows(self, batch: Batch) -> bool:
        """Whether something of its stream that came before is to be stored later."""
        return any(
            other.producer == batch.producer and other.epoch == batch.epoch and other.base < batch.base
            for other, _ in self._again
        )

    def _put_off(self, batch: Batch, append: Append, reason: str) -> None:
        self._again.append((batch, append))
        if (batch.producer, batch.epoch) not in self._refused:
            self._refused[batch.producer, batch.epoch] = reason
            self._told(batch.producer, self._topic, batch.epoch, reason)
        self._look()

    def _try_again(self) -> None:
        """Begin with the oldest: when that goes, so does the rest."""
        self._retry = None
        again, self._again = self._again, deque()
        for batch, append in again:
            self._submit(batch, append)
        self._look()

    @property
    def busy(self) -> bool:
        """Whether something that came is not stored yet."""
        return bool(self._outstanding or self._again)

    def close(self) -> None:
        """Store nothing more."""
        self._closed = True
        if self._retry is not None:
            self._retry.cancel()
