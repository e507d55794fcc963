"""The publishing end of a topic."""

from __future__ import annotations

import asyncio
import importlib
import math
from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import islice
from typing import Any

from zfabric.config import Config
from zfabric.errors import DeliveryFailed, EncodeFailed, LimitExceeded, NodeClosed, NoSubscribers, NotStored, WindowFull
from zfabric.node.chunks import Chunks
from zfabric.node.closing import Closing
from zfabric.node.driver import Driver
from zfabric.protocol.keeping import NO_STORE
from zfabric.protocol.outbox import Outbox
from zfabric.wire.batch import frame_bytes, plain_metadata
from zfabric.wire.codec import SPECIAL_TYPES, Codec

__all__ = ["Publisher"]

LENT_BYTES = 4 * 1024 * 1024
"A batch of large buffers in shared memory is sealed at this size: more would leave the processor's cache."
ONE_BY_ONE = 16
"After a value that cannot be encoded with others so many are not even tried."


class Publisher(Closing):
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
        confirm: str | None,
    ) -> None:
        self._driver = driver
        self._release = release
        self._outbox = outbox
        self._codec = codec
        self._encode = codec.encode_plain
        self._config = config
        self._batch_bytes = min(config.batch_bytes, outbox.window_bytes)
        self._inline_bytes = config.inline_bytes
        self._messages_last = config.batch_messages_max - 1
        self._mandatory = mandatory
        self._confirm = confirm
        self._closed = False
        self._plain = not mandatory
        self._chunks = Chunks(codec, self._batch_bytes)
        self._one_by_one = 0

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{self.subscribers} subscribers"
        return f"<Publisher {self.topic} [{state}, next seq {self._outbox.next_seq}]>"

    @property
    def topic(self) -> str:
        """The topic's name."""
        return self._outbox.topic

    @property
    def subscribers(self) -> int:
        """How many subscriptions are in place: peers that receive the topic, and this node's own."""
        return self._outbox.subscribers

    @property
    def stores(self) -> int:
        """How many stores keep what is published here."""
        keeping = self._outbox.keeping
        return 0 if keeping is None else keeping.stores

    async def wait_for(
        self, subscribers: int | None = None, timeout: float | None = None, *, stores: int | None = None
    ) -> None:
        """Return once that many subscriptions (default 1, if `stores` is not given), and stores, are in place.

        The next message reaches them. Raises TimeoutError after `timeout` seconds, NodeClosed if the node closes
        meanwhile.
        """
        if subscribers is None:
            subscribers = 1 if stores is None else 0
        wanted = subscribers, stores or 0
        try:
            await self._driver.wait_until(lambda: self.subscribers >= wanted[0] and self.stores >= wanted[1], timeout)
        except TimeoutError:
            found = f"{self.subscribers} of {wanted[0]} subscriptions, {self.stores} of {wanted[1]} stores"
            cure = "`zfabric nodes` shows who is there, `zfabric store run DIR` starts a store"
            keeping = self._outbox.keeping
            if keeping is not None and keeping.trouble not in ("", NO_STORE):
                cure = keeping.trouble
            raise TimeoutError(f"{self.topic}: {found} after {timeout:g} s: {cure}") from None

    # -- publishing ----------------------------------------------------------------------------

    def publish_nowait(
        self, value: Any, *, key: Any = None, headers: dict[str, Any] | None = None, ttl: float | None = None
    ) -> int:
        """Publish one value and return its sequence number.

        `key` names what the value is about (for `overflow="latest"`), `headers` are free metadata, and after
        `ttl` seconds the message is dropped instead of delivered. Raises EncodeFailed for a value that cannot
        travel or does not fit the topic's type, NoSubscribers if the publisher is `mandatory` and alone, WindowFull
        if a reliable publisher would have to wait, NotStored if a durable one finds no store that stores, NotAuthorized
        if this node's identity has lost the right.
        """
        outbox = self._outbox
        if not (outbox.ready and self._plain):
            unheard = self._check_first()
            if unheard is not None:
                return unheard
        metadata = None
        if key is not None or headers is not None or ttl is not None:
            metadata = self._metadata(key, headers, ttl)
        writer = outbox.writer
        buffer, count = writer.buffer, writer.count
        if not count:
            self._codec.buffers = writer.buffers
        length = len(buffer)
        kind = value.__class__
        try:
            if self._encode is None or (
                kind in SPECIAL_TYPES and (kind is not bytes or len(value) >= self._inline_bytes)
            ):
                self._codec.encode_into(value, buffer)
            else:
                self._encode(value, buffer, -1)
        except EncodeFailed as error:
            raise EncodeFailed(outbox.topic, error.reason) from error.__cause__
        except BaseException as error:  # noqa: BLE001 - raised again there
            self._codec.fail(error, buffer, length, writer.buffers_counted, outbox.topic)
        large = len(buffer) >= self._batch_bytes or writer.buffers or metadata is not None
        if large:
            self._check_size(length, 0 if metadata is None else metadata[3])
        if metadata is not None:
            writer.annotate(*metadata)
        writer.count = count + 1
        seq = outbox.base + count
        if not count:
            self._driver.dirty(outbox)
        if large or count >= self._messages_last:
            self._send_if_full()
        return seq

    async def publish(
        self, value: Any, *, key: Any = None, headers: dict[str, Any] | None = None, ttl: float | None = None
    ) -> int:
        """Publish one value and return its sequence number.

        Waits while the window is full, and then as long as the publisher's `confirm` says. Raises what
        `publish_nowait` raises (but WindowFull), and DeliveryFailed if a subscriber was given up. NotStored while
        waiting for `confirm="stored"` means: not yet. The message stays in the window.
        """
        outbox = self._outbox
        if outbox.full:
            await self._room()
        if self._confirm is not None:
            outbox.ack_now = True
        seq = self.publish_nowait(value, key=key, headers=headers, ttl=ttl)
        if self._confirm is not None:
            await self.confirmed(seq)
        elif not outbox.writer.count:
            await asyncio.sleep(0)
        return seq

    async def publish_many(self, values: Iterable[Any]) -> int:
        """Publish many values, faster than one by one, and return the last one's sequence number (-1 if none)."""
        seq = -1
        outbox = self._outbox
        rest = iter(values)
        while chunk := list(islice(rest, self._chunks.size)):
            if outbox.full:
                await self._room()
            if self._one_by_one:
                self._one_by_one -= 1
            if self._one_by_one or not self._publish_chunk(chunk):
                for value in chunk:
                    seq = await self.publish(value)
                continue
            seq = outbox.next_seq - 1
            if not outbox.writer.count:
                await asyncio.sleep(0)
        if self._confirm is not None and seq >= 0:
            await self.confirmed(seq)
        return seq

    def _publish_chunk(self, chunk: list[Any]) -> bool:
        """Publish values that can be encoded in one call; False if they must go one by one."""
        outbox = self._outbox
        if not (outbox.ready and self._plain):
            return False
        if outbox.writer.count + len(chunk) > self._config.batch_messages_max:
            self._driver.send(outbox)
        writer = outbox.writer
        if not writer.count:
            self._codec.buffers = writer.buffers
        before = len(writer.buffer)
        if not self._chunks.encode(chunk, writer.buffer):
            self._one_by_one = ONE_BY_ONE if len(chunk) == 1 else 0
            return False
        if len(writer.buffer) - before > self._config.frame_bytes_max // 2:
            del writer.buffer[before:]
            self._chunks.size = 1
            return False
        if not writer.count:
            self._driver.dirty(outbox)
        writer.count += len(chunk)
        if len(writer.buffer) >= self._batch_bytes:
            self._driver.send(outbox)
        return True

    def loan(self, shape: int | tuple[int, ...], dtype: Any = float) -> Any:
        """A numpy array to fill and publish, uninitialised; where subscribers share memory it is there already.

        Publishing it copies nothing, and makes it read-only; it may be published again. What is no longer needed, or
        was never published, is simply dropped. Write to it by no other view after it was published.
        """
        numpy = importlib.import_module("numpy")
        size = math.prod(shape) if isinstance(shape, tuple) else shape
        memory = self._driver.core.lending.take(self._outbox, size * numpy.dtype(dtype).itemsize)
        if memory is None:
            return numpy.empty(shape, dtype)
        return numpy.frombuffer(memory, dtype).reshape(shape)

    async def confirmed(self, seq: int) -> None:
        """Return once message `seq` is confirmed at the level of `confirm` (default: received by every subscriber).

        Raises DeliveryFailed if a subscriber was given up that had not confirmed it, NodeClosed at the end.
        """
        self._driver.check_open()
        await self._reach(seq + 1, self._confirm or "received")

    async def flush(self) -> None:
        """Return once everything published is confirmed as `delivery` promises.

        At-most-once: handed to the sockets. Reliable: received by every subscriber (processed, with
        `confirm="processed"`). Durable: stored, and what `confirm` says. Raises DeliveryFailed if a subscriber was
        given up since the last flush, NotStored if no store stores: then what is not stored waits in the window, and
        is stored as soon as a store can, if this node lives to see that.
        """
        self._driver.check_open()
        outbox = self._outbox
        outbox.ack_now = True
        self._driver.send(outbox)
        before = outbox.base
        if outbox.keeping is not None:
            await self._reach(before, "stored")
        if outbox.reliable and (outbox.keeping is None or self._confirm in ("received", "processed")):
            await self._reach(before, self._confirm or "received")
        elif not outbox.reliable:
            await asyncio.sleep(0)

    async def _reach(self, before: int, level: str) -> None:
        """Wait until all messages before this one are confirmed at that level."""
        await self._driver.confirmed(self._outbox, before, level)
        self._driver.check_open()
        if level != "stored":
            failures = self._outbox.take_failures(before, processed=level == "processed")
            if failures:
                raise DeliveryFailed(self.topic, failures)

    async def _room(self) -> None:
        outbox = self._outbox
        await self._driver.wait_until(
            lambda: not outbox.full or (outbox.keeping is not None and outbox.keeping.stops), None
        )

    async def close(self) -> None:
        """Send what is open, wait until a reliable topic is confirmed, and stop. The topic can be opened again.

        A store is waited for at most Config.close_timeout_s.
        """
        if self._closed:
            return
        if self._driver.open_state == "open" and self._outbox.reliable:
            timeout = None if self._outbox.keeping is None else self._config.close_timeout_s
            with suppress(DeliveryFailed, NodeClosed, NotStored, TimeoutError):
                async with asyncio.timeout(timeout):
                    await self.flush()
        self._closed = True
        self._plain = False
        self._driver.send(self._outbox)
        self._release(self._outbox.topic)

    # -- the less common ways ------------------------------------------------------------------

    def _metadata(
        self, key: Any, headers: dict[str, Any] | None, ttl: float | None
    ) -> tuple[Any, dict[str, Any] | None, int | None, int]:
        try:
            return plain_metadata(key, headers, ttl)
        except EncodeFailed as error:
            raise EncodeFailed(self.topic, error.reason) from error.__cause__

    def _check_size(self, length: int, meta_bytes: int) -> None:
        """Take back a value that its frame cannot hold: receivers would close the connection."""
        writer, limit = self._outbox.writer, self._config.frame_bytes_max
        body = len(writer.buffer) + writer.meta_bytes + meta_bytes  # a signature counts as meta
        size = frame_bytes(body, writer.buffers, repairable=self._outbox.reliable)
        if size > limit:
            del writer.buffer[length:]
            del writer.buffers[writer.buffers_counted :]
            raise LimitExceeded("frame_bytes_max", size, limit)

    def _check_first(self) -> int | None:
        """Whatever keeps a message from being published plainly; the number of one that nobody will hear."""
        self._driver.check_open()
        outbox = self._outbox
        if self._closed:
            raise NodeClosed(f"the publisher of {self.topic!r} is closed")
        if outbox.denied:
            self._driver.rights.check("publish", self.topic)
        if self._mandatory and not outbox.subscribers:
            raise NoSubscribers(self.topic)
        if outbox.keeping is not None and outbox.keeping.stops:
            raise NotStored(outbox.keeping.reason, self.topic)
        if outbox.full:
            raise WindowFull(self.topic, outbox.waiting_bytes, outbox.window_bytes)
        return None if outbox.listeners else outbox.skip()

    def _send_if_full(self) -> None:
        writer = self._outbox.writer
        writer.buffers_counted = len(writer.buffers)
        limit = self._batch_bytes
        if writer.buffers and self._driver.core.lending.holds(writer.buffers[-1]):
            limit = max(limit, LENT_BYTES)  # they are there already: a batch of them is as quick as one
        if (
            writer.body_bytes >= limit
            or writer.count >= self._config.batch_messages_max
            or writer.buffers_counted >= self._config.buffers_per_batch_max // 2
        ):
            self._driver.send(self._outbox)
