"""The users of queues in a simulation: who pushes what, and workers good and bad."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any

import msgspec

from zfabric.events import AckRefused
from zfabric.protocol.deliveries import Delivery
from zfabric.protocol.jobs import PRIORITY_DEFAULT, QueuePolicy
from zfabric.protocol.pulls import Pull
from zfabric.testing.sim_jobs import JobOracle, JobTruth, QueueTruth
from zfabric.testing.sim_truth import Violation
from zfabric.wire.plain_records import PlainRecord
from zfabric.wire.queue_records import JobsUndone, QueueRecord
from zfabric.wire.selectors import Selector

if TYPE_CHECKING:
    from zfabric.testing.sim_party import Party

__all__ = ["PullerSpec", "PusherSpec", "QueueUsers", "SimPuller", "SimPusher", "draw_puller", "draw_pusher"]

QUEUES = ("jobs", "work.a")
FOLLOW = 0
"As `async for` does: jobs are taken one by one, and each is done when the next one is taken."
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[Any]).decode


class PusherSpec(msgspec.Struct, frozen=True):
    """What a node pushes, in all its lives."""

    queue: str
    pause: float
    special: float
    "Share of the jobs that have options."
    policy: QueuePolicy


class PullerSpec(msgspec.Struct, frozen=True):
    """What a node works on, in all its lives."""

    queue: str
    credit: int | None
    at_once: int | None
    "Jobs taken together at most; or FOLLOW."
    pause: float
    bad: float
    "Share of good jobs that fail, or hang."
    lease_s: float
    handler_timeout_s: float
    selector: str = ""


def draw_pusher(random: Random) -> PusherSpec:
    """A pusher with random options."""
    policy = QueuePolicy(
        max_attempts=random.choice((2, 3, 5)),
        backoff_s=random.choice((0.0, 0.05)),
        backoff_s_max=0.5,
        dedupe_window_s=random.choice((0.5, 5.0)),
        queue_bytes=random.choice((5000, 100_000)),
    )
    return PusherSpec(random.choice(QUEUES), random.choice((0.15, 0.5)), random.choice((0.0, 0.3, 1.0)), policy)


def draw_puller(random: Random, queue: str) -> PullerSpec:
    """A worker with random options."""
    return PullerSpec(
        queue,
        credit=random.choice((None, 1, 3, 20)),
        at_once=random.choice((None, 1, FOLLOW, 2)),
        pause=random.choice((0.001, 0.02, 0.2)),
        bad=random.choice((0.0, 0.1, 0.3)),
        lease_s=random.choice((1.5, 3.0, 10.0)),
        handler_timeout_s=random.choice((1.0, 2.0)),
        selector=random.choice(("", "", "", "colour = 'red'", "attempt > 1")),
    )


class SimPusher:
    """Pushes jobs of all kinds, each unlike any other."""

    def __init__(self, party: Party, oracle: JobOracle, random: Random, spec: PusherSpec) -> None:
        self.spec = spec
        self._party = party
        self._oracle = oracle
        self._random = random
        self.dispatcher = party.core.queues.dispatcher(spec.queue, spec.policy)
        self.truth: QueueTruth = oracle.opened(party.name, party.id, self.dispatcher)

    def push(self, count: int) -> None:
        """Push some jobs, plain ones together."""
        if self.dispatcher.full:
            return
        now, random = self._party.agenda.now, self._random
        if random.random() < self.spec.special:
            for _ in range(count):
                self._push_special(now)
        else:
            first = self.dispatcher.next_id
            jobs = [self._job(first + index, "good") for index in range(count)]
            body = b"\xdd" + count.to_bytes(4, "big") + b"".join(_encode(job.value) for job in jobs)
            self.dispatcher.push_block(count, body, 1, now)
            for job in jobs:
                self._oracle.was_pushed(self.truth, job, None, 0.0)
        self._party.pump()

    def _job(self, number: int, fate: str) -> JobTruth:
        size = self._random.choice((0, 10, 100))
        return JobTruth(number, [self._party.id[:6].hex(), self.spec.queue, number, fate, "x" * size], fate=fate)

    def _push_special(self, now: float) -> None:
        random = self._random
        job = self._job(self.dispatcher.next_id, random.choice(("good",) * 6 + ("nack", "reject")))
        job.key = random.choice((None, None, "k", 7))
        job.headers = {"colour": random.choice(("red", "blue"))} if random.random() < 0.5 else None
        delay = random.choice((0.0, 0.0, 0.3, 2.0))
        ttl = random.choice((None, None, None, 0.2, 5.0))
        dedupe_id = f"d{random.randrange(5)}" if random.random() < 0.2 else None
        job.not_before = now + delay
        if ttl is not None:
            job.expires_at = now + ttl
        job.number = self.dispatcher.push(
            _encode(job.value),
            1,
            now,
            key=job.key,
            headers=job.headers,
            priority=random.choice((PRIORITY_DEFAULT, 0, 9)),
            ttl_s=job.expires_at - now,
            delay_s=delay,
            dedupe_id=dedupe_id,
        )
        self._oracle.was_pushed(self.truth, job, dedupe_id, self.spec.policy.dedupe_window_s)


class SimPuller:
    """A worker with one handler, which may fail, or hang for a while."""

    def __init__(self, party: Party, oracle: JobOracle, random: Random, spec: PullerSpec) -> None:
        self.spec = spec
        self._party = party
        self._oracle = oracle
        self._random = random
        self._busy = False
        self._hung = False
        self.pull: Pull = party.core.queues.pull(
            spec.queue,
            self._begin,
            credit=spec.credit,
            concurrency=1,
            selector=spec.selector,
            lease_s=spec.lease_s,
            handler_timeout_s=spec.handler_timeout_s,
        )
        self._selector = Selector(spec.selector) if spec.selector else None

    def _begin(self) -> None:
        if not self._busy and not self._hung:
            self._busy = True
            self._party.agenda.after(self.spec.pause, self._party.when_running, self._work)

    def _work(self) -> None:
        """Take jobs, and deal with them some time later."""
        self._busy = False
        now = self._party.agenda.now
        head, at_once = self.pull.head(), self.spec.at_once
        if at_once == FOLLOW and head is not None and not (head.jobs.meta and head.jobs.meta.ttl_ms):
            self._follow(head, now)
            return
        taken = self.pull.take(1 if at_once == FOLLOW else at_once, now)
        if taken is None:
            return
        delivery, start, stop = taken
        if stop - start > 1 or self._random.random() < 0.5:
            self.pull.single_out(delivery, start)
        self._party.trace("work", self.spec.queue, delivery.source.peer_id[:3].hex(), delivery.jobs.lease, start, stop)
        values = _decode(delivery.jobs.body)
        jobs = [(position, self._look(delivery, position, values[position])) for position in range(start, stop)]
        self._random.shuffle(jobs)
        if self._random.random() < self.spec.bad * 0.3:
            self._hung = True
            self._party.agenda.after(
                self._random.choice((0.5, 3.0)), self._party.when_running, self._recover, delivery, jobs
            )
            return
        self._settle(delivery, jobs)
        self._begin()
        self._party.pump()

    def _follow(self, delivery: Delivery, now: float) -> None:
        self._busy = True
        self._party.trace("follow", self.spec.queue, delivery.source.peer_id[:3].hex(), delivery.jobs.lease)
        rest = self.pull.follow(delivery, list(range(delivery.started, delivery.stop)), now)
        self._read_on(delivery, _decode(delivery.jobs.body), rest, None)

    def _read_on(self, delivery: Delivery, values: list[Any], rest: Iterator[int], last: JobTruth | None) -> None:
        """The handler is through with a job, and the reader takes the next one."""
        pull, random = self.pull, self._random
        if last is not None:
            last.finished_by = {*last.finished_by, ((self._party.id, pull.number), delivery.jobs.lease)}
        position = next(rest, None)
        if position is None:
            self._stop_reading(None)
            return
        if pull.seen:
            pull.seen, pull.changed = False, True
            self._party.pump()
        job = self._look(delivery, position, values[position])
        fails = job is not None and (job.fate != "good" or random.random() < self.spec.bad)
        pause = random.choice((0.5, 3.0)) if random.random() < self.spec.bad * 0.3 else self.spec.pause
        go_on = partial(self._stop_reading, "no") if fails else partial(self._read_on, delivery, values, rest, job)
        self._party.agenda.after(pause, self._party.when_running, go_on)

    def _stop_reading(self, reason: str | None) -> None:
        """There are no more of that lease, or the handler failed on the last one taken."""
        self._busy = False
        self.pull.settle_followed(reason)
        self._begin()
        self._party.pump()

    def _recover(self, delivery: Delivery, jobs: list[tuple[int, JobTruth | None]]) -> None:
        """The handler comes back from wherever it hung, and settles what may be somebody else's."""
        self._hung = False
        self._settle(delivery, jobs)
        self._begin()
        self._party.pump()

    def _look(self, delivery: Delivery, position: int, value: Any) -> JobTruth | None:
        record, meta = delivery.jobs, delivery.jobs.meta
        if position >= delivery.stop:
            raise Violation(
                "job-returned", f"{self.pull} gave {position} of lease {record.lease} back, and works on it"
            )
        number = record.ids[position] if record.ids else record.first + position
        key = None if meta is None else meta.keys.get(position)
        headers = None if meta is None else meta.headers.get(position)
        attempt = 1 if meta is None else meta.attempts.get(position, 1)
        if self._selector is not None and not self._selector.matches(headers, key=key, attempt=attempt):
            raise Violation("job-selector", f"{self.pull} asked for {self._selector.text} and got {number} {headers}")
        return self._oracle.handed(delivery.source.peer_id, self.spec.queue, number, value, key, headers)

    def _settle(self, delivery: Delivery, jobs: list[tuple[int, JobTruth | None]]) -> None:
        pull, now = self.pull, self._party.agenda.now
        ttl_ms = {} if delivery.jobs.meta is None else delivery.jobs.meta.ttl_ms
        lease = (self._party.id, pull.number), delivery.jobs.lease
        for position, job in jobs:
            fate = "good" if job is None else job.fate
            if fate == "good" and job is not None and self._random.random() < self.spec.bad and self.spec.bad < 1:
                fate = "once"
            if (now - delivery.received_at) * 1000 > ttl_ms.get(position, 10**9):
                pull.undone(delivery, position, position + 1, "expired")
            elif fate == "good":
                if job is not None:
                    job.finished_by = {*job.finished_by, lease}
                pull.done(delivery, position, position + 1)
                pull.tell_by(delivery, now)
            elif fate == "reject":
                assert job is not None
                job.rejected = True
                pull.undone(delivery, position, position + 1, "reject", reason="no")
            else:
                pull.undone(delivery, position, position + 1, "nack", reason="no")

    def close(self) -> None:
        """Take no more."""
        self.pull.close()


class QueueUsers:
    """All users of queues on one node, in one life."""

    def __init__(self, party: Party, oracle: JobOracle, random: Random) -> None:
        self.pushers: list[SimPusher] = []
        self.pullers: list[SimPuller] = []
        self._party = party
        self._oracle = oracle
        self._random = random
        queues = party.core.queues
        tell = queues._tell  # noqa: SLF001 - the simulator looks at what is said

        def tell_and_look(peer_id: bytes, record: QueueRecord | PlainRecord, nbytes: int = 64) -> None:
            if isinstance(record, JobsUndone) and record.why == "returned":
                oracle.returned(peer_id, party.id, record)
            tell(peer_id, record, nbytes)

        queues._tell = tell_and_look  # type: ignore[method-assign, assignment] # noqa: SLF001

    def pusher(self, spec: PusherSpec) -> SimPusher:
        """Begin to push."""
        pusher = SimPusher(self._party, self._oracle, self._random, spec)
        self.pushers.append(pusher)
        return pusher

    def puller(self, spec: PullerSpec) -> SimPuller:
        """Begin to work."""
        puller = SimPuller(self._party, self._oracle, self._random, spec)
        self.pullers.append(puller)
        return puller

    def close(self, puller: SimPuller) -> None:
        """A worker ends."""
        self.pullers.remove(puller)
        puller.close()

    def look(self) -> None:
        """After each thing that happened here."""
        self._oracle.look(self._party.id, self._party.core.queues)

    def refused(self, event: AckRefused) -> None:
        """An acknowledgement came too late."""
        self._oracle.refused += event.here

    def ended(self) -> None:
        """The process ends."""
        for pusher in self.pushers:
            pusher.truth.alive = False
