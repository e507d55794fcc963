"""The schedules of a running store: declared by peers, written to the log, and their jobs pushed when it is time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from hashlib import blake2b
from math import inf

import msgspec

from zfabric.errors import FabricError, LimitExceeded, NotStored, StoreFailed
from zfabric.protocol.jobs import PRIORITY_DEFAULT
from zfabric.protocol.peers import PeerRecord
from zfabric.store.context import Context
from zfabric.store.keeper import append_of
from zfabric.store.log import Append, Commit, PositionUpdate
from zfabric.store.schedules import Due, Schedules
from zfabric.wire.batch import FLAG_DURABLE, FLAG_RELIABLE, BatchWriter
from zfabric.wire.durable_records import PRIORITY, SCHEDULES, ScheduleState, stream_of
from zfabric.wire.store_records import NamedPosition, Write
from zfabric.wire.topics import check_topic

__all__ = ["ScheduleHost"]

logger = logging.getLogger("zfabric.store")

LOOK_S = 5.0
"How often the clock is looked at, at least: it may have been set."
RETRY_S = 0.5
"Pause before what could not be written is tried again."


class ScheduleHost:
    """All schedules of one store."""

    def __init__(self, context: Context, refusal: Callable[[str], str]) -> None:
        """`refusal` tells why a queue cannot be kept."""
        self._context = context
        self._driver = context.driver
        self._writer = context.writer
        self._refusal = refusal
        self._schedules = Schedules(context.log.positions(SCHEDULES), context.config, context.driver.utc())
        self._turn = asyncio.Lock()
        "Held while something is decided and written."
        self._changed = asyncio.Event()

    # -- what peers say ------------------------------------------------------------------------

    async def write(self, peer: PeerRecord, record: Write) -> None:
        """Declare a schedule or remove it. Raises ValueError, NotStored, LimitExceeded, StoreFailed."""
        if record.batches or len(record.positions) != 1:
            raise NotStored("a schedule is written alone")
        (position,) = record.positions
        name = position.name.removeprefix(SCHEDULES)
        async with self._turn:
            known = self._schedules.get(name)
            if known is not None:
                self._check(peer, known.declaration.queue)
            if position.value is None:
                if known is not None:
                    await self._writer.commit(Commit(positions=[PositionUpdate(position.name, None)]))
                    self._schedules.put(name, None)
                return
            declared = self._schedules.declare(name, position.value, self._driver.utc())
            if declared is not None:
                queue = check_topic(declared.state.declaration.queue)
                self._check(peer, queue)
                if refusal := self._refusal(queue):
                    raise NotStored(refusal, queue)
                await self._writer.commit(Commit(positions=[declared.update]))
                self._schedules.put(name, declared.state)
        self._changed.set()

    def _check(self, peer: PeerRecord, queue: str) -> None:
        if not self._driver.core.gate.may(peer, "push", queue):
            raise NotStored(f"{peer.user!r} may not push it", queue)

    def shows(self, peer: PeerRecord, position: NamedPosition) -> bool:
        """Whether a peer may see a position: schedules are for those who may push to their queues."""
        if not position.name.startswith(SCHEDULES) or position.value is None:
            return True
        state = msgspec.msgpack.decode(position.value, type=ScheduleState)
        return self._driver.core.gate.allows(peer, "push", state.declaration.queue)

    # -- jobs ----------------------------------------------------------------------------------

    async def work(self) -> None:
        """Push jobs when it is time, for ever."""
        while True:
            self._changed.clear()
            async with self._turn:
                due = list(self._schedules.due(self._driver.utc()))
                outcomes = await asyncio.gather(*map(self._push, due), return_exceptions=True)
            failures = [each for each in outcomes if each is not None]
            pause: float | None = RETRY_S
            for failure in failures:
                if isinstance(failure, StoreFailed):
                    return  # the store ends
                if not isinstance(failure, FabricError):
                    raise failure
                if not isinstance(failure, NotStored | LimitExceeded):
                    logger.error("a schedule cannot make its job, and tries again: %s", failure)
                    pause = LOOK_S
            if not failures:
                pause = min(self._schedules.next - self._driver.utc(), LOOK_S)
                pause = None if self._schedules.next == inf else max(pause, 0.001)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), pause)

    async def _push(self, due: Due) -> None:
        appends = [] if due.tick is None else [await self._job(due, due.tick)]
        for append, appended in zip(appends, await self._writer.commit(Commit(appends, [due.update])), strict=True):
            self._context.stored(append, appended)
        self._schedules.done(due)

    async def _job(self, due: Due, tick: int) -> Append:
        """The job of a tick, as a batch of its queue's stream."""
        job = due.state.declaration
        stream = stream_of(job.queue)
        producer = blake2b(f"schedule {due.name}".encode(), digest_size=16).digest()
        mark = await self._context.run(self._context.log.mark, producer, stream)
        epoch, base = (1, 0) if mark is None else (mark.epoch, mark.next)
        writer = BatchWriter(stream, producer, epoch)
        headers = {**(job.headers or {}), "schedule": due.name, "tick": tick}
        if job.priority != PRIORITY_DEFAULT:
            headers[PRIORITY] = job.priority
        writer.annotate(job.key, headers, job.ttl_ms)
        writer.buffer += job.value
        writer.count = 1
        now_ns = int(self._driver.utc() * 1e9)
        return append_of(self._context.parse(writer.seal(base, now_ns, FLAG_RELIABLE | FLAG_DURABLE)))
