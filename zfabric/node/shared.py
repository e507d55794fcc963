"""A subscription that is a member of a group: its messages come from the store, which shares them out by key."""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Callable, Collection
from operator import length_hint
from typing import Any

from zfabric.config import Config
from zfabric.errors import GroupRefused, LocalProtocolError
from zfabric.events import Gap, LogMissing, Rejected
from zfabric.model import Message, Source
from zfabric.node.driver import Driver
from zfabric.node.subscription import Subscription
from zfabric.node.transaction import Transaction
from zfabric.protocol.shares import Parcel, Share
from zfabric.wire.codec import Codec
from zfabric.wire.fields import Start
from zfabric.wire.group_records import Skipped
from zfabric.wire.topics import Pattern

__all__ = ["SharedSubscription"]


class _Settlement:
    """Settles the messages of one parcel; implements `model.Settlement`."""

    def __init__(self, subscription: SharedSubscription, parcel: Parcel) -> None:
        self._subscription = subscription
        self._parcel = parcel

    def ack(self, message: Message) -> None:
        self._subscription.settle(self._parcel, message)

    def nack(self, message: Message, delay: float) -> None:
        self._subscription.again(message, delay)

    def reject(self, message: Message) -> None:
        self._subscription.rejected(self._parcel, message)


class SharedSubscription(Subscription):
    """A member of a group; `node.subscribe(pattern, group="billing")` makes it. Implements `protocol.shares.Holder`.

    Each message goes to one member, those with equal keys to the same one in order; messages without a key are shared
    out by batches. What was read is committed when the reader asks for more, or acknowledges, or with a transaction.
    """

    def __init__(
        self,
        driver: Driver,
        pattern: Pattern,
        codec: Codec,
        buffer_bytes: int,
        closed: Callable[[Subscription], None],
        config: Config,
        *,
        group: str,
        member: str,
        start: Start,
        manual: bool,
        transactional: bool,
        signed: bool,
    ) -> None:
        unsettled_max = config.unsettled_max
        super().__init__(driver, pattern, codec, None, buffer_bytes, closed, manual=False, unsettled_max=unsettled_max)
        self._config = config
        self.group = group
        self._settled_by_hand = manual
        self._transactional = transactional
        self._signed = signed
        self._unsettled = 0
        self._parcel: Parcel | None = None
        self._messages: list[Message] = []
        "Of the parcel, as they were handed out."
        self._leftover: list[Message] = []
        "Of the parcel, to be handed out next."
        self._refusal = ""
        self._codecs: dict[Any, Codec] = {}
        self._transaction: asyncio.Future[str] | None = None
        now = driver.loop.time()
        self._share: Share = driver.core.shares.join(group, pattern.text, member, start, buffer_bytes, self, now)
        driver.schedule_pump()

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{len(self.partitions)} partitions, {self.pending} messages waiting"
        return f"<Subscription {self.pattern} in group {self.group} [{state}]>"

    @property
    def partitions(self) -> frozenset[int]:
        """The partitions of the group that are this member's now."""
        return frozenset(self._share.owned)

    @property
    def pending(self) -> int:
        """Messages that arrived and were not read yet, about."""
        waiting = sum(len(parcel.places) for parcel in self._share.queue)
        return waiting + len(self._leftover) + length_hint(self._current)

    @property
    def handed_out(self) -> bool:
        """Whether asking for more says of something that it is done with."""
        return self._parcel is not None

    @property
    def publishers(self) -> int:
        """1 once the store has taken this member into the group, else 0."""
        return int(bool(self._share.epoch))

    # -- reading -------------------------------------------------------------------------------

    async def _next_batch(self) -> list[Message]:
        if self._leftover and not self._reading:
            self._driver.check_open()
            messages, self._leftover = self._leftover, []
            return messages
        return await super()._next_batch()

    def _pop(self) -> list[Message]:
        if self._refusal:
            raise GroupRefused(self.group, self._refusal)
        if self._again:
            messages, self._again = self._again, []
            return messages
        if self._leftover:
            messages, self._leftover = self._leftover, []
            return messages
        while not self._closed and (not self._settled_by_hand or self._unsettled < self._unsettled_max):
            parcel = self._share.pop(manual=self._settled_by_hand)
            if parcel is None:
                return []
            messages = self._decode_parcel(parcel)
            if self._settled_by_hand:
                self._expect(parcel, messages)
            else:
                self._parcel, self._messages = parcel, messages.copy()  # readers may change theirs
            if messages:
                return messages
            self._acknowledge()
        return []

    def _decode_parcel(self, parcel: Parcel) -> list[Message]:
        batch = parcel.batch
        peer = self._driver.core.peers.known.get(batch.producer)
        source = peer.source if peer is not None else Source(batch.producer.hex(), "")
        if not self._driver.core.signatures.check(batch, required=self._signed):
            first, last = batch.base + parcel.places[0], batch.base + parcel.places[-1]
            self._driver.core.streams.count_lost(Gap(source, batch.topic, first, last, cause="signature"))
            self._driver.schedule_pump()
            return []
        messages = self._decode(batch, source)
        places, base = parcel.places, batch.base
        if len(places) < batch.count:
            wanted = set(places)
            messages = [message for message in messages if message.seq - base in wanted]
        shift, store = parcel.offset - base, self._share.log
        for message in messages:
            message._store = store  # noqa: SLF001 - hidden from users, not from us
        if len(messages) == len(places):
            partitions = iter(parcel.partitions)
            for message in messages:
                message._place = next(partitions), message.seq + shift  # noqa: SLF001 - hidden from users, not from us
        else:
            by_place = dict(zip(places, parcel.partitions, strict=True))
            for message in messages:
                message._place = by_place[message.seq - base], message.seq + shift  # noqa: SLF001 - as above
        return messages

    def _expect(self, parcel: Parcel, messages: list[Message]) -> None:
        settlement = _Settlement(self, parcel)
        self._unsettled += len(parcel.places)
        for message in messages:
            message._settlement = settlement  # noqa: SLF001 - hidden from users, not from us
        if len(messages) < len(parcel.places):
            known = {message.seq - parcel.batch.base for message in messages}
            for place in [place for place in parcel.places if place not in known]:
                self._settle(parcel, place)

    def _acknowledge(self) -> None:
        """What was handed out before is processed, now that the reader asks for more."""
        parcel = self._parcel
        if parcel is not None and not self._leftover:
            self._parcel, self._messages = None, []
            self._share.progressed(parcel, len(parcel.places))
            self._share.done(parcel)
            self._driver.schedule_pump()

    def _handed(self) -> int:
        """How many messages of the parcel were handed out."""
        return len(self._messages) - length_hint(self._current) - len(self._leftover)

    # -- acknowledging one by one --------------------------------------------------------------

    def settle(self, parcel: Parcel, message: Message) -> None:
        """A message is done with."""
        self._settle(parcel, message.seq - parcel.batch.base)

    def _settle(self, parcel: Parcel, place: int) -> None:
        if self._share.settle(parcel, place):
            self._unsettled -= 1
            self._driver.schedule_pump()
            if self._unsettled == self._unsettled_max - 1:
                self._wake()

    def again(self, message: Message, delay: float) -> None:
        """It comes again, later."""
        self._redeliver(message, delay)

    def rejected(self, parcel: Parcel, message: Message) -> None:
        """It will not come again."""
        self._driver.events.put(Rejected(message.source, message.topic, message.seq))
        self.settle(parcel, message)

    # -- transactions --------------------------------------------------------------------------

    def transaction(self, *, sign: bool = False) -> Transaction:
        """`async with subscription.transaction() as tx: await tx.publish(topic, value)`: all of it or nothing.

        It covers the messages handed out since the last one: their position and what was published become durable
        together. An exception in the block voids it, and the messages come again. Needs `delivery="exactly-once"`.
        `sign`: see `Node.publisher`.
        Raises TransactionFailed at the end of the block when it was not stored.
        """
        if not self._transactional:
            raise LocalProtocolError('transactions need a subscription with group= and delivery="exactly-once"')
        return Transaction(self, self._driver, self._share, self._config, sign=sign)

    def codec_for(self, value_type: Any) -> Codec:
        """What encodes the outputs of a type."""
        codec = self._codecs.get(value_type)
        if codec is None:
            codec = self._codecs[value_type] = Codec(value_type, inline_bytes=self._config.inline_bytes)
        return codec

    async def commit(self, outputs: list[list[bytes]], held_back: int) -> str:
        """Store outputs with the position of what was handed out, but for the last `held_back` messages.

        Returns why not, or an empty string.
        """
        driver, share, parcel = self._driver, self._share, self._parcel
        driver.check_open()
        if self._transaction is not None:
            raise LocalProtocolError("another transaction of this subscription is not finished yet")
        if not share.epoch:
            return "the membership was lost"
        now = driver.loop.time()
        handed = self._handed() - held_back
        driver.core.shares.commit(share, now)
        count = 0
        if parcel is not None and handed:
            count = bisect_left(parcel.places, self._messages[handed - 1].seq - parcel.batch.base + 1)
            share.progressed(parcel, count)
        if not outputs and not share.moves:
            return ""
        self._transaction = driver.loop.create_future()
        driver.core.shares.transact(share, outputs, now)
        driver.schedule_pump()
        try:
            error = await self._transaction
        finally:
            self._transaction = None
        if not error and parcel is not None and parcel is self._parcel:
            parcel.trim(count)
            self._messages = self._messages[handed:]
        return error

    def rewind(self) -> None:
        """Hand out again what was handed out and is not committed."""
        if self._parcel is not None:
            _ = list(self._current)
            self._leftover = list(self._messages)

    # -- what the share says -------------------------------------------------------------------

    def arrived(self) -> None:
        """There is a parcel."""
        self._wake()

    def dropped(self, partitions: Collection[int] | None) -> None:
        """Messages that wait here are somebody else's now."""
        if partitions is None:
            _ = list(self._current)
            self._parcel, self._messages, self._leftover, self._unsettled = None, [], [], 0
            self._again.clear()
            return
        parcel = self._parcel
        if parcel is None or self._transactional:
            return
        waiting = [*self._leftover, *self._current]
        handed = self._messages[: len(self._messages) - len(waiting)]
        self._leftover = [m for m in waiting if m._place is not None and m._place[0] not in partitions]  # noqa: SLF001
        self._messages = [*handed, *self._leftover]
        last = handed[-1].seq - parcel.batch.base if handed else -1
        parcel.without(partitions, after=last)

    def skipped(self, record: Skipped) -> None:
        """Messages are gone for good."""
        gap = Gap(Source("", "store"), record.stream, record.offset, record.next - 1, cause=record.reason)
        self._driver.core.streams.count_lost(gap)
        self._driver.schedule_pump()

    def missing(self) -> None:
        """The group's log is away, or was wiped."""
        self._driver.events.put(LogMissing(self.pattern, self.group, self._share.log.hex(), waits=True))

    def transacted(self, error: str) -> None:
        """The transaction on its way was stored, or not."""
        if self._transaction is not None and not self._transaction.done():
            self._transaction.set_result(error)

    def ended(self, reason: str) -> None:
        """The store will not let this member in."""
        self._refusal = reason
        self._wake()

    # -- the end -------------------------------------------------------------------------------

    async def wait_for(self, publishers: int = 1, timeout: float | None = None) -> None:
        """Return once this member is in its group. Raises TimeoutError, GroupRefused, NodeClosed."""
        await self._driver.wait_until(lambda: bool(self._share.epoch or self._refusal), timeout)
        if self._refusal:
            raise GroupRefused(self.group, self._refusal)

    def end(self) -> None:
        """No more will come; what the reader is done with is committed, the rest comes to others."""
        if not self._closed and self._driver.open_state == "open":
            parcel, handed = self._parcel, self._handed()
            if parcel is not None and not self._transactional and handed > 1:
                before = self._messages[handed - 1].seq - parcel.batch.base
                self._share.progressed(parcel, bisect_left(parcel.places, before))
            self._driver.core.shares.leave(self._share, self._driver.loop.time())
            self._driver.schedule_pump()
        super().end()
