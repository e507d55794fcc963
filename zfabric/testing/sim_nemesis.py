"""What goes wrong in a simulation, and when."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zfabric.testing.sim_network import Faults
from zfabric.testing.sim_party import Party

if TYPE_CHECKING:
    from zfabric.testing.simulator import Simulation

__all__ = ["Nemesis"]

QUIET = 0.15
"Share of simulations whose network loses nothing."


class Nemesis:
    """Chooses faults, one after the other, until it is told to stop."""

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation
        self._random = simulation.random
        self._stopped = False
        self.counts: dict[str, int] = {}
        random = self._random
        self._kinds = {
            "partition": (self._partition, 4),
            "clog": (self._clog, 2),
            "reset": (self._reset, 3),
            "crash": (self._crash, 3),
            "close": (self._close, 1),
            "pause": (self._pause, 2),
            "stick": (self._stick, 4),
            "resubscribe": (self._resubscribe, 2),
            "reopen": (self._reopen, 2),
            "clock": (self._clock, 1),
            "repull": (self._repull, 3),
            "weather": (self._weather, 2),
        }
        chosen = random.sample(sorted(self._kinds), random.randint(1, len(self._kinds)))
        self._chosen = [kind for kind in sorted(chosen) for _ in range(self._kinds[kind][1])]
        self._pause_s = random.choice((0.5, 1.0, 3.0))

    def begin(self) -> None:
        """Faults from now on."""
        if self._random.random() >= QUIET:
            self._weather()
        self._soon()

    def _soon(self) -> None:
        self._simulation.agenda.after(self._random.uniform(0.1, 2.0) * self._pause_s, self._next)

    def _next(self) -> None:
        if self._stopped:
            return
        kind = self._random.choice(self._chosen)
        self.counts[kind] = self.counts.get(kind, 0) + 1
        self._kinds[kind][0]()
        self._soon()

    def end(self) -> None:
        """Mend everything: some of the nodes that are down come back."""
        simulation = self._simulation
        self._stopped = True
        for party in simulation.parties.values():
            for consumer in party.consumers:
                consumer.unstick()
        for name, party in list(simulation.parties.items()):
            if not party.alive and self._random.random() < 0.5:
                simulation.boot(name)

    def _trace(self, what: str, *details: object) -> None:
        if self._simulation.log is not None:
            self._simulation.log.append((round(self._simulation.agenda.now, 4), "nemesis", what, *details))

    def _anybody(self) -> Party | None:
        living = self._simulation.living()
        return self._random.choice(living) if living else None

    # -- the network ---------------------------------------------------------------------------

    def _weather(self) -> None:
        random = self._random
        self._simulation.network.faults = Faults(
            loss=random.choice((0.0, 0.05, 0.1, 0.3)),
            duplication=random.choice((0.0, 0.0, 0.1, 0.3)),
            reordering=random.choice((0.0, 0.0, 0.1, 0.3)),
            replay=random.choice((0.0, 0.0, 0.1, 0.5)),
            spikes=random.choice((0.0, 0.0, 0.02, 0.1)),
        )
        self._trace("weather", self._simulation.network.faults)

    def _partition(self) -> None:
        random, names = self._random, list(self._simulation.publishing)
        random.shuffle(names)
        shape = random.choice(("halves", "isolate", "bridge", "one-way"))
        if shape == "bridge" and len(names) > 2:
            halves = names[1 : 1 + len(names) // 2], names[1 + len(names) // 2 :]
        elif shape == "isolate":
            halves = names[:1], names[1:]
        else:
            halves = names[: len(names) // 2], names[len(names) // 2 :]
        pairs = [(one, other) for one in halves[0] for other in halves[1]]
        if shape != "one-way":
            pairs += [(other, one) for one, other in pairs]
        duration = random.choice((0.3, 1.0, 4.0, 9.0))
        self._trace("partition", shape, pairs, duration)
        self._simulation.network.block(pairs, duration, breaks=True)

    def _clog(self) -> None:
        names = list(self._simulation.publishing)
        pair = tuple(self._random.sample(names, 2))
        duration = self._random.uniform(0.2, 5.0)
        self._trace("clog", pair, duration)
        self._simulation.network.block([(pair[0], pair[1])], duration, breaks=False)

    def _reset(self) -> None:
        one, other = self._random.sample(list(self._simulation.publishing), 2)
        self._trace("reset", one, other)
        self._simulation.network.reset(one, other)

    # -- nodes ---------------------------------------------------------------------------------

    def _crash(self) -> None:
        self._end(politely=False)

    def _close(self) -> None:
        self._end(politely=True)

    def _end(self, *, politely: bool) -> None:
        party = self._anybody()
        if party is None or (politely and party.paused):
            return
        party.end(politely=politely)
        if self._random.random() < 0.8:
            pause = self._random.choice((0.05, 0.5, 2.0, 6.0))
            self._simulation.agenda.after(pause, self._restart, party.name)

    def _restart(self, name: str) -> None:
        if not self._simulation.parties[name].alive:
            self._simulation.boot(name)

    def _pause(self) -> None:
        party = self._anybody()
        if party is not None:
            party.pause(self._random.choice((0.3, 1.5, 4.0)))

    def _clock(self) -> None:
        party = self._anybody()
        if party is not None:
            party.clock_step += self._random.choice((-3600.0, 3600.0))
            party.trace("clock", party.clock_step)

    # -- users ---------------------------------------------------------------------------------

    def _stick(self) -> None:
        party = self._anybody()
        if party is not None and party.consumers:
            consumer = self._random.choice(party.consumers)
            duration = self._random.choice((0.5, 3.0, 30.0))
            party.trace("stick", consumer.lane.request.lane, duration)
            consumer.stuck = True
            self._simulation.agenda.after(duration, consumer.unstick)

    def _resubscribe(self) -> None:
        party = self._anybody()
        if party is None or party.paused or not party.consumers:
            return
        consumer = self._random.choice(party.consumers)
        party.unsubscribe(consumer)
        spec = self._simulation.draw_consumer(consumer.spec.pattern) if self._random.random() < 0.5 else consumer.spec
        listening = self._simulation.listening[party.name]
        listening[listening.index(consumer.spec)] = spec
        if self._random.random() < 0.5:
            party.subscribe(spec)
        else:
            pause = self._random.uniform(0.0, 2.0)
            self._simulation.agenda.after(pause, party.when_running, party.subscribe, spec)

    def _repull(self) -> None:
        """A worker ends, and another begins."""
        party = self._anybody()
        users = None if party is None else party.queue_users
        if party is None or users is None or not users.pullers or party.paused:
            return
        puller = self._random.choice(users.pullers)
        party.trace("repull", puller.spec)
        users.close(puller)
        users.puller(puller.spec)
        party.pump()

    def _reopen(self) -> None:
        party = self._anybody()
        if party is not None and party.publishers and not party.paused:
            party.reopen(self._random.choice(party.publishers))
