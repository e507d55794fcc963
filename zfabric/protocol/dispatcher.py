"""The dispatcher: the jobs of one queue, and who has which of them.

Jobs come in, leases go out; a lease ends with the job done, with its return, or with the loss of its worker, and only
who has the lease can end it. Many jobs that are alike cost as much as one: they are pushed as a block, leased as runs
of positions in it, and acknowledged as ranges.

It knows no node, socket or disk. `take_told` gives what is to be said to whom, `take_changes` what a journal would
note, `take_dead` the jobs that are hopeless.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from math import inf
from typing import Any

import msgspec

from zfabric.config import Config
from zfabric.protocol.jobs import (
    PRIORITY_DEFAULT,
    Block,
    Counters,
    Job,
    JobState,
    Lease,
    QueuePolicy,
    Run,
    lease_record,
)
from zfabric.protocol.waiting import Taken, Waiting
from zfabric.protocol.workers import Worker, WorkerKey, Workers
from zfabric.wire.batch import Buffer
from zfabric.wire.queue_records import (
    AckRefused,
    Backlog,
    Credit,
    CreditReturned,
    JobsDone,
    JobsUndone,
    Pull,
    QueueRecord,
    Recall,
)
from zfabric.wire.ranges import RangeSet
from zfabric.wire.selectors import Selector

__all__ = ["Change", "Dispatcher"]

RECORD_BYTES = 64
_encode = msgspec.msgpack.Encoder().encode

Told = tuple[WorkerKey, QueueRecord, int]
"""What to say, to whom, and about how long it is."""
Change = tuple[int, int, JobState, int]
"""(first job, the one after the last, what became of them, leases of them that failed)."""


class Dispatcher:
    """One queue of one node."""

    durable = False  # whether its jobs outlive the node

    def __init__(self, queue: str, config: Config, policy: QueuePolicy | None = None) -> None:
        self.queue = queue
        self.policy = QueuePolicy() if policy is None else policy
        self.counters = Counters()
        self.workers = Workers(config.recall_s)
        self.nbytes = 0
        "Of all jobs that are not done."
        self.next_id = 0
        self.floor = 0
        "All jobs before this one are done, or dead, or expired."
        self.journal = False
        "Whether changes are noted."
        self.changed = False
        "Whether `dispatch` may have something to do."
        self._config = config
        self._waiting = Waiting(queue, config.priority_ageing_s)
        self._finished = RangeSet()
        self._leases = 0
        self._recall_at = inf
        self._told: list[Told] = []
        self._changes: list[Change] = []
        self._dead: list[tuple[Job, str]] = []
        self._expired = 0
        self._dedupe: dict[str, tuple[int, float]] = {}

    def __repr__(self) -> str:
        return f"<Dispatcher {self.queue} depth={self.depth} leased={self.in_flight} workers={len(self.workers.all)}>"

    @property
    def depth(self) -> int:
        """Jobs that are not done, with those that workers have."""
        counters = self.counters
        return counters.pushed - counters.done - counters.dead - counters.expired

    @property
    def in_flight(self) -> int:
        """Jobs that workers have."""
        return sum(worker.held for worker in self.workers.all.values())

    @property
    def pullers(self) -> Collection[WorkerKey]:
        """Who takes jobs."""
        return self.workers.all

    @property
    def full(self) -> bool:
        """Whether pushers must wait."""
        return self.nbytes >= self.policy.queue_bytes

    def is_finished(self, job_id: int) -> bool:
        """Whether this job is done, dead or expired."""
        return job_id < self.floor or job_id in self._finished

    # -- jobs in -------------------------------------------------------------------------------

    def push_block(self, count: int, body: Buffer, pushed_ns: int, now: float, buffers: Sequence[Buffer] = ()) -> int:
        """Jobs that are in no way special. Returns the first one's number."""
        self.changed = True
        block = Block(self.next_id, count, body, pushed_ns, buffers)
        self.next_id += count
        self.nbytes += block.nbytes
        self.counters.pushed += count
        self._note(block.base, self.next_id, JobState.WAITING, 0)
        self._waiting.add_run(Run(block, 0, count, now))
        return block.base

    def push(
        self,
        value: Buffer,
        pushed_ns: int,
        now: float,
        *,
        key: Any = None,
        headers: dict[str, Any] | None = None,
        priority: int = PRIORITY_DEFAULT,
        ttl_s: float = inf,
        delay_s: float = 0.0,
        dedupe_id: str | None = None,
        buffers: Sequence[Buffer] = (),
        nbytes: int = 0,
    ) -> int:
        """One job. Returns its number, or that of the job with the same dedupe id. `nbytes` is its metadata's size."""
        self.changed = True
        if dedupe_id is not None:
            known = self._dedupe.get(dedupe_id)
            if known is not None and known[1] > now:
                self.counters.deduplicated += 1
                return known[0]
            self._remember(dedupe_id, now)
        job = Job(
            self.next_id,
            value,
            pushed_ns,
            now,
            key=key,
            headers=headers,
            priority=priority,
            expires_at=now + ttl_s,
            buffers=buffers,
            nbytes=nbytes,
        )
        job.group = None if key is None else _encode(key)
        self.next_id += 1
        self.nbytes += job.nbytes
        self.counters.pushed += 1
        self._note(job.id, job.id + 1, JobState.WAITING, 0)
        self._waiting.add(job, delay_s, now)
        return job.id

    def _remember(self, dedupe_id: str, now: float) -> None:
        known = self._dedupe
        known.pop(dedupe_id, None)
        while known and (len(known) >= self._config.dedupe_ids_max or next(iter(known.values()))[1] <= now):
            del known[next(iter(known))]
        known[dedupe_id] = self.next_id, now + self.policy.dedupe_window_s

    def drop_oldest(self, now: float) -> int | None:
        """Give up the job that waits longest; its number, or None if all are with workers."""
        taken = self._waiting.take(self._waiting.open_line(None), 1, 1, now)
        self._expire(now)
        if taken is None:
            return None
        block, start, jobs, _ = taken
        job = jobs[0] if block is None else self._detach(block, start, now)
        self.counters.expired += 1
        self._end_job(job, JobState.EXPIRED, now)
        return job.id

    # -- workers -------------------------------------------------------------------------------

    def join(self, key: WorkerKey, pull: Pull, now: float) -> None:
        """A puller wants jobs. Raises SelectorError."""
        self.changed = True
        selector = Selector(pull.selector, self._config) if pull.selector else None
        self.leave(key, "its puller began anew", now)
        line = self._waiting.open_line(selector)
        self.workers.all[key] = Worker(key, line, pull.lease_ms / 1000, pull.nbytes, now)

    def leave(self, key: WorkerKey, reason: str, now: float) -> None:
        """A puller is gone: its leases are free at once."""
        self.changed = True
        worker = self.workers.all.pop(key, None)
        if worker is not None:
            self._told = [told for told in self._told if told[0] != key]
            self._waiting.close_line(worker.line)
            self._free(worker, reason, now)

    def end(self, key: WorkerKey) -> None:
        """A puller takes no more; what it has it will settle."""
        self.changed = True
        worker = self.workers.all.get(key)
        if worker is not None:
            worker.ending = True
            self._drop_ended(worker)

    def _drop_ended(self, worker: Worker) -> None:
        if worker.ending and not worker.leases:
            del self.workers.all[worker.key]
            self._waiting.close_line(worker.line)

    def credit(self, key: WorkerKey, credit: Credit, now: float) -> None:
        """A worker wants more."""
        self.changed = True
        worker = self.workers.all.get(key)
        if worker is not None:
            worker.credit += credit.jobs
            worker.keep = credit.keep
            worker.told_backlog = False

    def credit_back(self, key: WorkerKey) -> None:
        """A worker takes no jobs for now."""
        worker = self.workers.all.get(key)
        if worker is not None:
            self._tell(key, CreditReturned(key[1], worker.credit))
            worker.credit = 0
            worker.told_backlog = False
            self.changed = True

    def renew(self, key: WorkerKey, now: float) -> None:
        """A worker's node runs."""
        worker = self.workers.all.get(key)
        if worker is not None:
            worker.renewed_at = now

    def _free(self, worker: Worker, reason: str, now: float) -> None:
        """End all leases of a worker that is lost. What it had may be what killed it: from now on it travels alone."""
        self.changed = True
        leases, worker.leases = worker.leases, {}
        worker.held = worker.held_bytes = worker.suspects = 0
        for lease in reversed(leases.values()):
            for start, stop in reversed(list(lease.left)):
                for job in self._jobs(lease, range(stop - 1, start - 1, -1), now):
                    job.suspect = True
                    self._failed(job, 0.0, reason, now)

    # -- leases out ----------------------------------------------------------------------------

    def dispatch(self, now: float, has_room: Callable[[bytes], bool]) -> None:
        """Lease what can be leased. `has_room` tells whether a node can be sent more."""
        waiting, more = self._waiting, True
        self.changed = False
        room = {key[0]: has_room(key[0]) for key in self.workers.all} if waiting.ready else {}
        while waiting.ready and more:
            more = False
            for worker, share in self.workers.shares(waiting.ready, lambda worker: room[worker.key[0]]):
                left = share
                while left > 0 and worker.has_credit and (taken := self._next_for(worker, left, now)):
                    self._lease(worker, taken, now)
                    left -= taken[3]
                    more = True
        self._expire(now)
        self._balance(now)

    def _next_for(self, worker: Worker, share: int, now: float) -> Taken | None:
        if not worker.suspects and (taken := self._waiting.take_suspect(worker.line, now)):
            return taken
        share = min(share, self._config.lease_jobs_max)
        nbytes = min(worker.bytes_max - worker.held_bytes, self._config.batch_bytes)
        return self._waiting.take(worker.line, share, nbytes, now)

    def _lease(self, worker: Worker, taken: Taken, now: float) -> None:
        block, start, jobs, count = taken
        self._leases += 1
        lease = Lease(self._leases, now, count, block=block, start=start, jobs=jobs)
        record = lease_record(worker.key[1], lease, now, durable=self.durable)
        if not worker.leases:
            worker.renewed_at = now
        worker.leases[lease.number] = lease
        worker.held += count
        lease.nbytes = len(record.body) + sum(map(len, record.buffers))
        worker.credit -= count
        worker.held_bytes += lease.nbytes
        for job in jobs:
            job.leased = True
            worker.suspects += job.suspect
            self.counters.redelivered += job.attempts > 0
            self._note(job.id, job.id + 1, JobState.LEASED, job.attempts)
        if block is not None:
            self._note(lease.first, lease.first + count, JobState.LEASED, 0)
        self._told.append((worker.key, record, lease.nbytes + RECORD_BYTES))

    def _balance(self, now: float) -> None:
        """Workers for whom nothing waits give credit back and let others share; others learn what waits."""
        idle = False
        waits: dict[int, tuple[bool, bool]] = {}
        for worker in self.workers.all.values():
            line = worker.line
            if id(line) not in waits:
                waits[id(line)] = self._waiting.has_for(line)
            any_job, any_suspect = waits[id(line)]
            if not any_job and (worker.suspects or not any_suspect):
                idle = idle or (worker.has_credit and not worker.held)
                if worker.credit > worker.keep:
                    self._tell(worker.key, CreditReturned(worker.key[1], worker.credit - worker.keep))
                    worker.credit = worker.keep
            elif worker.credit <= 0 and not worker.told_backlog and not worker.ending:
                worker.told_backlog = True
                self._tell(worker.key, Backlog(worker.key[1]))
        self._recall_at = inf
        if idle:
            self._recall_at, busy, jobs = self.workers.to_recall(now)
            if busy is not None:
                self._tell(busy.key, Recall(busy.key[1], jobs))

    # -- leases end ----------------------------------------------------------------------------

    def done(self, key: WorkerKey, record: JobsDone, now: float) -> None:
        """A worker has done jobs."""
        self.changed = True
        worker = self.workers.all.get(key)
        for number, start, stop in record.done:
            lease = self._held(worker, key, number, start, stop)
            if worker is not None and lease is not None:
                self.counters.done += stop - start
                if lease.block is None:
                    for job in lease.jobs[start:stop]:
                        worker.suspects -= job.suspect
                        self._end_job(job, JobState.DONE, now)
                else:
                    self._keep_less(lease.block, stop - start)
                    self._finish(lease.first + start, lease.first + stop, JobState.DONE)
                worker.recalls = 0
                self._settle(worker, lease, start, stop)

    def undone(self, key: WorkerKey, record: JobsUndone, now: float) -> None:
        """A worker gives jobs back, or up."""
        self.changed = True
        worker = self.workers.all.get(key)
        start, stop, why = record.start, record.stop, record.why
        lease = self._held(worker, key, record.lease, start, stop)
        if worker is None or lease is None:
            return
        self._settle(worker, lease, start, stop)
        worker.recalls = 0
        if why == "returned" and lease.block is not None:
            self._note(lease.first + start, lease.first + stop, JobState.WAITING, 0)
            self._waiting.add_run(Run(lease.block, lease.start + start, lease.start + stop, lease.since), first=True)
            return
        for job in self._jobs(lease, range(stop - 1, start - 1, -1), now):
            worker.suspects -= job.suspect
            job.suspect = False
            if why == "returned":
                self._note(job.id, job.id + 1, JobState.WAITING, job.attempts)
                self._waiting.again(job, 0.0, now)
            elif why == "expired":
                self._waiting.expired.append(job)
            elif why == "reject":
                job.attempts += 1
                self._bury(job, record.reason or "rejected", now)
            else:
                delay_s = None if record.delay_ms is None else record.delay_ms / 1000
                self._failed(job, delay_s, record.reason or why, now)
        self._expire(now)

    def _held(self, worker: Worker | None, key: WorkerKey, number: int, start: int, stop: int) -> Lease | None:
        """The lease, if the worker still has these positions of it."""
        lease = None if worker is None else worker.leases.get(number)
        if lease is not None and lease.has(start, stop):
            return lease
        self.counters.refused += 1
        self._tell(key, AckRefused(key[1], number, start, stop))
        return None

    def _settle(self, worker: Worker, lease: Lease, start: int, stop: int) -> None:
        lease.left.remove(start, stop)
        worker.held -= stop - start
        if not lease.left:
            del worker.leases[lease.number]
            worker.held_bytes -= lease.nbytes
            self._drop_ended(worker)

    def _jobs(self, lease: Lease, positions: Iterable[int], now: float) -> list[Job]:
        """The jobs at these positions as jobs of their own, which nobody has."""
        block = lease.block
        if block is not None:
            return [self._detach(block, lease.start + position, now) for position in positions]
        jobs = [lease.jobs[position] for position in positions]
        for job in jobs:
            job.leased = False
        return jobs

    def _detach(self, block: Block, position: int, now: float) -> Job:
        job = block.job(position, now)
        self.nbytes += job.nbytes
        self._keep_less(block, 1)
        return job

    def _keep_less(self, block: Block, count: int) -> None:
        block.left -= count
        if not block.left:
            self.nbytes -= block.nbytes

    def _failed(self, job: Job, delay_s: float | None, reason: str, now: float) -> None:
        job.attempts += 1
        policy = self.policy
        if policy.max_attempts and job.attempts >= policy.max_attempts:
            self._bury(job, reason, now)
            return
        if delay_s is None:
            delay_s = min(policy.backoff_s * 2.0 ** min(job.attempts - 1, 60), policy.backoff_s_max)
        self._note(job.id, job.id + 1, JobState.WAITING, job.attempts)
        self._waiting.again(job, delay_s, now)

    def _bury(self, job: Job, reason: str, now: float) -> None:
        self.counters.dead += 1
        self._dead.append((job, reason))
        self._end_job(job, JobState.DEAD, now)

    def _end_job(self, job: Job, state: JobState, now: float) -> None:
        self.nbytes -= job.nbytes
        self._waiting.ended(job, now)
        self._finish(job.id, job.id + 1, state)

    def _finish(self, start: int, stop: int, state: JobState) -> None:
        self._note(start, stop, state, 0)
        if start != self.floor:
            self._finished.add(start, stop)
            return
        self.floor = stop
        if self._finished:
            first, last = next(iter(self._finished))
            if first == stop:
                self._finished.remove(first, last)
                self.floor = last

    # -- time ----------------------------------------------------------------------------------

    def _expire(self, now: float) -> None:
        while self._waiting.expired:
            job = self._waiting.expired.pop()
            if not job.ended:
                self.counters.expired += 1
                self._expired += 1
                self._end_job(job, JobState.EXPIRED, now)

    def timer(self) -> float:
        """When `handle_timer` and `dispatch` have something to do."""
        return min(self._waiting.timer(), self.workers.deadline(), self._recall_at)

    def handle_timer(self, now: float) -> None:
        """Delays end, ttls pass, leases that nobody renewed are free."""
        self.changed = True
        self._waiting.handle_timer(now)
        self._expire(now)
        for worker in list(self.workers.all.values()):
            if worker.deadline() <= now:
                self._free(worker, "its lease was not renewed", now)

    # -- what came of it -----------------------------------------------------------------------

    def _tell(self, key: WorkerKey, record: QueueRecord) -> None:
        self._told.append((key, record, RECORD_BYTES))

    def _note(self, start: int, stop: int, state: JobState, attempts: int) -> None:
        if self.journal:
            self._changes.append((start, stop, state, attempts))

    def take_told(self) -> list[Told]:
        """What is to be said, in order."""
        told, self._told = self._told, []
        return told

    def take_changes(self) -> list[Change]:
        """What happened to jobs since the last time, if `journal` is set."""
        changes, self._changes = self._changes, []
        return changes

    def take_expired(self) -> int:
        """How many jobs were given up since the last time because their ttl had passed."""
        expired, self._expired = self._expired, 0
        return expired

    def take_dead(self) -> list[tuple[Job, str]]:
        """Jobs that failed too often or were rejected, and why."""
        dead, self._dead = self._dead, []
        return dead
