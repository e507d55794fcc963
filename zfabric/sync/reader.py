"""Reading in threads what arrives in the node's loop, a batch at a time.

A thread that finds nothing asks the loop and waits. The loop then moves what is there into the mailbox, from where
the thread, and others that read the same iterator, take it without further ado. What nobody asks for stays in the
subscription, under its own bound and overflow policy.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import suppress
from operator import length_hint
from queue import Empty, SimpleQueue
from threading import Lock
from typing import Final, Generic, TypeVar, cast

from zfabric.errors import NodeClosed, NodeForked
from zfabric.events import Event
from zfabric.model import Message
from zfabric.node import eventhub, subscription
from zfabric.sync.closing import Closing
from zfabric.sync.loop import LoopThread, acquire_within, get_within, refuse_in_loop
from zfabric.sync.transaction import Transaction

__all__ = ["EventStream", "Reader", "Subscription"]

T = TypeVar("T")

HANDOVER: Final = 1024
"Messages moved for one question, about: many small batches cost one wake-up."
POLL_TURNS: Final = 4
"Turns of the loop after which what was waiting has been moved."


class Reader(Closing, Generic[T]):
    """A blocking iterator that threads may share: each item goes to one of them."""

    def __init__(self, thread: LoopThread, what: str) -> None:
        self._thread = thread
        self._what = what
        self._mailbox: SimpleQueue[list[T]] = SimpleQueue()
        self._current: Iterator[T] = iter(())
        self._turn = Lock()
        self._pulling: asyncio.Task[None] | None = None
        self._moved = self._taken = 0

    def __iter__(self) -> Iterator[T]:
        """One after another, until this or its node is closed."""
        return self.iterate()

    def iterate(self, timeout: float | None = None) -> Iterator[T]:
        """Iterate, but raise TimeoutError when nothing comes for `timeout` seconds."""
        while True:
            current = self._current
            yield from current
            if not self._refill(current, timeout):
                return

    def receive(self, timeout: float | None = None) -> T:
        """The next one. Raises TimeoutError after `timeout` seconds (0: only what is there), NodeClosed at the end."""
        while True:
            current = self._current
            for item in current:
                return item
            if not self._refill(current, timeout):
                raise NodeClosed(f"{self._what} is closed")

    # -- in the reading threads ----------------------------------------------------------------

    def _refill(self, seen: Iterator[T], timeout: float | None) -> bool:
        """Have a new `_current` in place of the exhausted one. False at the end."""
        refuse_in_loop()
        self._thread.check()
        deadline = None if timeout is None else time.monotonic() + timeout
        if not acquire_within(self._turn, timeout):
            raise TimeoutError(f"no more from {self._what} within {timeout} s")
        try:
            if self._current is not seen:
                return True
            batch = self._next_batch(None if deadline is None else deadline - time.monotonic())
            if batch is None:
                raise TimeoutError(f"no more from {self._what} within {timeout} s")
            if not batch:
                self._mailbox.put(batch)
                return False
            self._taken += len(batch)
            self._current = iter(batch)
            return True
        finally:
            self._turn.release()

    def _next_batch(self, timeout: float | None) -> list[T] | None:
        """What comes next: empty at the end, None if nothing does in time."""
        with suppress(Empty):
            return self._mailbox.get_nowait()
        if timeout is not None and timeout <= 0:
            with suppress(NodeClosed):  # then the end is in the mailbox
                self._thread.run(self._poll)
            with suppress(Empty):
                return self._mailbox.get_nowait()
            return None
        with suppress(NodeClosed):
            self._thread.post(self._pull)
        try:
            return get_within(self._mailbox, timeout)
        except BaseException as error:
            with suppress(NodeClosed):
                self._thread.post(self._stop_pulling)
            if isinstance(error, Empty):
                return None
            raise

    # -- in the loop's thread ------------------------------------------------------------------

    def _source(self) -> AsyncGenerator[list[T], None]:
        """A new asynchronous iterator, which must not lose anything when it is cancelled."""
        raise NotImplementedError

    def _has_more(self) -> bool:
        """Whether the source has something at once."""
        raise NotImplementedError

    def _pull(self) -> None:
        if self._pulling is None or self._pulling.done() or self._pulling.cancelling():
            self._pulling = asyncio.get_running_loop().create_task(self._move(self._pulling))

    def _stop_pulling(self) -> None:
        if self._pulling is not None:
            self._pulling.cancel()

    async def _poll(self) -> None:
        """Move what is there without waiting for more."""
        self._pull()
        assert self._pulling is not None
        for _ in range(POLL_TURNS):
            await asyncio.sleep(0)
        self._pulling.cancel()
        await asyncio.wait((self._pulling,))

    async def _move(self, previous: asyncio.Task[None] | None, most: float = HANDOVER) -> None:
        """Wait for something and move it, and what follows, to the mailbox; at the end, say so."""
        if previous is not None and not previous.done():
            await asyncio.wait((previous,))
        source, moved = self._source(), 0
        try:
            async for batch in source:
                self._mailbox.put(batch)
                self._moved += len(batch)
                moved += len(batch)
                if moved >= most or not self._has_more():
                    return
        except NodeClosed:
            pass
        finally:
            await source.aclose()
        self._mailbox.put([])

    async def finish(self) -> None:
        """The node has closed: move the rest and the end."""
        await self._move(self._pulling, most=float("inf"))

    def abandon(self) -> None:
        """The loop does not answer: end the iteration in its stead. For any thread."""
        self._mailbox.put([])


class Subscription(Reader[Message]):
    """A blocking iterator of the messages that match a pattern; `node.subscribe(pattern)` makes it.

    It receives from the moment it was made. Threads may share it: each message goes to one of them. Then `ack="auto"`
    takes a message of a reliable stream for processed when any of them asks for more: `ack="manual"` is exact.
    """

    def __init__(self, thread: LoopThread, source: subscription.Subscription) -> None:
        super().__init__(thread, f"the subscription to {source.pattern!r}")
        self._subscription = source

    def __repr__(self) -> str:
        return f"<sync.Subscription {self.pattern} [{self.pending} messages waiting]>"

    @property
    def pattern(self) -> str:
        """The topic or pattern subscribed to."""
        return self._subscription.pattern

    @property
    def pending(self) -> int:
        """Messages that arrived and were not read yet, about."""
        return self._subscription.pending + self._unread()

    @property
    def publishers(self) -> int:
        """How many nodes have this subscription in place: their next message arrives here."""
        return self._thread.call(lambda: self._subscription.publishers)

    def wait_for(self, publishers: int = 1, timeout: float | None = None) -> None:
        """Return once that many publishers have this subscription in place.

        Raises TimeoutError after `timeout` seconds, NodeClosed if the node closes meanwhile.
        """
        self._thread.run(self._subscription.wait_for, publishers, timeout)

    def batches(self, timeout: float | None = None) -> Iterator[list[Message]]:
        """The fast path: lists of messages as they arrived. Raises TimeoutError when none comes for that long."""
        while True:
            current = self._current
            if rest := list(current):
                yield rest
            elif not self._refill(current, timeout):
                return

    def transaction(self) -> Transaction:
        """`with subscription.transaction() as tx: tx.publish(topic, value)`: all of it or nothing.

        It covers the messages taken since the last one; see zfabric.Subscription.transaction. Threads may not share a
        subscription that has transactions.
        """
        source = self._thread.call(self._subscription.transaction)
        return Transaction(self._thread, source, self._unread, self._forget)

    def _unread(self) -> int:
        """Messages that left the subscription and that nobody has taken."""
        return self._moved - self._taken + length_hint(self._current)

    def _forget(self) -> None:
        """Drop those; the end stays."""
        _ = list(self._current)
        with suppress(Empty):
            while batch := self._mailbox.get_nowait():
                self._taken += len(batch)
            self._mailbox.put(batch)

    def ack(self, message: Message) -> None:
        """As `await message.ack()`: dealt with, it will not come again. Needs `ack="manual"`."""
        self._thread.run(message.ack)

    def nack(self, message: Message, delay: float = 0.0) -> None:
        """As `await message.nack(delay)`: it comes again after `delay` seconds. Needs `ack="manual"`."""
        self._thread.run(message.nack, delay)

    def reject(self, message: Message) -> None:
        """As `await message.reject()`: it will not come again, and is reported. Needs `ack="manual"`."""
        self._thread.run(message.reject)

    def close(self) -> None:
        """Stop to receive. What waits can still be read; then iteration ends."""
        with suppress(NodeClosed, NodeForked):
            self._thread.run(self._subscription.close)

    def _source(self) -> AsyncGenerator[list[Message], None]:
        return cast("AsyncGenerator[list[Message], None]", self._subscription.batches())

    def _has_more(self) -> bool:
        # Asking for more acknowledges what came before: only what the reader has taken may be.
        return self._subscription.pending > 0 and not self._subscription.handed_out


class EventStream(Reader[Event]):
    """A blocking iterator of events, from the moment it was made until it or its node closes."""

    def __init__(self, thread: LoopThread, source: eventhub.EventStream) -> None:
        super().__init__(thread, "the stream of events")
        self._stream = source

    def close(self) -> None:
        """End the iteration after what is waiting."""
        with suppress(NodeClosed, NodeForked):
            self._thread.call(self._stream.close)

    async def _source(self) -> AsyncGenerator[list[Event], None]:
        async for event in self._stream:
            yield [event]

    def _has_more(self) -> bool:
        return False
