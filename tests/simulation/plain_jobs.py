"""A fabric of queues at-most-once on a virtual clock: pushers, pullers, connections that break, and who read what.

Sockets are modelled as libzmq's: a pusher deals batches out in turn to connections that have room, each connection
keeps the order, and whatever is in one that breaks is gone without a word.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from random import Random
from typing import Any, cast

from zfabric.config import Config
from zfabric.events import JobsLost
from zfabric.protocol.effects import ConnectPush, DisconnectPush, Effects, Emit, SendJobs
from zfabric.protocol.jobs import QueuePolicy
from zfabric.protocol.plainqueue import PlainQueue
from zfabric.protocol.plainqueues import PlainQueues
from zfabric.protocol.plainsink import PlainSink
from zfabric.testing.sim_network import Agenda
from zfabric.wire.batch import Batch, parse_batch
from zfabric.wire.plain_records import PlainRecord

__all__ = ["Broken", "World"]

QUEUE = "q"
PIPE_BATCHES = 4
BATCH_JOBS = 10
CALM_MAX_S = 60.0
TELLS_WITHIN_S = 0.3
"What was read so long ago the pusher knows of, if the session goes on."


class Broken(AssertionError):
    """A promise was not kept."""


class Peer:
    """What the core knows of another node."""

    def __init__(self, node: Node) -> None:
        self.id = node.id


class Pipe:
    """One connection from a PUSH to a PULL."""

    def __init__(self, source: Node, endpoint: str) -> None:
        self.source = source
        self.endpoint = endpoint
        self.batches: deque[list[bytes]] = deque()
        self.open = True


class Node:
    """One process, with a pusher, or with a puller and its reader."""

    def __init__(self, world: World, node_id: bytes) -> None:
        self.world = world
        self.id = node_id
        self.alive = True
        self.joined: dict[bytes, Node] = {}
        self.pipes: dict[str, Pipe] = {}
        self.turn = 0
        self.listens = f"{node_id.hex()}:0"
        self.moves = 0
        self.said = self.lost = 0
        self.records: dict[type[Any], int] = Counter()
        self._timer_at = -1.0
        self.effects = Effects(node_id)
        peers = cast("Any", self.joined)
        self.plain = PlainQueues(world.config, self.effects, peers, self.tell, self.refused, _endpoint)
        self.queue: PlainQueue | None = None
        self.sink: PlainSink | None = None
        self.reading = self.holding = False

    # -- what the core says --------------------------------------------------------------------

    def tell(self, peer_id: bytes, record: PlainRecord) -> None:
        """A record leaves; it arrives in order, while the session lasts."""
        other = self.joined.get(peer_id)
        if other is not None:
            self.said += 1
            self.records[type(record)] += 1
            self.world.carry(self, other, record)

    def refused(self, _peer_id: bytes, reason: str) -> None:
        """A peer breaks the protocol, or speaks of a session that has ended."""
        self.world.refusals[reason] += 1

    def hear(self, peer: Node, record: PlainRecord) -> None:
        """A record arrives."""
        self.plain.hear[type(record)](peer.id, record, self.world.now)
        self.pump()

    def pump(self) -> None:
        """Do what the core wants done."""
        if not self.alive:
            return
        self.plain.flush(self.world.now)
        while actions := self.effects.take():
            for action in actions:
                match action:
                    case ConnectPush(_, endpoint):
                        self.pipes[endpoint] = Pipe(self, endpoint)
                        self.has_room()
                    case DisconnectPush(_, endpoint):
                        self.cut(endpoint)
                    case SendJobs(_):
                        self._send()
                    case Emit(event):
                        assert isinstance(event, JobsLost)
                        self.lost += event.count
            self.plain.flush(self.world.now)
        self._judge()
        due = self.plain.timer()
        if due != self._timer_at:
            self._timer_at = due
            if due < 1e9:
                self.world.agenda.at(due, self._on_timer, due)

    def _on_timer(self, due: float) -> None:
        if self.alive and due == self._timer_at:
            self._timer_at = -1.0
            self.plain.handle_timer(self.world.now)
            self.pump()

    # -- pushing -------------------------------------------------------------------------------

    def push(self, count: int) -> None:
        """Some jobs, if there is room."""
        queue = self.queue
        assert queue is not None
        if not queue.full:
            body = b"\xdd" + count.to_bytes(4, "big") + b"\x07" * count
            queue.push_block(count, body, 1, self.world.now)
            self.pump()

    def _send(self) -> None:
        queue = self.queue
        assert queue is not None
        while (frames := queue.head()) is not None:
            pipes = [pipe for pipe in self.pipes.values() if len(pipe.batches) < PIPE_BATCHES]
            if not pipes:
                queue.blocked = True
                return
            self.turn += 1
            pipe = pipes[self.turn % len(pipes)]
            pipe.batches.append([bytes(frame) for frame in frames])
            queue.sent(self.world.now)
            self.world.soon(self.world.arrive, pipe, len(pipe.batches))

    def has_room(self) -> None:
        """A connection has room again."""
        if self.queue is not None and self.queue.blocked:
            self.queue.blocked = False
            self.world.soon(self.pump)

    def cut(self, endpoint: str) -> None:
        """A connection ends with all that it has."""
        pipe = self.pipes.pop(endpoint, None)
        if pipe is not None:
            pipe.open = False
            pipe.batches.clear()

    # -- pulling -------------------------------------------------------------------------------

    def wake(self) -> None:
        """Something came."""
        if not self.reading:
            self.reading = True
            self.world.agenda.after(self.world.pause(), self.read)

    def read(self) -> None:
        """The reader is through with what it had, and takes more."""
        sink, world = self.sink, self.world
        self.reading = False
        if sink is None or sink.closed or not self.alive:
            return
        was_full = sink.full
        if self.holding:
            world.was_read(self)
            self.holding = False
        sink.done(world.now)
        taken = sink.take(world.now)
        if taken is not None:
            self.holding = True
            world.in_hand[self.id] = taken
            self.wake()
        if was_full and not sink.full:
            world.arrive_all(self)
        self.pump()

    # -- judging -------------------------------------------------------------------------------

    def _judge(self) -> None:
        queue = self.queue
        if queue is not None:
            counters, read = queue.counters, self.world.read[self.id]
            if counters.done > len(read):
                raise Broken(f"{counters.done} jobs count as done; {len(read)} were read")
            if self.lost != counters.lost:
                raise Broken(f"{counters.lost} jobs are lost, {self.lost} were reported")
            if queue.nbytes > queue.policy.queue_bytes + self.world.batch_bytes:
                raise Broken(f"{queue} keeps {queue.nbytes} bytes")
        sink = self.sink
        if sink is not None and sink.nbytes > self.world.config.credit_bytes + self.world.batch_bytes:
            raise Broken(f"{sink} keeps {sink.nbytes} bytes")


class World:
    """One seed's fabric."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.agenda = Agenda()
        self.config = Config(credit_bytes=self.random.choice((300, 5000)), gap_settle_s=1.0, ack_delay_s=0.05)
        self.batch_bytes = 200
        self.calm = False
        self.pushers = [self._pusher() for _ in range(self.random.choice((1, 2, 3)))]
        self.pullers: list[Node] = []
        self.sessions: dict[tuple[bytes, bytes], int] = Counter()
        self.arrivals: dict[tuple[bytes, bytes], float] = {}
        self.read: dict[bytes, set[int]] = {pusher.id: set() for pusher in self.pushers}
        self.excused: dict[bytes, int] = Counter()
        "Jobs that were read by somebody who may not have told."
        self.in_hand: dict[bytes, tuple[bytes, Batch]] = {}
        self.recent: dict[tuple[bytes, bytes], list[tuple[float, int]]] = {}
        "When a puller read how many jobs of a pusher."
        self.arrived_in: dict[tuple[bytes, int], int] = {}
        "The session in which each batch arrived."
        self.parted: set[tuple[bytes, bytes]] = set()
        self.refusals: dict[str, int] = Counter()
        self.faults: dict[str, int] = Counter()
        for _ in range(self.random.choice((1, 2, 3, 5))):
            self.join()

    @property
    def now(self) -> float:
        """On the virtual clock."""
        return self.agenda.now

    def pause(self) -> float:
        """How long a reader takes."""
        random = self.random
        return 0.001 if self.calm else random.choice((0.001, 0.001, 0.02, 0.02, 0.3, 3.0))

    def soon(self, call: Callable[..., object], *arguments: Any) -> None:
        """In a moment."""
        self.agenda.after(self.random.uniform(0.001, 0.02), call, *arguments)

    def _pusher(self) -> Node:
        node = Node(self, self.random.randbytes(16))
        policy = QueuePolicy(queue_bytes=self.random.choice((1000, 10_000)))
        node.queue = node.plain.queue(QUEUE, policy, node.id, with_crc=False)
        return node

    # -- the network ---------------------------------------------------------------------------

    def carry(self, source: Node, target: Node, record: PlainRecord) -> None:
        """A record on its way, in order."""
        way = source.id, target.id
        session = self.sessions[_pair(*way)]
        at = self.arrivals[way] = max(self.arrivals.get(way, 0.0), self.now + self.random.uniform(0.001, 0.05))

        def arrives() -> None:
            if target.alive and self.sessions[_pair(*way)] == session and source.id in target.joined:
                target.hear(source, record)

        self.agenda.at(at, arrives)

    def arrive(self, pipe: Pipe, _position: int = 0) -> None:
        """The next batch of a connection arrives, unless its puller does not read."""
        target = next((node for node in self.pullers if node.alive and node.listens == pipe.endpoint), None)
        if target is None or target.sink is None or target.sink.full or not pipe.batches or not pipe.open:
            return
        frames = pipe.batches.popleft()
        batch = parse_batch(frames, messages_max=1000, buffers_max=1, topic_bytes_max=100)
        self.arrived_in[pipe.source.id, batch.base] = self.sessions[_pair(pipe.source.id, target.id)]
        target.plain.received(target.sink.number, cast("Any", Peer(pipe.source)), batch, self.now)
        target.pump()
        pipe.source.has_room()

    def arrive_all(self, target: Node) -> None:
        """A puller reads again."""
        for pusher in self.pushers:
            pipe = pusher.pipes.get(target.listens)
            for _ in range(0 if pipe is None else len(pipe.batches)):
                assert pipe is not None
                self.soon(self.arrive, pipe)

    def was_read(self, node: Node) -> None:
        """A reader is through with a batch."""
        pusher_id, batch = self.in_hand.pop(node.id)
        jobs = set(range(batch.base, batch.end))
        if self.read[pusher_id] & jobs:
            raise Broken(f"jobs {jobs} were read twice")
        self.read[pusher_id] |= jobs
        pair = _pair(pusher_id, node.id)
        if pair in self.parted or self.arrived_in[pusher_id, batch.base] != self.sessions[pair]:
            self.excused[pusher_id] += len(jobs)
        else:
            self.recent.setdefault((pusher_id, node.id), []).append((self.now, len(jobs)))

    # -- who comes and goes --------------------------------------------------------------------

    def join(self) -> Node:
        """A puller comes."""
        node = Node(self, self.random.randbytes(16))
        self.pullers.append(node)
        node.sink = node.plain.pull(node.plain.next_number(), QUEUE, (node.listens,), node.wake)
        for pusher in self.pushers:
            self.agenda.after(self.random.uniform(0, 0.3), self._meet, pusher, node)
        return node

    def _meet(self, one: Node, other: Node) -> None:
        if one.alive and other.alive:
            self.parted.discard(_pair(one.id, other.id))
            self.sessions[_pair(one.id, other.id)] += 1
            for node, peer in ((one, other), (other, one)):
                node.joined[peer.id] = peer
                node.plain.peer_joined(cast("Any", Peer(peer)))
            for node in (one, other):
                node.pump()

    def _part(self, pusher: Node, puller: Node) -> None:
        """A session ends; each side notices in its own time."""
        pair = _pair(pusher.id, puller.id)
        if pair in self.parted or puller.id not in pusher.joined:
            return
        self.parted.add(pair)
        self.sessions[pair] += 1
        recent = self.recent.pop((pusher.id, puller.id), [])
        self.excused[pusher.id] += sum(count for when, count in recent if self.now - when < TELLS_WITHIN_S)
        for node, peer in ((pusher, puller), (puller, pusher)):
            self.agenda.after(self.random.uniform(0, 1), self._left, node, peer)
        if puller.alive:
            self.agenda.after(self.random.uniform(1.1, 3), self._meet, pusher, puller)

    def _left(self, node: Node, peer: Node) -> None:
        if node.alive and node.joined.pop(peer.id, None) is not None:
            node.plain.peer_left(cast("Any", Peer(peer)))
            node.pump()

    def _fault(self) -> None:
        random, alive = self.random, [node for node in self.pullers if node.alive]
        kind = random.choice(("join", "crash", "close", "part", "reset", "move"))
        if kind != "join" and not alive:
            return
        self.faults[kind] += 1
        if kind == "join":
            self.join()
            return
        puller, pusher = random.choice(alive), random.choice(self.pushers)
        assert puller.sink is not None
        if kind == "crash":
            puller.alive = False
            for each in self.pushers:
                self._part(each, puller)
        elif kind == "close":
            puller.plain.close(puller.sink, self.now)
            puller.pump()
            self.agenda.after(0.5, setattr, puller, "alive", False)
        elif kind == "part":
            self._part(pusher, puller)
        elif kind == "reset" and (pipe := pusher.pipes.get(puller.listens)) is not None:
            pipe.batches.clear()
            pusher.has_room()
        elif kind == "move" and not puller.sink.closed:
            for each in self.pushers:
                if (pipe := each.pipes.get(puller.listens)) is not None:
                    pipe.batches.clear()
            puller.moves += 1
            puller.listens = f"{puller.id.hex()}:{puller.moves}"
            puller.plain.moved({puller.sink.number: (puller.listens,)})
            puller.pump()

    # -- the two phases ------------------------------------------------------------------------

    def run(self) -> None:
        """Faults, then calm. Raises Broken."""
        for node in self.pushers:
            self.agenda.after(self.random.random(), self._push, node)
        end = self.random.choice((4.0, 8.0))
        while self.now < end:
            self.agenda.run(self.now + self.random.choice((0.1, 0.3, 1.0)))
            self._fault()
        self.calm = True
        self.join()
        self.agenda.run(self.now + 4.0)  # sessions that have ended have begun anew
        deadline = self.now + CALM_MAX_S
        while any(cast("PlainQueue", node.queue).depth for node in self.pushers):
            if self.now > deadline:
                raise Broken(f"never empty: {[node.queue for node in self.pushers]}")
            self.agenda.run(self.now + 0.5)
        self._verdict()
        nodes = [*self.pushers, *self.pullers]
        before = sum(node.said for node in nodes)
        self.agenda.run(self.now + 10.0)
        said = sum(node.said for node in nodes) - before
        if said > 4 * len(self.pushers) * len(self.pullers):
            raise Broken(f"{said} records in 10 s of quiet")

    def _push(self, node: Node) -> None:
        if not self.calm:
            node.push(self.random.randrange(1, BATCH_JOBS))
            self.agenda.after(self.random.choice((0.005, 0.03, 0.15)), self._push, node)

    def _verdict(self) -> None:
        there = {node.listens for node in self.pullers if node.alive and node.sink is not None and not node.sink.closed}
        for node in self.pushers:
            if node.pipes.keys() != there:
                raise Broken(f"connected to {sorted(node.pipes)}, where pullers are at {sorted(there)}")
            queue, read = cast("PlainQueue", node.queue), len(self.read[node.id])
            counters = queue.counters
            unread = counters.pushed - read
            if counters.done + counters.lost != counters.pushed or queue.nbytes or queue.in_flight:
                raise Broken(f"the books of {queue} do not agree: {counters}")
            if not unread <= counters.lost <= unread + self.excused[node.id]:
                raise Broken(f"{counters.lost} lost; {unread} were not read, {self.excused[node.id]} may be unknown")


def _endpoint(_peer: Any, endpoints: tuple[str, ...], _now: float) -> str:
    return endpoints[0]


def _pair(one: bytes, other: bytes) -> tuple[bytes, bytes]:
    return min(one, other), max(one, other)
