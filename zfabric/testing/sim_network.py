"""The simulator's network: what ZeroMQ does with four sockets a node, and what networks do to it.

Control connections keep order and lose nothing while they stand; a break loses what was under way, and the next
connection has a new routing id at the listener. Feeds carry subscriptions up and batches down, in order, but for the
faults that are switched on. A blocked direction stalls frames (TCP repeats them); connections that stay blocked break.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from itertools import count
from random import Random
from typing import Any, Protocol

import msgspec

from zfabric.testing.sim_truth import Violation
from zfabric.wire.records import Ack, Data, Positions, Record, Repair, decode_envelope, encode_envelope

__all__ = ["Agenda", "Endpoint", "Faults", "Flight", "Network"]

RETRY_S = 0.5
"Pause between two attempts of a broken connection."
BACKLOG_MAX = 200
"Frames that wait in a dialled connection while it is down."
AT_ONCE_MAX = 5000
"More events than this without any time passing are a loop."
OLD_MAX = 8
"Frames of a connection that may come again."
REPLAYABLE = (Ack, Data, Positions, Repair)


class Faults(msgspec.Struct):
    """How bad the network is. All zero: frames only take a little time."""

    loss: float = 0.0
    "Batches that a feed's queue drops."
    duplication: float = 0.0
    reordering: float = 0.0
    replay: float = 0.0
    "Control frames after which an old ack, repair request, repaired batch or position comes again, and old batches."
    spikes: float = 0.0
    "Frames that take a hundred times as long."


class Agenda:
    """What happens when, on one virtual clock."""

    def __init__(self) -> None:
        self.now = 0.0
        self.steps = 0
        self._heap: list[tuple[float, int, Callable[..., object], tuple[Any, ...]]] = []
        self._order = count()

    def at(self, when: float, call: Callable[..., object], *arguments: Any) -> None:
        """Call something at a time, not before now."""
        heapq.heappush(self._heap, (max(when, self.now), next(self._order), call, arguments))

    def after(self, pause: float, call: Callable[..., object], *arguments: Any) -> None:
        """Call something later."""
        self.at(self.now + pause, call, *arguments)

    def run(self, until: float) -> None:
        """Let time pass."""
        heap = self._heap
        at_once = 0
        while heap and heap[0][0] <= until:
            when, _, call, arguments = heapq.heappop(heap)
            at_once = at_once + 1 if when <= self.now else 0
            if at_once > AT_ONCE_MAX:
                raise Violation("livelock", f"{at_once} things happen at one time; the last is {call} {arguments}")
            self.now = when
            self.steps += 1
            call(*arguments)
        self.now = until


class Flight(msgspec.Struct, frozen=True):
    """A batch under way, and which messages it holds."""

    frames: Sequence[bytes]
    stream: tuple[bytes, str, int]
    base: int
    stop: int


class Endpoint(Protocol):
    """A node as the network sees it."""

    name: str
    id: bytes
    alive: bool
    paused: bool
    filters: dict[bytes, int]

    def on_control(self, route: int | bytes, frame: bytes) -> None:
        """A control frame arrived."""

    def on_unreachable(self, route: int) -> None:
        """A dialled connection was not made."""

    def on_interrupted(self, route: int) -> None:
        """A dialled connection ended, and is being made again."""

    def on_connection_ended(self) -> None:
        """Somebody's connection to the inbox ended."""

    def on_filter(self, data: bytes) -> None:
        """The outlet saw a subscription come or go."""

    def on_batch(self, flight: Flight) -> None:
        """The feed received a batch."""


class _Link:
    """What control connections and feeds share: a direction each way, stalls, breaks and new attempts."""

    def __init__(self, network: Network, near: Endpoint, address: str) -> None:
        self.network = network
        self.near = near
        self.far: Endpoint | None = None
        self.address = address
        self.closed = False
        self.generation = 0
        self._free = [0.0, 0.0]
        self._stalled: tuple[list[Any], list[Any]] = ([], [])
        network.agenda.after(network.latency(), self._attempt)

    def _attempt(self) -> None:
        network = self.network
        if self.closed or not self.near.alive or self.far is not None:
            return
        far = network.addresses.get(self.address)
        if far is None or not far.alive or not network.open(self.near, far) or not network.open(far, self.near):
            if far is not None or self.generation == 0:
                network.agenda.after(RETRY_S, self._attempt)
            if far is None:
                self.not_made()
            return
        self.generation += 1
        self.far = far
        self._free = [network.agenda.now] * 2
        self.connected(far)

    def not_made(self) -> None:
        """Nobody listens there."""

    def connected(self, far: Endpoint) -> None:
        """A connection stands."""

    def disconnected(self, far: Endpoint) -> None:
        """It broke."""

    def arrived(self, direction: int, item: Any) -> None:
        """Something came out at the other end (direction 0: at the far one)."""

    def ends(self, direction: int) -> tuple[Endpoint, Endpoint]:
        """From and to."""
        assert self.far is not None
        return (self.near, self.far) if direction == 0 else (self.far, self.near)

    def transmit(self, direction: int, item: Any, *, in_order: bool = True, extra: float = 0.0) -> None:
        """Send something on a standing connection."""
        network = self.network
        when = network.agenda.now + network.latency() + extra
        if in_order:
            when = self._free[direction] = max(when, self._free[direction])
        network.agenda.at(when, self._arrive, self.generation, direction, item)

    def _arrive(self, generation: int, direction: int, item: Any) -> None:
        if generation != self.generation or self.far is None:
            return
        source, target = self.ends(direction)
        if self._stalled[direction] or target.paused or not self.network.open(source, target):
            self._stalled[direction].append(item)
        elif target.alive:
            self.arrived(direction, item)

    def kick(self) -> None:
        """Something changed: what stalled may go on."""
        for direction in (0, 1):
            stalled = self._stalled[direction]
            while stalled and self.far is not None:
                source, target = self.ends(direction)
                if target.paused or not target.alive or not self.network.open(source, target):
                    break
                self.arrived(direction, stalled.pop(0))

    def break_(self, generation: int | None = None) -> None:
        """The connection breaks, unless it is another one by now; what was under way is lost."""
        if self.far is None or (generation is not None and generation != self.generation):
            return
        far, self.far = self.far, None
        self.generation += 1
        for stalled in self._stalled:
            stalled.clear()
        self.disconnected(far)
        if self.closed or not self.near.alive:
            self.network.forget(self)
        else:
            self.network.agenda.after(self.network.random.uniform(0.01, RETRY_S), self._attempt)

    def close(self) -> None:
        """The near end hangs up; what it sent still arrives."""
        self.closed = True
        self.network.agenda.after(0.2, self._closed)

    def _closed(self) -> None:
        self.break_()
        self.network.forget(self)


class Control(_Link):
    """A dialled connection from a node's dialler to another one's inbox."""

    def __init__(self, network: Network, near: Endpoint, route: int, address: str) -> None:
        self.route = route
        self.accepted = b""
        self._backlog: list[bytes] = []
        self._old: list[bytes] = []
        super().__init__(network, near, address)

    def connected(self, far: Endpoint) -> None:
        """The listener knows it by a fresh routing id."""
        self.accepted = self.network.next_routing_id()
        self.network.inbound[far.id, self.accepted] = self
        backlog, self._backlog = self._backlog, []
        for frame in backlog:
            self.transmit(0, frame)

    def disconnected(self, far: Endpoint) -> None:
        """The listener's way is gone; both hear of it."""
        del self.network.inbound[far.id, self.accepted]
        far.on_connection_ended()
        if not self.closed:
            self.near.on_interrupted(self.route)

    def not_made(self) -> None:
        """The dialler hears of it."""
        self.near.on_unreachable(self.route)

    def send(self, frame: bytes) -> None:
        """From the dialler; waits while the connection is down."""
        if self.far is not None:
            self.transmit(0, frame)
        elif len(self._backlog) < BACKLOG_MAX:
            self._backlog.append(frame)

    def arrived(self, direction: int, item: Any) -> None:
        """Hand the frame over, and perhaps an old one once more."""
        network = self.network
        _, target = self.ends(direction)
        target.on_control(self.accepted if direction == 0 else self.route, item)
        replay = network.faults.replay
        if replay and direction == 0 and self.far is not None and network.random.random() < replay:
            old = _replayable(item)
            if old is not None:
                self._old.append(old)
            if self._old:
                index = network.random.randrange(len(self._old))
                again = self._old[index]
                if len(self._old) > OLD_MAX:
                    del self._old[index]
                target.on_control(self.accepted, again)


def _replayable(frame: bytes) -> bytes | None:
    sender, records = decode_envelope(frame, 1_000_000)
    kept: list[Record] = [record for record in records if isinstance(record, REPLAYABLE)]
    return encode_envelope(sender, kept) if kept else None


class Feed(_Link):
    """One connection of a node's SUB socket to another one's XPUB socket."""

    def __init__(self, network: Network, near: Endpoint, address: str) -> None:
        self.seen: set[bytes] = set()
        self._old: list[Flight] = []
        super().__init__(network, near, address)

    def connected(self, far: Endpoint) -> None:
        """The feed sends all its subscriptions again, in byte order."""
        self.seen = set()
        for prefix in sorted(self.near.filters):
            self.transmit(0, b"\1" + prefix)

    def disconnected(self, far: Endpoint) -> None:
        """The outlet notices, sometimes later than the next connection comes."""
        seen, self.seen = self.seen, set()
        network = self.network
        late = network.random.random() < 0.3
        network.agenda.after(network.random.uniform(0, 2.0) if late else 0.001, network.outlet_lost, far, seen)

    def arrived(self, direction: int, item: Any) -> None:
        """A subscription at the outlet, or a batch at the feed."""
        if direction == 1:
            self._receive(item)
            return
        assert self.far is not None
        prefix = item[1:]
        if item[0]:
            self.seen.add(prefix)
            self.network.filter_added(self.far, prefix)
        elif prefix in self.seen:
            self.seen.discard(prefix)
            self.network.filter_removed(self.far, prefix)

    def _receive(self, flight: Flight) -> None:
        """Hand a batch over, and perhaps an old one once more."""
        network = self.network
        self.near.on_batch(flight)
        replay = network.faults.replay / 4
        if replay and network.random.random() < replay:
            self._old.append(flight)
            self.near.on_batch(self._old[network.random.randrange(len(self._old))])
            if len(self._old) > OLD_MAX:
                del self._old[network.random.randrange(len(self._old))]

    def publish(self, flight: Flight) -> None:
        """The outlet sends a batch to this feed."""
        network = self.network
        head = flight.frames[0]
        if self.far is None or not any(head.startswith(prefix) for prefix in self.seen):
            return
        faults, random = network.faults, network.random
        if faults.loss and random.random() < faults.loss:
            network.lost_batches += 1
            return
        late = bool(faults.reordering) and random.random() < faults.reordering
        self.transmit(1, flight, in_order=not late, extra=random.uniform(0.0, 0.3) if late else 0.0)
        if faults.duplication and random.random() < faults.duplication:
            self.transmit(1, flight, in_order=False, extra=random.uniform(0.0, 0.5))


class Network:
    """All connections, and what separates nodes at present."""

    def __init__(self, agenda: Agenda, random: Random) -> None:
        self.agenda = agenda
        self.random = random
        self.faults = Faults()
        self.lost_batches = 0
        self.addresses: dict[str, Endpoint] = {}
        self.inbound: dict[tuple[bytes, bytes], Control] = {}
        self.controls: dict[tuple[bytes, int], Control] = {}
        self.feeds: dict[tuple[bytes, str], Feed] = {}
        self.outlet_filters: dict[bytes, dict[bytes, int]] = {}
        self._blocked: dict[tuple[str, str], int] = {}
        self._routing_ids = count(1)

    def next_routing_id(self) -> bytes:
        """A name for a connection at its listener, never used before."""
        return next(self._routing_ids).to_bytes(5, "big")

    def latency(self) -> float:
        """How long a frame takes."""
        if self.faults.spikes and self.random.random() < self.faults.spikes:
            return self.random.uniform(0.05, 0.5)
        return self.random.uniform(0.0005, 0.005)

    # -- faults --------------------------------------------------------------------------------

    def open(self, source: Endpoint, target: Endpoint) -> bool:
        """Whether frames get through."""
        return not self._blocked.get((source.name, target.name))

    def block(self, pairs: Sequence[tuple[str, str]], duration: float, *, breaks: bool) -> None:
        """Stall some directions for a while; with `breaks`, connections that are stalled for long break."""
        for pair in pairs:
            self._blocked[pair] = self._blocked.get(pair, 0) + 1
        self.agenda.after(duration, self._unblock, pairs)
        if not breaks:
            return
        for link in self.links():
            if link.far is not None and self._touches(link, pairs):
                pause = self.random.uniform(0.2, 4.0)
                if pause < duration:
                    self.agenda.after(pause, link.break_, link.generation)

    def _touches(self, link: _Link, pairs: Sequence[tuple[str, str]]) -> bool:
        assert link.far is not None
        return (link.near.name, link.far.name) in pairs or (link.far.name, link.near.name) in pairs

    def _unblock(self, pairs: Sequence[tuple[str, str]]) -> None:
        for pair in pairs:
            self._blocked[pair] -= 1
        self.kick()

    def kick(self) -> None:
        """Let go on what may."""
        for link in self.links():
            link.kick()

    def links(self) -> list[_Link]:
        """Every connection there is, or that is tried."""
        return [*self.controls.values(), *self.feeds.values()]

    def reset(self, one: str, other: str) -> None:
        """All connections between two nodes are reset."""
        for link in self.links():
            if link.far is not None and {link.near.name, link.far.name} == {one, other}:
                link.break_()

    def died(self, node: Endpoint) -> None:
        """A process ended: the kernel closes its connections, if anybody can hear it."""
        for address in [address for address, there in self.addresses.items() if there is node]:
            del self.addresses[address]
        for link in self.links():
            if link.near is node:
                link.closed = True
            if link.far is node or link.near is node:
                separated = link.far is not None and not (self.open(*link.ends(0)) and self.open(*link.ends(1)))
                pause = self.random.uniform(0.5, 3.0) if separated else self.latency()
                self.agenda.after(pause, link.break_, link.generation)

    # -- what nodes ask for --------------------------------------------------------------------

    def dial(self, node: Endpoint, route: int, address: str) -> None:
        """Open a control connection."""
        self.controls[node.id, route] = Control(self, node, route, address)

    def hang_up(self, node: Endpoint, route: int) -> None:
        """Close a control connection that the node dialled."""
        link = self.controls.get((node.id, route))
        if link is not None:
            link.close()

    def send(self, node: Endpoint, route: int | bytes, frame: bytes) -> bool:
        """Send a control frame; False if there is no such connection."""
        if isinstance(route, int):
            link = self.controls.get((node.id, route))
            if link is None or link.closed:
                return False
            link.send(frame)
            return True
        link = self.inbound.get((node.id, route))
        if link is None:
            return False
        link.transmit(1, frame)
        return True

    def connect_feed(self, node: Endpoint, address: str) -> None:
        """Subscribe to an outlet."""
        self.feeds[node.id, address] = Feed(self, node, address)

    def disconnect_feed(self, node: Endpoint, address: str) -> None:
        """Leave an outlet; batches under way are lost."""
        link = self.feeds.pop((node.id, address), None)
        if link is not None:
            link.closed = True
            link.break_()

    def filter_changed(self, node: Endpoint, prefix: bytes, *, added: bool) -> None:
        """A node's feed subscribes to a prefix, or no longer does."""
        for link in list(self.feeds.values()):
            if link.near is node and link.far is not None:
                link.transmit(0, (b"\1" if added else b"\0") + prefix)

    def publish(self, node: Endpoint, flight: Flight) -> None:
        """A node's outlet sends a batch."""
        for link in list(self.feeds.values()):
            if link.far is node:
                link.publish(flight)

    # -- XPUB: tells of the first and the last subscription to each prefix ----------------------

    def filter_added(self, outlet: Endpoint, prefix: bytes) -> None:
        """A feed subscribed."""
        filters = self.outlet_filters.setdefault(outlet.id, {})
        filters[prefix] = filters.get(prefix, 0) + 1
        if filters[prefix] == 1:
            outlet.on_filter(b"\1" + prefix)

    def filter_removed(self, outlet: Endpoint, prefix: bytes) -> None:
        """A feed unsubscribed."""
        filters = self.outlet_filters[outlet.id]
        filters[prefix] -= 1
        if not filters[prefix]:
            del filters[prefix]
            if outlet.alive:
                outlet.on_filter(b"\0" + prefix)

    def outlet_lost(self, outlet: Endpoint, seen: set[bytes]) -> None:
        """A feed's connection is gone, with its subscriptions."""
        for prefix in sorted(seen):
            self.filter_removed(outlet, prefix)

    def forget(self, link: _Link) -> None:
        """A closed connection needs no place any more."""
        if isinstance(link, Control):
            self.controls.pop((link.near.id, link.route), None)
        elif self.feeds.get((link.near.id, link.address)) is link:
            del self.feeds[link.near.id, link.address]
