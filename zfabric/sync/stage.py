"""Where threads leave what they publish on one topic, for the node's loop to send.

    publish_nowait --encode, number--> open batch, full batches --drain(), once per burst--> outbox --> driver

A value is encoded and numbered in the thread that publishes it, so errors are raised there and no answer from the
loop is needed; a burst costs one wake-up. All that touches sockets and protocol state is left to the loop's thread:
an exception out of a signal handler (Ctrl-C) can strike between any two steps of the publishing thread, and there
it finds nothing that it could leave half done.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from zfabric.config import Config
from zfabric.errors import EncodeFailed, WindowFull
from zfabric.node.driver import Driver
from zfabric.protocol.outbox import Outbox
from zfabric.wire.batch import BatchWriter
from zfabric.wire.codec import SPECIAL_TYPES, Codec

__all__ = ["Stage"]


class Stage:
    """One topic's batches on their way to the loop; shared by all publishers of the topic."""

    def __init__(
        self, driver: Driver, outbox: Outbox, codec: Codec, config: Config, post: Callable[[Callable[[], object]], None]
    ) -> None:
        self.driver = driver
        self.outbox = outbox
        self._codec = codec
        self._encode = codec.encode_plain
        self._config = config
        self._batch_bytes = config.batch_bytes
        self._messages_max = config.batch_messages_max
        self._post = post
        self._lock = threading.RLock()  # a signal handler may publish while its thread is in here
        self._open = self._writer()
        self._full: list[BatchWriter] = []
        self._full_bytes = 0
        self._full_bytes_max = config.outlet_queue_bytes
        self._next_seq = outbox.next_seq
        self._awake = False

    def __repr__(self) -> str:
        return f"<Stage {self.outbox.topic} next={self._next_seq} full={self._full_bytes} bytes>"

    def _writer(self) -> BatchWriter:
        outbox = self.outbox
        return BatchWriter(outbox.topic, self.driver.core.me, outbox.epoch, with_crc=outbox.writer.with_crc)

    # -- in any thread -------------------------------------------------------------------------

    def put(self, value: Any, key: Any, headers: dict[str, Any] | None, ttl: float | None) -> int:
        """Encode a value and return its number. Raises EncodeFailed or WindowFull."""
        with self._lock:
            writer = self._open
            buffer = writer.buffer
            length = len(buffer)
            if not writer.count:
                if self._full_bytes >= self._full_bytes_max:
                    raise WindowFull(self.outbox.topic, self._full_bytes, self._full_bytes_max)
                self._codec.buffers = writer.buffers
            try:
                if self._encode is None or value.__class__ in SPECIAL_TYPES:
                    self._codec.encode_into(value, buffer)
                else:
                    self._encode(value, buffer, -1)
                if key is not None or headers is not None or ttl is not None:
                    writer.annotate(key, headers, None if ttl is None else max(1, round(ttl * 1000)))
            except BaseException as error:  # noqa: BLE001 - raised again there
                self._undo(error, length)
            writer.count += 1
            seq = self._next_seq
            self._next_seq = seq + 1
            if not self._awake:
                self._post(self.drain)
                self._awake = True
            if len(buffer) >= self._batch_bytes or writer.buffers or writer.count >= self._messages_max:
                self._close_if_full(writer)
            return seq

    def _undo(self, error: BaseException, length: int) -> None:
        writer = self._open
        if writer.meta is not None:
            for entries in (writer.meta.keys, writer.meta.headers, writer.meta.ttl_ms):
                entries.pop(writer.count, None)
        if isinstance(error, EncodeFailed):
            raise EncodeFailed(self.outbox.topic, error.reason) from error.__cause__
        self._codec.fail(error, writer.buffer, length, writer.buffers_counted, self.outbox.topic)

    def _close_if_full(self, writer: BatchWriter) -> None:
        writer.buffers_counted = len(writer.buffers)
        nbytes = writer.body_bytes
        if (
            nbytes >= self._batch_bytes
            or writer.count >= self._messages_max
            or writer.buffers_counted >= self._config.buffers_per_batch_max // 2
        ):
            self._full.append(writer)
            self._full_bytes += nbytes
            self._open = self._writer()

    # -- in the loop's thread ------------------------------------------------------------------

    def drain(self) -> None:
        """Send everything that was left here."""
        with self._lock:
            self._awake = False
            writers, self._full, self._full_bytes = self._full, [], 0
            if self._open.count:
                writers.append(self._open)
                self._open = self._writer()
        outbox = self.outbox
        for writer in writers:
            if not outbox.listeners:
                outbox.skipped += writer.count
            outbox.writer = writer
            self.driver.send(outbox)

    async def make_room(self) -> None:
        """Return once `put` can succeed again."""
        self.drain()
