"""The queues at-most-once of one node: joins both ends to its peers, and finds those that do not agree on delivery."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any

from zfabric.config import Config
from zfabric.errors import LimitExceeded
from zfabric.events import JobsLost
from zfabric.protocol.effects import ConnectPush, DisconnectPush, Effects, SendJobs
from zfabric.protocol.jobs import QueuePolicy
from zfabric.protocol.peers import PeerRecord
from zfabric.protocol.plainqueue import PlainQueue
from zfabric.protocol.plainsink import PlainSink
from zfabric.wire.batch import Batch, BatchWriter
from zfabric.wire.plain_records import OFFERS_MAX, PlainEnd, PlainMark, PlainOffers, PlainPull, PlainRecord, PlainTaken

__all__ = ["PlainQueues"]


class PlainQueues:
    """Part of `protocol.queues.Queues`, which hears peers for it."""

    def __init__(
        self,
        config: Config,
        effects: Effects,
        peers: dict[bytes, PeerRecord],
        tell: Callable[[bytes, PlainRecord], None],
        refuse: Callable[[bytes, str], None],
        endpoint: Callable[[PeerRecord, tuple[str, ...], float], str | None],
    ) -> None:
        """`peers` are those of `Queues`; `endpoint(peer, endpoints, now)` tells which of them can be connected to."""
        self.queues: dict[str, PlainQueue] = {}
        self.sinks: dict[int, PlainSink] = {}
        self.offers: dict[bytes, dict[str, None]] = {}
        "The queues of each peer, and of this node."
        self.offered: Callable[[bytes, str], None] = lambda _peer_id, _queue: None
        "Called for each queue that is offered."
        self._config = config
        self._effects = effects
        self._peers = peers
        self._tell = tell
        self._refuse = refuse
        self._endpoint = endpoint
        self._numbers = 0
        self._workers: dict[tuple[bytes, int], PlainQueue] = {}
        self._unreached: dict[tuple[bytes, int], PlainPull] = {}
        "Pullers that listen at no address that is known to work from here."
        self.hear: dict[type[Any], Callable[[bytes, Any, float], None]] = {
            PlainOffers: self._on_offers,
            PlainPull: self._on_pull,
            PlainEnd: self._on_end,
            PlainTaken: self._on_taken,
            PlainMark: self._on_mark,
        }

    # -- users ---------------------------------------------------------------------------------

    def queue(self, queue: str, policy: QueuePolicy, producer: bytes, *, with_crc: bool) -> PlainQueue:
        """This node's jobs of a queue; there from the first use on. Raises LimitExceeded."""
        found = self.queues.get(queue)
        if found is None:
            if len(self.queues) >= self._config.queues_max:
                raise LimitExceeded("queues_max", len(self.queues) + 1, self._config.queues_max)
            found = PlainQueue(queue, self._config, policy, BatchWriter(queue, producer, 0, with_crc=with_crc))
            self.queues[queue] = found
            for peer_id in list(self._peers):
                self._tell(peer_id, PlainOffers([queue]))
        return found

    def next_number(self) -> int:
        """Of a new puller. Raises LimitExceeded."""
        if len(self.sinks) >= self._config.pullers_max:
            raise LimitExceeded("pullers_max", len(self.sinks) + 1, self._config.pullers_max)
        self._numbers += 1
        return self._numbers

    def pull(self, number: int, queue: str, endpoints: tuple[str, ...], wake: Callable[[], None]) -> PlainSink:
        """A new puller, whose socket listens there."""
        puller = PlainSink(number, queue, endpoints, self._config, self._tell, wake)
        self.sinks[number] = puller
        for peer_id, queues in list(self.offers.items()):
            if queue in queues:
                puller.offered(peer_id)
        return puller

    def moved(self, pullers: dict[int, tuple[str, ...]]) -> None:
        """This node's addresses changed: where its pullers' sockets listen now."""
        for number, endpoints in pullers.items():
            self.sinks[number].moved(endpoints)

    def close(self, puller: PlainSink, now: float) -> None:
        """A puller takes no more."""
        puller.close(now)
        self.sinks.pop(puller.number, None)

    # -- peers ---------------------------------------------------------------------------------

    def peer_joined(self, peer: PeerRecord) -> None:
        """Tell it of our queues."""
        self.offers[peer.id] = {}
        queues = list(self.queues)
        for first in range(0, len(queues), OFFERS_MAX):
            self._tell(peer.id, PlainOffers(queues[first : first + OFFERS_MAX]))

    def peer_left(self, peer: PeerRecord) -> None:
        """What is on the way to its pullers is lost."""
        self.offers.pop(peer.id, None)
        for key in [key for key in self._workers if key[0] == peer.id]:
            self._leave(key)
        for puller in self.sinks.values():
            puller.lost(peer.id)

    def _leave(self, key: tuple[bytes, int]) -> None:
        queue = self._workers.pop(key, None)
        self._unreached.pop(key, None)
        target = None if queue is None else queue.leave(key)
        if queue is not None and target is not None:
            self._effects.do(DisconnectPush(queue.queue, target.endpoint))

    # -- what pushers say ----------------------------------------------------------------------

    def _on_offers(self, peer_id: bytes, record: PlainOffers, _now: float) -> None:
        known = self.offers.setdefault(peer_id, {})
        for queue in record.queues:
            if len(known) >= self._config.queues_max:
                self._refuse(peer_id, "offers more queues than Config.queues_max")
                return
            known[queue] = None
            for puller in self.sinks.values():
                if puller.queue == queue:
                    puller.offered(peer_id)
            self.offered(peer_id, queue)

    def received(self, number: int, peer: PeerRecord, batch: Batch, now: float) -> None:
        """A batch came on a puller's socket."""
        puller = self.sinks.get(number)
        if puller is not None and (batch.topic != puller.queue or not puller.received(peer.id, batch, now)):
            self._refuse(peer.id, f"pushes to {batch.topic!r} at-most-once, which it does not offer")

    def _on_mark(self, peer_id: bytes, record: PlainMark, now: float) -> None:
        puller = self.sinks.get(record.puller)
        if puller is not None:
            puller.marked(peer_id, record.before, now)

    # -- what pullers say ----------------------------------------------------------------------

    def _on_pull(self, peer_id: bytes, record: PlainPull, _now: float) -> None:
        queue, key = self.queues.get(record.queue), (peer_id, record.puller)
        if queue is None or len(self._workers) >= self._config.workers_max:
            self._refuse(peer_id, f"pulls from {record.queue!r}, which is not offered, or is over Config.workers_max")
            return
        target = queue.targets.get(key)
        if target is None:
            self._leave(key)
            self._workers[key] = queue
        elif target.endpoint in record.endpoints and key not in self._unreached:
            return  # it has new addresses beside the one that works
        else:
            self._effects.do(DisconnectPush(queue.queue, target.endpoint))
        self._unreached[key] = record

    def _reach(self, now: float) -> None:
        for key, record in list(self._unreached.items()):
            endpoint = self._endpoint(self._peers[key[0]], record.endpoints, now)
            if endpoint is not None:
                del self._unreached[key]
                self._workers[key].join(key, endpoint)
                self._effects.do(ConnectPush(record.queue, endpoint))

    def _on_end(self, peer_id: bytes, record: PlainEnd, _now: float) -> None:
        self._leave((peer_id, record.puller))

    def _on_taken(self, peer_id: bytes, record: PlainTaken, now: float) -> None:
        key = peer_id, record.puller
        if key in self._workers:
            self._workers[key].taken(key, record.taken, record.before, now)

    # -- time, and what to do ------------------------------------------------------------------

    def timer(self) -> float:
        """When `handle_timer` has something to do."""
        if not (self.queues or self.sinks):
            return inf
        machines: tuple[PlainQueue | PlainSink, ...] = (*self.queues.values(), *self.sinks.values())
        return min(machine.timer() for machine in machines)

    def handle_timer(self, now: float) -> None:
        """Time has passed."""
        for queue in self.queues.values():
            for (peer_id, number), before in queue.to_mark(now):
                self._tell(peer_id, PlainMark(number, before))
        for puller in self.sinks.values():
            if puller.timer() <= now:
                puller.handle_timer(now)

    def flush(self, now: float) -> None:
        """Connect to pullers, send what can go, and report what is lost."""
        if self._unreached:
            self._reach(now)
        for queue in self.queues.values():
            if queue.wants_to_send:
                self._effects.do(SendJobs(queue.queue))
            lost = queue.take_lost()
            if lost:
                self._effects.emit(JobsLost(queue.queue, lost))
