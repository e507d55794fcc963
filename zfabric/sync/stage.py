"""Where threads leave what they publish on one topic, for the node's loop to send.

publish_nowait --encode, number--> open batch, full batches --drain(), once per burst--> outbox --> driver

A value is encoded and numbered in the thread that publishes it, so errors are raised there and no answer from the
loop is needed; a burst costs one wake-up. All that touches sockets and protocol state is left to the loop's thread,
which in turn never waits for the lock: a thread that publishes without pause would not let it in.

A signal handler (Ctrl-C) can strike between any two steps of the publishing thread, and may raise or itself publish.
Python runs it at calls and backward jumps only, and there is none between taking the message and counting it.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from zfabric.config import Config
from zfabric.errors import EncodeFailed, LimitExceeded, NotStored, WindowFull
from zfabric.node.driver import Driver
from zfabric.protocol.outbox import Outbox
from zfabric.wire.batch import BatchWriter, Buffer, Meta, frame_bytes, plain_metadata
from zfabric.wire.codec import SPECIAL_TYPES, Codec
from zfabric.wire.snapshots import no_room

__all__ = ["Stage"]

CHUNK_MAX = 1024
"Values encoded in one call, at most."
RETRY_S = 0.001
"After this time the loop looks again for a batch that a thread was just adding to."


class Stage:
    """One topic's batches on their way to the loop; shared by all publishers of the topic."""

    def __init__(
        self, driver: Driver, outbox: Outbox, codec: Codec, config: Config, post: Callable[[Callable[[], object]], None]
    ) -> None:
        self.driver = driver
        self.outbox = outbox
        self._codec = codec
        self._encode = codec.encode_plain
        codec.snapshots.room = no_room  # only the loop may take memory that the node lends
        self._config = config
        self._batch_bytes = config.batch_bytes
        self._messages_last = config.batch_messages_max - 1
        self._waiting_max = outbox.window_bytes if outbox.reliable else config.outlet_queue_bytes
        self._post = post
        self._lock = threading.RLock()
        self._open = self._writer()
        self._full: deque[tuple[BatchWriter, int]] = deque()
        self._bytes_filled = self._bytes_drained = 0
        self._next_seq = self._drained_seq = outbox.next_seq
        self._awake = False
        "A drain is due. Changed only under the lock."
        self._retrying = False
        self._wanted = False
        "The loop could not get at the open batch: whoever has the lock shall close it."
        self.chunk_size = 64
        "How many values `put_many` can take well."
        self._scratch = bytearray()
        self._turn = 0
        "Encodings begun. Whoever finds that it grew was interrupted by another, and `_scratch` is not his own."

    def __repr__(self) -> str:
        return f"<Stage {self.outbox.topic} next={self._next_seq} drained={self._drained_seq}>"

    def _writer(self) -> BatchWriter:
        outbox = self.outbox
        return BatchWriter(
            outbox.topic, self.driver.core.me, outbox.epoch, with_crc=outbox.writer.with_crc, sign=outbox.writer.sign
        )

    # -- in any thread -------------------------------------------------------------------------

    def put(self, value: Any, key: Any, headers: dict[str, Any] | None, ttl: float | None) -> int:
        """Encode a value and return its number. Raises EncodeFailed, LimitExceeded or WindowFull."""
        metadata = None
        if key is not None or headers is not None or ttl is not None:
            metadata, blank = self._metadata(key, headers, ttl), Meta({}, {}, {})
        with self._lock:
            writer, codec, data = self._begin()
            turn = self._turn
            kind = value.__class__
            try:
                if self._encode is None or (
                    kind in SPECIAL_TYPES and (kind is not bytes or len(value) >= self._config.inline_bytes)
                ):
                    del data[:]
                    codec.encode_into(value, data)
                else:
                    self._encode(value, data, 0)
            except EncodeFailed as error:
                raise EncodeFailed(self.outbox.topic, error.reason) from error.__cause__
            except Exception as error:  # noqa: BLE001 - raised again there
                codec.fail(error, data, 0, len(writer.buffers), self.outbox.topic)
            frames = codec.buffers
            large = len(data) >= self._batch_bytes or frames or metadata is not None
            if large:
                self._check_size(writer, data, frames, 0 if metadata is None else metadata[3])
            if self._turn != turn:  # a signal handler published meanwhile
                return self.put(value, key, headers, ttl)
            # No call from here on until the message is counted.
            count = writer.count
            if large:
                writer.buffers = [*frames]
                if metadata is not None:
                    if writer.meta is None:
                        writer.meta = blank
                    if metadata[0] is not None:
                        writer.meta.keys[count] = metadata[0]
                    if metadata[1]:
                        writer.meta.headers[count] = metadata[1]
                    if metadata[2] is not None:
                        writer.meta.ttl_ms[count] = metadata[2]
                    writer.meta_bytes += metadata[3]
            writer.buffer += data
            writer.count = count + 1
            seq = self._next_seq
            self._next_seq = seq + 1
            if not self._awake:
                self._wake()
            if large or self._wanted or len(writer.buffer) >= self._batch_bytes or count >= self._messages_last:
                self._close_if_full(writer)
            return seq

    def put_many(self, values: list[Any]) -> int:
        """Encode values in one call and return the last one's number; -1 if they must go one by one."""
        more = len(values)
        with self._lock:
            writer, codec, data = self._begin()
            turn = self._turn
            del data[:]
            self.chunk_size = max(1, more // 2)
            if writer.count + more > self._messages_last or not codec.encode_many(values, data):
                return -1
            if len(writer.buffer) + len(data) > self._config.frame_bytes_max:
                return -1
            self.chunk_size = min(max(1, self._batch_bytes * more // (2 * len(data))), CHUNK_MAX)
            if self._turn != turn:
                return self.put_many(values)
            # No call from here on until the messages are counted.
            writer.buffer += data
            writer.count += more
            seq = self._next_seq = self._next_seq + more
            if not self._awake:
                self._wake()
            self._close_if_full(writer)
            return seq - 1

    def _begin(self) -> tuple[BatchWriter, Codec, bytearray]:
        """The open batch, the codec with a copy of its frames, and where to encode to."""
        writer, codec = self._open, self._codec
        if not writer.count:
            self._check_room()
        if codec.buffers or writer.buffers:
            codec.buffers = [*writer.buffers]
        self._turn += 1
        return writer, codec, self._scratch

    def _metadata(
        self, key: Any, headers: dict[str, Any] | None, ttl: float | None
    ) -> tuple[Any, dict[str, Any] | None, int | None, int]:
        try:
            return plain_metadata(key, headers, ttl)
        except EncodeFailed as error:
            raise EncodeFailed(self.outbox.topic, error.reason) from error.__cause__

    def _check_size(self, writer: BatchWriter, data: bytearray, frames: list[Buffer], meta_bytes: int) -> None:
        """Refuse a value that its frame cannot hold: receivers would close the connection."""
        limit = self._config.frame_bytes_max
        body = len(writer.buffer) + writer.meta_bytes + len(data) + meta_bytes
        size = frame_bytes(body, frames, repairable=self.outbox.reliable)
        if size > limit:
            raise LimitExceeded("frame_bytes_max", size, limit)

    def _check_room(self) -> None:
        waiting = self._bytes_filled - self._bytes_drained + self.outbox.waiting_bytes
        keeping = self.outbox.keeping
        if keeping is not None and keeping.stops:
            raise NotStored(keeping.reason, self.outbox.topic)
        if waiting >= self._waiting_max or self.outbox.full:
            raise WindowFull(self.outbox.topic, waiting, self._waiting_max)

    def _wake(self) -> None:
        self._post(self.drain)
        self._awake = True  # after it: one call too many is better than none

    def _close_if_full(self, writer: BatchWriter) -> None:
        if self._open is not writer:
            return
        writer.buffers_counted = len(writer.buffers)
        nbytes = writer.body_bytes
        if (
            nbytes >= self._batch_bytes
            or writer.count > self._messages_last
            or writer.buffers_counted >= self._config.buffers_per_batch_max // 2
            or self._wanted
        ):
            self._wanted = False
            self._close_batch(nbytes)

    def _close_batch(self, nbytes: int) -> None:
        """Open a new batch, and put the old one where the loop may take it without the lock."""
        fresh = self._writer()
        closed = self._open  # no call from here on: in two places, the batch would be written to while it is sent
        self._open = fresh
        self._bytes_filled += nbytes
        self._full.append((closed, nbytes))

    # -- in the loop's thread ------------------------------------------------------------------

    def drain(self) -> None:
        """Send what was left here; again later, if a thread is just adding to it."""
        if self._lock.acquire(blocking=False):
            try:
                self._awake = False
                if self._open.count:
                    self._close_batch(self._open.body_bytes)
            finally:
                self._lock.release()
        elif not self._retrying:
            self._wanted = self._retrying = True
            self.driver.loop.call_later(RETRY_S, self._retry)
        outbox = self.outbox
        while self._full:
            writer, nbytes = self._full.popleft()
            self._bytes_drained += nbytes
            count = writer.count
            outbox.writer = writer
            self.driver.send(outbox)
            self._drained_seq += count
            if not outbox.listeners:
                outbox.skipped += count

    def _retry(self) -> None:
        self._retrying = False
        self.drain()

    async def drained(self) -> None:
        """Return once everything was sent that had been left here before the call."""
        target = self._next_seq
        self.drain()
        while self._drained_seq < target:
            await asyncio.sleep(RETRY_S)
            self.drain()

    async def make_room(self) -> None:
        """Return once `put` can succeed again."""
        await self.drained()
        keeping = self.outbox.keeping
        await self.driver.wait_until(lambda: not self.outbox.full or (keeping is not None and keeping.stops), None)
