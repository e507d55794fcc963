"""The durable queues of a running store: joins them to the node's own queues, and to the log."""

from __future__ import annotations

import asyncio
import logging

from zfabric.errors import FabricError, LimitExceeded, NotStored, StoreFailed
from zfabric.protocol.jobs import QueuePolicy
from zfabric.protocol.peers import PeerRecord
from zfabric.store.context import Context
from zfabric.store.log import Append, Appended, Commit, Gap
from zfabric.store.queue import DurableQueue
from zfabric.wire.batch import Batch
from zfabric.wire.durable_records import KeepQueue, queue_of

__all__ = ["QueueHost"]

logger = logging.getLogger("zfabric.store")

READ_BYTES = 1024 * 1024
RETRY_S = 0.5
"Pause before what could not be written or read is tried again."


class QueueHost:
    """All durable queues of one store."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._driver = context.driver
        self._log = context.log
        self._queues: dict[str, DurableQueue] = {}
        self._loading: dict[str, asyncio.Task[None]] = {}
        self._reading: set[asyncio.Task[None]] = set()
        self._committing: set[str] = set()
        self._full: set[str] = set()
        "Queues whose last commit was refused: dead letters wait."
        self._closed = False
        self._unreadable: dict[str, str] = {}
        "Queues that could not be opened, and why."
        for info in self._log.streams():
            queue = queue_of(info.name)
            if queue is not None and self.refusal(queue) == "":
                self._advance(self._open(queue))

    def _open(self, queue: str) -> DurableQueue:
        """Raises StoreDamaged when the log cannot tell what became of its jobs."""
        context = self._context
        opened = DurableQueue(queue, context.log, context.config, context.parse, self._changed, self._read)
        self._queues[queue] = opened
        self._driver.core.queues.add(opened.dispatcher)
        self._driver.schedule_pump()
        return opened

    def _opened(self, queue: str) -> DurableQueue | None:
        """The queue, if it can be kept here."""
        known = self._queues.get(queue)
        if known is not None or self.refusal(queue):
            return known
        try:
            return self._open(queue)
        except FabricError as error:
            logger.error("the queue %r cannot be opened: %s", queue, error)
            self._unreadable[queue] = str(error)
            return None

    async def close(self) -> None:
        """Read and write nothing any more."""
        self._closed = True
        tasks = [*self._loading.values(), *self._reading]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- what peers say ------------------------------------------------------------------------

    def refusal(self, queue: str, batch: Batch | None = None) -> str:
        """Why jobs of a queue cannot be kept here; empty if they can."""
        if batch is not None and batch.buffers and batch.count > 1:
            return "a job with values beside its body must be alone in its batch"
        if queue in self._queues:
            return ""
        if queue in self._unreadable:
            return self._unreadable[queue]
        known = self._driver.core.queues.dispatchers
        if queue in known:
            return f"the store's own node pushes to the queue {queue!r} without durable=True"
        if len(known) + 1 > self._context.config.queues_max:
            return "the store has as many queues as Config.queues_max allows"
        return ""

    def keep(self, peer: PeerRecord, record: KeepQueue, now: float) -> None:
        """A pusher says how the jobs of a queue are treated."""
        queue = self._opened(record.queue)
        if queue is None:
            return  # its writes will be refused, and say why
        backoff_s, backoff_s_max, window_s = (
            milliseconds / 1000 for milliseconds in (record.backoff_ms, record.backoff_ms_max, record.dedupe_window_ms)
        )
        queue.keep(QueuePolicy(record.max_attempts, backoff_s, backoff_s_max, window_s))

    # -- jobs in -------------------------------------------------------------------------------

    def appended(self, append: Append, appended: Appended) -> None:
        """Something is safe: perhaps jobs."""
        name = queue_of(append.stream)
        if name is None or appended.offset is None or self._closed:
            return
        queue = self._opened(name)
        if queue is None:
            logger.error("nobody gets the jobs of %r: %s", name, self.refusal(name))
            return
        if name in self._loading or appended.offset != queue.loaded or queue.full:
            queue.end = max(queue.end, appended.offset + append.count)
            self._advance(queue)
            return
        batch = self._context.parse(append.frames)
        queue.bodies.keep(appended.offset, batch)
        self._take(queue, appended.offset, batch, self._driver.loop.time())

    def _take(self, queue: DurableQueue, offset: int, batch: Batch, stored_at: float) -> None:
        queue.take(offset, batch, stored_at)
        queue.tidy(self._driver.loop.time())
        self._driver.schedule_pump()

    def _advance(self, queue: DurableQueue) -> None:
        """See to it that the dispatcher hears of what it does not know."""
        if queue.loaded < queue.end and not queue.full and queue.queue not in self._loading and not self._closed:
            self._loading[queue.queue] = self._driver.loop.create_task(self._load(queue))

    async def _load(self, queue: DurableQueue) -> None:
        try:
            await self._load_rest(queue)
        finally:
            del self._loading[queue.queue]  # at once: what comes from now on finds nobody who would load it

    async def _load_rest(self, queue: DurableQueue) -> None:
        """Read the stream up to its end, or until the index is full."""
        while queue.loaded < queue.end and not queue.full:
            try:
                items = await self._context.run(self._log.read, queue.stream, queue.loaded, READ_BYTES)
            except FabricError as error:
                logger.error("the queue %r cannot be read: %s", queue.queue, error)
                await asyncio.sleep(RETRY_S)
                continue
            now, now_ns = self._driver.loop.time(), self._log.now_ns()
            for item in items:
                if isinstance(item, Gap):
                    queue.pass_over(item.offset, item.next, item.reason)
                    continue
                try:
                    batch = self._context.parse(item.frames)
                except FabricError as error:
                    queue.pass_over(item.offset, item.next, str(error))
                else:
                    self._take(queue, item.offset, batch, now - max(0.0, (now_ns - item.stored_ns) / 1e9))

    def _read(self, queue: DurableQueue, number: int) -> None:
        """A job's value is needed, and those that follow will be."""
        if not self._closed:
            task = self._driver.loop.create_task(self._read_values(queue, number))
            self._reading.add(task)
            task.add_done_callback(self._reading.discard)

    async def _read_values(self, queue: DurableQueue, number: int) -> None:
        nbytes = max(1, min(READ_BYTES, self._context.config.store_jobs_cache_bytes // 2))
        try:
            items = await self._context.run(self._log.read, queue.stream, number, nbytes)
        except FabricError as error:
            queue.bodies.failed(number, str(error))
        else:
            queue.bodies.arrived(number, items)
        queue.dispatcher.changed = True
        self._driver.schedule_pump()
        self._changed(queue)

    # -- what became of jobs -------------------------------------------------------------------

    def _changed(self, queue: DurableQueue) -> None:
        """Write what has happened, together with whatever else happens meanwhile."""
        if queue.queue not in self._loading:
            self._advance(queue)
        with_dead = queue.queue not in self._full
        if queue.queue in self._committing or self._closed or not queue.is_due(with_dead=with_dead):
            return
        self._committing.add(queue.queue)
        commit = queue.commit(with_dead=with_dead)
        try:
            future = self._context.writer.commit(commit)
        except (LimitExceeded, StoreFailed) as error:
            self._refused(queue, commit, error)
            return
        future.add_done_callback(lambda done: self._committed(queue, commit, done))

    def _committed(self, queue: DurableQueue, commit: Commit, future: asyncio.Future[tuple[Appended, ...]]) -> None:
        if future.cancelled():
            return
        error = future.exception()
        if error is not None:
            self._refused(queue, commit, error)
            return
        self._committing.discard(queue.queue)
        if commit.appends:
            self._full.discard(queue.queue)
        for append, appended in zip(commit.appends, future.result(), strict=True):
            self._context.stored(append, appended)
        for key, record in queue.committed():
            self._driver.core.queues.kept(key, record.done)
            self._driver.schedule_pump()
        self._changed(queue)

    def _refused(self, queue: DurableQueue, commit: Commit, error: BaseException) -> None:
        queue.refused(commit.appends)
        if isinstance(error, StoreFailed) or self._closed:
            return  # the store ends
        if not isinstance(error, NotStored | LimitExceeded):
            raise error
        loop = self._driver.loop
        if commit.appends:
            self._full.add(queue.queue)
            loop.call_later(2 * RETRY_S, self._again, queue, self._full)
        loop.call_later(RETRY_S, self._again, queue, self._committing)

    def _again(self, queue: DurableQueue, hindered: set[str]) -> None:
        hindered.discard(queue.queue)
        self._changed(queue)

    async def trim(self) -> None:
        """Give back the room of jobs that are settled, as far as nothing stands before them."""
        now = self._driver.loop.time()
        for queue in list(self._queues.values()):
            before = min(queue.floor, queue.loaded, queue.dispatcher.oldest_dedupe_id(now))
            if before > queue.trimmed:
                queue.trimmed = before
                await self._context.run(self._log.trim, queue.stream, before)
