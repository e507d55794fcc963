"""Judges the queues of a simulation: sees what is pushed, leased, done and buried, and knows what was promised.

It watches each dispatcher from outside: its journal, and the leases that it sends. What handlers really did comes from
the simulated workers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import inf
from typing import Any

import msgspec

from zfabric.protocol.dispatcher import Change, Dispatcher
from zfabric.protocol.jobs import JobState
from zfabric.protocol.queues import DEAD_PREFIX, Queues
from zfabric.protocol.workers import WorkerKey
from zfabric.testing.sim_oracle import Witness
from zfabric.testing.sim_truth import Violation
from zfabric.wire.queue_records import Jobs, JobsUndone

__all__ = ["JobOracle", "JobTruth", "QueueTruth"]

ROUNDING_S = 0.002
"Times travel as milliseconds."
ENDED = (JobState.DONE, JobState.DEAD, JobState.EXPIRED)


class JobTruth(msgspec.Struct):
    """One job, as its pusher meant it."""

    number: int
    value: Any
    key: Any = None
    headers: dict[str, Any] | None = None
    not_before: float = -inf
    expires_at: float = inf
    fate: str = "good"
    "`good`, or what every handler does with it: `nack`, `reject`."
    state: JobState = JobState.WAITING
    leases: int = 0
    returned: int = 0
    "Leases that came back untouched, or are on their way back."
    back: int = 0
    "Those that did come back."
    latest: tuple[WorkerKey, int] | None = None
    "Who was leased it last, by which lease."
    finished_by: set[tuple[WorkerKey, int]] = set()
    "The leases under which handlers finished it."
    rejected: bool = False


class QueueTruth:
    """The jobs of one queue that one node pushed in one life."""

    def __init__(self, node: str, node_id: bytes, dispatcher: Dispatcher) -> None:
        self.node = node
        self.node_id = node_id
        self.dispatcher = dispatcher
        self.alive = True
        self.jobs: list[JobTruth] = []
        self.dedupe: dict[str, tuple[int, float]] = {}
        self.open: set[int] = set()
        "Numbers of jobs that have not ended."
        dispatcher.journal = True

    def __repr__(self) -> str:
        return f"{self.dispatcher.queue}@{self.node}"


class JobOracle:
    """The history of all queues, judged as it happens."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now
        self.queues: dict[tuple[bytes, str], QueueTruth] = {}
        self.pushed = self.done = self.dead = self.expired = self.refused = self.redelivered = 0
        self._credit: dict[WorkerKey, int] = {}
        self._leases: dict[tuple[bytes, WorkerKey, int], tuple[QueueTruth, list[int]]] = {}

    # -- at the pusher -------------------------------------------------------------------------

    def opened(self, node: str, node_id: bytes, dispatcher: Dispatcher) -> QueueTruth:
        """A node begins to push; from now on its leases are looked at."""
        truth = self.queues[node_id, dispatcher.queue] = QueueTruth(node, node_id, dispatcher)
        take_told = dispatcher.take_told

        def take_and_look() -> list[Any]:
            self.journal(truth, dispatcher.take_changes())
            told = take_told()
            for key, record, _ in told:
                if isinstance(record, Jobs):
                    self._leased(truth, key, record)
            return told

        undone = dispatcher.undone

        def undone_and_looked_at(key: WorkerKey, record: JobsUndone, now: float) -> None:
            refused = dispatcher.counters.refused
            undone(key, record, now)
            if record.why == "returned" and dispatcher.counters.refused == refused:
                for number in self._leases[truth.node_id, key, record.lease][1][record.start : record.stop]:
                    truth.jobs[number].back += 1

        dispatcher.take_told = take_and_look  # type: ignore[method-assign]
        dispatcher.undone = undone_and_looked_at  # type: ignore[method-assign]
        return truth

    def was_pushed(self, truth: QueueTruth, job: JobTruth, dedupe_id: str | None, window_s: float) -> None:
        """A job got its number."""
        if dedupe_id is not None:
            known = truth.dedupe.get(dedupe_id)
            if known is not None and known[1] > self.now():
                if job.number != known[0]:
                    raise Violation("job-dedupe", f"{truth} pushed {dedupe_id} as {known[0]} and as {job.number}")
                return
            truth.dedupe[dedupe_id] = job.number, self.now() + window_s
        if job.number != len(truth.jobs):
            raise Violation("job-invented", f"job {len(truth.jobs)} of {truth} got number {job.number}")
        truth.jobs.append(job)
        truth.open.add(job.number)
        self.pushed += 1

    def _leased(self, truth: QueueTruth, key: WorkerKey, record: Jobs) -> None:
        numbers = record.ids or list(range(record.first, record.first + record.count))
        self._leases[truth.node_id, key, record.lease] = truth, numbers
        for position, number in enumerate(numbers):
            job = truth.jobs[number]
            if job.state in ENDED:
                raise Violation("job-again", f"{truth} leased job {number}, which is {job.state.name}")
            if self.now() < job.not_before - ROUNDING_S:
                raise Violation("job-early", f"{truth} leased job {number} before {job.not_before}")
            if job.key is not None:
                before = [n for n in truth.open if n < number and truth.jobs[n].key == job.key]
                if before:
                    raise Violation("job-order", f"{truth} leased job {number} of {job.key} before {before}")
            job.leases += 1
            self.redelivered += job.leases > 1
            job.latest = key, record.lease
            attempt = 1 if record.meta is None else record.meta.attempts.get(position, 1)
            if not job.leases - job.returned <= attempt <= job.leases - job.back:
                raise Violation(
                    "job-attempts",
                    f"{truth} says that job {number} is at attempt {attempt}; it was leased {job.leases} times, "
                    f"{job.returned} times given back, and {job.back} times received back",
                )

    def journal(self, truth: QueueTruth, changes: Iterable[Change]) -> None:
        """What the dispatcher notes of its jobs."""
        for start, stop, state, _ in changes:
            for number in range(start, stop):
                job = truth.jobs[number] if number < len(truth.jobs) else None
                if job is None:
                    continue  # it is just being pushed
                if job.state in ENDED:
                    raise Violation("job-again", f"job {number} of {truth} was {job.state.name} and is {state.name}")
                if state in ENDED:
                    self._ended(truth, job, state)
                job.state = state

    def _ended(self, truth: QueueTruth, job: JobTruth, state: JobState) -> None:
        truth.open.discard(job.number)
        if state is JobState.DONE:
            self.done += 1
            if not job.finished_by:
                raise Violation("job-undone", f"job {job.number} of {truth} counts as done, and nobody did it")
            if job.latest not in job.finished_by:
                raise Violation(
                    "stale-ack", f"job {job.number} of {truth} is {job.latest}'s, and ended by {job.finished_by}"
                )
        elif state is JobState.DEAD:
            self.dead += 1
            most = truth.dispatcher.policy.max_attempts
            if not job.rejected and not (most and job.leases >= most):
                raise Violation("job-dead", f"job {job.number} of {truth} is dead after {job.leases} of {most} leases")
        else:
            self.expired += 1
            if self.now() < job.expires_at - ROUNDING_S:
                raise Violation("job-expired", f"job {job.number} of {truth} expired before {job.expires_at}")

    def look(self, node_id: bytes, queues: Queues) -> None:
        """After each thing that happens at a node."""
        for name, dispatcher in queues.dispatchers.items():
            truth = self.queues.get((node_id, name))
            if truth is not None:
                self.journal(truth, dispatcher.take_changes())
                grave = queues.dispatchers.get(DEAD_PREFIX + name)
                buried = 0 if grave is None else grave.counters.pushed
                if buried != dispatcher.counters.dead:
                    raise Violation("job-dead", f"{truth} has {dispatcher.counters.dead} dead jobs and buried {buried}")
        for pull in queues.pulls.values():
            most = self._credit[node_id, pull.number] = max(self._credit.get((node_id, pull.number), 0), pull.credit)
            if pull.held > most:
                raise Violation("job-credit", f"{pull} has more jobs than it ever asked for ({most})")

    def returned(self, pusher: bytes, worker: bytes, record: JobsUndone) -> None:
        """A worker gives jobs back that nobody has begun with: their attempt does not count."""
        found = self._leases.get((pusher, (worker, record.puller), record.lease))
        if found is not None:
            truth, numbers = found
            for number in numbers[record.start : record.stop]:
                truth.jobs[number].returned += 1

    # -- at the worker -------------------------------------------------------------------------

    def handed(self, pusher: bytes, queue: str, number: int, value: Any, key: Any, headers: Any) -> JobTruth | None:
        """A handler was given a job. None for a dead letter, which is looked at here."""
        if queue.startswith(DEAD_PREFIX):
            truth = self.queues[pusher, queue.removeprefix(DEAD_PREFIX)]
            job = truth.jobs[headers["dead.id"]]
            if job.value != value or job.key != key or (job.fate != "nack" and not headers["dead.reason"]):
                raise Violation("job-invented", f"a dead letter of {truth}: {value!r} is not job {job.number}")
            return None
        truth = self.queues[pusher, queue]
        job = truth.jobs[number]
        if (job.value, job.key, job.headers) != (value, key, headers):
            raise Violation("job-invented", f"{truth} pushed {job.value!r} as {number}; a worker got {value!r}")
        return job

    # -- in calm -------------------------------------------------------------------------------

    def left(self, living: Iterable[Witness]) -> tuple[str, str] | None:
        """The first queue that calm has not emptied yet: (rule, detail)."""
        pulls = [(node.id, pull) for node in living for pull in node.core.queues.pulls.values() if not pull.closed]
        for truth in self.queues.values():
            workers = truth.dispatcher.workers.all
            for node_id, pull in pulls if truth.alive else ():
                if pull.queue == truth.dispatcher.queue and (node_id, pull.number) not in workers:
                    return "stuck-puller", f"{truth} does not know {pull}"
            if truth.alive and truth.open:
                numbers = sorted(truth.open)[:3]
                states = [(number, truth.jobs[number].state.name, truth.jobs[number].latest) for number in numbers]
                return "job-lost", f"{truth} is left with {len(truth.open)} jobs: {states}; {truth.dispatcher}"
            if truth.alive and (truth.dispatcher.depth or truth.dispatcher.nbytes or truth.dispatcher.in_flight):
                return (
                    "job-lost",
                    f"{truth}: all is done, and yet {truth.dispatcher} has {truth.dispatcher.nbytes} bytes",
                )
        return None
