"""Messages that their reader settles one by one: `ack="manual"`."""

from __future__ import annotations

from collections.abc import Callable

from zfabric.model import Message
from zfabric.wire.batch import Batch
from zfabric.wire.ranges import RangeSet

__all__ = ["ManualAcks"]


class _Stream:
    __slots__ = ("done", "epoch", "processed", "producer", "stop", "topic")

    def __init__(self, batch: Batch) -> None:
        self.producer = batch.producer
        self.topic = batch.topic
        self.epoch = batch.epoch
        self.processed = batch.base + batch.skip
        self.stop = self.processed
        self.done = RangeSet()


class ManualAcks:
    """Turns acks in any order into the one position of each stream before which everything is settled."""

    def __init__(
        self,
        redeliver: Callable[[Message, float], None],
        processed: Callable[[bytes, str, int, int], None],
        rejected: Callable[[Message], None],
    ) -> None:
        self._redeliver = redeliver
        self._processed = processed
        self._rejected = rejected
        self._streams: dict[tuple[str, str], _Stream] = {}
        self.unsettled = 0

    def expect(self, batch: Batch) -> None:
        """A batch arrived whose messages must be settled."""
        key = batch.producer.hex(), batch.topic
        stream = self._streams.get(key)
        if stream is None or stream.epoch != batch.epoch:
            if stream is not None:
                self.unsettled -= stream.stop - stream.processed
            stream = self._streams[key] = _Stream(batch)
        first = batch.base + batch.skip
        if first > stream.stop:  # a gap: what is missing needs no ack
            stream.done.add(stream.stop, first)
        self.unsettled += batch.end - first
        stream.stop = batch.end
        for start, stop in () if batch.stored is None else batch.stored.dropped:
            start, stop = max(first, batch.base + start), batch.base + stop  # noqa: PLW2901 - places become numbers
            if start < stop:
                stream.done.add(start, stop)
                self.unsettled -= stop - start

    def ack(self, message: Message) -> None:
        """Settle a message; settling it again changes nothing."""
        stream = self._streams.get((message.source.id, message.topic))
        if stream is None or message.seq < stream.processed or message.seq >= stream.stop:
            return
        if message.seq in stream.done:
            return
        self.unsettled -= 1
        stream.done.add(message.seq, message.seq + 1)
        start, stop = next(iter(stream.done))
        if start <= stream.processed < stop:
            stream.done.remove(start, stop)
            stream.processed = stop
            self._processed(stream.producer, stream.topic, stream.epoch, stop)

    def nack(self, message: Message, delay: float) -> None:
        """Deliver it again after `delay` seconds."""
        self._redeliver(message, delay)

    def reject(self, message: Message) -> None:
        """Settle it as hopeless."""
        self._rejected(message)
        self.ack(message)
