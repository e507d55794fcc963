"""A whole fabric on one virtual clock: nodes, a bad network and impatient users, all drawn from one seed.

A simulation has two phases. First everything goes wrong: batches are lost, doubled and late, links stall and break,
nodes are cut off, crash, hang and come back, consumers get stuck, clocks step. Then calm: the network works, consumers
read, and within a bounded time without progress everything must be delivered, announced and acknowledged. The
`Oracle` judges all the while. The same seed gives the same simulation::

    outcome = simulate(seed=42)
    assert outcome.violation is None, outcome.report()
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from random import Random

import msgspec

from zfabric.config import Config
from zfabric.protocol.queues import DEAD_PREFIX
from zfabric.testing.sim_jobs import JobOracle
from zfabric.testing.sim_nemesis import Nemesis
from zfabric.testing.sim_network import Agenda, Faults, Network
from zfabric.testing.sim_oracle import Oracle
from zfabric.testing.sim_party import ConsumerSpec, Party, Publisher, PublisherSpec
from zfabric.testing.sim_queues import PullerSpec, PusherSpec, QueueUsers, SimPusher, draw_puller, draw_pusher
from zfabric.testing.sim_truth import RULES, Violation
from zfabric.wire.records import Start
from zfabric.wire.topics import Pattern

__all__ = ["Outcome", "Simulation", "simulate"]

TOPICS = ("t.a", "t.b", "u.c")
PATTERNS = ("t.a", "t.b", "u.c", "t.*", "#", "u.#")
LAST_FAULT_S = 9.5
"The longest that a fault lasts."
CHECK_S = 0.5
"How often calm is asked whether it has mended everything."
PATIENCE_S = 15.0
"Calm without progress for this long is a failure."
CALM_MAX_S = 240.0
STEPS_MAX = 200_000
WITHOUT_QUEUES = 0.3
"Share of simulations that are about topics alone."
TRACE_LINES = 40


def short_timeouts(random: Random) -> Config:
    """Everything happens in seconds, and the bounds are near."""
    return Config(
        heartbeat_interval_s=1.0,
        peer_timeout_s=3.0,
        handshake_timeout_s=1.0,
        reconnect_interval_s=0.2,
        reconnect_interval_s_max=1.0,
        gossip_interval_s=1.0,
        ack_delay_s=0.03,
        ack_bytes=random.choice((500, 4000)),
        repair_delay_s=0.03,
        repair_retry_s=0.2,
        repair_retry_s_max=1.0,
        repair_reply_bytes=random.choice((300, 1000, 100_000)),
        repair_bytes_per_s=random.choice((2000, 100_000)),
        position_interval_s=0.2,
        position_interval_s_max=1.6,
        gap_settle_s=0.7,
        recall_s=0.05,
        grace_s=random.choice((3.0, 5.0)),
        evict_slow=random.random() < 0.2,
        reorder_bytes=random.choice((600, 2000, 20_000)),
    )


class Outcome(msgspec.Struct):
    """What came of one simulation."""

    seed: int
    violation: Violation | None
    virtual_s: float
    steps: int
    published: int
    delivered: int
    announced: int
    confirmed: int
    jobs: int
    jobs_done: int
    jobs_dead: int
    jobs_redelivered: int
    acks_refused: int
    lost_batches: int
    frames: int
    faults: dict[str, int]
    digest: str
    "Equal for equal seeds, whatever the machine."
    trace: list[str]

    @property
    def rule(self) -> str | None:
        """The name of the rule that was violated, if any."""
        return None if self.violation is None else self.violation.rule

    def report(self) -> str:
        """For people: what failed, what led to it, and how to see it again."""
        if self.violation is None:
            return f"seed {self.seed}: all rules hold"
        rule = self.violation.rule
        lines = [
            f"seed {self.seed}: {rule} at {self.virtual_s:.3f} s: {self.violation.detail}",
            f"  rule: {RULES[rule][1]}",
            *(f"    {line}" for line in self.trace[-TRACE_LINES:]),
            f"  replay: python -m zfabric.testing.simulate --seed {self.seed}",
        ]
        return "\n".join(lines)


class Simulation:
    """One seed's fabric."""

    def __init__(self, seed: int, *, trace: bool = False) -> None:
        self.seed = seed
        self.random = Random(seed)  # noqa: S311 - repeatable on purpose
        self.agenda = Agenda()
        self.network = Network(self.agenda, self.random)
        self.config = short_timeouts(self.random)
        self.oracle = Oracle(self.config, lambda: self.agenda.now)
        self.parties: dict[str, Party] = {}
        self.frames = 0
        self.log: list[tuple[object, ...]] | None = [] if trace else None
        self.calm = False
        names = [f"n{index}" for index in range(self.random.choice((2, 2, 3, 3, 4, 4, 5, 6)))]
        self.publishing: dict[str, list[PublisherSpec]] = {name: [] for name in names}
        self.listening: dict[str, list[ConsumerSpec]] = {name: [] for name in names}
        self._draw_users(names)
        self.jobs = JobOracle(lambda: self.agenda.now)
        self.queue_random = Random(f"{seed} queues")  # noqa: S311 - repeatable on purpose
        self.pushing: dict[str, list[PusherSpec]] = {name: [] for name in names}
        self.pulling: dict[str, list[PullerSpec]] = {name: [] for name in names}
        self._draw_queue_users(names)
        self.nemesis = Nemesis(self)

    # -- who there is --------------------------------------------------------------------------

    def _draw_users(self, names: list[str]) -> None:
        random = self.random
        taken: set[tuple[str, str]] = set()
        for _ in range(random.choice((1, 2, 3, 4))):
            name, topic = random.choice(names[: max(1, len(names) - 1)]), random.choice(TOPICS)
            if (name, topic) not in taken:
                taken.add((name, topic))
                self.publishing[name].append(self._draw_publisher(topic))
        topics = [spec.topic for specs in self.publishing.values() for spec in specs]
        matching = [text for text in PATTERNS if any(Pattern(text).matches(topic) for topic in topics)]
        for _ in range(random.choice((2, 3, 4, 6))):
            name = random.choice(names[1:] if random.random() < 0.9 else names)
            pattern = random.choice(matching if random.random() < 0.95 else PATTERNS)
            if (name, pattern) not in taken or random.random() < 0.1:
                taken.add((name, pattern))
                self.listening[name].append(self.draw_consumer(pattern))

    def _draw_queue_users(self, names: list[str]) -> None:
        random = self.queue_random
        if random.random() < WITHOUT_QUEUES:
            return
        for _ in range(random.choice((1, 1, 2, 3))):
            name, spec = random.choice(names), draw_pusher(random)
            if all(other.queue != spec.queue for other in self.pushing[name]):
                self.pushing[name].append(spec)
        queues = sorted({spec.queue for specs in self.pushing.values() for spec in specs})
        for _ in range(random.choice((1, 2, 3, 5))):
            self.pulling[random.choice(names)].append(draw_puller(random, random.choice(queues)))
        if random.random() < 0.5:
            self.pulling[random.choice(names)].append(draw_puller(random, DEAD_PREFIX + random.choice(queues)))

    def _draw_publisher(self, topic: str) -> PublisherSpec:
        random = self.random
        delivery = random.choice(("at-most-once", "at-least-once", "at-least-once", "exactly-once"))
        history = 0 if delivery == "at-most-once" else random.choice((0, 0, 10, 50))
        window = random.choice((600, 2000, 20_000))
        confirm: list[str] = ["received", "processed"]
        pause = random.choice((0.15, 0.4, 1.0))
        return PublisherSpec(topic, delivery, history, window, pause, random.choice(confirm))  # type: ignore[arg-type]

    def draw_consumer(self, pattern: str) -> ConsumerSpec:
        """A subscription with random options."""
        random = self.random
        delivery = random.choice(("", "", "", "at-most-once", "at-least-once", "exactly-once"))
        start = random.choice(
            (
                Start(),
                Start(),
                Start("earliest"),
                Start("seq", random.choice((0, 3, 20))),
                Start("last", random.choice((1, 5, 100))),
                Start("since", random.choice((0.5, 5.0, 60.0))),
            )
        )
        pause = random.choice((0.001, 0.001, 0.02, 0.3))
        return ConsumerSpec(pattern, delivery, start, random.choice((500, 2000, 50_000)), random.random() < 0.3, pause)

    def boot(self, name: str) -> Party:
        """Start a node, or start it again."""
        party = Party(name, self.random.randbytes(16), self.config, self.agenda, self.network, self.oracle, self.random)
        party.log = self.log
        self.parties[name] = party
        party.trace("boot", party.id[:3].hex())
        first = [(party.publisher, spec) for spec in self.publishing[name]]
        then = [(party.subscribe, spec) for spec in self.listening[name]]
        todo: list[tuple[Callable[..., object], object]] = [*first, *then]
        self.random.shuffle(todo)
        for call, spec in todo:
            call(spec)
        for publisher in party.publishers:
            self._publish_soon(party, publisher)
        self._boot_queue_users(party)
        for other in self.living():
            if other is not party and self.random.random() < 0.8:
                self.agenda.after(self.random.uniform(0, 0.3), self.introduce, party, other)
        return party

    def _boot_queue_users(self, party: Party) -> None:
        users = party.queue_users = QueueUsers(party, self.jobs, self.queue_random)
        for pusher_spec in self.pushing[party.name]:
            self._push_soon(party, users.pusher(pusher_spec))
        for puller_spec in self.pulling[party.name]:
            users.puller(puller_spec)
        party.pump()

    def _push_soon(self, party: Party, pusher: SimPusher) -> None:
        pause = pusher.spec.pause * self.queue_random.uniform(0.3, 1.7)
        self.agenda.after(pause, party.when_running, self._push, party, pusher)

    def _push(self, party: Party, pusher: SimPusher) -> None:
        if not self.calm:
            pusher.push(self.queue_random.choice((1, 1, 3, 10)))
            self._push_soon(party, pusher)

    def _send_helpers(self) -> None:
        """In calm, somebody does what nobody else wants: a worker for each queue, without faults."""
        helper = self.living()[0] if self.living() else None
        if helper is not None and helper.queue_users is not None:
            for queue in sorted({truth.dispatcher.queue for truth in self.jobs.queues.values() if truth.alive}):
                helper.queue_users.puller(PullerSpec(queue, 1, None, 0.001, 0.0, 3.0, 2.0))
            helper.pump()

    def living(self) -> list[Party]:
        """Nodes that run."""
        return [party for party in self.parties.values() if party.alive]

    def introduce(self, one: Party, other: Party) -> None:
        """Discovery tells a node of another one."""
        if other.alive:
            one.when_running(self._found, one, other)

    def _found(self, one: Party, other: Party) -> None:
        one.core.found(other.id, (other.inbox,), self.agenda.now)
        one.pump()

    def _discover(self) -> None:
        living = self.living()
        for one in living:
            for other in living:
                if one is not other and (self.calm or self.random.random() < 0.3):
                    self.introduce(one, other)
        self.agenda.after(2.0, self._discover)

    def _publish_soon(self, party: Party, publisher: Publisher) -> None:
        pause = publisher.spec.pause * self.random.uniform(0.3, 1.7)
        self.agenda.after(pause, party.when_running, self._publish, party, publisher)

    def _publish(self, party: Party, publisher: Publisher) -> None:
        if publisher.closed:
            successor = next((p for p in party.publishers if p.spec is publisher.spec), None)
            if successor is None:
                return
            publisher = successor
        if self.calm:
            return
        publisher.publish(self.random.choice((1, 1, 2, 4)))
        if self.random.random() < 0.2:
            publisher.flush()
        self._publish_soon(party, publisher)

    # -- the two phases ------------------------------------------------------------------------

    def run(self) -> Outcome:
        """Let it all happen."""
        violation: Violation | None = None
        try:
            self._faults()
            self._calm()
        except Violation as found:
            violation = found
        except Exception as error:  # noqa: BLE001 - whatever the core raises is a finding
            violation = Violation("exception", f"{type(error).__name__}: {error}")
            violation.__cause__ = error
        return self._outcome(violation)

    def _faults(self) -> None:
        random = self.random
        for name in self.publishing:
            self.agenda.after(random.uniform(0, 0.5), self.boot, name)
        self.agenda.run(0.5)
        self._discover()
        self.nemesis.begin()
        self.agenda.run(random.choice((6.0, 12.0, 20.0)))

    def _calm(self) -> None:
        self.calm = True
        self.network.faults = Faults()
        self.nemesis.end()
        self.agenda.run(self.agenda.now + LAST_FAULT_S)
        self._send_helpers()
        agenda, deadline = self.agenda, self.agenda.now + CALM_MAX_S
        before, since = None, agenda.now
        while (left := self._unfinished()) is not None:
            progress = *self.oracle.positions(), self.jobs.done, self.jobs.dead, self.jobs.expired
            if progress != before:
                before, since = progress, agenda.now
            if agenda.now - since > PATIENCE_S or agenda.now > deadline:
                raise Violation(*left)
            if agenda.steps > STEPS_MAX:
                raise Violation("livelock", f"{agenda.steps} steps, and still: {left[1]}")
            agenda.run(agenda.now + CHECK_S)
        self._quiet()

    def _unfinished(self) -> tuple[str, str] | None:
        left = self.oracle.unfinished()
        if left is not None:
            return left
        for party in self.living():
            for publisher in party.publishers:
                if publisher.flushes:
                    return "stuck-flush", f"{party.name} waits for {publisher.outbox} to reach {publisher.flushes}"
            for consumer in party.consumers:
                if consumer.nbytes:
                    return "stuck-delivery", f"{consumer.truth} has {consumer.nbytes} bytes to read"
        return self.jobs.left(self.living())

    def _quiet(self) -> None:
        """When all is said, nodes send heartbeats and little else."""
        self.agenda.run(self.agenda.now + 4.0)
        before, steps = self._frames(), self.agenda.steps
        self.agenda.run(self.agenda.now + 4.0)
        allowed = len(self.living()) * len(self.oracle.nodes) * 4 * 3 + 10  # those who are gone are looked for
        if self._frames() - before > allowed or self.agenda.steps - steps > allowed * 4 + 100:
            raise Violation(
                "livelock", f"{self._frames() - before} frames, {self.agenda.steps - steps} steps in 4 s of quiet"
            )

    def _frames(self) -> int:
        return sum(party.frames for party in self.parties.values())

    def _outcome(self, violation: Violation | None) -> Outcome:
        oracle = self.oracle
        ends = [
            (
                str(lane),
                str(sorted(key[1:] for key in lane.streams)),
                [list(got.delivered) for got in lane.streams.values()],
            )
            for lane in oracle.lanes.values()
        ]
        jobs = [[job.state.value for job in truth.jobs] for truth in self.jobs.queues.values()]
        digest = hashlib.sha256(repr((ends, jobs, self.agenda.steps, round(self.agenda.now, 6))).encode()).hexdigest()[
            :16
        ]
        return Outcome(
            seed=self.seed,
            violation=violation,
            virtual_s=self.agenda.now,
            steps=self.agenda.steps,
            published=oracle.published,
            delivered=oracle.delivered,
            announced=oracle.announced,
            confirmed=oracle.confirmed,
            jobs=self.jobs.pushed,
            jobs_done=self.jobs.done,
            jobs_dead=self.jobs.dead,
            jobs_redelivered=self.jobs.redelivered,
            acks_refused=self.jobs.refused,
            lost_batches=self.network.lost_batches,
            frames=self._frames(),
            faults=self.nemesis.counts,
            digest=digest,
            trace=[" ".join(map(str, entry)) for entry in self.log or ()],
        )


def simulate(seed: int, *, trace: bool = False) -> Outcome:
    """Run the simulation of one seed; a failure is run again with its trace."""
    outcome = Simulation(seed, trace=trace).run()
    if outcome.violation is not None and not trace:
        return Simulation(seed, trace=True).run()
    return outcome
