"""The queues of nodes in a fake network: offers, credit, leases across sessions, and peers that misbehave."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from math import inf
from typing import Any

import msgspec
import pytest

from tests.protocol.network import LATENCY_S, Party, World, all_meet, meet
from zfabric.config import Config
from zfabric.events import AckRefused, JobsOrphaned, PeerLeft, ProtocolError
from zfabric.protocol.deliveries import Delivery
from zfabric.protocol.dispatcher import Dispatcher
from zfabric.protocol.jobs import QueuePolicy
from zfabric.protocol.pulls import Pull
from zfabric.wire.plain_records import PlainOffers, PlainPull, PlainRecord
from zfabric.wire.queue_records import (
    Credit,
    Jobs,
    JobsDone,
    JobsUndone,
    QueueOffers,
    QueueRecord,
    Renew,
)
from zfabric.wire.queue_records import (
    Pull as PullRecord,
)

SHORT = Config(heartbeat_interval_s=0.5, peer_timeout_s=1.5, rejoin_s=1000, channel_retry_s=0.2)
encode = msgspec.msgpack.encode
decode = msgspec.msgpack.decode


class Worker:
    """A puller that does jobs at once, as long as it runs."""

    def __init__(
        self, party: Party, *, credit: int | None = 100, lease_s: float = 30, handler_timeout_s: float = 300
    ) -> None:
        self.party = party
        self.runs = True
        self.done: list[Any] = []
        self.pull: Pull = party.core.queues.pull(
            "q",
            self.wake,
            credit=credit,
            concurrency=1,
            selector="",
            lease_s=lease_s,
            handler_timeout_s=handler_timeout_s,
        )
        party.pump()

    def wake(self) -> None:
        """There are jobs: do them a little later."""
        if self.runs:
            self.party.world.after(0, self.work)

    def take(self) -> tuple[Delivery, int, int] | None:
        """The next jobs."""
        return self.pull.take(None, self.party.world.now)

    def work(self) -> None:
        """Do all that there is."""
        while self.runs and self.party.alive and (taken := self.take()):
            delivery, start, stop = taken
            if self.pull.done(delivery, start, stop):
                self.done += decode(delivery.jobs.body)[start:stop]
        self.party.pump()


def queue(party: Party, **policy: Any) -> Dispatcher:
    """This node's jobs."""
    dispatcher = party.core.queues.dispatcher("q", QueuePolicy(**policy))
    party.pump()
    return dispatcher


def push(party: Party, *values: Any) -> None:
    """Push plain jobs."""
    body = b"\xdd" + len(values).to_bytes(4, "big") + b"".join(map(encode, values))
    party.core.queues.dispatchers["q"].push_block(len(values), body, 0, party.world.now)
    party.pump()


def dispatcher_is_empty(dispatcher: Dispatcher) -> Callable[[], bool]:
    """A condition to wait for."""
    return lambda: not dispatcher.depth


def pair(config: Config = SHORT) -> tuple[World, Party, Party]:
    """Two nodes that are peers."""
    world = World()
    a, b = (world.party(name, config=config) for name in "ab")
    meet(world, a, b)
    world.run(1)
    return world, a, b


def test_a_turn_s_jobs_travel_in_one_frame_and_so_do_their_acks() -> None:
    """A hundred jobs: one frame there, one back with acks and credit, and the acknowledgements of letters."""
    world, a, b = pair()
    dispatcher, worker = queue(a), Worker(b)
    world.run(1)
    before = world.frames_sent
    push(a, *range(100))
    world.run_until(lambda: not dispatcher.depth, 0.01)

    assert worker.done == list(range(100))
    assert world.frames_sent - before == 2


def test_queues_and_pullers_find_each_other_in_any_order() -> None:
    """Opened before or after the peers met, and queues opened later."""
    world = World()
    a, b = (world.party(name, config=SHORT) for name in "ab")
    early, one = queue(a), Worker(b)
    meet(world, a, b)
    push(a, 1)
    world.run_until(lambda: one.done == [1] and not early.depth, 1)

    later = b.core.queues.dispatcher("q")
    b.pump()
    another = Worker(a)
    push(b, 2)
    world.run_until(lambda: one.done + another.done == [1, 2] and not later.depth, 1)


def test_broken_connections_cost_nothing() -> None:
    """Jobs are done once, acks arrive, no lease ends."""
    world, a, b = pair()
    dispatcher, worker = queue(a), Worker(b, credit=10)
    for number in range(50):
        push(a, number)
        world.break_connections(a, b)
        world.run(0.03)
    world.run_until(lambda: not dispatcher.depth, 10)

    assert worker.done == list(range(50))
    assert dispatcher.counters.redelivered == 0


def test_a_lost_node_s_jobs_go_to_another_at_once_and_its_acks_are_refused() -> None:
    """It was stopped for longer than its peers wait, and goes on with what it had in hand."""
    world = World()
    a, b, c = (world.party(name, config=SHORT) for name in "abc")
    meet(world, a, b, c)
    dispatcher, stopped = queue(a), Worker(b)
    stopped.runs = False
    world.run(1)
    push(a, "job")
    world.run(0.1)
    taken = stopped.take()
    assert taken is not None
    b.stalled = True
    other = Worker(c)
    world.run_until(lambda: other.done == ["job"] and not dispatcher.depth, 5)
    b.stalled = False
    b.pump()
    stopped.pull.done(*taken)
    b.pump()
    world.run_until(lambda: b.seen(JobsOrphaned), 10)
    world.run(5)

    assert dispatcher.counters.done == 1
    assert other.done == ["job"]


def test_last_words_count_though_nothing_can_be_sent_back_any_more() -> None:
    """A worker that dialled us acks and closes; libzmq refuses what we send to it, and only then gives us its words."""
    world = World()
    a, b = (world.party(name, config=SHORT) for name in "ab")
    b.find(a)
    world.run_until(lambda: all_meet((a, b)), 10)
    dispatcher, worker = queue(a), Worker(b)
    worker.runs = False
    world.run(1)
    push(a, "job")
    world.run(0.1)
    taken = worker.take()
    assert taken is not None
    worker.pull.done(*taken)
    worker.pull.close()
    (route,) = a.core.peers.known[b.core.me].routes
    a.unwritable.add(route)
    push(a, "another")
    assert a.core.peers.known[b.core.me].routes == []
    b.pump()
    b.goodbye()
    world.run(0.05)

    assert (dispatcher.counters.done, dispatcher.depth) == (1, 1)
    assert [event.reason for event in a.seen(PeerLeft)] == ["goodbye"]
    assert not b.seen(AckRefused)


def test_an_ack_after_the_session_ended_is_reported_here() -> None:
    """And goes nowhere."""
    world, a, b = pair()
    dispatcher, worker = queue(a, max_attempts=0), Worker(b)
    worker.runs = False
    world.run(1)
    push(a, "job")
    world.run(0.1)
    taken = worker.take()
    assert taken is not None
    world.cut(a, b)
    world.run_until(lambda: b.seen(JobsOrphaned), 5)
    assert not worker.pull.done(*taken)
    b.pump()
    assert [(event.queue, event.count, event.here) for event in b.seen(AckRefused)] == [("q", 1, True)]
    worker.runs = True
    world.heal()
    world.run_until(lambda: not dispatcher.depth, 60)
    assert worker.done == ["job"]


def test_credit_moves_to_pushers_that_have_jobs() -> None:
    """One puller with credit 4 and three pushers: each in turn gets all of its jobs done; idle ones hoard nothing."""
    world = World()
    parties = [world.party(name, config=SHORT) for name in "abcd"]
    meet(world, *parties)
    queues = [queue(party) for party in parties[:3]]
    worker = Worker(parties[3], credit=4)
    world.run(1)
    for party, dispatcher in zip(parties, queues, strict=False):
        push(party, *range(100))
        world.run_until(dispatcher_is_empty(dispatcher), 2)
    for party in parties[:3]:
        push(party, *range(100))
    world.run_until(lambda: not any(dispatcher.depth for dispatcher in queues), 5)

    assert Counter(worker.done) == Counter([*range(100)] * 6)


def test_credit_is_never_exceeded() -> None:
    """Whatever the pushers do, a puller of credit 3 has at most three jobs."""
    world = World()
    parties = [world.party(name, config=SHORT) for name in "abc"]
    meet(world, *parties)
    for party in parties[:2]:
        queue(party)
        push(party, *range(50))
    worker = Worker(parties[2], credit=3)
    worker.runs = False
    most = 0
    for _ in range(200):
        world.run(2 * LATENCY_S)
        most = max(most, worker.pull.held)
        taken = worker.pull.take(1, world.now)
        if taken is not None:
            worker.pull.done(*taken)
            parties[2].pump()
    assert most == 3


def test_credit_is_bounded_in_bytes() -> None:
    """Jobs of 1,000 bytes and credit_bytes of 5,000: no more than a lease over it."""
    config = Config(credit_bytes=5000, heartbeat_interval_s=0.5, peer_timeout_s=1.5)
    world, a, b = pair(config)
    queue(a)
    worker = Worker(b)
    worker.runs = False
    world.run(1)
    push(a, *["x" * 1000] * 50)
    world.run(1)
    assert 4 <= worker.pull.held <= 6
    worker.runs = True
    worker.work()
    world.run_until(lambda: len(worker.done) == 50, 5)


def test_credit_follows_how_fast_jobs_are_done() -> None:
    """It doubles while jobs are done at once, up to credit_jobs_max; it shrinks if they wait for prefetch_s."""
    config = Config(credit_jobs_max=1000, prefetch_s=0.1, heartbeat_interval_s=0.5, peer_timeout_s=1.5)
    world, a, b = pair(config)
    queue(a)
    worker = Worker(b, credit=None)
    for _ in range(30):
        push(a, *range(2000))
        world.run(0.1)
    assert worker.pull.credit == 1000

    worker.runs = False
    push(a, *range(2000))
    for _ in range(400):
        world.run(0.05)
        taken = worker.pull.take(1, world.now)
        if taken is not None:
            worker.pull.done(*taken)
            b.pump()
    assert worker.pull.credit < 20


def test_leases_are_renewed_while_the_node_runs() -> None:
    """However long a job waits; a node that says nothing of them for lease_s loses them, even if it is there."""
    world, a, b = pair()
    dispatcher = queue(a)
    worker = Worker(b, lease_s=1)
    worker.runs = False
    world.run(1)
    push(a, "job")
    world.run(5)
    assert dispatcher.in_flight == 1
    assert dispatcher.counters.redelivered == 0

    worker.pull.timer = lambda: inf  # type: ignore[method-assign]
    world.run_until(lambda: dispatcher.counters.redelivered, 3)


def test_a_hung_handler_s_late_ack_is_refused() -> None:
    """Its job goes elsewhere handler_timeout_s after its last sign of life."""
    world, a, b = pair()
    dispatcher = queue(a, backoff_s=0)
    worker = Worker(b, handler_timeout_s=2)
    worker.runs = False
    world.run(1)
    push(a, "job")
    world.run(0.1)
    taken = worker.take()
    assert taken is not None
    for _ in range(5):
        world.run(1)
        worker.pull.renew(taken[0], taken[1], world.now)
    assert dispatcher.in_flight == 1
    world.run(3)
    assert (dispatcher.in_flight, dispatcher.depth) == (0, 1)
    assert not worker.pull.done(*taken)
    b.pump()
    assert b.seen(AckRefused)
    worker.runs = True
    worker.work()
    world.run_until(lambda: not dispatcher.depth, 5)
    assert worker.done == ["job"]


# -- peers that misbehave --------------------------------------------------------------------------


def say(world: World, sender: Party, to: Party, *records: QueueRecord | PlainRecord) -> None:
    """Let a node say what it would not."""
    (peer,) = [peer for peer in sender.core.peers.up() if peer.id == to.core.me]
    for record in records:
        sender.core.channels.tell(peer, record)
    sender.pump()
    world.run(0.1)


def test_more_jobs_than_credit_are_refused() -> None:
    """So are numbers that do not fit, and the same lease twice."""
    world, a, b = pair()
    queue(a)
    worker = Worker(b, credit=5)
    worker.runs = False
    world.run(1)
    lease = Jobs(1, 7, 0, 3, 0, b"\x93\x01\x02\x03")
    say(
        world,
        a,
        b,
        lease,
        lease,
        Jobs(1, 8, 0, 3, 0, b"\x93\x01\x02\x03"),
        Jobs(1, 9, 0, 1, 0, b"\x91\x01", [], [1, 2]),
    )

    assert worker.pull.held == 3
    assert len(b.seen(ProtocolError)) == 3


def test_settling_what_one_does_not_have_changes_nothing() -> None:
    """Unknown leases, positions beyond, backward ranges: each is refused, and counted on both sides."""
    world, a, b = pair()
    dispatcher, worker = queue(a), Worker(b)
    worker.runs = False
    world.run(1)
    push(a, 1, 2)
    world.run(0.1)
    (lease,) = next(iter(dispatcher.workers.all.values())).leases
    number = worker.pull.number
    say(world, b, a, JobsDone(number, [(lease + 1, 0, 1), (lease, 1, 3), (lease, 2, 1), (lease, 1, 1)]))
    say(world, b, a, JobsUndone(number, lease, 2, 2**60, "nack"), JobsUndone(number, 99, 0, 1, "nack"))

    assert (dispatcher.depth, dispatcher.in_flight, dispatcher.counters.refused) == (2, 2, 6)
    assert sum(event.count for event in a.seen(AckRefused)) == 6
    worker.runs = True
    worker.work()
    world.run_until(lambda: not dispatcher.depth, 1)


def test_peers_cannot_make_a_node_keep_too_much() -> None:
    """Queues that a peer offers (queues_max) and pullers that it has (workers_max) are bounded."""
    world, a, b = pair(Config(queues_max=3, workers_max=2, heartbeat_interval_s=0.5, peer_timeout_s=1.5))
    dispatcher = queue(a)
    say(world, a, b, QueueOffers([f"q{number}" for number in range(10)]), QueueOffers(["no*name"]))
    assert len(b.core.queues.offers[a.core.me]) == 3

    say(world, b, a, *[PullRecord(number, "q", 1000, 1) for number in range(5)], PullRecord(9, "unknown", 1000, 1))
    say(world, b, a, PullRecord(1, "q", 1000, 1, "no selector"), Credit(77, 1, 1), Renew(77))
    assert len(dispatcher.workers.all) == 2
    assert a.seen(ProtocolError)
    assert b.seen(ProtocolError)


def test_peers_cannot_make_a_node_keep_too_many_sockets() -> None:
    """Queues at-most-once that a peer offers (queues_max), and its pullers (workers_max), are bounded as well."""
    world, a, b = pair(Config(queues_max=3, workers_max=2, heartbeat_interval_s=0.5, peer_timeout_s=1.5))
    a.core.queues.plain.queue("p", QueuePolicy(), a.core.me, with_crc=False)
    world.run(1)
    say(world, a, b, PlainOffers([f"q{number}" for number in range(10)]))
    assert len(b.core.queues.plain.offers[a.core.me]) == 3

    say(world, b, a, *[PlainPull(number, "p", (f"x:{number}",)) for number in range(5)], PlainPull(9, "x", ()))
    assert len(a.core.queues.plain._workers) == 2
    assert a.seen(ProtocolError)
    assert b.seen(ProtocolError)


@pytest.mark.parametrize("why", ["nack", "reject", "expired", "hung", "returned"])
def test_huge_numbers_are_harmless(why: Any) -> None:
    """Credit and delays of 2^62."""
    world, a, b = pair()
    dispatcher, worker = queue(a, max_attempts=0), Worker(b)
    worker.runs = False
    world.run(1)
    say(world, b, a, Credit(worker.pull.number, 2**62, 2**62))
    push(a, 1)
    world.run(0.1)
    (lease,) = next(iter(dispatcher.workers.all.values())).leases
    say(world, b, a, JobsUndone(worker.pull.number, lease, 0, 1, why, 2**62, "x" * 1000))
    world.run(5)
    assert dispatcher.depth + dispatcher.counters.dead + dispatcher.counters.expired == 1
