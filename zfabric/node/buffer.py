"""What waits between the feed and the consumer of one subscription, bounded in bytes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, count, repeat
from operator import add
from typing import Any, Protocol, TypeVar

from zfabric.errors import DecodeFailed
from zfabric.model import Message, Source
from zfabric.wire.batch import Batch, Meta
from zfabric.wire.bundle import Bundle
from zfabric.wire.codec import Codec

__all__ = ["BatchQueue", "LatestSlots", "MessageBuffer", "decode_batch", "decode_bundle"]

M = TypeVar("M", bound=Message)
BadMessage = Callable[[Source, str, int, str], None]
"""Called with (source, topic, seq, reason) for every message that does not decode."""
Lost = Callable[[Source, str, int, int], None]
"""Called with (source, topic, first, last) for messages that the buffer dropped."""


def decode_batch(
    batch: Batch,
    source: Source,
    codec: Codec,
    now: float,
    bad: BadMessage,
    kind: type[M],
    settlement: Any = None,
) -> tuple[list[M], int]:
    """The messages of a batch that decode and have not expired, and how many had."""
    timestamp = batch.published_ns / 1e9
    try:
        values = codec.decode_many(batch.body, batch.buffers)
        if len(values) != batch.count:
            raise DecodeFailed(f"batch of {len(values)} values says that it has {batch.count}")
        heads = values, count(batch.base), repeat(batch.topic), repeat(timestamp), repeat(source)
        if batch.stored is None:
            extra = () if settlement is None else (repeat(None), repeat(None), repeat(settlement))
            messages = list(map(kind, *heads, *extra))
        else:
            nothing, place = repeat(None), batch.stored
            messages = list(
                map(
                    kind,
                    *heads,
                    nothing,
                    nothing,
                    nothing,
                    zip(repeat(-1), count(place.offset)),
                    repeat(place.store),
                )
            )
    except DecodeFailed:
        messages = list(_salvage(batch, source, codec, timestamp, bad, kind, settlement))
    if batch.stored is not None and batch.stored.dropped:
        dropped = {batch.base + place for start, stop in batch.stored.dropped for place in range(start, stop)}
        messages = [message for message in messages if message.seq not in dropped]
    if batch.skip:
        first = batch.base + batch.skip
        messages = [message for message in messages if message.seq >= first]
    return (messages, 0) if batch.meta is None else _annotate(messages, batch, batch.meta, now)


def decode_bundle(bundle: Bundle, source: Source, codec: Codec, bad: BadMessage) -> list[Message]:
    """The messages of a bundle that decode."""
    try:
        values = codec.decode_many(bundle.body)
    except DecodeFailed:
        values = []
    if len(values) != bundle.count:
        apart = (decode_batch(each, source, codec, 0.0, bad, Message) for each in bundle.batches())
        return [message for messages, _ in apart for message in messages]
    topics: Iterable[str] = bundle.topics
    seqs: Iterable[int] = bundle.bases
    if bundle.count > len(bundle.topics):
        topics = chain.from_iterable(map(repeat, bundle.topics, bundle.counts))
        seqs = chain.from_iterable(map(range, bundle.bases, map(add, bundle.bases, bundle.counts)))
    return list(map(Message, values, seqs, topics, repeat(bundle.published_ns / 1e9), repeat(source)))


def _annotate(messages: list[M], batch: Batch, meta: Meta, now: float) -> tuple[list[M], int]:
    base = batch.base
    by_index = {message.seq - base: message for message in messages}
    for index, key in meta.keys.items():
        if index in by_index:
            by_index[index].key = key
    for index, headers in meta.headers.items():
        if index in by_index:
            by_index[index].headers = headers
    if not meta.ttl_ms:
        return messages, 0
    age_ms = (now - batch.published_ns / 1e9) * 1000
    expired = {index + base for index, ttl in meta.ttl_ms.items() if age_ms > ttl and index in by_index}
    return [message for message in messages if message.seq not in expired], len(expired)


def _salvage(
    batch: Batch, source: Source, codec: Codec, timestamp: float, bad: BadMessage, kind: type[M], settlement: Any
) -> Iterator[M]:
    """Message by message: the good ones, while the bad ones are reported."""
    first = batch.base + batch.skip
    try:
        each = list(codec.decode_each(batch.body, batch.buffers))
        if len(each) != batch.count:
            raise DecodeFailed(f"batch of {len(each)} values says that it has {batch.count}")
    except DecodeFailed as hopeless:
        for seq in range(first, batch.end):
            bad(source, batch.topic, seq, hopeless.reason)
        return
    for seq, (_, value) in enumerate(each, batch.base):
        if not isinstance(value, DecodeFailed):
            message = kind(value, seq, batch.topic, timestamp, source, _settlement=settlement)
            if batch.stored is not None:
                message._place = -1, batch.stored.offset + seq - batch.base  # noqa: SLF001 - hidden from users, not from us
                message._store = batch.stored.store  # noqa: SLF001 - hidden from users, not from us
            yield message
        elif seq >= first:
            bad(source, batch.topic, seq, value.reason)


class MessageBuffer(Protocol):
    """One overflow policy."""

    nbytes: int
    "Bytes waiting."
    taken: dict[tuple[bytes, str], Batch]
    "The last batch of each reliable stream that left since the owner emptied this."

    @property
    def pending(self) -> int:
        """Messages waiting."""

    def push(self, batch: Batch | Bundle, source: Source) -> None:
        """Take a batch."""

    def pop(self) -> list[Message]:
        """The next messages; empty if nothing waits."""


class BatchQueue:
    """First in, first out. Beyond its bound it drops the oldest batch that may be dropped, if there is one."""

    def __init__(
        self,
        bytes_max: int,
        decode: Callable[[Batch | Bundle, Source], list[Message]],
        lost: Lost,
        droppable: Callable[[Batch | Bundle], bool],
        gone: Callable[[Batch | Bundle], None],
    ) -> None:
        """`gone` is called with each batch that leaves, read or dropped."""
        self._gone = gone
        self._bytes_max = bytes_max
        self._decode = decode
        self._lost = lost
        self._droppable = droppable
        self.taken: dict[tuple[bytes, str], Batch] = {}
        self._batches: deque[tuple[Batch | Bundle, Source]] = deque()
        self.nbytes = 0
        self._pending = 0

    @property
    def pending(self) -> int:
        """Messages waiting."""
        return self._pending

    def push(self, batch: Batch | Bundle, source: Source) -> None:
        """Take a batch; the newest always fits."""
        self._batches.append((batch, source))
        self.nbytes += batch.nbytes
        self._pending += batch.count - batch.skip
        while self.nbytes > self._bytes_max and len(self._batches) > 1 and self._drop_one():
            pass

    def _drop_one(self) -> bool:
        for index, (batch, source) in enumerate(self._batches):
            if index < len(self._batches) - 1 and self._droppable(batch):
                del self._batches[index]
                self._account(batch)
                for each in batch.batches() if isinstance(batch, Bundle) else (batch,):
                    self._lost(source, each.topic, each.base + each.skip, each.end - 1)
                return True
        return False

    def pop(self) -> list[Message]:
        """The oldest batch that has messages left after decoding."""
        while self._batches:
            batch, source = self._batches.popleft()
            self._account(batch)
            messages = self._decode(batch, source)
            if messages:
                return messages
        return []

    def _account(self, batch: Batch | Bundle) -> None:
        self.nbytes -= batch.nbytes
        self._pending -= batch.count - batch.skip
        self._gone(batch)
        if isinstance(batch, Batch) and batch.reliable:
            self.taken[batch.producer, batch.topic] = batch


class LatestSlots:
    """One slot for each topic and key, holding the newest message; older ones are replaced."""

    def __init__(
        self,
        bytes_max: int,
        decode: Callable[[Batch | Bundle, Source], list[Message]],
        lost: Lost,
        gone: Callable[[Batch | Bundle], None],
    ) -> None:
        self._gone = gone
        self.taken: dict[tuple[bytes, str], Batch] = {}
        self._bytes_max = bytes_max
        self._decode = decode
        self._lost = lost
        self._slots: dict[tuple[str, Any], tuple[Message, int]] = {}
        self.nbytes = 0

    @property
    def pending(self) -> int:
        """Messages waiting."""
        return len(self._slots)

    def push(self, batch: Batch | Bundle, source: Source) -> None:
        """Decode at once: keys decide."""
        messages = self._decode(batch, source)
        self._gone(batch)
        if isinstance(batch, Batch) and batch.reliable:
            self.taken[batch.producer, batch.topic] = batch
        size = batch.nbytes // max(1, len(messages)) + 1
        for message in messages:
            key = message.key if message.key.__hash__ is not None else repr(message.key)
            old = self._slots.pop((message.topic, key), None)
            self.nbytes += size - (old[1] if old is not None else 0)
            self._slots[message.topic, key] = message, size
        while self.nbytes > self._bytes_max and len(self._slots) > 1:
            message, size = self._slots.pop(next(iter(self._slots)))
            self.nbytes -= size
            self._lost(message.source, message.topic, message.seq, message.seq)

    def pop(self) -> list[Message]:
        """Everything that is newest now."""
        messages = [message for message, _ in self._slots.values()]
        self._slots.clear()
        self.nbytes = 0
        return messages
