"""One simulated node: a `Core` with publishers and consumers, driven as `node.driver` drives it."""

from __future__ import annotations

from collections import deque
from math import inf
from random import Random
from typing import Literal

import msgspec

from zfabric.config import Config
from zfabric.events import AckRefused, Event, Gap, PeerJoined, PeerLeft
from zfabric.model import Source
from zfabric.protocol.core import Core
from zfabric.protocol.effects import (
    Action,
    AddFilter,
    ConnectFeed,
    Dial,
    DisconnectFeed,
    Emit,
    HangUp,
    RemoveFilter,
    Send,
)
from zfabric.protocol.lanes import Lane
from zfabric.protocol.outbox import Outbox
from zfabric.testing.sim_network import Agenda, Flight, Network
from zfabric.testing.sim_oracle import Oracle
from zfabric.testing.sim_queues import QueueUsers
from zfabric.testing.sim_truth import LaneTruth, StreamKey, payload
from zfabric.wire.batch import Batch
from zfabric.wire.bundle import Bundle, addressee
from zfabric.wire.ranges import RangeSet
from zfabric.wire.records import Identity, Start
from zfabric.wire.topics import Pattern

__all__ = ["Consumer", "ConsumerSpec", "Party", "Publisher", "PublisherSpec"]

EPOCH_S = 1_800_000_000.0
"Where wall clocks begin."

_encode_into = msgspec.msgpack.Encoder().encode_into


class PublisherSpec(msgspec.Struct, frozen=True):
    """What a node publishes, in all its lives."""

    topic: str
    delivery: str
    history: int
    window_bytes: int
    pause: float
    "Mean time between two bursts."
    confirm: Literal["received", "processed"]


class ConsumerSpec(msgspec.Struct, frozen=True):
    """What a node subscribes to, in all its lives."""

    pattern: str
    delivery: str
    start: Start
    buffer_bytes: int
    manual: bool
    pause: float
    "Time for one batch."


class Consumer:
    """The reader of one subscription; implements `protocol.lanes.Sink`."""

    def __init__(self, party: Party, spec: ConsumerSpec) -> None:
        self.spec = spec
        self.full = False
        self.stuck = False
        self.nbytes = 0
        self._party = party
        self._waiting: deque[Batch] = deque()
        self._busy = False
        pattern = Pattern(spec.pattern)
        self.lane: Lane = party.core.interests.subscribe(pattern, spec.delivery, spec.start, self)
        number = self.lane.request.lane
        self.truth = LaneTruth(party.id, party.name, number, pattern, spec.delivery, spec.start)
        party.oracle.subscribed(self.truth)

    def deliver(self, batch: Batch, source: Source) -> None:
        """Take a batch."""
        party = self._party
        party.trace("deliver", self.lane.request.lane, batch.topic, batch.epoch, batch.base + batch.skip, batch.end)
        party.oracle.was_delivered(self.truth, batch)
        self._waiting.append(batch)
        self.nbytes += batch.nbytes
        if self.nbytes >= self.spec.buffer_bytes:
            self.full = self.truth.full = True  # until there is room, whatever comes in between
        self._begin()

    def deliver_bundle(self, bundle: Bundle, source: Source) -> None:
        """Take batches of several streams."""
        for batch in bundle.batches():
            self.deliver(batch, source)

    def _begin(self) -> None:
        if self._waiting and not self._busy and not self.stuck:
            self._busy = True
            self._party.agenda.after(self.spec.pause, self._party.when_running, self._done)

    def unstick(self) -> None:
        """Go on after having hung."""
        self.stuck = False
        self._begin()

    def _done(self) -> None:
        """A batch has been dealt with."""
        self._busy = False
        if self.stuck or not self._waiting or self.truth.closed:
            return
        party, batch = self._party, self._waiting.popleft()
        key = batch.producer, batch.topic, batch.epoch
        before = batch.end
        if self.spec.manual and batch.count > 1 and party.random.random() < 0.5:
            before = batch.base + max(batch.skip, party.random.randrange(batch.count))
            party.agenda.after(0.02, party.when_running, self._processed, key, batch.end)
        self._processed(key, before)
        self.nbytes -= batch.nbytes
        if self.full and self.nbytes <= self.spec.buffer_bytes // 2:
            self.full = self.truth.full = False
            party.core.streams.has_room(self.lane, party.agenda.now)
        self._begin()
        party.pump()

    def _processed(self, key: StreamKey, before: int) -> None:
        party, part = self._party, self.truth.streams.get(key)
        if part is not None:
            part.processed = max(part.processed, before)
            party.oracle.consumed += 1
        if key[0] != party.id and not self.truth.closed:
            party.core.streams.processed(self.lane, *key, before, party.agenda.now)
            party.pump()


class Publisher:
    """A user who publishes on one topic, and sometimes waits until that is confirmed."""

    def __init__(self, party: Party, spec: PublisherSpec) -> None:
        self.spec = spec
        self.closed = False
        self.refused = 0
        self._party = party
        self.outbox: Outbox = party.core.interests.open_topic(
            spec.topic, spec.delivery, with_crc=False, window_bytes=spec.window_bytes, history=spec.history
        )
        self.key: StreamKey = party.id, spec.topic, self.outbox.epoch
        self.flushes: list[int] = []
        party.oracle.opened(self.outbox, self.key, spec.history)

    def publish(self, count: int) -> None:
        """Publish some messages as one batch."""
        party, outbox, now = self._party, self.outbox, self._party.agenda.now
        for _ in range(count):
            if outbox.full:
                self.refused += 1
                break
            size = party.random.choice((3, 20, 100))
            if not outbox.listeners:
                party.oracle.was_published(self.key, outbox.skip(), -1, now)
                continue
            seq = outbox.next_seq
            _encode_into(payload(self.key, seq, size), outbox.writer.buffer, -1)
            outbox.writer.count += 1
            party.oracle.was_published(self.key, seq, size, now)
        if not outbox.writer.count:
            return
        base = outbox.base
        party.trace("publish", self.spec.topic, self.outbox.epoch, base, base + outbox.writer.count)
        for frames in self._seal(now):
            party.network.publish(party, Flight(frames, self.key, base, outbox.base))
        party.pump()

    def _seal(self, now: float) -> list[list[bytes]]:
        """What the open batch becomes: itself, or a bundle for each peer that listens, in turn."""
        party, outbox, published_ns = self._party, self.outbox, int(self._party.wall * 1e9)
        if outbox.base % 2:
            bundles, alone = party.core.bundle([outbox], published_ns, now, least=1)
            if not alone:
                return [[bundle] for bundle in bundles]
        frames = [bytes(frame) for frame in party.core.seal(outbox, published_ns, now)]
        stream = party.oracle.streams[self.key]
        stream.burst_bytes = max(stream.burst_bytes, len(frames[0]))
        if outbox.local:
            party.core.loop_back(outbox, frames, party.source, now)
        return [frames] if outbox.remote else []

    def flush(self) -> None:
        """Wait until everything so far is confirmed."""
        if self.outbox.reliable:
            self.outbox.ack_now = True
            self.flushes.append(self.outbox.base)
            self.confirm()

    def confirm(self) -> None:
        """See which flushes return."""
        processed = self.spec.confirm == "processed"
        while self.flushes and self.outbox.received_by_all(processed=processed) >= self.flushes[0]:
            before = self.flushes.pop(0)
            if not self.outbox.take_failures(before, processed=processed):
                self._party.oracle.confirmed_before(self.key, before, processed=processed)

    def close(self) -> None:
        """End the stream."""
        self.closed = True
        self._party.oracle.streams[self.key].alive = False
        self._party.core.interests.close_topic(self.spec.topic)


class Party:
    """One life of one node; implements `sim_network.Endpoint`."""

    def __init__(
        self,
        name: str,
        node_id: bytes,
        config: Config,
        agenda: Agenda,
        network: Network,
        oracle: Oracle,
        random: Random,
    ) -> None:
        self.name = name
        self.id = node_id
        self.agenda = agenda
        self.network = network
        self.oracle = oracle
        self.random = random
        self.alive = True
        self.paused = False
        self.resumed_at = agenda.now
        self.clock_step = 0.0
        self.filters: dict[bytes, int] = {}
        self.gaps: dict[tuple[bytes, str], RangeSet] = {}
        self.left_at: dict[bytes, float] = {}
        self.consumers: list[Consumer] = []
        self.publishers: list[Publisher] = []
        self.log: list[tuple[object, ...]] | None = None
        self.queue_users: QueueUsers | None = None
        self.frames = 0
        self.source = Source(node_id.hex(), name)
        self._timer_at = inf
        self._held: list[tuple[object, ...]] = []
        jitter = Random(random.getrandbits(64))  # noqa: S311 - repeatable on purpose
        self.core = Core(node_id, config, _anything, jitter, EPOCH_S)
        stem = f"sim:{node_id.hex()[:12]}"
        token = random.randbytes(16)
        self.inbox, self.outlet = f"{stem}:in", f"{stem}:out"
        self.core.introduce(Identity(token, "sim", name, "host", 1, (self.inbox,), (self.outlet,)))
        network.addresses[self.inbox] = network.addresses[self.outlet] = self
        oracle.nodes[node_id] = self

    def __repr__(self) -> str:
        return f"<Party {self.name} {self.id[:3].hex()}>"

    @property
    def wall(self) -> float:
        """What this node's wall clock shows."""
        return EPOCH_S + self.agenda.now + self.clock_step

    def trace(self, what: str, *details: object) -> None:
        """Note something for whoever reads the trace of a failure."""
        if self.log is not None:
            self.log.append((round(self.agenda.now, 4), self.name, what, *details))

    # -- what the network calls ----------------------------------------------------------------

    def on_control(self, route: int | bytes, frame: bytes) -> None:
        """A control frame arrived."""
        self.core.receive(route, frame, self.agenda.now)
        self.pump()

    def on_unreachable(self, route: int) -> None:
        """A dialled connection was not made."""
        self.when_running(self._unreachable, route)

    def _unreachable(self, route: int) -> None:
        self.core.unreachable(route, self.agenda.now)
        self.pump()

    def on_interrupted(self, route: int) -> None:
        """A dialled connection ended."""
        self.when_running(self._interrupted, route)

    def _interrupted(self, route: int) -> None:
        self.core.peers.interrupted(route)
        self.pump()

    def on_connection_ended(self) -> None:
        """Somebody's connection to the inbox ended."""
        self.when_running(self._connection_ended)

    def _connection_ended(self) -> None:
        self.core.peers.connection_ended(self.agenda.now)
        self.pump()

    def on_filter(self, data: bytes) -> None:
        """The outlet saw a subscription come or go."""
        self.core.receive_filter(data, self.agenda.now)
        self.pump()

    def on_batch(self, flight: Flight) -> None:
        """The feed received a batch."""
        if flight.stream[0] in self.core.peers.known and addressee(flight.frames) in (None, self.id):
            self.oracle.arrived(self, flight.stream, flight.stop)
        self.core.receive_batch(flight.frames, self.agenda.now)
        self.pump()

    # -- life ----------------------------------------------------------------------------------

    def subscribe(self, spec: ConsumerSpec) -> Consumer:
        """Begin to listen."""
        consumer = Consumer(self, spec)
        self.trace("subscribe", consumer.lane.request.lane, spec.pattern, spec.delivery, spec.start)
        self.consumers.append(consumer)
        self.pump()
        return consumer

    def unsubscribe(self, consumer: Consumer) -> None:
        """Stop to listen."""
        self.trace("unsubscribe", consumer.lane.request.lane)
        consumer.truth.closed = True
        self.consumers.remove(consumer)
        self.core.interests.unsubscribe(consumer.lane)
        self.core.streams.forget()
        self.pump()

    def publisher(self, spec: PublisherSpec) -> Publisher:
        """Begin to publish."""
        publisher = Publisher(self, spec)
        self.trace("open", spec.topic, publisher.outbox.epoch, spec.delivery)
        self.publishers.append(publisher)
        self.pump()
        return publisher

    def reopen(self, publisher: Publisher) -> None:
        """Close a topic and open it again: a new epoch."""
        publisher.close()
        self.publishers.remove(publisher)
        if self.random.random() < 0.5:
            self.pump()
        self.publisher(publisher.spec)

    def end(self, *, politely: bool) -> None:
        """The process ends, with or without a goodbye."""
        self.trace("close" if politely else "crash")
        if politely:
            self.core.goodbye()
            self.pump()
        self.alive = False
        for publisher in self.publishers:
            self.oracle.streams[publisher.key].alive = False
        if self.queue_users is not None:
            self.queue_users.ended()
        for consumer in self.consumers:
            consumer.truth.alive = False
            consumer.truth.closed = politely
        self.network.died(self)

    def pause(self, duration: float) -> None:
        """The process is stopped (SIGSTOP) and goes on later."""
        if self.paused or not self.alive:
            return
        self.trace("pause", duration)
        self.paused = True
        self.agenda.after(duration, self._resume)

    def _resume(self) -> None:
        self.paused = False
        self.resumed_at = self.agenda.now
        held, self._held = self._held, []
        if self.alive:
            for call, *arguments in held:
                self.when_running(call, *arguments)
            self._timer_at = inf
            self._on_timer(inf)
            self.network.kick()

    def when_running(self, call: object, *arguments: object) -> None:
        """Call something of this process, once it is not stopped."""
        if self.paused:
            self._held.append((call, *arguments))
        elif self.alive:
            assert callable(call)
            call(*arguments)

    # -- doing what the core says --------------------------------------------------------------

    def pump(self) -> None:
        """Carry out the core's actions until there are none."""
        if not self.alive:
            return
        now = self.agenda.now
        while actions := self.core.actions(now):
            for action in actions:
                self._act(action, now)
        self.oracle.look(self, now)
        self.oracle.check_holes()
        if self.queue_users is not None:
            self.queue_users.look()
        for publisher in self.publishers:
            if publisher.flushes:
                publisher.confirm()
        due = self.core.timer()
        if due != self._timer_at:
            self._timer_at = due
            if due < inf:
                self.agenda.at(due, self._on_timer, due)

    def _on_timer(self, due: float) -> None:
        if self.alive and not self.paused and due == self._timer_at:
            self._timer_at = -inf
            self.core.handle_timer(self.agenda.now)
            self.pump()

    def _act(self, action: Action, now: float) -> None:
        network = self.network
        match action:
            case Send(route, frame):
                self.frames += 1
                if not network.send(self, route, frame):
                    self.core.route_lost(route, now)
            case Emit(event):
                self._emitted(event)
            case Dial(route, endpoint):
                network.dial(self, route, endpoint)
            case HangUp(route):
                network.hang_up(self, route)
            case AddFilter(prefix):
                self.filters[prefix] = 1
                network.filter_changed(self, prefix, added=True)
            case RemoveFilter(prefix):
                del self.filters[prefix]
                network.filter_changed(self, prefix, added=False)
            case ConnectFeed(endpoint):
                network.connect_feed(self, endpoint)
            case DisconnectFeed(endpoint):
                network.disconnect_feed(self, endpoint)

    def _emitted(self, event: Event) -> None:
        if self.log is not None:
            self.trace("event", event)
        if isinstance(event, Gap):
            self.oracle.gap(self, event)
        elif isinstance(event, AckRefused) and self.queue_users is not None:
            self.queue_users.refused(event)
        elif isinstance(event, PeerLeft):
            self.left_at[bytes.fromhex(event.peer.id)] = self.agenda.now
        elif isinstance(event, PeerJoined):
            self.left_at.pop(bytes.fromhex(event.peer.id), None)


def _anything(_endpoint: str) -> bool:
    return True
