"""The publishing end of a topic, for threads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

from zfabric.errors import NodeClosed, NodeForked, NoSubscribers, WindowFull
from zfabric.node import publisher as asynchronous
from zfabric.sync.closing import Closing
from zfabric.sync.loop import LoopThread, refuse_in_loop
from zfabric.sync.stage import Stage

__all__ = ["Publisher"]


class Publisher(Closing):
    """Publishes on one topic; `node.publisher(topic)` makes it. Any number of threads may share it.

    Values are encoded and numbered in the calling thread; what was published until the node's loop looks leaves as
    one batch. The messages of one thread stay in order.
    """

    def __init__(
        self, thread: LoopThread, publisher: asynchronous.Publisher, stage: Stage, *, mandatory: bool, confirm: bool
    ) -> None:
        """`confirm`: whether `publish` must wait for more than the stage."""
        self._thread = thread
        self._publisher = publisher
        self._stage = stage
        self._outbox = stage.outbox
        self._driver = stage.driver
        self._mandatory = mandatory
        self._confirm = confirm
        self._closed = False

    def __repr__(self) -> str:
        return f"<sync.Publisher {self.topic} [{'closed' if self._closed else f'{self.subscribers} subscribers'}]>"

    @property
    def topic(self) -> str:
        """The topic's name."""
        return self._publisher.topic

    @property
    def subscribers(self) -> int:
        """How many subscriptions are in place: peers that receive the topic, and this node's own."""
        return self._publisher.subscribers

    @property
    def stores(self) -> int:
        """How many stores keep what is published here."""
        return self._publisher.stores

    def wait_for(
        self, subscribers: int | None = None, timeout: float | None = None, *, stores: int | None = None
    ) -> None:
        """Return once that many subscriptions (default 1, if `stores` is not given), and stores, are in place.

        The next message reaches them. Raises TimeoutError after `timeout` seconds, NodeClosed if the node closes
        meanwhile.
        """
        self._thread.run(lambda: self._publisher.wait_for(subscribers, timeout, stores=stores))

    def publish_nowait(
        self, value: Any, *, key: Any = None, headers: dict[str, Any] | None = None, ttl: float | None = None
    ) -> int:
        """Publish one value and return its sequence number. Never blocks, so coroutines may call it too.

        Options and errors as for zfabric.Publisher; WindowFull also when Config.outlet_queue_bytes wait for the loop.
        """
        if self._closed or self._mandatory or self._driver.open_state != "open":
            self._check()
        return self._stage.put(value, key, headers, ttl)

    def publish(
        self, value: Any, *, key: Any = None, headers: dict[str, Any] | None = None, ttl: float | None = None
    ) -> int:
        """Publish one value and return its sequence number.

        Blocks while the window is full, and then as long as the publisher's `confirm` says. Raises what
        `publish_nowait` raises (but WindowFull), and DeliveryFailed if a subscriber was given up.
        """
        seq = self._publish(value, key, headers, ttl)
        if self._confirm:
            self.confirmed(seq)
        return seq

    def _publish(
        self, value: Any, key: Any = None, headers: dict[str, Any] | None = None, ttl: float | None = None
    ) -> int:
        refuse_in_loop()
        while True:
            if self._closed or self._mandatory or self._driver.open_state != "open":
                self._check()
            try:
                return self._stage.put(value, key, headers, ttl)
            except WindowFull:
                self._thread.run(self._stage.make_room)

    def publish_many(self, values: Iterable[Any]) -> int:
        """Publish many values and return the last one's sequence number (-1 if none).

        Sequences go faster than one by one; any other iterable may block, and each value leaves as it comes.
        """
        last = -1
        if isinstance(values, Sequence) and not self._mandatory:
            start = 0
            while chunk := list(values[start : start + self._stage.chunk_size]):
                last = self._publish_chunk(chunk)
                start += len(chunk)
        else:
            for value in values:
                last = self._publish(value)
        if self._confirm and last >= 0:
            self.confirmed(last)
        return last

    def _publish_chunk(self, chunk: list[Any]) -> int:
        refuse_in_loop()
        if self._closed or self._driver.open_state != "open":
            self._check()
        try:
            last = self._stage.put_many(chunk)
        except WindowFull:
            last = -1
        if last < 0:
            for value in chunk:
                last = self._publish(value)
        return last

    def loan(self, shape: int | tuple[int, ...], dtype: Any = float) -> Any:
        """A numpy array to fill and publish, uninitialised; where subscribers share memory it is there already.

        Publishing it copies nothing, and makes it read-only; it may be published again. Write to it by no other view.
        """

        async def loan() -> Any:
            return self._publisher.loan(shape, dtype)

        return self._thread.run(loan)

    def confirmed(self, seq: int) -> None:
        """Return once message `seq` is confirmed at the level of `confirm` (default: received by every subscriber).

        Raises DeliveryFailed if a subscriber was given up that had not confirmed it, NodeClosed at the end.
        """

        async def confirmed() -> None:
            self._outbox.ack_now = True
            await self._stage.drained()
            await self._publisher.confirmed(seq)

        self._thread.run(confirmed)

    def flush(self) -> None:
        """Return once everything published is confirmed as `delivery` promises.

        At-most-once: handed to the sockets. Reliable: received by every subscriber (processed, with
        `confirm="processed"`). Raises DeliveryFailed if a subscriber was given up since the last flush.
        """

        async def flush() -> None:
            await self._stage.drained()
            await self._publisher.flush()

        self._thread.run(flush)

    def close(self) -> None:
        """Send what is open, wait until a reliable topic is confirmed, and stop. The topic can be opened again."""

        async def close() -> None:
            await self._stage.drained()
            await self._publisher.close()

        refuse_in_loop()
        if not self._closed:
            self._closed = True
            with suppress(NodeClosed, NodeForked):
                self._thread.run(close)

    def _check(self) -> None:
        """Whatever keeps a message from being published plainly."""
        self._driver.check_open()
        if self._closed:
            raise NodeClosed(f"the publisher of {self.topic!r} is closed")
        if self._mandatory and not self._outbox.subscribers:
            raise NoSubscribers(self.topic)
