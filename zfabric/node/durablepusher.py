"""The pushing end of a durable queue."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from datetime import datetime
from itertools import islice
from typing import Any

from zfabric.config import Config
from zfabric.errors import EncodeFailed, LocalProtocolError, NodeClosed, NotStored, WindowFull
from zfabric.node.chunks import Chunks
from zfabric.node.driver import Driver
from zfabric.node.jobwriter import JobWriter
from zfabric.node.pusher import Pusher, check_options
from zfabric.protocol.jobs import PRIORITY_DEFAULT
from zfabric.wire.batch import plain_metadata
from zfabric.wire.durable_records import DEDUPE, DELAY, PRIORITY

__all__ = ["DurablePusher"]


class DurablePusher(Pusher):
    """Pushes jobs to one durable queue; `node.pusher(queue, durable=True)` makes it.

    A store keeps each job until a worker has done it. This node keeps it until the store has it on its disk.
    """

    def __init__(self, driver: Driver, writer: JobWriter, config: Config, release: Callable[[str], None]) -> None:
        self._driver = driver
        self._writer = writer
        self._codec = writer.codec
        self._config = config
        self._release = release
        self._closed = False
        self._chunks = Chunks(writer.codec, config.batch_bytes)

    @property
    def queue(self) -> str:
        """The queue's name."""
        return self._writer.queue

    @property
    def depth(self) -> int:
        """Jobs of this node that no store has confirmed."""
        return self._writer.pushed - self._writer.stored

    @property
    def in_flight(self) -> int:
        """0: workers get jobs from the store."""
        return 0

    @property
    def workers(self) -> int:
        """0: workers get jobs from the store; `node.queues()` tells of them."""
        return 0

    @property
    def stores(self) -> int:
        """Stores that take its jobs: 1 or 0."""
        return self._writer.keeping.stores

    async def wait_for(self, workers: int = 0, timeout: float | None = None, *, stores: int = 1) -> None:
        """See Pusher. Raises ValueError for workers, whom only the store knows."""
        if workers or stores > 1:
            raise ValueError("a durable queue has one store, and its workers are there: wait_for(stores=1)")
        await self._driver.wait_until(lambda: self.stores >= stores, timeout)

    # -- pushing -------------------------------------------------------------------------------

    def push_nowait(
        self,
        value: Any,
        *,
        key: Any = None,
        headers: dict[str, Any] | None = None,
        ttl: float | None = None,
        priority: int = PRIORITY_DEFAULT,
        delay: float = 0.0,
        not_before: datetime | None = None,
        dedupe_id: str | None = None,
    ) -> int:
        """Push one job and return its number among those of this node; `flush` confirms it. Options as of `Pusher`.

        Raises NotStored if no store takes it, and the errors of `Pusher.push_nowait`.
        """
        self._check_first()
        writer = self._writer
        metadata = None
        plain = key is None and headers is None and ttl is None and priority == PRIORITY_DEFAULT
        if not (plain and delay == 0.0 and not_before is None and dedupe_id is None):
            delay = check_options(self._driver, priority, delay, not_before, dedupe_id)
            metadata = self._metadata(key, headers, ttl, priority, delay, dedupe_id)
        batch = writer.open
        length = len(batch.buffer)
        self._encode_into(value, batch.buffer)
        large = bool(self._codec.buffers) or len(batch.buffer) - length > self._config.batch_bytes
        if large:  # it travels alone
            encoded = batch.buffer[length:]
            del batch.buffer[length:]
            writer.seal()
            batch.buffers += self._take_buffers(encoded)
            batch.buffer += encoded
        if metadata is not None:
            batch.annotate(*metadata)
        batch.count += 1
        writer.pushed += 1
        if large or batch.body_bytes >= self._config.batch_bytes or batch.count >= self._config.batch_messages_max:
            writer.seal()
        elif batch.count == 1:
            writer.begun()
        return writer.pushed - 1

    def _metadata(
        self, key: Any, headers: dict[str, Any] | None, ttl: float | None, priority: int, delay: float, dedupe: Any
    ) -> tuple[Any, dict[str, Any] | None, int | None, int]:
        told = dict(headers or {})
        if any(name.startswith("$") for name in told):
            raise EncodeFailed(self.queue, "headers that begin with '$' are reserved for the fabric")
        if priority != PRIORITY_DEFAULT:
            told[PRIORITY] = priority
        if delay > 0:
            told[DELAY] = round(delay * 1000)
        if dedupe is not None:
            told[DEDUPE] = dedupe
        try:
            return plain_metadata(key, told or None, ttl)
        except EncodeFailed as error:
            raise EncodeFailed(self.queue, error.reason) from error.__cause__

    async def push(
        self,
        value: Any,
        *,
        key: Any = None,
        headers: dict[str, Any] | None = None,
        ttl: float | None = None,
        priority: int = PRIORITY_DEFAULT,
        delay: float = 0.0,
        not_before: datetime | None = None,
        dedupe_id: str | None = None,
    ) -> int:
        """Push one job and return its number once the store has it on its disk; waits while too many are on their way.

        Many tasks may wait at one time, and one flush of the disk serves all. The number is -1 if the store had the job
        already, from a connection that was lost. Raises NotStored if no store takes it. Options as of `Pusher`.
        """
        await self._room()
        self.push_nowait(
            value,
            key=key,
            headers=headers,
            ttl=ttl,
            priority=priority,
            delay=delay,
            not_before=not_before,
            dedupe_id=dedupe_id,
        )
        return await self._writer.confirmed(self._writer.pushed)

    async def push_many(self, values: Iterable[Any]) -> int:
        """Push many jobs, faster than one by one; returns the last one's number (-1 if none) once all are stored."""
        rest, writer = iter(values), self._writer
        pushed = writer.pushed
        while chunk := list(islice(rest, self._chunks.size)):
            await self._room()
            self._check_first()
            if not self._push_chunk(chunk):
                for value in chunk:
                    await self._room()
                    self.push_nowait(value)
            if not writer.open.count:
                await asyncio.sleep(0)
        return -1 if writer.pushed == pushed else await writer.confirmed(writer.pushed)

    def _push_chunk(self, chunk: list[Any]) -> bool:
        """Push values that can be encoded in one call; False if they must go one by one."""
        writer = self._writer
        if writer.open.count + len(chunk) > self._config.batch_messages_max:
            writer.seal()
        batch = writer.open
        if not self._chunks.encode(chunk, batch.buffer):
            return False
        if not batch.count:
            writer.begun()
        batch.count += len(chunk)
        writer.pushed += len(chunk)
        if batch.body_bytes >= self._config.batch_bytes:
            writer.seal()
        return True

    def finished(self, number: int) -> bool:
        """Only the store knows. Raises LocalProtocolError; `node.queues()` asks it for figures."""
        raise LocalProtocolError(f"what became of jobs of {self.queue!r} is known to its store: ask node.queues()")

    async def flush(self) -> None:
        """Return once every job that this node pushed to this queue so far is on the store's disk. Raises NotStored."""
        self._driver.check_open()
        self._writer.seal()
        await self._writer.confirmed(self._writer.pushed)

    async def close(self) -> None:
        """Push no more. What is not stored stays with the node until it is."""
        if not self._closed:
            self._closed = True
            self._writer.seal()
            self._release(self.queue)

    # -- checks --------------------------------------------------------------------------------

    def _check_first(self) -> None:
        writer = self._writer
        self._driver.check_open()
        if self._closed:
            raise NodeClosed(f"the pusher of {self.queue!r} is closed")
        if writer.keeping.stops:
            raise NotStored(writer.keeping.reason, self.queue)
        if writer.full:
            raise WindowFull(self.queue, writer.nbytes, writer.policy.queue_bytes)

    async def _room(self) -> None:
        writer = self._writer
        if writer.full:
            writer.seal()
            await self._driver.wait_until(lambda: not writer.full or writer.keeping.stops, None)
