"""The receiving end of a pattern."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from operator import length_hint
from typing import TYPE_CHECKING

from zfabric.errors import LocalProtocolError, NodeClosed
from zfabric.events import DecodeError, Gap, Rejected
from zfabric.model import Message, Overflow, Source
from zfabric.node.buffer import BatchQueue, LatestSlots, MessageBuffer, decode_batch, decode_bundle
from zfabric.node.closing import Closing
from zfabric.node.driver import Driver
from zfabric.node.manualacks import ManualAcks
from zfabric.protocol.history import History
from zfabric.protocol.lanes import Lane
from zfabric.wire.batch import Batch
from zfabric.wire.bundle import Bundle
from zfabric.wire.codec import Codec
from zfabric.wire.topics import Pattern

if TYPE_CHECKING:
    from zfabric.node.transaction import Transaction

__all__ = ["Subscription"]

READS_PER_TURN = 8
"Batches that a reader takes in one turn of the event loop, at most."


class Subscription(Closing):
    """An async iterator of the messages that match a pattern; `node.subscribe(pattern)` makes it.

    It receives from the moment it was made. One task reads it at a time. Cancelling a read loses nothing.
    """

    def __init__(
        self,
        driver: Driver,
        pattern: Pattern,
        codec: Codec,
        overflow: Overflow | None,
        buffer_bytes: int,
        closed: Callable[[Subscription], None],
        *,
        manual: bool,
        unsettled_max: int,
    ) -> None:
        self._driver = driver
        self._pattern = pattern
        self._codec = codec
        self._overflow = overflow
        self.lane: Lane
        self.history: History | None = None
        self.witness: Callable[[Batch], None] | None = None
        "Sees each signed batch whose messages are about to be handed out."
        self._buffer_bytes = buffer_bytes
        self._on_close = closed
        self._buffer: MessageBuffer
        if overflow is Overflow.LATEST:
            self._buffer = LatestSlots(buffer_bytes, self._decode, self._lost, self._gone)
        else:
            self._buffer = BatchQueue(buffer_bytes, self._decode, self._lost, self._may_drop, self._gone)
        self._manual = ManualAcks(self._redeliver, self._processed, self._reject) if manual else None
        self._unsettled_max = unsettled_max
        self._again: list[Message] = []
        self.full = False
        self._current: Iterator[Message] = iter(())
        self._waiter: asyncio.Future[None] | None = None
        self._reading = False
        self._unpaused = 0
        self._holding = False
        self._closed = False

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{self.publishers} publishers, {self.pending} messages waiting"
        return f"<Subscription {self.pattern} [{state}]>"

    @property
    def pattern(self) -> str:
        """The topic or pattern subscribed to."""
        return self._pattern.text

    @property
    def pending(self) -> int:
        """Messages that arrived and were not read yet, about."""
        return self._buffer.pending + length_hint(self._current)

    @property
    def handed_out(self) -> bool:
        """Whether asking for more says of something that it is done with."""
        return bool(self._buffer.taken)

    @property
    def publishers(self) -> int:
        """How many nodes have this subscription in place: their next message arrives here."""
        return self._driver.core.interests.publishers_of(self.lane)

    async def wait_for(self, publishers: int = 1, timeout: float | None = None) -> None:
        """Return once that many publishers have this subscription in place.

        Raises TimeoutError after `timeout` seconds, NodeClosed if the node closes meanwhile.
        """
        await self._driver.wait_until(lambda: self.publishers >= publishers, timeout)

    # -- reading -------------------------------------------------------------------------------

    async def __aiter__(self) -> AsyncIterator[Message]:
        """Message after message, until the subscription or its node is closed."""
        while True:
            for message in self._current:
                yield message
            batch = await self._next_batch()
            if not batch:
                return
            self._current = iter(batch)

    async def __anext__(self) -> Message:
        for message in self._current:
            return message
        batch = await self._next_batch()
        if not batch:
            raise StopAsyncIteration
        self._current = iter(batch)
        return next(self._current)

    async def receive(self, timeout: float | None = None) -> Message:
        """The next message. Raises TimeoutError after `timeout` seconds, NodeClosed at the end."""
        try:
            async with asyncio.timeout(timeout):
                return await self.__anext__()
        except StopAsyncIteration:
            raise NodeClosed(f"the subscription to {self.pattern!r} is closed") from None

    async def batches(self) -> AsyncIterator[list[Message]]:
        """The fast path: lists of messages, one for each batch that arrived.

        Small batches of several topics may arrive as one.
        """
        rest = list(self._current)
        if rest:
            yield rest
        while batch := await self._next_batch():
            yield batch

    async def _next_batch(self) -> list[Message]:
        """Messages in order; empty at the end. Nothing is taken out before there is somebody to give it to."""
        if self._reading:
            raise LocalProtocolError(f"another task reads the subscription to {self.pattern!r} already")
        self._reading = True
        self._acknowledge()
        try:
            self._unpaused += 1
            if self._unpaused >= READS_PER_TURN:
                self._unpaused = 0
                await asyncio.sleep(0)  # a busy reader lets the node's own work go on
            while True:
                if not self._closed:
                    self._driver.check_open()
                messages = self._pop()
                if messages or self._closed:
                    return messages
                self._unpaused = 0
                self._waiter = self._driver.loop.create_future()
                await self._waiter
        finally:
            self._reading = False
            self._waiter = None

    def _pop(self) -> list[Message]:
        if self._again:
            messages, self._again = self._again, []
            return messages
        messages = self._buffer.pop()
        if not messages:
            self._acknowledge()
        if self._manual is not None:
            for message in messages:
                message._settlement = self._manual  # noqa: SLF001 - hidden from users, not from us
        if (self.full or self._holding) and self._has_room():
            self._holding = self.full = False
            self._driver.hold_feed(self, full=False)
            self._driver.has_room(self.lane)
        return messages

    def _acknowledge(self) -> None:
        """What was handed out before is processed, now that the reader asks for more."""
        taken, self._buffer.taken = self._buffer.taken, {}
        for batch in taken.values():
            if self._manual is None:
                self._processed(batch.producer, batch.topic, batch.epoch, batch.end)

    def _processed(self, producer: bytes, topic: str, epoch: int, before: int) -> None:
        if self._driver.open_state == "open":
            self._driver.processed(self.lane, producer, topic, epoch, before)
        if self.full and self._has_room():
            self.full = False
            self._driver.has_room(self.lane)

    def _redeliver(self, message: Message, delay: float) -> None:
        self._driver.loop.call_later(delay, self._deliver_again, message)

    def _deliver_again(self, message: Message) -> None:
        self._again.append(message)
        self._wake()
        self._driver.schedule_pump()

    def _reject(self, message: Message) -> None:
        self._driver.events.put(Rejected(message.source, message.topic, message.seq))

    def transaction(self, *, sign: bool = False) -> Transaction:
        """See `SharedSubscription.transaction`: only members of groups have them. Raises LocalProtocolError."""
        raise LocalProtocolError('transactions need a subscription with group= and delivery="exactly-once"')

    def _has_room(self) -> bool:
        unsettled = self._manual.unsettled if self._manual is not None else 0
        return self._buffer.nbytes <= self._buffer_bytes // 2 and unsettled <= self._unsettled_max // 2

    async def close(self) -> None:
        """Stop to receive. What waits can still be read; then iteration ends."""
        if not self._closed:
            self.end()
            self._on_close(self)

    # -- what the driver calls -----------------------------------------------------------------

    def deliver(self, batch: Batch, source: Source) -> None:
        """Take a batch."""
        self._buffer.push(batch, source)
        if self._manual is not None and batch.reliable:
            self._manual.expect(batch)
        self._judge(batch)

    def deliver_bundle(self, bundle: Bundle, source: Source) -> None:
        """Take batches of several streams, none of them reliable."""
        self._buffer.push(bundle, source)
        self._judge(bundle)

    def _judge(self, batch: Batch | Bundle) -> None:
        """See whether there is still room after a batch, and tell who waits for it."""
        if self._overflow in (Overflow.BLOCK, None):
            over = self._buffer.nbytes >= self._buffer_bytes
            if over or (self._manual is not None and self._manual.unsettled >= self._unsettled_max):
                self.full = True  # until `_has_room` says otherwise and the core is told
            if over and not batch.reliable and not self._holding and self._overflow is Overflow.BLOCK:
                self._holding = True
                self._driver.hold_feed(self, full=True)
        self._wake()

    def _may_drop(self, batch: Batch | Bundle) -> bool:
        """Best-effort batches by default, all or none if the user said so."""
        return self._overflow is Overflow.DROP_OLDEST or (self._overflow is None and not batch.reliable)

    def end(self) -> None:
        """No more will come."""
        self._closed = True
        if self._holding:
            self._holding = False
            self._driver.hold_feed(self, full=False)
        self._wake()
        self._driver.schedule_pump()

    def _wake(self) -> None:
        """The reader goes on in the pump that follows."""
        waiter = self._waiter
        if waiter is not None:
            self._waiter = None
            self._driver.resume((waiter, None))

    def _decode(self, batch: Batch | Bundle, source: Source) -> list[Message]:
        if isinstance(batch, Bundle):
            return decode_bundle(batch, source, self._codec, self._bad)
        if batch.signature and self.witness is not None:
            self.witness(batch)
        messages, expired = decode_batch(batch, source, self._codec, self._driver.utc(), self._bad, Message)
        if expired:
            self._driver.expired[batch.topic] += expired
        return messages

    def _gone(self, batch: Batch | Bundle) -> None:
        if (
            isinstance(batch, Batch)
            and batch.stored is not None
            and self.history is not None
            and self._driver.open_state == "open"
        ):
            self.history.consumed(batch)
            self._driver.schedule_pump()

    def _bad(self, source: Source, topic: str, seq: int, reason: str) -> None:
        self._driver.undecodable[topic] += 1
        self._driver.events.put(DecodeError(source, topic, seq, reason))

    def _lost(self, source: Source, topic: str, first: int, last: int) -> None:
        self._driver.core.streams.count_lost(Gap(source, topic, first, last, cause="buffer"))
        self._driver.schedule_pump()
