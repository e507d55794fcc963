"""Calls: each ends exactly once; one that is not idempotent is begun at most once, whatever happens."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from tests.protocol.calling import Client, Worker
from tests.protocol.network import LATENCY_S, World, meet
from zfabric.config import Config
from zfabric.errors import (
    LimitExceeded,
    LocalProtocolError,
    NodeClosed,
    NoResponders,
    Overloaded,
    ProviderLost,
    RequestTimeout,
)
from zfabric.protocol.serving import Execution

FAST = Config(heartbeat_interval_s=0.5, peer_timeout_s=1.5, rejoin_s=1000, channel_retry_s=0.2)


def fabric(world: World, *names: str, config: Config = FAST, **options: float) -> tuple[Client, list[Worker]]:
    """A client, and providers that it knows."""
    client = Client(world.party("client", config=config))
    workers = [Worker(world.party(name, config=config), **options) for name in names]  # type: ignore[arg-type]
    meet(world, client.party, *(worker.party for worker in workers))
    world.run_until(lambda: len(client.party.core.calls.providers("work", 1)) == len(names), 5)
    return client, workers


def test_the_less_busy_provider_gets_the_call() -> None:
    """A slow provider gets less."""
    world = World()
    client, (quick, slow) = fabric(world, "quick", "slow", seconds=0.01)
    slow.seconds = 1.0

    for number in range(300):
        client.call(number)
        world.run(0.01)

    assert slow.begun.total() < 30
    assert quick.begun.total() > 270


def test_concurrency_weighs() -> None:
    """Who works on more at a time gets more."""
    world = World()
    client = Client(world.party("client", config=FAST))
    small = Worker(world.party("small", config=FAST), concurrency=10, seconds=1)
    large = Worker(world.party("large", config=FAST), concurrency=90, seconds=1)
    meet(world, client.party, small.party, large.party)
    world.run_until(lambda: len(client.party.core.calls.providers("work", 1)) == 2, 5)

    outcomes = [client.call(number) for number in range(100)]
    world.run_until(lambda: all(outcome.done() for outcome in outcomes), 5)

    assert small.begun.total() == pytest.approx(10, abs=3)
    assert (small.most, large.most) == (small.begun.total(), large.begun.total())


def test_more_than_the_concurrency_waits_in_order() -> None:
    """One at a time, first come first served."""
    world = World()
    client, (worker,) = fabric(world, "worker", concurrency=2)

    outcomes = [client.call(number) for number in range(20)]
    world.run_until(lambda: all(outcome.done() for outcome in outcomes), 5)

    assert worker.most == 2
    assert list(worker.begun) == list(range(20))
    assert [outcome.value for outcome in outcomes] == list(range(20))


def test_overload_is_refused_at_once() -> None:
    """Beyond service_waiting_max, or when the wait would be longer than the time that is left."""
    world = World()
    client, (worker,) = fabric(world, "worker", config=Config(service_waiting_max=5), concurrency=1, seconds=1.0)

    outcomes = [client.call(number, timeout=100) for number in range(7)]
    world.run(3 * LATENCY_S)

    assert [outcome.done() for outcome in outcomes] == [False] * 6 + [True]
    assert isinstance(outcomes[6].error, Overloaded)
    world.run_until(outcomes[2].done, 5)
    hasty = client.call("hasty", timeout=0.05)
    world.run(3 * LATENCY_S)
    assert isinstance(hasty.error, Overloaded)
    assert hasty.error.retry_after > 0.05
    assert worker.begun["hasty"] == 0


def test_a_refused_call_goes_to_another_provider() -> None:
    """Overload at one is no overload; it was not begun, so it need not be idempotent."""
    world = World()
    client, (full, free) = fabric(world, "full", "free", config=Config(service_waiting_max=1), concurrency=1, seconds=5)
    other = Client(world.party("other"))
    meet(world, client.party, other.party, full.party, free.party)
    world.run(1)
    blocking = [other.call("block", timeout=100, only=p) for p in other.party.core.calls.providers("work", 1)[:1] * 2]
    world.run(0.1)

    outcomes = [client.call(number, timeout=100) for number in range(2)]
    world.run_until(lambda: all(outcome.done() for outcome in outcomes), 100)

    assert [outcome.value for outcome in outcomes] == [0, 1]
    assert len(blocking) == 2
    assert full.begun[0] + free.begun[0] == 1


def test_an_idempotent_call_waits_out_an_overload() -> None:
    """It is tried again, with growing pauses between request_retry_s and request_retry_s_max."""
    world = World()
    config = Config(service_waiting_max=1, request_retry_s=0.1, request_retry_s_max=0.4)
    client, (_worker,) = fabric(world, "worker", config=config, concurrency=1, seconds=3.0)

    block = [client.call(number, timeout=100) for number in range(2)]
    patient = client.call("patient", timeout=100, idempotent=True)
    frames = world.frames_sent
    world.run(2)
    tries = (world.frames_sent - frames) / 4

    assert not patient.done()
    assert tries < 15
    world.run_until(patient.done, 30)
    assert patient.value == "patient"
    assert [outcome.value for outcome in block] == [0, 1]


def test_a_lost_provider_fails_what_it_was_given() -> None:
    """Unless it is idempotent: then another does it."""
    world = World()
    client, workers = fabric(world, "one", "two", seconds=30)

    once = client.call("once", timeout=100)
    again = client.call("again", timeout=100, idempotent=True)
    world.run(0.1)
    for name in ("once", "again"):
        for worker in [worker for worker in workers if worker.begun[name]]:
            world.kill(worker.party)
    survivors = [worker for worker in workers if worker.party.alive]
    world.run_until(once.done, 10)

    assert isinstance(once.error, ProviderLost)
    for worker in survivors:
        assert not worker.begun["once"]
    if survivors:
        world.run_until(again.done, 60)
        assert again.value == "again"
    else:
        fresh = Worker(world.party("fresh", config=FAST))
        meet(world, client.party, fresh.party)
        world.run_until(again.done, 60)
        assert fresh.finished["again"] == 1


def test_a_draining_provider_is_left_without_a_failure() -> None:
    """What it has it finishes; what reaches it too late goes elsewhere; with nobody else there are no responders."""
    world = World()
    client, (one, two) = fabric(world, "one", "two", seconds=0.5)
    outcomes = []
    for number in range(200):
        outcomes.append(client.call(number))
        world.run(LATENCY_S / 4)
        if number == 100:
            one.drain()
    world.run_until(lambda: all(outcome.done() for outcome in outcomes), 5)

    assert [outcome.value for outcome in outcomes] == list(range(200))
    assert (one.begun + two.begun) == Counter(range(200))
    assert one.begun.total() > 10
    two.drain()
    world.run(0.1)
    with pytest.raises(NoResponders):
        client.call("nobody")


def test_what_waits_at_a_withdrawn_service_goes_elsewhere() -> None:
    """What runs there is lost, and known to be."""
    world = World()
    client, (one,) = fabric(world, "one", concurrency=1, seconds=5)
    running, waiting = client.call("running"), client.call("waiting", wait=5.0)
    world.run(0.1)
    two = Worker(world.party("two", config=FAST), seconds=0.1)
    meet(world, client.party, one.party, two.party)
    world.run(0.1)

    one.withdraw()
    world.run_until(lambda: running.done() and waiting.done(), 5)

    assert isinstance(running.error, ProviderLost)
    assert waiting.value == "waiting"
    assert (one.begun["waiting"], two.begun["waiting"]) == (0, 1)
    assert one.cancelled == ["running"]


def test_a_call_waits_for_a_provider_if_asked_to() -> None:
    """Otherwise nobody is an answer; the wait has an end."""
    world = World()
    client, _ = fabric(world)

    with pytest.raises(NoResponders):
        client.call(1)
    waiting, short = client.call(2, wait=5), client.call(3, wait=0.1)
    world.run(1)
    worker = Worker(world.party("late", config=FAST))
    meet(world, client.party, worker.party)
    world.run_until(waiting.done, 5)

    assert waiting.value == 2
    assert isinstance(short.error, NoResponders)


def test_timeouts_and_cancellation_reach_the_handler() -> None:
    """And nothing is left of the call at either end."""
    world = World()
    client, (worker,) = fabric(world, "worker", seconds=30)

    late, unwanted = client.call("late", timeout=1), client.call("unwanted")
    world.run(0.5)
    client.cancel(unwanted)
    world.run(1)

    assert isinstance(late.error, RequestTimeout)
    assert late.error.providers == ("worker",)
    assert not unwanted.done()
    assert worker.cancelled == ["unwanted", "late"]
    assert worker.running == 0
    assert not client.party.core.calls.outstanding
    assert not worker.party.core.serving.executions


def test_a_provider_stops_by_itself_at_the_deadline() -> None:
    """Its client may be cut off."""
    world = World()
    client, (worker,) = fabric(world, "worker", seconds=30)

    client.call("late", timeout=1)
    world.run(0.1)
    world.cut(client.party, worker.party)
    world.run(1)

    assert worker.cancelled == ["late"]


def test_what_begins_too_late_is_cancelled_before_it_begins() -> None:
    """A provider that has much to do may come to a request after its deadline; what is in time is called."""
    world = World()
    client, (worker,) = fabric(world, "worker")
    serving, held = worker.party.core.serving, list[Execution]()
    serving.start = held.append
    for seconds in (1.0, 10.0):
        client.call(seconds, timeout=seconds)
    world.run(0.5)

    serving.run(held, world.now + 5)

    assert [execution.cancelled for execution in held] == [True, False]
    assert list(serving.executions.values()) == held[1:]


def test_a_hedge_asks_a_second_provider() -> None:
    """The first reply counts; the other provider is told to stop."""
    world = World()
    client, (one, two) = fabric(world, "one", "two", seconds=30)

    outcome = client.call("x", idempotent=True, hedge_s=0.2)
    world.run(0.1)
    (other,) = [worker for worker in (one, two) if not worker.begun["x"]]
    other.seconds = 0.05
    world.run(0.5)

    assert outcome.value == "x"
    assert (one.begun + two.begun)["x"] == 2
    assert (one.cancelled + two.cancelled) == ["x"]
    quick = client.call("quick", idempotent=True, hedge_s=100)
    world.run(40)
    assert quick.ends == 1
    assert (one.begun + two.begun)["quick"] == 1


def test_kept_replies_are_given_again_and_bounded() -> None:
    """The same request of an idempotent call is not executed twice; replies_kept_max and replies_kept_bytes hold."""
    world = World()
    config = Config(
        heartbeat_interval_s=0.5, peer_timeout_s=1.5, rejoin_s=1000, replies_kept_max=3, replies_kept_bytes=250
    )
    client, (worker,) = fabric(world, "worker", config=config, seconds=1.0)

    outcome = client.call("kept", timeout=60, idempotent=True)
    world.run(0.5)
    world.cut(client.party, worker.party)
    world.run(10)
    world.heal()
    world.run_until(outcome.done, 60)

    assert outcome.value == "kept"
    assert worker.begun["kept"] == 1
    assert worker.party.core.serving.replies_kept == 1
    for number in range(10):
        client.call(number, idempotent=True)
    world.run(5)
    assert worker.party.core.serving.replies_kept == 2, "of 100 bytes each"


def test_a_stream_goes_no_further_than_its_credit() -> None:
    """The client's grants let it go on; a reply that streams needs credit at all."""
    world = World()
    client, (worker,) = fabric(world, "worker", seconds=100, streams=True)

    outcome = client.call("stream", timeout=1000, credit=1000)
    refused = client.call("plain")
    world.run(0.1)
    (execution,) = worker.held
    sent = 0
    while worker.send(execution, sent, 100):
        sent += 1
    world.run(0.1)

    assert sent == 9
    assert outcome.items == list(range(10))
    assert isinstance(refused.error, LocalProtocolError)
    client.party.core.calls.grant(client.calls[0], 500, world.now)
    client.party.pump()
    world.run(0.1)
    assert worker.resumed == 1


def test_limits_of_a_node() -> None:
    """services_max and requests_max; one service of one name and version."""
    world = World()
    client, (worker,) = fabric(world, "worker", config=Config(services_max=1, requests_max=2), seconds=5)

    with pytest.raises(LimitExceeded, match="services_max"):
        Worker(worker.party, service="more")
    with pytest.raises(LocalProtocolError, match="already"):
        Worker(worker.party)
    client.call(1)
    client.call(2)
    with pytest.raises(LimitExceeded, match="requests_max"):
        client.call(3)


def test_offers_of_a_peer_are_bounded() -> None:
    """More than services_max of them are not looked at."""
    world = World()
    client = Client(world.party("client", config=Config(services_max=2)))
    party = world.party("worker")
    for number in range(5):
        Worker(party, service=f"s{number}")
    meet(world, client.party, party)
    world.run(1)

    assert [offer.service for offer in client.party.core.calls.offered_by(party.core.me)] == ["s0", "s1"]


def test_calls_wait_for_room_on_the_way() -> None:
    """Beyond channel_bytes they are parked, and all of them arrive."""
    world = World()
    client, (worker,) = fabric(world, "worker", config=Config(channel_bytes=10_000), seconds=0.01)

    outcomes = [client.call("x" * 1000) for _ in range(100)]
    world.run(2 * LATENCY_S)
    at_first = worker.begun.total()
    world.run_until(lambda: all(outcome.done() for outcome in outcomes), 20)

    assert at_first < 15
    assert worker.begun.total() == 100
    outcomes = [client.call("y" * 1000) for _ in range(30)]
    client.party.core.calls.give_up(NodeClosed("closed"), world.now)
    assert all(isinstance(outcome.error, NodeClosed) for outcome in outcomes)


def test_own_services_are_providers_too() -> None:
    """Without a frame; refusals come as fast."""
    world = World()
    client = Client(world.party("both", config=Config(service_waiting_max=1)))
    worker = Worker(client.party, concurrency=1)

    outcomes = [client.call(number) for number in range(3)]
    assert isinstance(outcomes[2].error, Overloaded)
    world.run(1)

    assert [outcome.value for outcome in outcomes[:2]] == [0, 1]
    assert world.frames_sent == 0
    assert worker.begun.total() == 2


class Storm:
    """Faults and calls at random, from one seed."""

    def __init__(self, seed: int) -> None:
        self.world, self.rng = World(seed=seed), random.Random(seed)
        concurrency = self.rng.choice((1, 4, 100))
        self.client, self.workers = fabric(self.world, "p0", "p1", "p2", concurrency=concurrency)
        self.idempotent: list[bool] = []

    def strike(self) -> None:
        """One fault, one newcomer, or some calls."""
        world, rng, client = self.world, self.rng, self.client
        alive = [worker for worker in self.workers if worker.party.alive]
        worker = rng.choice(alive)
        match rng.randrange(14):
            case 0:
                world.break_connections(client.party, worker.party)
            case 1:
                world.cut(client.party, worker.party)
            case 2 | 3:
                world.heal()
            case 4:
                worker.party.stalled = rng.random() < 0.5
            case 5 if len(alive) > 1 and rng.random() < 0.3:
                world.kill(worker.party)
            case 6 if rng.random() < 0.3:
                worker.drain()
            case 7 if len(self.workers) < 8:
                name, seconds = f"p{len(self.workers)}", rng.choice((0.01, 0.2, 2.0))
                self.workers.append(Worker(world.party(name, config=FAST), seconds=seconds))
                client.party.find(self.workers[-1].party)
            case _:
                for _ in range(rng.choice((1, 5, 30))):
                    self.call()
        world.run(rng.choice((0, LATENCY_S, 0.01, 0.3, 1.0)))

    def call(self) -> None:
        """One call of any kind; now and then an earlier one is cancelled."""
        rng, client = self.rng, self.client
        idempotent = rng.random() < 0.5
        hedge_s = 0.1 if idempotent and rng.random() < 0.3 else None
        timeout, wait = rng.choice((0.05, 1.0, 20.0)), rng.choice((0.0, 0.0, 2.0))
        number = len(self.idempotent)
        self.idempotent.append(idempotent)
        try:
            client.call(number, timeout=timeout, wait=wait, idempotent=idempotent, hedge_s=hedge_s)
        except NoResponders:
            assert not client.party.core.calls.providers("work", 1)
        if rng.random() < 0.05 and client.outcomes:
            client.cancel(rng.choice(client.outcomes))

    def calm(self) -> None:
        """Everything works again, for long enough."""
        self.world.heal()
        for worker in self.workers:
            worker.party.stalled = False
            worker.party.pump()
        self.world.run(60)


@pytest.mark.parametrize("seed", range(60))
def test_every_call_ends_once_whatever_happens(seed: int) -> None:
    """Breaks, cuts, stopped and killed providers; then calm."""
    storm = Storm(seed)
    for _ in range(storm.rng.randrange(30, 120)):
        storm.strike()
    storm.calm()

    client, workers = storm.client, storm.workers
    known = NoResponders, RequestTimeout, ProviderLost, Overloaded
    begun = sum((worker.begun for worker in workers), Counter[int]())
    for outcome in client.outcomes:
        assert outcome.ends == (0 if outcome.cancelled else 1)
        assert outcome.value == outcome.argument or outcome.cancelled or isinstance(outcome.error, known)
    for number, idempotent in enumerate(storm.idempotent):
        assert idempotent or begun[number] <= 1, f"call {number} was begun {begun[number]} times"
    for worker in workers:
        assert all(times <= 1 for times in worker.begun.values()), "a provider began a call twice"
    assert not client.party.core.calls.outstanding
    assert not any(worker.party.core.serving.executions for worker in workers if worker.party.alive)
    assert all(provider.outstanding == 0 for provider in client.party.core.calls.providers("work", 1))
