"""One durable queue of a store: its dispatcher, what the ledger says of its jobs, and what is to be written next."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from hashlib import blake2b
from math import inf
from typing import Any

from zfabric.config import Config
from zfabric.protocol.dispatcher import Change
from zfabric.protocol.durable import DurableDispatcher
from zfabric.protocol.jobs import PRIORITIES, PRIORITY_DEFAULT, Job, JobState, QueuePolicy, Unreadable
from zfabric.protocol.queues import DEAD_PREFIX, dead_headers
from zfabric.protocol.workers import WorkerKey
from zfabric.store.bodies import Bodies
from zfabric.store.keeper import append_of
from zfabric.store.ledger import PREFIX, Ledger
from zfabric.store.log import Append, Commit, Log
from zfabric.wire.batch import FLAG_DURABLE, FLAG_RELIABLE, Batch, BatchWriter, Buffer, plain_metadata
from zfabric.wire.durable_records import DEDUPE, DELAY, PRIORITY, stream_of
from zfabric.wire.queue_records import JobsDone

__all__ = ["DurableQueue"]

logger = logging.getLogger("zfabric.store")

DELAY_S_MAX = 1e9


class DurableQueue:
    """Jobs come in with `take`, in the order of the stream; `commit` is what the log must be told."""

    def __init__(
        self,
        queue: str,
        log: Log,
        config: Config,
        parse: Callable[[Sequence[Buffer]], Batch],
        changed: Callable[[DurableQueue], None],
        read: Callable[[DurableQueue, int], None],
    ) -> None:
        """`changed` hears when there is something to commit, `read` which job `bodies` needs."""
        self.queue = queue
        self.stream = stream_of(queue)
        self.ledger = Ledger(queue, log.positions(PREFIX + queue))
        self.bodies = Bodies(config.store_jobs_cache_bytes, parse, lambda number: read(self, number))
        self.dispatcher = DurableDispatcher(queue, config, self.bodies, self._journaled)
        self.dispatcher.policy = QueuePolicy(max_attempts=0) if self.is_grave else self.ledger.policy
        info = log.info(self.stream)
        self.loaded = 0 if info is None else info.first
        "The dispatcher knows all jobs before this one."
        self.end = 0 if info is None else info.next
        "So far the stream goes."
        self.floor = self.ledger.floor
        "All jobs before this one are settled, and the log knows it."
        self.trimmed = self.loaded
        self._committing = self.floor
        self.dispatcher.skip(self.loaded)
        if self.floor < self.loaded:
            self.ledger.settle(self.floor, self.loaded)
        self._config = config
        self._parse = parse
        self._changed = changed
        self._producer = blake2b(f"dead letters of {queue}".encode(), digest_size=16).digest()
        mark = log.mark(self._producer, stream_of(DEAD_PREFIX + queue)) if not self.is_grave else None
        self._dead_epoch, self._dead_next = (1, 0) if mark is None else (mark.epoch, mark.next)
        self._dead: list[tuple[Job, str]] = []
        "Jobs whose dead letters are not written."
        self._burying: list[tuple[Job, str]] = []
        self._acks: list[tuple[WorkerKey, JobsDone]] = []
        self._acking: list[tuple[WorkerKey, JobsDone]] = []

    def __repr__(self) -> str:
        return f"<DurableQueue {self.queue} loaded={self.loaded} of {self.end}>"

    @property
    def is_grave(self) -> bool:
        """Whether it is a queue of dead letters."""
        return self.queue.startswith(DEAD_PREFIX)

    @property
    def full(self) -> bool:
        """Whether the index takes no more jobs just now."""
        return self.dispatcher.singles >= self._config.store_jobs_max

    # -- jobs in -------------------------------------------------------------------------------

    def take(self, offset: int, batch: Batch, stored_at: float) -> None:
        """The next batch of the stream, stored at this time of the dispatcher's clock."""
        meta, start, end = batch.meta, max(offset, self.loaded), offset + batch.count
        special = set(self.ledger.attempts(start, end))
        if meta is not None:
            special.update(offset + place for column in (meta.keys, meta.headers, meta.ttl_ms) for place in column)
        for number in sorted(special):
            if start <= number < end:
                self._take_plain(start, number, batch, stored_at)
                self._take_special(number, number - offset, batch, stored_at)
                start = number + 1
        self._take_plain(start, end, batch, stored_at)
        self.loaded = end
        self.end = max(self.end, end)

    def _take_plain(self, start: int, stop: int, batch: Batch, stored_at: float) -> None:
        each = batch.nbytes // batch.count
        for first, last in self.ledger.open(start, stop):
            self.dispatcher.skip(first)
            nbytes = each * (last - first)
            self.dispatcher.add_run(last - first, nbytes, stored_at, with_buffers=bool(batch.buffers))
        self.dispatcher.skip(stop)

    def _take_special(self, number: int, place: int, batch: Batch, stored_at: float) -> None:
        meta, dispatcher = batch.meta, self.dispatcher
        headers = dict(meta.headers.get(place, {})) if meta is not None else {}
        priority, delay_s, dedupe_id = _options(headers)
        if not self.ledger.open(number, number + 1):
            dispatcher.remember(dedupe_id, stored_at)
            dispatcher.skip(number + 1)
            return
        ttl_ms = None if meta is None else meta.ttl_ms.get(place)
        is_new = dispatcher.add(
            batch.nbytes // batch.count,
            batch.published_ns,
            stored_at,
            attempts=self.ledger.attempts(number, number + 1).get(number, 0),
            delay_s=delay_s,
            dedupe_id=dedupe_id,
            key=None if meta is None else meta.keys.get(place),
            headers=headers or None,
            priority=priority,
            expires_at=inf if ttl_ms is None else stored_at + ttl_ms / 1000,
            with_buffers=bool(batch.buffers),
        )
        if not is_new:
            self.ledger.settle(number, number + 1)
            self._changed(self)

    def pass_over(self, start: int, stop: int, reason: str) -> None:
        """These jobs cannot be read."""
        lost = sum(last - first for first, last in self.ledger.open(max(start, self.loaded), stop))
        if lost:
            logger.error("%d jobs of the durable queue %r are lost: %s", lost, self.queue, reason)
            self.ledger.settle(start, stop)
            self._changed(self)
        self.dispatcher.skip(stop)
        self.loaded = stop

    def tidy(self, now: float) -> None:
        """Dead letters beyond `Config.dead_bytes` go, the oldest first."""
        while self.is_grave and self.dispatcher.nbytes > self._config.dead_bytes:
            if self.dispatcher.drop_oldest(now) is None:
                return

    def keep(self, policy: QueuePolicy) -> None:
        """How jobs are treated from now on."""
        if policy != self.ledger.policy and not self.is_grave:
            self.dispatcher.policy = policy
            self.ledger.set_policy(policy)
            self._changed(self)

    # -- what the log must be told -------------------------------------------------------------

    def _journaled(self, changes: Sequence[Change], dead: list[tuple[Job, str]]) -> None:
        buried = {job.id for job, _ in dead} if not self.is_grave else set[int]()
        for start, stop, state, attempts in changes:
            if state is JobState.WAITING:
                if attempts:
                    self.ledger.failed(start, attempts)
            elif state is not JobState.LEASED and start not in buried:
                self.ledger.settle(start, stop)
        if not self.is_grave:
            self._dead += dead
        self._acks += self.dispatcher.acks
        self.dispatcher.acks.clear()
        if self.ledger.dirty or self._dead or self._acks:
            self._changed(self)

    def is_due(self, *, with_dead: bool) -> bool:
        """Whether there is something to commit. Jobs that are dead are once they are read; it begins with that."""
        if self.ledger.dirty or self._acks:
            return True
        return with_dead and bool(self._dead) and self._readable_dead() > 0

    def _readable_dead(self) -> int:
        """How many of the jobs that are dead are at hand."""
        at_hand = self.bodies.at_hand
        return next((place for place, (job, _) in enumerate(self._dead) if not at_hand(job.id, 1)), len(self._dead))

    def commit(self, *, with_dead: bool) -> Commit:
        """All that has happened since the last one; then call `committed` or `refused`. One at a time."""
        self._acking, self._acks = self._acks, []
        appends: list[Append] = []
        if with_dead:
            count = self._readable_dead()
            self._burying, self._dead = self._dead[:count], self._dead[count:]
            appends = self._letters()
            for job, _ in self._burying:
                self.ledger.settle(job.id, job.id + 1)
        self._committing = self.ledger.floor
        return Commit(appends, self.ledger.take_updates())

    def committed(self) -> list[tuple[WorkerKey, JobsDone]]:
        """It is safe; returns whose acks it had."""
        self.floor = self._committing
        self.ledger.written(self.floor)
        self._burying.clear()
        acks, self._acking = self._acking, []
        return acks

    def refused(self, appends: Sequence[Append]) -> None:
        """Nothing of it is there."""
        for job, _ in self._burying:
            self.ledger.unsettle(job.id)
        self._dead = self._burying + self._dead
        self._burying = []
        self._acks = self._acking + self._acks
        self._acking = []
        self._dead_next -= sum(append.count for append in appends)
        self.ledger.refused()

    def _letters(self) -> list[Append]:
        """Dead letters, as batches of their stream."""
        writer = BatchWriter(stream_of(DEAD_PREFIX + self.queue), self._producer, self._dead_epoch)
        appends: list[Append] = []
        for job, reason in self._burying:
            try:
                value, buffers = job.value, job.buffers
            except Unreadable as lost:
                logger.error("job %d of %r is dead, and cannot be read: %s", job.id, self.queue, lost)
                continue
            if buffers:
                self._seal(writer, appends)
            headers = dead_headers(self.queue, job, reason)
            if job.priority != PRIORITY_DEFAULT:
                headers[PRIORITY] = job.priority
            writer.annotate(*plain_metadata(job.key, headers, None))
            writer.buffer += value
            writer.buffers += buffers
            writer.count += 1
            if buffers or writer.body_bytes >= self._config.batch_bytes:
                self._seal(writer, appends)
        self._seal(writer, appends)
        return appends

    def _seal(self, writer: BatchWriter, appends: list[Append]) -> None:
        count = writer.count
        if count:
            published_ns = self._burying[0][0].pushed_ns
            frames = writer.seal(self._dead_next, published_ns, FLAG_RELIABLE | FLAG_DURABLE)
            self._dead_next += count
            appends.append(append_of(self._parse(frames)))


def _options(headers: dict[str, Any]) -> tuple[int, float, str | None]:
    """Priority, delay and dedupe id of a job, which are taken out of its headers; nonsense is as good as nothing."""
    priority, delay_ms, dedupe_id = headers.pop(PRIORITY, None), headers.pop(DELAY, None), headers.pop(DEDUPE, None)
    if priority.__class__ is not int or not 0 <= priority < PRIORITIES:
        priority = PRIORITY_DEFAULT
    if delay_ms.__class__ is not int or not 0 <= delay_ms <= DELAY_S_MAX * 1000:
        delay_ms = 0
    return priority, delay_ms / 1000, dedupe_id if isinstance(dedupe_id, str) else None
