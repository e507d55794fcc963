"""The dispatcher of a queue whose jobs are on a disk: in memory it has an index of them.

Jobs come in the order of their numbers, which are offsets of a log; numbers of jobs that are settled already are
skipped. Values are read before jobs are leased, through `Bodies`; until they are there nothing is leased.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgspec

from zfabric.config import Config
from zfabric.protocol.dispatcher import Change, Dispatcher
from zfabric.protocol.jobs import Block, Job, JobState, Run, Unreadable
from zfabric.protocol.waiting import Taken
from zfabric.protocol.workers import Worker, WorkerKey
from zfabric.wire.batch import Buffer
from zfabric.wire.queue_records import JobsDone

__all__ = ["Bodies", "DurableDispatcher", "Journaled"]

RUN_JOBS_MAX = 65_536
"Plain jobs that are one entry of the index."
REREAD_S = 1.0
"Pause before a value is read again that the disk did not give."

_encode = msgspec.msgpack.Encoder().encode

Journaled = Callable[[Sequence[Change], list[tuple[Job, str]]], None]
"""Hears of all changes since the last time, and of jobs that are dead, which it buries."""


class Bodies(Protocol):
    """Where the values of jobs are. All methods but `at_hand` raise Unreadable."""

    def at_hand(self, start: int, count: int) -> int:
        """How many jobs from `start` on, `count` at most, need not be read; if none, reading begins.

        `DurableDispatcher.changed` is set when something was read.
        Those that cannot be read are at hand: taking their values raises Unreadable.
        """

    def array(self, start: int, stop: int) -> tuple[Buffer, int]:
        """The values of these jobs as a MessagePack array, and when the first was pushed."""

    def value(self, number: int) -> Buffer:
        """The value of one job, encoded."""

    def buffers(self, number: int) -> Sequence[Buffer]:
        """What travels beside the value of a job that is alone in its batch."""


class _Block(Block):
    """Jobs that follow each other, and whose values are read when they are needed."""

    __slots__ = ("_bodies", "_with_buffers")

    def __init__(self, bodies: Bodies, base: int, count: int, nbytes: int, *, with_buffers: bool) -> None:
        super().__init__(base, count, b"", 0)
        self.nbytes = nbytes
        self._bodies = bodies
        self._with_buffers = with_buffers

    def part(self, start: int, stop: int) -> Buffer:
        """See Block. Notes what else the lease tells of these jobs."""
        body, self.pushed_ns = self._bodies.array(self.base + start, self.base + stop)
        self.buffers = self._bodies.buffers(self.base) if self._with_buffers else ()
        return body

    def job(self, position: int, ready_at: float) -> Job:
        """See Block."""
        each, number = self.nbytes // self.count, self.base + position
        return StoredJob(self._bodies, number, each, self.pushed_ns, ready_at, with_buffers=self._with_buffers)


class StoredJob(Job):
    """A job whose value is read when it is needed."""

    __slots__ = ("_bodies", "_with_buffers")

    def __init__(
        self,
        bodies: Bodies,
        number: int,
        nbytes: int,
        pushed_ns: int,
        ready_at: float,
        *,
        with_buffers: bool = False,
        **options: Any,
    ) -> None:
        self._bodies = bodies
        self._with_buffers = with_buffers
        super().__init__(number, b"", pushed_ns, ready_at, nbytes=nbytes, **options)

    @property
    def value(self) -> Buffer:
        """Its value, encoded."""
        return self._bodies.value(self.id)

    @value.setter
    def value(self, _value: Buffer) -> None: ...

    @property
    def buffers(self) -> Sequence[Buffer]:
        """What travels beside it; nothing if that cannot be read, and then its value cannot be read either."""
        try:
            return self._bodies.buffers(self.id) if self._with_buffers else ()
        except Unreadable:
            return ()

    @buffers.setter
    def buffers(self, _buffers: Sequence[Buffer]) -> None: ...

    @property
    def alone(self) -> bool:
        """See Job."""
        return self._with_buffers


class DurableDispatcher(Dispatcher):
    """One queue of one store."""

    durable = True

    def __init__(self, queue: str, config: Config, bodies: Bodies, journaled: Journaled) -> None:
        super().__init__(queue, config)
        self.journal = True
        self.journaled = journaled
        self.singles = 0
        "Jobs that are not settled and have an entry of their own."
        self.acks: list[tuple[WorkerKey, JobsDone]] = []
        "What workers say is done, in order; the store answers when that is on its disk."
        self._bodies = bodies
        self._last: Run | None = None
        "The run at the end of the queue."

    # -- jobs in -------------------------------------------------------------------------------

    def skip(self, to: int) -> None:
        """The next numbers, those before `to`, are those of jobs that are settled."""
        start, self.next_id = self.next_id, to
        if start < to:
            self._last = None
            self.journal = False  # whoever writes it down knows
            self._finish(start, to, JobState.DONE)
            self.journal = True

    def add_run(self, count: int, nbytes: int, since: float, *, with_buffers: bool) -> None:
        """The next jobs are in no way special; with buffers it is one."""
        self.changed = True
        run = self._last
        if run is None or not run.ready or run.block.count + count > RUN_JOBS_MAX or with_buffers:
            block = _Block(self._bodies, self.next_id, count, nbytes, with_buffers=with_buffers)
            run = Run(block, 0, count, since)
            self._last = None if with_buffers else run
            self._waiting.add_run(run)
        else:
            run.block.count += count
            run.block.left += count
            run.block.nbytes += nbytes
            run.stop += count
            self._waiting.ready += count
        self.next_id += count
        self.nbytes += nbytes
        self.counters.pushed += count

    def add(
        self,
        nbytes: int,
        pushed_ns: int,
        since: float,
        *,
        attempts: int = 0,
        delay_s: float = 0.0,
        dedupe_id: str | None = None,
        **options: Any,
    ) -> bool:
        """The next job is special; options as of `Job`. False if it is another job again, by its dedupe id."""
        if not self.remember(dedupe_id, since):
            self.counters.deduplicated += 1
            self.skip(self.next_id + 1)
            return False
        self.changed = True
        self._last = None
        job = StoredJob(self._bodies, self.next_id, nbytes, pushed_ns, since, **options)
        job.attempts = attempts
        job.group = None if job.key is None else _encode(job.key)
        self.next_id += 1
        self.nbytes += job.nbytes
        self.singles += 1
        self.counters.pushed += 1
        self._waiting.add(job, delay_s, since)
        return True

    def remember(self, dedupe_id: str | None, since: float) -> bool:
        """The next number is that of the job with this dedupe id, unless there was one already."""
        if dedupe_id is None:
            return True
        known = self._dedupe.get(dedupe_id)
        if known is not None and known[1] > since:
            return False
        self._remember(dedupe_id, since)
        return True

    def oldest_dedupe_id(self, now: float) -> int:
        """The number of the oldest job whose dedupe id is in force; the next number if there is none."""
        known = self._dedupe
        while known:
            number, until = next(iter(known.values()))
            if until > now:
                return number
            del known[next(iter(known))]
        return self.next_id

    def done(self, key: WorkerKey, record: JobsDone, now: float) -> None:
        """See Dispatcher."""
        super().done(key, record, now)
        self.acks.append((key, record))

    # -- entries of their own ------------------------------------------------------------------

    def _detach(self, block: Block, position: int, now: float) -> Job:
        self.singles += 1
        return super()._detach(block, position, now)

    def _end_job(self, job: Job, state: JobState, now: float) -> None:
        self.singles -= 1
        super()._end_job(job, state, now)

    # -- what must be read, or cannot be -------------------------------------------------------

    def _next_for(self, worker: Worker, share: int, now: float) -> Taken | None:
        head = worker.line.head()
        if isinstance(head, Run):
            share = self._bodies.at_hand(head.block.base + head.start, min(share, head.stop - head.start))
        taken = super()._next_for(worker, share, now) if share else None
        if taken is None or taken[0] is not None:
            return taken
        jobs = taken[2]
        missing = next((place for place, job in enumerate(jobs) if not self._bodies.at_hand(job.id, 1)), len(jobs))
        for job in reversed(jobs[missing:]):
            self._waiting.again(job, 0.0, now)
        return (None, 0, jobs[:missing], missing) if missing else None

    def _lease(self, worker: Worker, taken: Taken, now: float) -> None:
        try:
            super()._lease(worker, taken, now)
        except Unreadable as lost:
            self._lose(taken, lost, now)

    def _lose(self, taken: Taken, lost: Unreadable, now: float) -> None:
        """Some of these jobs are dead, and the others wait again."""
        block, position, jobs, count = taken
        if not lost.lost:
            if block is not None:
                jobs = [self._detach(block, place, now) for place in range(position, position + count)]
            for job in reversed(jobs):
                self._waiting.again(job, REREAD_S, now)
            return
        if block is None:
            for job in reversed(jobs):
                if lost.start <= job.id < lost.stop:
                    self.counters.dead += 1
                    self._end_job(job, JobState.DEAD, now)
                else:
                    self._waiting.again(job, 0.0, now)
            return
        start, stop = block.base + position, block.base + position + count
        first, last = max(start, lost.start), min(stop, lost.stop)
        self.counters.dead += last - first
        self._keep_less(block, last - first)
        self._finish(first, last, JobState.DEAD)
        for left, right in ((last, stop), (start, first)):
            if left < right:
                self._waiting.add_run(Run(block, left - block.base, right - block.base, now), first=True)
