"""The publishing end of a topic."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any

from zfabric.config import Config
from zfabric.errors import EncodeFailed, NodeClosed, NoSubscribers
from zfabric.node.driver import Driver
from zfabric.protocol.outbox import Outbox
from zfabric.wire.codec import SPECIAL_TYPES, Codec

__all__ = ["Publisher"]

class Publisher:
    """Publishes on one topic; `node.publisher(topic)` makes it.

    Everything published in one turn of the event loop leaves as one batch, at the turn's end or when it is
    `Config.batch_bytes` long. Values are encoded at once: changing one afterwards does not change what is sent.
    """

    def __init__(
        self,
        driver: Driver,
        outbox: Outbox,
        codec: Codec,
        config: Config,
        release: Callable[[str], None],
        *,
        mandatory: bool,
    ) -> None:
        self._driver = driver
        self._release = release
        self._outbox = outbox
        self._codec = codec
        self._encode = codec.encode_plain
        self._config = config
        self._batch_bytes = config.batch_bytes
        self._messages_last = config.batch_messages_max - 1
        self._mandatory = mandatory
        self._closed = False

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{self.subscribers} subscribers"
        return f"<Publisher {self.topic} [{state}, next seq {self._outbox.next_seq}]>"

    async def __aenter__(self) -> Publisher:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def topic(self) -> str:
        """The topic's name."""
        return self._outbox.topic

    @property
    def subscribers(self) -> int:
        """How many subscriptions are in place: peers that receive the topic, and this node's own."""
        return self._outbox.listeners

    async def wait_for(self, subscribers: int = 1, timeout: float | None = None) -> None:
        """Return once that many subscriptions are in place: the next message reaches them.

        Raises TimeoutError after `timeout` seconds, NodeClosed if the node closes meanwhile.
        """
        await self._driver.wait_until(lambda: self._outbox.listeners >= subscribers, timeout)

    # -- publishing ----------------------------------------------------------------------------

    def publish_nowait(
        self, value: Any, *, key: Any = None, headers: dict[str, Any] | None = None, ttl: float | None = None
    ) -> int:
        """Publish one value and return its sequence number.

        `key` names what the value is about (for `overflow="latest"`), `headers` are free metadata, and after
        `ttl` seconds the message is dropped instead of delivered. Raises EncodeFailed for a value that cannot
        travel or does not fit the topic's type, NoSubscribers if the publisher is `mandatory` and alone.
        """
        outbox = self._outbox
        if self._closed or not outbox.listeners:
            return self._unheard()
        writer = outbox.writer
        buffer, count = writer.buffer, writer.count
        if not count:
            self._codec.buffers = writer.buffers
        length = len(buffer)
        try:
            if self._encode is None or value.__class__ in SPECIAL_TYPES:
                self._codec.encode_into(value, buffer)
            else:
                self._encode(value, buffer, -1)
        except EncodeFailed as error:
            raise EncodeFailed(outbox.topic, error.reason) from error.__cause__
        except BaseException as error:  # noqa: BLE001 - raised again there
            self._codec.fail(error, buffer, length, writer.buffers_counted, outbox.topic)
        if key is not None or headers is not None or ttl is not None:
            writer.annotate(key, headers, None if ttl is None else max(1, round(ttl * 1000)))
        writer.count = count + 1
        seq = outbox.base + count
        if not count:
            self._driver.dirty(outbox)
        if len(buffer) >= self._batch_bytes or writer.buffers or count >= self._messages_last:
            self._send_if_full()
        return seq

    async def publish(
        self, value: Any, *, key: Any = None, headers: dict[str, Any] | None = None, ttl: float | None = None
    ) -> int:
        """Publish one value and return its sequence number; waits while the window is full."""
        seq = self.publish_nowait(value, key=key, headers=headers, ttl=ttl)
        if not self._outbox.writer.count:
            await asyncio.sleep(0)
        return seq

    async def publish_many(self, values: Iterable[Any]) -> int:
        """Publish many values, faster than one by one, and return the last one's sequence number (-1 if none)."""
        seq = -1
        outbox = self._outbox
        for seq in map(self.publish_nowait, values):
            if not outbox.writer.count:
                await asyncio.sleep(0)
        return seq

    async def flush(self) -> None:
        """Return once everything published is confirmed as `delivery` promises (at-most-once: handed to libzmq)."""
        self._driver.check_open()
        self._driver.send(self._outbox)
        await asyncio.sleep(0)

    async def close(self) -> None:
        """Send what is open and stop to publish. The topic can be opened again."""
        if not self._closed:
            self._closed = True
            self._driver.send(self._outbox)
            self._release(self._outbox.topic)

    # -- the less common ways ------------------------------------------------------------------

    def _unheard(self) -> int:
        self._driver.check_open()
        if self._closed:
            raise NodeClosed(f"the publisher of {self.topic!r} is closed")
        if self._mandatory:
            raise NoSubscribers(self.topic)
        return self._outbox.skip()

    def _send_if_full(self) -> None:
        writer = self._outbox.writer
        writer.buffers_counted = len(writer.buffers)
        if (
            writer.body_bytes >= self._batch_bytes
            or writer.count >= self._config.batch_messages_max
            or writer.buffers_counted >= self._config.buffers_per_batch_max // 2
        ):
            self._driver.send(self._outbox)
