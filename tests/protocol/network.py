"""Cores without sockets or clocks: a fake network that plays all of them in virtual time."""

from __future__ import annotations

import heapq
import random
from collections import defaultdict
from collections.abc import Callable, Iterable
from itertools import count
from math import inf
from typing import Any, TypeVar

import msgspec

from zfabric.config import Config
from zfabric.events import Event
from zfabric.model import Source
from zfabric.protocol.core import Core
from zfabric.protocol.effects import (
    AddFilter,
    ConnectFeed,
    Dial,
    DisconnectFeed,
    Emit,
    HangUp,
    RemoveFilter,
    Route,
    Send,
)
from zfabric.protocol.lanes import Lane
from zfabric.protocol.outbox import Outbox
from zfabric.wire.batch import Batch
from zfabric.wire.bundle import Bundle
from zfabric.wire.records import Identity, Record, Start, encode_envelope
from zfabric.wire.topics import Pattern

E = TypeVar("E", bound=Event)

LATENCY_S = 0.001
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[Any]).decode


class Inlet:
    """A subscription's end: remembers what it got. `full` keeps reliable streams waiting."""

    def __init__(self) -> None:
        self.full = False
        self.values: list[Any] = []

    def deliver(self, batch: Batch, source: Source) -> None:
        """Take a batch."""
        self.values += _decode(batch.body)[batch.skip :]

    def deliver_bundle(self, bundle: Bundle, source: Source) -> None:
        """Take batches of several streams."""
        self.values += _decode(bundle.body)


class Connection:
    """One dialled connection; `accepted` names it for the listener until it breaks."""

    def __init__(self, dialler: Party, route: int, endpoint: str) -> None:
        self.dialler = dialler
        self.route = route
        self.endpoint = endpoint
        self.listener: Party | None = None
        self.accepted = b""
        self.waiting: list[bytes] = []


class Party:
    """A node: a core and its ends of connections."""

    def __init__(self, world: World, name: str, node_id: bytes, config: Config, fabric: str, address: str) -> None:
        self.world = world
        self.name = name
        self.events: list[Event] = []
        self.dials: list[tuple[float, str]] = []
        self.inbox, self.outlet = f"{world.scheme}://{address}:in", f"{world.scheme}://{address}:out"
        self.second_inbox, second_outlet = (f"{world.scheme}://{address}-too:{end}" for end in ("in", "out"))
        self.outlets = self.outlet, second_outlet
        self.dialled: dict[int, Connection] = {}
        self.accepted: dict[bytes, Connection] = {}
        self.filters: dict[bytes, int] = {}
        self.feeds: set[str] = set()
        self.subscribers: dict[bytes, set[str]] = defaultdict(set)
        self.alive = True
        self.stalled = False
        self.unwritable: set[Route] = set()
        "Connections whose other end has closed them: nothing can be sent, and what it sent before still arrives."
        self._timer_at = inf
        self.core = Core(
            node_id, config, lambda endpoint: endpoint.startswith(("net:", "ipc:", "tcp:")), random.Random(name)
        )
        token = world.rng.randbytes(16)
        self.core.introduce(Identity(token, fabric, name, "host", 1, (self.inbox,), self.outlets))

    # -- verbs ---------------------------------------------------------------------------------

    def find(self, *others: Party) -> None:
        """Discovery tells of others."""
        for other in others:
            self.core.found(other.core.me, (other.inbox,), self.world.now)
        self.pump()

    def seek(self, *endpoints: str) -> None:
        """Add seeds."""
        for endpoint in endpoints:
            self.core.seek(endpoint, self.world.now)
        self.pump()

    def subscribe(self, pattern: str, delivery: str = "") -> tuple[Lane, Inlet]:
        """Subscribe."""
        inlet = Inlet()
        lane = self.core.interests.subscribe(Pattern(pattern), delivery, Start(), inlet)
        self.pump()
        return lane, inlet

    def unsubscribe(self, lane: Lane) -> None:
        """End a subscription."""
        self.core.interests.unsubscribe(lane)
        self.pump()

    def open_topic(self, topic: str, delivery: str = "at-most-once") -> Outbox:
        """Start to publish."""
        outbox = self.core.interests.open_topic(topic, delivery, with_crc=False)
        self.pump()
        return outbox

    def publish(self, outbox: Outbox, *values: Any) -> None:
        """Publish one batch."""
        self._append(outbox, *values)
        self._send([bytes(frame) for frame in self.core.seal(outbox, 0, self.world.now)])
        self.pump()

    def publish_together(self, outboxes: Iterable[Outbox], *values: Any) -> list[bytes]:
        """Publish one batch on each topic, in bundles where that is possible. Returns the bundles."""
        outboxes = list(outboxes)
        for outbox in outboxes:
            self._append(outbox, *values)
        bundles, alone = self.core.bundle(outboxes, 0, self.world.now)
        for bundle in bundles:
            self._send([bundle])
        for outbox in alone:
            self._send([bytes(frame) for frame in self.core.seal(outbox, 0, self.world.now)])
        self.pump()
        return bundles

    def _append(self, outbox: Outbox, *values: Any) -> None:
        for value in values:
            outbox.writer.buffer += _encode(value)
            outbox.writer.count += 1

    def _send(self, frames: list[bytes]) -> None:
        takers = {name for prefix, names in self.subscribers.items() if frames[0].startswith(prefix) for name in names}
        for name in sorted(takers):
            self.world.send_batch(self, self.world.parties[name], frames)

    def goodbye(self) -> None:
        """Close."""
        self.core.goodbye()
        self.pump()
        self.world.after(LATENCY_S, self.world.kill, self)

    def say(self, route: Route, *records: Record, sender: bytes | None = None) -> None:
        """Receive records as if somebody had sent them."""
        self.receive(route, encode_envelope(sender or self.core.me, list(records)))

    def receive(self, route: Route, frame: bytes) -> None:
        """Receive a frame as if somebody had sent it."""
        self.core.receive(route, frame, self.world.now)
        self.pump()

    # -- what a driver does --------------------------------------------------------------------

    def pump(self) -> None:
        """Carry out what the core wants."""
        while self.alive and not self.stalled and (actions := self.core.actions(self.world.now)):
            for action in actions:
                self._act(action)
        due = self.core.timer()
        if due < self._timer_at:
            self._timer_at = due
            self.world.at(due, self._on_timer, due)

    def _on_timer(self, due: float) -> None:
        if self.alive and due == self._timer_at:
            self._timer_at = inf
            if self.stalled:
                self.world.after(0.1, self.pump)
                return
            self.core.handle_timer(self.world.now)
            self.pump()

    def _act(self, action: object) -> None:
        world = self.world
        match action:
            case Send(route, frame):
                if not world.send(self, route, frame):
                    self.core.route_lost(route, world.now)
            case Dial(route, endpoint):
                self.dials.append((world.now, endpoint))
                self.dialled[route] = Connection(self, route, endpoint)
                world.after(LATENCY_S, world.connect, self.dialled[route])
            case HangUp(route):
                world.hang_up(self, route)
            case Emit(event):
                self.events.append(event)
            case AddFilter(prefix):
                self.filters[prefix] = self.filters.get(prefix, 0) + 1
                for endpoint in sorted(self.feeds):
                    world.after(LATENCY_S, world.filter, self, endpoint, prefix, True)
            case RemoveFilter(prefix):
                self.filters[prefix] -= 1
                if not self.filters[prefix]:
                    del self.filters[prefix]
                    for endpoint in sorted(self.feeds):
                        world.after(LATENCY_S, world.filter, self, endpoint, prefix, False)
            case ConnectFeed(endpoint):
                self.feeds.add(endpoint)
                for prefix in sorted(self.filters):
                    world.after(LATENCY_S, world.filter, self, endpoint, prefix, True)
            case DisconnectFeed(endpoint):
                self.feeds.discard(endpoint)
                for prefix in sorted(self.filters):
                    world.after(LATENCY_S, world.filter, self, endpoint, prefix, False)
            case _:
                raise AssertionError(f"unknown action {action}")

    # -- what tests look at --------------------------------------------------------------------

    @property
    def peers(self) -> set[str]:
        """Names of the peers that are up."""
        return {peer.identity.name for peer in self.core.peers.up()}

    def seen(self, kind: type[E]) -> list[E]:
        """Events of one kind so far."""
        return [event for event in self.events if isinstance(event, kind)]


class World:
    """Virtual time, and who can reach whom. Addresses of the scheme `ipc` need no proof that they work."""

    def __init__(self, scheme: str = "net", seed: int = 0) -> None:
        self.scheme = scheme
        self.now = 0.0
        self.rng = random.Random(seed)
        self.parties: dict[str, Party] = {}
        self.cut_off: set[frozenset[str]] = set()
        self.frames_sent = 0
        self.captured: list[tuple[Route, bytes]] | None = None
        "Control frames end up here instead of travelling, unless it is None."
        self.held_batches: list[tuple[Party, Party, list[bytes]]] | None = None
        "So do batches."
        self.held_filters: list[tuple[Party, str, bytes, bool]] | None = None
        "And filters on their way to outlets."
        self._agenda: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = count()
        self._accepted = count(1)

    def party(
        self,
        name: str,
        *,
        node_id: bytes | None = None,
        config: Config | None = None,
        fabric: str = "test",
        address: str | None = None,
    ) -> Party:
        """A new node; one of the same address replaces the one before, which must be dead."""
        made = Party(self, name, node_id or self.rng.randbytes(16), config or Config(), fabric, address or name)
        assert name not in self.parties
        self.parties[name] = made
        return made

    # -- time ----------------------------------------------------------------------------------

    def at(self, when: float, what: Callable[..., None], *arguments: Any) -> None:
        """Do something at a time."""
        if when < inf:
            heapq.heappush(self._agenda, (max(when, self.now), next(self._order), what, arguments))

    def after(self, seconds: float, what: Callable[..., None], *arguments: Any) -> None:
        """Do something later."""
        self.at(self.now + seconds, what, *arguments)

    def run(self, seconds: float = 0.1) -> None:
        """Let time pass."""
        end = self.now + seconds
        while self._agenda and self._agenda[0][0] <= end:
            self._step()
        self.now = end

    def run_until(self, condition: Callable[[], object], seconds: float = 60.0) -> None:
        """Let time pass until something holds; AssertionError if it does not in time."""
        end = self.now + seconds
        while not condition():
            assert self._agenda and self._agenda[0][0] <= end, f"not within {seconds} s of virtual time"
            self._step()

    def _step(self) -> None:
        self.now, _, what, arguments = heapq.heappop(self._agenda)
        what(*arguments)

    # -- faults --------------------------------------------------------------------------------

    def cut(self, one: Party, other: Party) -> None:
        """Nothing passes between two nodes any more, without either noticing."""
        self.cut_off.add(frozenset((one.name, other.name)))

    def heal(self) -> None:
        """Everything passes again."""
        self.cut_off.clear()

    def break_connections(self, one: Party, other: Party) -> None:
        """All connections of two nodes break; diallers connect again under the same route."""
        for connection in [*one.dialled.values(), *other.dialled.values()]:
            if connection.listener in (one, other):
                self._break(connection)

    def _break(self, connection: Connection) -> None:
        assert connection.listener is not None
        self._forget(connection.listener, connection.accepted)
        connection.listener = None
        if connection.dialler.alive:
            connection.dialler.core.peers.interrupted(connection.route)
            connection.dialler.pump()
        self.after(0.1, self.connect, connection)

    def kill(self, party: Party) -> None:
        """A node vanishes."""
        party.alive = False
        self.parties.pop(party.name, None)
        for connection in list(party.accepted.values()):
            self._break(connection)
        for connection in party.dialled.values():
            if connection.listener is not None:
                self._forget(connection.listener, connection.accepted)
        for other in self.parties.values():
            for prefix in [prefix for prefix, names in other.subscribers.items() if party.name in names]:
                self._unsubscribe(other, party.name, prefix)

    def _reaches(self, one: Party, other: Party) -> bool:
        return one.alive and other.alive and frozenset((one.name, other.name)) not in self.cut_off

    # -- connections ---------------------------------------------------------------------------

    def connect(self, connection: Connection) -> None:
        """Try to connect, now and from time to time."""
        dialler = connection.dialler
        if (
            not dialler.alive
            or connection.listener is not None
            or dialler.dialled.get(connection.route) is not connection
        ):
            return
        listener = next((p for p in self.parties.values() if connection.endpoint in (p.inbox, p.second_inbox)), None)
        if listener is None or not self._reaches(dialler, listener):
            self.after(0.5, self.connect, connection)
            if listener is None:
                dialler.core.unreachable(connection.route, self.now)
                dialler.pump()
            return
        connection.listener = listener
        connection.accepted = b"in" + next(self._accepted).to_bytes(4, "big")
        listener.accepted[connection.accepted] = connection
        waiting, connection.waiting = connection.waiting, []
        for frame in waiting:
            self.send(dialler, connection.route, frame)

    def hang_up(self, party: Party, route: int) -> None:
        """A dialler closes a connection."""
        connection = party.dialled.pop(route, None)
        if connection is not None and connection.listener is not None:
            self.after(2 * LATENCY_S, self._forget, connection.listener, connection.accepted)

    def _forget(self, listener: Party, accepted: bytes) -> None:
        """A listener notices that a connection ended, and not whose it was."""
        if listener.accepted.pop(accepted, None) is not None and listener.alive:
            listener.core.peers.connection_ended(self.now)
            listener.pump()

    def send(self, source: Party, route: Route, frame: bytes) -> bool:
        """Send a control frame; False where the route is gone."""
        self.frames_sent += 1
        if self.captured is not None:
            self.captured.append((route, frame))
            return True
        connection = source.dialled.get(route) if isinstance(route, int) else source.accepted.get(route)
        if connection is None or route in source.unwritable:
            return False
        if isinstance(route, int):
            if connection.listener is None:
                connection.waiting.append(frame)
                return True
            target, arrives_by = connection.listener, connection.accepted
            self.after(LATENCY_S, self._arrive, source, target, arrives_by, frame)
        else:
            self.after(LATENCY_S, self._arrive, source, connection.dialler, connection.route, frame)
        return True

    def _arrive(self, source: Party, target: Party, route: Route, frame: bytes) -> None:
        held = target.dialled if isinstance(route, int) else target.accepted
        if route in held and self._reaches(source, target):
            target.receive(route, frame)

    def filter(self, feed: Party, endpoint: str, prefix: bytes, on: bool) -> None:
        """A feed's filter reaches an outlet, which tells its node of the first and the last of each."""
        if self.held_filters is not None:
            self.held_filters.append((feed, endpoint, prefix, on))
            return
        outlet = next((p for p in self.parties.values() if endpoint in p.outlets), None)
        if outlet is None:
            if feed.alive and endpoint in feed.feeds and on:
                self.after(0.5, self.filter, feed, endpoint, prefix, on)
            return
        if on and endpoint in feed.feeds and feed.alive:
            names = outlet.subscribers[prefix]
            names.add(feed.name)
            if len(names) == 1:
                outlet.core.receive_filter(b"\x01" + prefix, self.now)
                outlet.pump()
        elif not on:
            self._unsubscribe(outlet, feed.name, prefix)

    def _unsubscribe(self, outlet: Party, name: str, prefix: bytes) -> None:
        names = outlet.subscribers[prefix]
        names.discard(name)
        if not names:
            del outlet.subscribers[prefix]
            outlet.core.receive_filter(b"\x00" + prefix, self.now)
            outlet.pump()

    def send_batch(self, source: Party, target: Party, frames: list[bytes]) -> None:
        """A batch travels to one subscriber."""
        if self.held_batches is not None:
            self.held_batches.append((source, target, frames))
            return
        self.after(LATENCY_S, self._batch_arrives, source, target, frames)

    def _batch_arrives(self, source: Party, target: Party, frames: list[bytes]) -> None:
        if self._reaches(source, target) and target.feeds & set(source.outlets):
            target.core.receive_batch(frames, self.now)
            target.pump()


def all_meet(parties: Iterable[Party]) -> bool:
    """Whether everybody has everybody else as a peer."""
    everybody = {party.name for party in parties}
    return all(party.peers == everybody - {party.name} for party in parties)


def meet(world: World, *parties: Party) -> None:
    """Let discovery introduce everybody to everybody, and wait until they are peers."""
    for party in parties:
        party.find(*(other for other in parties if other is not party))
    world.run_until(lambda: all_meet(parties), 10)
