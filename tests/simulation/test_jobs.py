"""Queues in the simulator: mechanisms that are switched off one by one, and a thousand workers that come and go."""

from __future__ import annotations

from collections.abc import Iterable
from math import inf
from random import Random
from typing import Any

import pytest

from tests.simulation.saboteurs import Saboteur, must_be_missed
from zfabric.config import Config
from zfabric.protocol.channels import Channels
from zfabric.protocol.deliveries import Delivery, Followed
from zfabric.protocol.dispatcher import Dispatcher
from zfabric.protocol.jobs import Job, JobState, Lease, QueuePolicy
from zfabric.protocol.lines import Line
from zfabric.protocol.pulls import Pull
from zfabric.protocol.queues import Queues
from zfabric.protocol.waiting import Waiting
from zfabric.protocol.workers import Worker, WorkerKey
from zfabric.testing.sim_jobs import JobOracle
from zfabric.testing.sim_network import Agenda, Network
from zfabric.testing.sim_oracle import Oracle
from zfabric.testing.sim_party import Party
from zfabric.testing.sim_queues import PullerSpec, PusherSpec, QueueUsers, SimPuller
from zfabric.testing.simulator import short_timeouts
from zfabric.wire.queue_records import JobsDone, JobsUndone

SEEDS = range(300)


def leases_of_lost_nodes_are_forgotten(patch: pytest.MonkeyPatch) -> None:
    """What a lost worker had is nobody's."""
    patch.setattr(Dispatcher, "_free", lambda queue, worker, reason, now: worker.leases.clear())


def leases_of_lost_nodes_count_as_done(patch: pytest.MonkeyPatch) -> None:
    """A dispatcher believes that a lost worker had done what it had."""

    def free(queue: Dispatcher, worker: Worker, reason: str, now: float) -> None:
        ranges = [(lease.number, start, stop) for lease in worker.leases.values() for start, stop in lease.left]
        queue.workers.all[worker.key] = worker
        queue.done(worker.key, JobsDone(worker.key[1], ranges), now)
        del queue.workers.all[worker.key]

    patch.setattr(Dispatcher, "_free", free)


def acks_are_not_taken(patch: pytest.MonkeyPatch) -> None:
    """A dispatcher ignores that jobs are done."""
    patch.setattr(Dispatcher, "done", lambda queue, key, record, now: None)


def acks_are_not_sent(patch: pytest.MonkeyPatch) -> None:
    """A worker keeps to itself what it has done."""
    real = Pull.flush

    def flush(pull: Pull, now: float) -> None:
        pull._dirty.clear()
        real(pull, now)

    patch.setattr(Pull, "flush", flush)


def failures_count_as_done(patch: pytest.MonkeyPatch) -> None:
    """A worker says that jobs are done that have failed."""
    real = Pull.undone

    def undone(pull: Pull, delivery: Delivery, start: int, stop: int, why: Any, **options: Any) -> bool:
        if why == "nack":
            return pull.done(delivery, start, stop)
        return real(pull, delivery, start, stop, why, **options)

    patch.setattr(Pull, "undone", undone)


def stale_acks_are_taken(patch: pytest.MonkeyPatch) -> None:
    """An ack counts for the job whoever has it by now."""
    real = Dispatcher.done

    def done(queue: Dispatcher, key: WorkerKey, record: JobsDone, now: float) -> None:
        for number, start, stop in record.done:
            for worker in list(queue.workers.all.values()):
                mine = worker.key == key and number in worker.leases
                for lease in list(worker.leases.values()):
                    if not mine and lease.count == 1 and (number, start, stop) != (lease.number, 0, 1):
                        real(queue, worker.key, JobsDone(worker.key[1], [(lease.number, 0, 1)]), now)
                        break
        real(queue, key, record, now)

    patch.setattr(Dispatcher, "done", done)


def sessions_are_not_told_apart(patch: pytest.MonkeyPatch) -> None:
    """A worker goes on with jobs of a session that has ended, under the leases of the next."""
    patch.setattr(Pull, "lost", lambda pull, peer_id: 0)


def attempts_are_not_counted(patch: pytest.MonkeyPatch) -> None:
    """A job that fails is as good as new."""
    real = Dispatcher._failed

    def failed(queue: Dispatcher, job: Job, delay_s: float | None, reason: str, now: float) -> None:
        job.attempts = -1
        real(queue, job, delay_s, reason, now)

    patch.setattr(Dispatcher, "_failed", failed)


def attempts_have_no_end(patch: pytest.MonkeyPatch) -> None:
    """A job that always fails is leased for ever."""
    real = Dispatcher._failed

    def failed(queue: Dispatcher, job: Job, delay_s: float | None, reason: str, now: float) -> None:
        before, job.attempts = job.attempts, 0
        real(queue, job, delay_s, reason, now)
        job.attempts = before + 1

    patch.setattr(Dispatcher, "_failed", failed)


def returned_jobs_count_as_failed(patch: pytest.MonkeyPatch) -> None:
    """Giving back what nobody began with costs an attempt."""
    real = Dispatcher.undone

    def undone(queue: Dispatcher, key: WorkerKey, record: JobsUndone, now: float) -> None:
        why: Any = "nack" if record.why == "returned" else record.why
        real(queue, key, JobsUndone(record.puller, record.lease, record.start, record.stop, why, 0), now)

    patch.setattr(Dispatcher, "undone", undone)


def returned_jobs_are_forgotten(patch: pytest.MonkeyPatch) -> None:
    """What is given back is not leased again."""
    real = Dispatcher.undone

    def undone(queue: Dispatcher, key: WorkerKey, record: JobsUndone, now: float) -> None:
        lease = queue.workers.all[key].leases.get(record.lease) if key in queue.workers.all else None
        if record.why == "returned" and lease is not None and lease.has(record.start, record.stop):
            queue._settle(queue.workers.all[key], lease, record.start, record.stop)
        else:
            real(queue, key, record, now)

    patch.setattr(Dispatcher, "undone", undone)


def hung_handlers_keep_their_jobs(patch: pytest.MonkeyPatch) -> None:
    """For ever: the handler never comes back in this test."""
    patch.setattr(Pull, "_check_hands", lambda pull, now: setattr(pull, "_check_at", inf))
    patch.setattr(SimPuller, "_recover", lambda puller, delivery, jobs: None)


def dead_jobs_are_not_buried(patch: pytest.MonkeyPatch) -> None:
    """They vanish."""
    patch.setattr(Queues, "_bury", lambda queues, dispatcher, job, reason, now: None)


def keys_are_not_looked_at(patch: pytest.MonkeyPatch) -> None:
    """Jobs of one key go as they come."""
    real = Waiting.add

    def add(waiting: Waiting, job: Job, delay_s: float, now: float) -> None:
        job.group = None
        real(waiting, job, delay_s, now)

    patch.setattr(Waiting, "add", add)


def delays_are_not_waited_for(patch: pytest.MonkeyPatch) -> None:
    """Everything goes at once."""
    real = Waiting.add
    patch.setattr(Waiting, "add", lambda waiting, job, delay_s, now: real(waiting, job, 0.0, now))


def everything_expires_early(patch: pytest.MonkeyPatch) -> None:
    """By half a second."""
    real = Waiting.handle_timer
    patch.setattr(Waiting, "handle_timer", lambda waiting, now: real(waiting, now + 0.5))


def dedupe_ids_are_not_looked_at(patch: pytest.MonkeyPatch) -> None:
    """The same one is pushed again."""

    def remember(queue: Dispatcher, dedupe_id: str, now: float) -> None: ...

    patch.setattr(Dispatcher, "_remember", remember)


def selectors_are_not_looked_at(patch: pytest.MonkeyPatch) -> None:
    """Everybody gets everything."""
    patch.setattr(Line, "matches", lambda line, entry: True)


def credit_is_not_looked_at(patch: pytest.MonkeyPatch) -> None:
    """A dispatcher leases what it has, and a worker takes what it gets."""
    patch.setattr(Worker, "has_credit", property(lambda worker: not worker.ending))
    real = Pull.received

    def received(pull: Pull, peer_id: bytes, jobs: Any, now: float) -> bool:
        if peer_id in pull.sources:
            pull.sources[peer_id].granted = 10**6
        return real(pull, peer_id, jobs, now)

    patch.setattr(Pull, "received", received)
    real_shares = Worker.__init__

    def begin(worker: Worker, *arguments: Any) -> None:
        real_shares(worker, *arguments)
        worker.credit = 10**6

    patch.setattr(Worker, "__init__", begin)


def what_was_leased_stays_in_line(patch: pytest.MonkeyPatch) -> None:
    """A job that was leased can be leased again."""
    real = Dispatcher._lease

    def lease(queue: Dispatcher, worker: Worker, taken: Any, now: float) -> None:
        real(queue, worker, taken, now)
        for job in taken[2][:1]:
            if not job.attempts and job.group is None:
                queue._waiting.again(job, 0.3, now)
                job.leased = False

    patch.setattr(Dispatcher, "_lease", lease)


def done_jobs_come_back(patch: pytest.MonkeyPatch) -> None:
    """A lease still has what was done."""
    real = Dispatcher._settle

    def settle(queue: Dispatcher, worker: Worker, lease: Lease, start: int, stop: int) -> None:
        real(queue, worker, lease, start, stop)
        if all(job.group is None for job in lease.jobs):
            lease.left.add(start, stop)
            worker.leases[lease.number] = lease

    patch.setattr(Dispatcher, "_settle", settle)


def idle_pushers_keep_their_credit(patch: pytest.MonkeyPatch) -> None:
    """For ever, while others have jobs."""
    patch.setattr(Dispatcher, "_balance", lambda queue, now: None)


def letters_are_not_repeated(patch: pytest.MonkeyPatch) -> None:
    """What a connection lost is lost."""

    def say_again(channels: Channels, channel: Any, now: float) -> None:
        channel.unsaid.clear()
        channel.retry_at = inf

    patch.setattr(Channels, "_say_again", say_again)


def what_is_given_back_is_read_too(patch: pytest.MonkeyPatch) -> None:
    """A reader that takes job by job gets those, too, that were given back under its hands."""
    patch.setattr(Followed, "cut", lambda followed, start: start)


def the_job_in_hand_counts_as_done(patch: pytest.MonkeyPatch) -> None:
    """Where somebody asks how far such a reader has come, its last job is done already."""
    real = Pull.catch_up

    def catch_up(pull: Pull) -> None:
        real(pull)
        delivery = pull.followed
        if delivery is not None and delivery.started - 1 in delivery.hands:
            pull.done(delivery, delivery.started - 1, delivery.started)

    patch.setattr(Pull, "catch_up", catch_up)


def nobody_sees_how_far_readers_come(patch: pytest.MonkeyPatch) -> None:
    """What such a reader has done is never looked at."""
    patch.setattr(Pull, "catch_up", lambda pull: None)


CASES: Iterable[tuple[Saboteur, set[str]]] = [
    (leases_of_lost_nodes_are_forgotten, {"job-lost"}),
    (leases_of_lost_nodes_count_as_done, {"job-undone", "stale-ack"}),
    (acks_are_not_taken, {"job-lost"}),
    (acks_are_not_sent, {"job-lost"}),
    (failures_count_as_done, {"job-undone", "stale-ack"}),
    (stale_acks_are_taken, {"stale-ack", "job-undone"}),
    (sessions_are_not_told_apart, {"stuck-puller", "job-credit"}),
    (attempts_are_not_counted, {"job-attempts"}),
    (attempts_have_no_end, {"job-lost"}),
    (returned_jobs_count_as_failed, {"job-attempts", "job-dead"}),
    (returned_jobs_are_forgotten, {"job-lost"}),
    (hung_handlers_keep_their_jobs, {"job-lost"}),
    (dead_jobs_are_not_buried, {"job-dead"}),
    (keys_are_not_looked_at, {"job-order"}),
    (delays_are_not_waited_for, {"job-early"}),
    (everything_expires_early, {"job-expired", "job-early"}),
    (dedupe_ids_are_not_looked_at, {"job-dedupe"}),
    (selectors_are_not_looked_at, {"job-selector"}),
    (credit_is_not_looked_at, {"job-credit"}),
    (what_was_leased_stays_in_line, {"job-again", "stale-ack", "job-attempts"}),
    (done_jobs_come_back, {"job-again"}),
    (idle_pushers_keep_their_credit, {"job-lost"}),
    (letters_are_not_repeated, {"job-lost", "stuck-puller"}),
    (what_is_given_back_is_read_too, {"job-returned"}),
    (the_job_in_hand_counts_as_done, {"job-undone", "stale-ack"}),
    (nobody_sees_how_far_readers_come, {"job-lost"}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("saboteur", "rules"), CASES, ids=lambda value: getattr(value, "__name__", None))
def test_a_mechanism_that_is_switched_off_is_missed(
    monkeypatch: pytest.MonkeyPatch, saboteur: Saboteur, rules: set[str]
) -> None:
    """Some seed fails, and the rule that it violates is one that the mechanism is there for."""
    must_be_missed(monkeypatch, saboteur, rules, SEEDS)


class Crowd:
    """Two pushers, and workers that come, work for a moment and go, politely or not."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.agenda = Agenda()
        self.network = Network(self.agenda, self.random)
        self.config: Config = short_timeouts(self.random)
        self.oracle = Oracle(self.config, lambda: self.agenda.now)
        self.jobs = JobOracle(lambda: self.agenda.now)
        self.pushers = [self.party(name) for name in ("p0", "p1")]
        self.alive: list[Party] = []
        self.joined = 0
        for party in self.pushers:
            assert party.queue_users is not None
            party.queue_users.pusher(PusherSpec("jobs", 0.1, 0.3, QueuePolicy(max_attempts=5, backoff_s=0.05)))

    def party(self, name: str) -> Party:
        """A new node."""
        made = Party(name, self.random.randbytes(16), self.config, self.agenda, self.network, self.oracle, self.random)
        made.queue_users = QueueUsers(made, self.jobs, self.random)
        return made

    def join(self) -> None:
        """A worker comes."""
        worker = self.party(f"w{self.joined}")
        self.joined += 1
        self.alive.append(worker)
        assert worker.queue_users is not None
        worker.queue_users.puller(PullerSpec("jobs", self.random.choice((None, 1, 5)), 1, 0.01, 0.0, 3.0, 2.0))
        for pusher in self.pushers:
            worker.core.found(pusher.id, (pusher.inbox,), self.agenda.now)
        worker.pump()

    def leave(self) -> None:
        """A worker goes: half of them without a word."""
        worker = self.alive.pop(self.random.randrange(len(self.alive)))
        if self.random.random() < 0.5:
            worker.end(politely=False)
        else:
            assert worker.queue_users is not None
            for puller in worker.queue_users.pullers:
                puller.close()
            worker.pump()
            worker.end(politely=True)

    def push(self) -> None:
        """Some jobs at both pushers."""
        for party in self.pushers:
            assert party.queue_users is not None
            for pusher in party.queue_users.pushers:
                pusher.push(self.random.choice((1, 3, 10)))


@pytest.mark.slow
def test_a_thousand_workers_come_and_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one run, never more than twenty at a time: every job is done once, whoever had it before."""
    monkeypatch.setattr("zfabric.testing.sim_party._anything", lambda endpoint: endpoint in reachable)
    reachable: set[str] = set()
    crowd = Crowd(seed=1)
    reachable |= {party.inbox for party in crowd.pushers}

    while crowd.joined < 1000:
        crowd.join()
        if len(crowd.alive) > crowd.random.randrange(1, 20):
            crowd.leave()
        crowd.push()
        crowd.agenda.run(crowd.agenda.now + crowd.random.choice((0.01, 0.1, 0.3)))
    deadline = crowd.agenda.now + 60
    while (left := crowd.jobs.left(crowd.pushers)) is not None:
        assert crowd.agenda.now < deadline, left
        crowd.agenda.run(crowd.agenda.now + 0.5)

    jobs = [job for truth in crowd.jobs.queues.values() for job in truth.jobs]
    assert len(jobs) > 5000
    assert crowd.jobs.redelivered > 200
    assert all(job.state in (JobState.DONE, JobState.DEAD, JobState.EXPIRED) for job in jobs)
