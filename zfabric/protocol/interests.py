"""Who publishes what and who listens: the matching of topics and patterns, here and at every peer.

A subscription is in place when three things have happened: the peer was told (INTEREST, with a generation), the
feed is connected to its outlet, and the outlet has seen the generation's marker, which the feed subscribes to
after the patterns themselves. The publisher then answers ATTACHED with the position that the subscription begins at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from zfabric.config import Config
from zfabric.errors import LimitExceeded, LocalProtocolError
from zfabric.events import IncompatibleDelivery, SubscriberJoined, SubscriberLeft
from zfabric.protocol.dialling import is_local
from zfabric.protocol.effects import AddFilter, ConnectFeed, DisconnectFeed, Effects, RemoveFilter
from zfabric.protocol.keeping import Keeping
from zfabric.protocol.lanes import Lane, Sink
from zfabric.protocol.markers import marker
from zfabric.protocol.outbox import Outbox, Reader
from zfabric.protocol.peers import PeerRecord, PeerTable
from zfabric.protocol.remote import RemoteInterest
from zfabric.protocol.telling import interest_records, offer_of
from zfabric.wire.batch import Sign
from zfabric.wire.records import (
    Attached,
    Incompatible,
    Interest,
    PatternRequest,
    Position,
    Positions,
    Resume,
    Start,
    TopicOffer,
)
from zfabric.wire.topics import Pattern, TopicTable, check_pattern, check_topic

__all__ = ["Interests"]

_MARKERS_PER_PEER_MAX = 16
_RANKS = {"": 0, "at-most-once": 0, "at-least-once": 1, "exactly-once": 2}


class Interests:
    """The node's own topics and subscriptions, and those of its peers."""

    def __init__(
        self, me: bytes, config: Config, effects: Effects, peers: PeerTable, usable: Callable[[str], bool]
    ) -> None:
        self._me = me
        self._config = config
        self._effects = effects
        self._peers = peers
        self._usable = usable
        self.outboxes: dict[str, Outbox] = {}
        self.lanes: dict[int, Lane] = {}
        self.local: TopicTable[Lane] = TopicTable(bytes_max=config.topic_bytes_max)
        self.remote: dict[bytes, RemoteInterest] = {}
        self._next_epoch = 1
        self._next_lane = 1
        self._prefixes: dict[bytes, int] = {}
        self._generation = 0
        self._serial = 0
        self._markers: dict[bytes, set[int]] = {}
        self.waiting: list[Outbox] = []
        "Outboxes that a reader has just left: they need the timer."
        self.on_durable: Callable[[PeerRecord, TopicOffer], None] | None = None
        "A store's: called with each durable topic that a peer offers."
        self.on_follow: Callable[[PeerRecord, float], None] = lambda _peer, _now: None
        "Called when the feed connects to a peer's outlet."
        self._attach_soon: set[str] = set()
        self._topics_added: dict[str, TopicOffer] = {}
        self._topics_gone: dict[str, None] = {}
        self._lanes_added: dict[int, Lane] = {}
        self._lanes_gone: dict[int, Lane] = {}

    # -- this node's own -----------------------------------------------------------------------

    def open_topic(
        self,
        topic: str,
        delivery: str,
        *,
        with_crc: bool,
        window_bytes: int | None = None,
        history: int = 0,
        keeping: Keeping | None = None,
        sign: Sign | None = None,
    ) -> Outbox:
        """Start to publish. Raises LimitExceeded, or LocalProtocolError if the topic is open already."""
        if topic in self.outboxes:
            raise LocalProtocolError(f"this node publishes {topic!r} already; share that publisher")
        if len(self.outboxes) >= self._config.topics_max:
            raise LimitExceeded("topics_max", len(self.outboxes) + 1, self._config.topics_max)
        outbox = Outbox(
            topic,
            self._me,
            self._next_epoch,
            delivery,
            self._config,
            with_crc=with_crc,
            window_bytes=window_bytes,
            history=history,
            keeping=keeping,
            sign=sign,
        )
        self._next_epoch += 1
        self.outboxes[topic] = outbox
        self._topics_gone.pop(topic, None)
        self._topics_added[topic] = offer_of(outbox)
        self._match_local(outbox)
        # Peers that are in place already get the first message, too; they are told with the next INTEREST.
        if any(self._receivers(peer.id, topic) for peer in self._peers.up()):
            self._attach_soon.add(topic)
            outbox.ready = outbox.ready or keeping is None
        return outbox

    def close_topic(self, topic: str) -> None:
        """Stop to publish."""
        del self.outboxes[topic]
        self._attach_soon.discard(topic)
        self._topics_added.pop(topic, None)
        self._topics_gone[topic] = None

    def subscribe(
        self, pattern: Pattern, delivery: str, start: Start, sink: Sink, *, store: bool = False, signed: bool = False
    ) -> Lane:
        """Start to listen; matching batches go to `sink`. Raises LimitExceeded."""
        if len(self.lanes) >= self._config.patterns_max:
            raise LimitExceeded("patterns_max", len(self.lanes) + 1, self._config.patterns_max)
        lane = Lane(PatternRequest(self._next_lane, pattern.text, delivery, start, store), pattern, sink, signed=signed)
        self._next_lane += 1
        self.lanes[lane.request.lane] = lane
        self._lanes_added[lane.request.lane] = lane
        self.local.add(pattern.text, lane)
        for remote in self.remote.values():
            remote.wanted.update(topic for topic in remote.topics if pattern.matches(topic))
        self._local_changed()
        return lane

    def unsubscribe(self, lane: Lane) -> None:
        """Stop to listen."""
        self.local.remove(lane.pattern.text, lane)
        del self.lanes[lane.request.lane]
        if self._lanes_added.pop(lane.request.lane, None) is None:
            self._lanes_gone[lane.request.lane] = lane
        self._local_changed()

    def _local_changed(self) -> None:
        for outbox in self.outboxes.values():
            self._match_local(outbox)

    def _match_local(self, outbox: Outbox) -> None:
        rank = _RANKS[outbox.delivery]
        outbox.local = [lane for lane in self.local.match(outbox.topic) if _RANKS[lane.request.delivery] <= rank]
        outbox.count_listeners()

    def publishers_of(self, lane: Lane) -> int:
        """How many nodes (this one included) have a subscription of ours in place."""
        local = any(lane in outbox.local for outbox in self.outboxes.values())
        return local + len({producer for producer, _ in lane.attached})

    # -- peers come and go ---------------------------------------------------------------------

    def peer_joined(self, peer: PeerRecord, now: float) -> None:
        """A peer is up, or back: tell it everything."""
        self.remote.setdefault(peer.id, RemoteInterest(self._config))
        self.flush(now)
        topics = [offer_of(outbox) for outbox in self.outboxes.values()]
        requests = [lane.request for lane in self.lanes.values()]
        state = self._generation, self._serial
        self._peers.tell(peer, *interest_records(state, full=True, topics=topics, patterns=requests), now=now)
        for outbox in self.outboxes.values():
            # It may not have heard of its eviction, or we not that it has room again: it begins anew.
            outbox.evicted = {key for key in outbox.evicted if key[0] != peer.id}
            for key in outbox.remote:
                if key[0] == peer.id:
                    self._tell_attached(peer, outbox, key[1], self._position(outbox, key), now)
        self._evaluate(peer, now)

    def peer_left(self, peer: PeerRecord, now: float, *, for_good: bool) -> None:
        """A peer is gone: stop sending to it and following it; reliable readers, and stores anyway, may come back."""
        remote = self.remote.pop(peer.id, None)
        if remote is not None and remote.following is not None:
            self._effects.do(DisconnectFeed(remote.following))
        for outbox in self.outboxes.values():
            for key in [key for key in outbox.remote if key[0] == peer.id]:
                self._detach(peer, outbox, key, now, for_good=for_good)
            if for_good:
                for reader in [r for r in outbox.readers.values() if r.peer_id == peer.id and not r.request.store]:
                    outbox.drop_reader(reader, now)
            outbox.evicted = {key for key in outbox.evicted if key[0] != peer.id}
        for lane in self.lanes.values():
            lane.attached = {key for key in lane.attached if key[0] != peer.id}
        if for_good:
            self.forget(peer.id)

    def forget(self, peer_id: bytes) -> None:
        """A peer will not come back: where its subscriptions began is of no interest any more."""
        for outbox in self.outboxes.values():
            outbox.begun = {key: begun for key, begun in outbox.begun.items() if key[0] != peer_id}

    def received(self, peer: PeerRecord, interest: Interest, now: float) -> None:
        """A peer's topics or patterns changed. Raises TopicError or LimitExceeded after what could be taken in."""
        remote = self.remote[peer.id]
        self._place(peer, remote, interest)
        if remote.outdated:
            return
        remote.generation = interest.generation
        if interest.full:
            remote.whole = True
            remote.topics.clear()
            remote.wanted.clear()
            remote.patterns.clear()
            remote.table = TopicTable(bytes_max=self._config.topic_bytes_max)
        for topic in interest.topics_gone:
            remote.topics.pop(topic, None)
            remote.wanted.discard(topic)
            for lane in self.lanes.values():
                lane.attached.discard((peer.id, topic))
        for lane_id in interest.patterns_gone:
            request, _ = remote.patterns.pop(lane_id, (None, 0))
            if request is not None:
                remote.table.remove(request.pattern, lane_id)
        try:
            self._learn(peer, remote, interest)
        finally:
            if not interest.more:
                self._forget_closed(peer, remote, now)
                self._evaluate(peer, now)

    def _place(self, peer: PeerRecord, remote: RemoteInterest, interest: Interest) -> None:
        """Decide whether a record belongs to the state that we know of: another connection may be late, or lose it."""
        begins = interest.full or not remote.more or interest.serial != remote.serial
        remote.more = interest.more
        if not begins:
            return
        if interest.full:
            remote.outdated = interest.serial < remote.serial
        else:
            remote.outdated = interest.serial != remote.serial + 1 or not remote.whole
            if interest.serial > remote.serial + 1 or not remote.whole:
                self._peers.damaged(peer.routes[0])
        if not remote.outdated:
            remote.serial = interest.serial

    def _forget_closed(self, peer: PeerRecord, remote: RemoteInterest, now: float) -> None:
        """Subscriptions that ended while their peer was away need no waiting for."""
        for outbox in self.outboxes.values():
            for key in [key for key in outbox.begun if key[0] == peer.id and key[1] not in remote.patterns]:
                del outbox.begun[key]
            for reader in list(outbox.readers.values()):
                if reader.peer_id == peer.id and reader.lane not in remote.patterns:
                    outbox.remote.pop((peer.id, reader.lane), None)
                    outbox.drop_reader(reader, now)

    def _learn(self, peer: PeerRecord, remote: RemoteInterest, interest: Interest) -> None:
        config = self._config
        for offer in interest.topics:
            if offer.topic not in remote.topics and len(remote.topics) >= config.topics_max:
                raise LimitExceeded("topics_max", len(remote.topics) + 1, config.topics_max)
            check_topic(offer.topic, reserved=True, bytes_max=config.topic_bytes_max)
            remote.topics[offer.topic] = offer
            if offer.durable and self.on_durable is not None:
                self.on_durable(peer, offer)
            if self.local.match(offer.topic):
                remote.wanted.add(offer.topic)
        for request in interest.patterns:
            if request.lane not in remote.patterns and len(remote.patterns) >= config.patterns_max:
                raise LimitExceeded("patterns_max", len(remote.patterns) + 1, config.patterns_max)
            check_pattern(request.pattern, bytes_max=config.topic_bytes_max)
            old, _ = remote.patterns.get(request.lane, (None, 0))
            if old is not None:
                remote.table.remove(old.pattern, request.lane)
            remote.patterns[request.lane] = request, interest.generation
            remote.table.add(request.pattern, request.lane)

    def marked(self, subscribed: bool, node_id: bytes, generation: int, now: float) -> None:
        """Our outlet saw a marker come or go."""
        markers = self._markers.get(node_id)
        if subscribed:
            if markers is None:
                if len(self._markers) >= self._config.peers_max and not self._forget_stray_marker():
                    return
                markers = self._markers[node_id] = set()
            markers.add(generation)
            if len(markers) > _MARKERS_PER_PEER_MAX:
                markers.remove(min(markers))
        elif markers is not None:
            markers.discard(generation)
            if not markers:
                del self._markers[node_id]
        peer = self._peers.known.get(node_id)
        if peer is not None and node_id in self.remote:
            self._evaluate(peer, now)

    def _forget_stray_marker(self) -> bool:
        """Make room: markers of nobody that we know go first, the oldest of them."""
        stray = next((node_id for node_id in self._markers if node_id not in self._peers.known), None)
        if stray is not None:
            del self._markers[stray]
        return stray is not None

    def resume(self, peer: PeerRecord, record: Resume, now: float) -> None:
        """An evicted subscription has room again."""
        outbox = self.outboxes.get(record.topic)
        key = peer.id, record.lane
        if outbox is None:
            return
        if key in outbox.remote:  # the news of the eviction came late, by another connection
            self._tell_attached(peer, outbox, record.lane, self._position(outbox, key), now)
            return
        outbox.evicted.discard(key)
        self._evaluate(peer, now)

    def incompatible(self, peer: PeerRecord, record: Incompatible, _now: float) -> None:
        """A publisher offers less than one of our subscriptions asks for."""
        self._effects.emit(IncompatibleDelivery(record.topic, peer.source, record.offered, record.requested))

    # -- who listens ---------------------------------------------------------------------------

    def _receivers(self, peer_id: bytes, topic: str) -> dict[tuple[bytes, int], PatternRequest]:
        """A peer's subscriptions to a topic that are in place."""
        remote, markers = self.remote.get(peer_id), self._markers.get(peer_id)
        if remote is None or not markers:
            return {}
        newest = max(markers)
        found = {}
        for lane in remote.table.match(topic):
            request, generation = remote.patterns[lane]
            if generation <= newest:
                found[peer_id, lane] = request
        return found

    def _evaluate(self, peer: PeerRecord, now: float) -> None:
        for outbox in self.outboxes.values():
            self._evaluate_topic(peer, outbox, now)
        self._follow(peer, now)

    def _evaluate_topic(self, peer: PeerRecord, outbox: Outbox, now: float) -> None:
        remote = self.remote[peer.id]
        receivers = self._receivers(peer.id, outbox.topic)
        for key in [key for key in outbox.remote if key[0] == peer.id and key not in receivers]:
            self._detach(peer, outbox, key, now, for_good=key[1] not in remote.patterns)
        for key, request in receivers.items():
            if key in outbox.remote or key in outbox.evicted or (request.store and outbox.keeping is None):
                continue
            if _RANKS[outbox.delivery] < _RANKS.get(request.delivery, 0):
                self._refuse(peer, remote, outbox, request, now)
            else:
                self._attach(peer, outbox, request, now)

    def _refuse(
        self, peer: PeerRecord, remote: RemoteInterest, outbox: Outbox, request: PatternRequest, now: float
    ) -> None:
        if (request.lane, outbox.topic) in remote.incompatible:
            return
        remote.incompatible.add((request.lane, outbox.topic))
        self._effects.emit(IncompatibleDelivery(outbox.topic, peer.source, outbox.delivery, request.delivery))
        told = Incompatible(request.lane, outbox.topic, outbox.delivery, request.delivery)
        self._peers.tell(peer, told, now=now)

    def _attach(self, peer: PeerRecord, outbox: Outbox, request: PatternRequest, now: float) -> None:
        key = peer.id, request.lane
        position = outbox.base
        if outbox.reliable and request.delivery != "at-most-once":
            reader = outbox.returning(peer.id, peer.identity.name, request)
            if reader is None:
                start = outbox.start_of(request.start, now)
                reader = Reader(peer.id, peer.identity.name, request, start, now)
            elif reader.peer_id != peer.id:
                del outbox.readers[reader.peer_id, reader.lane]
                reader = Reader(peer.id, peer.identity.name, request, reader.processed, now)
            reader.away_since, reader.parted = None, False
            reader.progress_at = now
            outbox.readers[key] = reader
            position = reader.received
        else:
            position = outbox.begun.setdefault(key, position)
        outbox.remote[key] = request
        if request.store and outbox.keeping is not None:
            outbox.keeping.attached(peer.id, position, now)
        outbox.count_listeners()
        self._tell_attached(peer, outbox, request.lane, position, now)
        if not request.store:
            self._effects.emit(SubscriberJoined(outbox.topic, peer.source))

    def _position(self, outbox: Outbox, key: tuple[bytes, int]) -> int:
        """What to count from: a peer may never have heard where its subscription began."""
        reader = outbox.readers.get(key)
        return outbox.begun[key] if reader is None else reader.received

    def _tell_attached(self, peer: PeerRecord, outbox: Outbox, lane: int, position: int, now: float) -> None:
        at = Position(lane, outbox.topic, outbox.epoch, outbox.first_kept, position)
        self._peers.tell(peer, Attached([at]), now=now)
        if position < outbox.base:
            so_far = Position(lane, outbox.topic, outbox.epoch, outbox.first_kept, outbox.base)
            self._peers.tell(peer, Positions([so_far]), now=now)

    def _detach(self, peer: PeerRecord, outbox: Outbox, key: tuple[bytes, int], now: float, *, for_good: bool) -> None:
        if for_good:
            outbox.begun.pop(key, None)
        request = outbox.remote.pop(key, None)
        reader = outbox.readers.get(key)
        if request is not None and not request.store:
            self._effects.emit(SubscriberLeft(outbox.topic, peer.source))
        elif request is not None and outbox.keeping is not None:
            outbox.keeping.detached(peer.id, now, None if reader is None else (reader.received, reader.processed))
            self.waiting.append(outbox)
        if reader is not None:
            if for_good and not reader.request.store:
                outbox.drop_reader(reader, now)
            else:
                reader.away_since, reader.parted = now, for_good
                self.waiting.append(outbox)
        outbox.count_listeners()

    # -- whom we follow ------------------------------------------------------------------------

    def _follow(self, peer: PeerRecord, now: float) -> None:
        remote = self.remote[peer.id]
        if not remote.wanted:
            # What we follow we go on following: the outlet would take a while to notice that we left and came back.
            return
        if remote.following is not None and remote.following in peer.identity.outlet:
            return
        outlet = self.reachable(peer, peer.identity.outlet, now)
        if outlet is None:
            return
        if remote.following is not None:
            self._effects.do(DisconnectFeed(remote.following))
        remote.following = outlet
        self._effects.do(ConnectFeed(outlet))
        self.on_follow(peer, now)

    def reachable(self, peer: PeerRecord, endpoints: Iterable[str], now: float) -> str | None:
        """That of a peer's endpoints beside the one that answers. None if it has to be found first.

        Any on this host needs no proof, if this node is not to be reached from others: they might name such a one.
        """
        own = self._peers.identity
        near = peer.identity.host == own.host and all(map(is_local, own.outlet))
        host = None if peer.endpoint is None else peer.endpoint.rpartition(":")[0]
        for endpoint in filter(self._usable, endpoints):
            local = endpoint.startswith("ipc:") or (near and is_local(endpoint))
            if local or endpoint.rpartition(":")[0] == host or peer.id == self._me:
                return endpoint
        self._peers.dial_again(peer, now)
        return None

    # -- once a turn ---------------------------------------------------------------------------

    def flush(self, now: float) -> None:
        """Put what changed since the last turn into filters and INTEREST records."""
        if self._lanes_added or self._lanes_gone:
            self._change_filters()
        elif not (self._topics_added or self._topics_gone):
            return
        self._serial += 1
        records = list(
            interest_records(
                (self._generation, self._serial),
                full=False,
                topics=list(self._topics_added.values()),
                patterns=[lane.request for lane in self._lanes_added.values()],
                topics_gone=list(self._topics_gone),
                patterns_gone=list(self._lanes_gone),
            )
        )
        soon, self._attach_soon = self._attach_soon, set()
        self._topics_added.clear()
        self._topics_gone.clear()
        self._lanes_added.clear()
        self._lanes_gone.clear()
        for peer in self._peers.up():
            if peer.id in self.remote:
                self._peers.tell(peer, *records, now=now)
                for topic in soon:
                    self._evaluate_topic(peer, self.outboxes[topic], now)
                self._follow(peer, now)

    def _change_filters(self) -> None:
        for lane in self._lanes_added.values():
            prefix = lane.pattern.prefix
            self._prefixes[prefix] = self._prefixes.get(prefix, 0) + 1
            if self._prefixes[prefix] == 1:
                self._effects.do(AddFilter(prefix))
        self._generation += 1
        self._effects.do(AddFilter(marker(self._me, self._generation)))
        if self._generation > 1:
            self._effects.do(RemoveFilter(marker(self._me, self._generation - 1)))
        for lane in self._lanes_gone.values():
            prefix = lane.pattern.prefix
            self._prefixes[prefix] -= 1
            if not self._prefixes[prefix]:
                del self._prefixes[prefix]
                self._effects.do(RemoveFilter(prefix))
        if self._lanes_gone:
            for remote in self.remote.values():
                remote.wanted = {topic for topic in remote.wanted if self.local.match(topic)}
