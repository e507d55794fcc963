"""The pushing end of a queue."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Iterable
from datetime import datetime
from itertools import islice
from math import inf
from typing import Any

from zfabric.config import Config
from zfabric.errors import DeliveryFailed, EncodeFailed, LimitExceeded, NodeClosed, WindowFull
from zfabric.node.chunks import Chunks
from zfabric.node.closing import Closing
from zfabric.node.driver import Driver
from zfabric.node.options import SECONDS_MAX, real, text
from zfabric.protocol.dispatcher import Dispatcher
from zfabric.protocol.jobs import PRIORITIES, PRIORITY_DEFAULT
from zfabric.protocol.plainqueue import PlainQueue
from zfabric.wire.batch import plain_metadata
from zfabric.wire.codec import SPECIAL_TYPES, Codec

__all__ = ["OpenJobs", "Pusher", "check_options"]

BLOCKS_PER_TURN_MAX = 16
"Full blocks that are pushed before the node's own work goes on: one for each worker, at most so many."
_HEAD = struct.Struct(">BI")


class OpenJobs:
    """What was pushed to one queue in this turn of the event loop and is in no way special; pushers share it."""

    __slots__ = ("_driver", "buffer", "codec", "count", "dispatcher")

    def __init__(self, driver: Driver, dispatcher: Dispatcher | PlainQueue, codec: Codec) -> None:
        self._driver = driver
        self.dispatcher = dispatcher
        self.codec = codec
        self._clear()

    def _clear(self) -> None:
        self.buffer = bytearray(_HEAD.size)
        self.count = 0

    def begun(self) -> None:
        """There is a first job: lease it at the end of this turn."""
        self._driver.loop.call_soon(self.finish)

    def finish(self) -> None:
        """The turn is over."""
        if self.count and self._driver.open_state == "open":
            self.seal()
            self._driver.pump()

    def seal(self) -> None:
        """Hand over what is open."""
        if self.count:
            buffer, count = self.buffer, self.count
            _HEAD.pack_into(buffer, 0, 0xDD, count)
            self._clear()
            driver = self._driver
            self.dispatcher.push_block(count, buffer, int(driver.utc() * 1e9), driver.loop.time())
            driver.schedule_pump()


class Pusher(Closing):
    """Pushes jobs to one queue; `node.pusher(queue)` makes it.

    The node keeps each job until a worker has done it, wherever that worker is. Values are encoded at once.
    """

    def __init__(self, driver: Driver, jobs: OpenJobs, config: Config, release: Callable[[str], None]) -> None:
        self._driver = driver
        self._open = jobs
        self._dispatcher = jobs.dispatcher
        self._codec = jobs.codec
        self._config = config
        self._release = release
        self._closed = False
        self._batch_bytes = min(config.batch_bytes, jobs.dispatcher.policy.queue_bytes)
        self._chunks = Chunks(jobs.codec, self._batch_bytes)
        self._unpaused = 0

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{self.depth} jobs, {self.workers} workers"
        return f"<Pusher {self.queue} [{state}]>"

    @property
    def queue(self) -> str:
        """The queue's name."""
        return self._dispatcher.queue

    @property
    def depth(self) -> int:
        """Jobs of this node that are not done, with those that workers have."""
        return self._dispatcher.depth + self._open.count

    @property
    def in_flight(self) -> int:
        """Jobs of this node that workers have."""
        return self._dispatcher.in_flight

    @property
    def workers(self) -> int:
        """Pullers that take jobs from this node."""
        return len(self._dispatcher.pullers)

    async def wait_for(self, workers: int = 1, timeout: float | None = None, *, stores: int = 0) -> None:
        """Return once that many pullers take jobs. Jobs pushed before that are not lost, they wait.

        `stores`: of a durable queue, which has its workers there: once a store takes its jobs.
        Raises TimeoutError after `timeout` seconds, NodeClosed if the node closes meanwhile, ValueError.
        """
        if stores:
            raise ValueError(f"no store keeps the jobs of {self.queue!r}: push with durable=True")
        await self._driver.wait_until(lambda: self.workers >= workers, timeout)

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
        """Push one job and return its number.

        `key`: jobs of one key are done one after the other, in the order they were pushed here.
        `headers`: free metadata, which pullers can select by.
        `ttl`: after that many seconds the job is given up, counted and reported, unless a handler has begun with it.
        `priority`: 0 to 9, higher ones first; waiting for Config.priority_ageing_s counts as one more.
        `delay`, `not_before`: nobody gets it for that many seconds, or before that time.
        `dedupe_id`: within the queue's `dedupe_window_s` another job with the same id is not pushed again; the
        number returned is the first one's.

        Raises EncodeFailed for a value that cannot travel or does not fit the queue's type, LimitExceeded for one
        that is too large, WindowFull if the queue is full, NodeClosed.
        """
        if self._closed or self._dispatcher.full or self._driver.open_state != "open":
            self._check_first()
        plain = key is None and headers is None and ttl is None and priority == PRIORITY_DEFAULT
        if not (plain and delay == 0.0 and not_before is None and dedupe_id is None):
            return self._push_special(value, key, headers, ttl, priority, delay, not_before, dedupe_id)
        jobs = self._open
        buffer, count = jobs.buffer, jobs.count
        length = len(buffer)
        self._encode_into(value, buffer)
        if self._codec.buffers or len(buffer) - length > self._batch_bytes:
            return self._push_large(length)
        jobs.count = count + 1
        if not count:
            jobs.begun()
        number = self._dispatcher.next_id + count
        if len(buffer) >= self._batch_bytes or jobs.count >= self._config.batch_messages_max:
            jobs.seal()
        return number

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
        """Push one job and return its number; waits while the queue is full. Options as of `push_nowait`."""
        while self._dispatcher.full:
            await self._room()
        number = self.push_nowait(
            value,
            key=key,
            headers=headers,
            ttl=ttl,
            priority=priority,
            delay=delay,
            not_before=not_before,
            dedupe_id=dedupe_id,
        )
        if not self._open.count:
            await self._breathe()
        return number

    async def push_many(self, values: Iterable[Any]) -> int:
        """Push many jobs, faster than one by one, and return the last one's number (-1 if none)."""
        number = -1
        jobs, rest = self._open, iter(values)
        while chunk := list(islice(rest, self._chunks.size)):
            while self._dispatcher.full:
                await self._room()
            self._check_first()
            if self._push_chunk(chunk):
                number = self._dispatcher.next_id + jobs.count - 1
                if len(jobs.buffer) >= self._batch_bytes:
                    jobs.seal()
            else:
                for value in chunk:
                    number = await self.push(value)
            if not jobs.count:
                await self._breathe()
        return number

    def _push_chunk(self, chunk: list[Any]) -> bool:
        """Push values that can be encoded in one call; False if they must go one by one."""
        jobs = self._open
        if jobs.count + len(chunk) > self._config.batch_messages_max:
            jobs.seal()
        if not self._chunks.encode(chunk, jobs.buffer):
            return False
        if not jobs.count:
            jobs.begun()
        jobs.count += len(chunk)
        return True

    def finished(self, number: int) -> bool:
        """Whether the job of that number is done, dead, expired or lost."""
        return self._dispatcher.is_finished(number)

    async def flush(self) -> None:
        """Return once every job pushed to this queue so far is done, dead or expired, whoever did it.

        Raises DeliveryFailed if the node closes before that.
        """
        self._driver.check_open()
        self._open.seal()
        dispatcher, before = self._dispatcher, self._dispatcher.next_id
        try:
            await self._driver.wait_until(lambda: dispatcher.floor >= before, None)
        except NodeClosed:
            if dispatcher.floor < before:
                failure = "this node", dispatcher.floor, before - 1, "it closed"
                raise DeliveryFailed(self.queue, (failure,)) from None

    async def _breathe(self) -> None:
        """Let the node's own work go on, once there is a long lease for each worker: small ones cost them much more."""
        self._unpaused += 1
        if self._unpaused >= min(self.workers, BLOCKS_PER_TURN_MAX):
            self._unpaused = 0
            await asyncio.sleep(0)

    async def _room(self) -> None:
        self._driver.check_open()
        self._open.seal()
        await self._driver.wait_until(lambda: not self._dispatcher.full, None)

    async def close(self) -> None:
        """Push no more. The jobs stay with the node until they are done."""
        if not self._closed:
            self._closed = True
            self._open.seal()
            self._release(self.queue)

    # -- the less common ways ------------------------------------------------------------------

    def _check_first(self) -> None:
        self._driver.check_open()
        if self._closed:
            raise NodeClosed(f"the pusher of {self.queue!r} is closed")
        if self._dispatcher.full:
            raise WindowFull(self.queue, self._dispatcher.nbytes, self._dispatcher.policy.queue_bytes)

    def _encode_into(self, value: Any, buffer: bytearray) -> None:
        codec, length = self._codec, len(buffer)
        codec.buffers = []
        kind = value.__class__
        try:
            if codec.encode_plain is None or kind in SPECIAL_TYPES:
                codec.encode_into(value, buffer)
            else:
                codec.encode_plain(value, buffer, -1)
        except EncodeFailed as error:
            raise EncodeFailed(self.queue, error.reason) from error.__cause__
        except BaseException as error:  # noqa: BLE001 - raised again there
            codec.fail(error, buffer, length, 0, self.queue)

    def _push_large(self, length: int) -> int:
        """A value that was just appended to the open jobs travels alone."""
        jobs = self._open
        value = jobs.buffer[length:]
        del jobs.buffer[length:]
        jobs.seal()
        buffers = self._take_buffers(value)
        driver = self._driver
        driver.schedule_pump()
        body = _HEAD.pack(0xDD, 1) + value
        return self._dispatcher.push_block(1, body, int(driver.utc() * 1e9), driver.loop.time(), buffers)

    def _take_buffers(self, value: bytearray) -> list[bytes]:
        buffers, self._codec.buffers = self._codec.buffers, []
        size = len(value) + sum(map(len, buffers))
        if size > self._config.frame_bytes_max // 2:
            raise LimitExceeded("frame_bytes_max", 2 * size, self._config.frame_bytes_max)
        return [buffer if isinstance(buffer, bytes) else bytes(buffer) for buffer in buffers]

    def _push_special(
        self,
        value: Any,
        key: Any,
        headers: dict[str, Any] | None,
        ttl: float | None,
        priority: int,
        delay: float,
        not_before: datetime | None,
        dedupe_id: str | None,
    ) -> int:
        driver = self._driver
        delay = check_options(driver, priority, delay, not_before, dedupe_id)
        try:
            key, headers, ttl_ms, nbytes = plain_metadata(key, headers, ttl)
        except EncodeFailed as error:
            raise EncodeFailed(self.queue, error.reason) from error.__cause__
        buffer = bytearray()
        self._encode_into(value, buffer)
        buffers = self._take_buffers(buffer)
        self._open.seal()
        driver.schedule_pump()
        return self._dispatcher.push(
            buffer,
            int(driver.utc() * 1e9),
            driver.loop.time(),
            key=key,
            headers=headers,
            priority=priority,
            ttl_s=inf if ttl_ms is None else ttl_ms / 1000,
            delay_s=delay,
            dedupe_id=dedupe_id,
            buffers=buffers,
            nbytes=nbytes,
        )


def check_options(
    driver: Driver, priority: int, delay: float, not_before: datetime | None, dedupe_id: str | None
) -> float:
    """The delay of a job in seconds. Raises ValueError and TypeError for options that make no sense."""
    delay = real("delay", delay)
    if dedupe_id is not None:
        text("dedupe_id", dedupe_id, inf)
    if priority.__class__ is not int or not 0 <= priority < PRIORITIES:
        raise ValueError(f"priority must be 0 to {PRIORITIES - 1}, not {priority!r}")
    if not_before is not None:
        if not isinstance(not_before, datetime):
            raise TypeError(f"not_before must be a datetime, not {not_before!r}")
        delay = max(delay, not_before.astimezone().timestamp() - driver.utc())
    if delay > SECONDS_MAX:
        raise ValueError(f"delay must be at most {SECONDS_MAX:.0f} seconds, not {delay!r}")
    return delay
