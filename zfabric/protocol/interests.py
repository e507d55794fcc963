"""Who publishes what and who listens: the matching of topics and patterns, here and at every peer.

A subscription is in place when three things have happened: the peer was told (INTEREST, with a generation), the
feed is connected to its outlet, and the outlet has seen the generation's marker, which the feed subscribes to
after the patterns themselves. The publisher then answers ATTACHED with its positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from zfabric.config import Config
from zfabric.errors import LimitExceeded, LocalProtocolError, TopicError
from zfabric.events import ProtocolError, SubscriberJoined, SubscriberLeft
from zfabric.protocol.effects import AddFilter, ConnectFeed, DisconnectFeed, Effects, RemoveFilter
from zfabric.protocol.outbox import Outbox
from zfabric.protocol.peers import PeerRecord, PeerTable
from zfabric.wire.records import Attached, Interest, PatternRequest, Position, TopicOffer
from zfabric.wire.topics import Pattern, TopicTable, check_pattern, check_topic

__all__ = ["MARKER", "Interests", "RemoteInterest", "parse_marker"]

MARKER = b"\xff"
"First byte of marker subscriptions: no topic begins with it, and libzmq resends subscriptions in byte order."
_ITEMS_PER_RECORD = 1000
_MARKERS_PER_PEER_MAX = 16

T = TypeVar("T")


def marker(node_id: bytes, generation: int) -> bytes:
    """The subscription that says: all patterns of this generation are in place."""
    return MARKER + node_id + generation.to_bytes(4, "big")


def parse_marker(data: bytes) -> tuple[bool, bytes, int] | None:
    """(subscribed, node id, generation) of what XPUB received; None for an ordinary subscription."""
    if len(data) != 22 or data[1:2] != MARKER:
        return None
    return data[0] == 1, data[2:18], int.from_bytes(data[18:], "big")


class RemoteInterest:
    """What one peer publishes and subscribes to."""

    __slots__ = ("attached_to", "following", "patterns", "table", "topics", "wanted")

    def __init__(self, config: Config) -> None:
        self.topics: dict[str, TopicOffer] = {}
        self.patterns: dict[PatternRequest, int] = {}
        self.table: TopicTable[PatternRequest] = TopicTable(bytes_max=config.topic_bytes_max)
        self.wanted: set[str] = set()
        self.following: str | None = None
        self.attached_to: set[str] = set()


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
        self.local: TopicTable[object] = TopicTable(bytes_max=config.topic_bytes_max)
        self.remote: dict[bytes, RemoteInterest] = {}
        self._next_epoch = 1
        self._requests: dict[PatternRequest, int] = {}
        self._prefixes: dict[bytes, int] = {}
        self._generation = 0
        self._markers: dict[bytes, set[int]] = {}
        self._attached_early: list[tuple[PeerRecord, Outbox]] = []
        self._topics_added: dict[str, TopicOffer] = {}
        self._topics_gone: dict[str, None] = {}
        self._patterns_added: dict[PatternRequest, None] = {}
        self._patterns_gone: dict[PatternRequest, None] = {}

    # -- this node's own -----------------------------------------------------------------------

    def open_topic(self, topic: str, delivery: str, *, with_crc: bool) -> Outbox:
        """Start to publish. Raises LimitExceeded, or LocalProtocolError if the topic is open already."""
        if topic in self.outboxes:
            raise LocalProtocolError(f"this node publishes {topic!r} already; share that publisher")
        if len(self.outboxes) >= self._config.topics_max:
            raise LimitExceeded("topics_max", len(self.outboxes) + 1, self._config.topics_max)
        outbox = Outbox(topic, self._me, self._next_epoch, delivery, with_crc=with_crc)
        self._next_epoch += 1
        self.outboxes[topic] = outbox
        self._topics_gone.pop(topic, None)
        self._topics_added[topic] = TopicOffer(topic, outbox.epoch, delivery)
        outbox.local = list(self.local.match(topic))
        for peer in self._peers.up():
            if self._receives(peer.id, topic):
                outbox.remote.add(peer.id)
                self._attached_early.append((peer, outbox))
        outbox.count_listeners()
        return outbox

    def close_topic(self, topic: str) -> None:
        """Stop to publish."""
        del self.outboxes[topic]
        self._topics_added.pop(topic, None)
        self._topics_gone[topic] = None

    def subscribe(self, pattern: Pattern, delivery: str, handle: object) -> None:
        """Start to listen; matching batches come back with `handle`. Raises LimitExceeded."""
        if len(self.local) >= self._config.patterns_max:
            raise LimitExceeded("patterns_max", len(self.local) + 1, self._config.patterns_max)
        self.local.add(pattern.text, handle)
        request = PatternRequest(pattern.text, delivery)
        self._requests[request] = self._requests.get(request, 0) + 1
        if self._requests[request] == 1:
            if self._patterns_gone.pop(request, self) is self:
                self._patterns_added[request] = None
            for remote in self.remote.values():
                remote.wanted.update(topic for topic in remote.topics if pattern.matches(topic))
        self._local_changed()

    def unsubscribe(self, pattern: Pattern, delivery: str, handle: object) -> None:
        """Stop to listen."""
        self.local.remove(pattern.text, handle)
        request = PatternRequest(pattern.text, delivery)
        self._requests[request] -= 1
        if not self._requests[request]:
            del self._requests[request]
            if self._patterns_added.pop(request, self) is self:
                self._patterns_gone[request] = None
        self._local_changed()

    def _local_changed(self) -> None:
        for outbox in self.outboxes.values():
            outbox.local = list(self.local.match(outbox.topic))
            outbox.count_listeners()

    def publishers_of(self, pattern: Pattern) -> int:
        """How many nodes (this one included) send us what matches the pattern."""
        local = any(pattern.matches(topic) for topic in self.outboxes)
        return local + sum(any(map(pattern.matches, remote.attached_to)) for remote in self.remote.values())

    # -- peers come and go ---------------------------------------------------------------------

    def peer_joined(self, peer: PeerRecord, now: float) -> None:
        """A peer is up, or back: tell it everything."""
        self.remote.setdefault(peer.id, RemoteInterest(self._config))
        self.flush(now)
        topics = [TopicOffer(o.topic, o.epoch, o.delivery) for o in self.outboxes.values()]
        records = list(self._interests(full=True, topics=topics, patterns=list(self._requests)))
        self._peers.tell(peer, *records, now=now)
        self._tell_attached(peer, [o for o in self.outboxes.values() if peer.id in o.remote], now)

    def peer_left(self, peer: PeerRecord) -> None:
        """A peer is gone: stop sending to it and following it."""
        remote = self.remote.pop(peer.id, None)
        if remote is not None and remote.following is not None:
            self._effects.do(DisconnectFeed(remote.following))
        for outbox in self.outboxes.values():
            self._detach(peer, outbox)

    def received(self, peer: PeerRecord, interest: Interest, now: float) -> None:
        """A peer's topics or patterns changed."""
        remote = self.remote[peer.id]
        if interest.full:
            remote.topics.clear()
            remote.wanted.clear()
            remote.patterns.clear()
            remote.table = TopicTable(bytes_max=self._config.topic_bytes_max)
        for topic in interest.topics_gone:
            remote.topics.pop(topic, None)
            remote.wanted.discard(topic)
        for request in interest.patterns_gone:
            if remote.patterns.pop(request, None) is not None:
                remote.table.remove(request.pattern, request)
        try:
            self._learn(remote, interest)
        except (TopicError, LimitExceeded) as error:
            self._effects.emit(ProtocolError(str(peer.source), str(error)))
        remote.attached_to &= remote.wanted
        self._evaluate(peer, now)

    def _learn(self, remote: RemoteInterest, interest: Interest) -> None:
        config = self._config
        for offer in interest.topics:
            if len(remote.topics) >= config.topics_max:
                raise LimitExceeded("topics_max", len(remote.topics) + 1, config.topics_max)
            check_topic(offer.topic, reserved=True, bytes_max=config.topic_bytes_max)
            remote.topics[offer.topic] = offer
            if self.local.match(offer.topic):
                remote.wanted.add(offer.topic)
        for request in interest.patterns:
            if len(remote.patterns) >= config.patterns_max:
                raise LimitExceeded("patterns_max", len(remote.patterns) + 1, config.patterns_max)
            check_pattern(request.pattern, bytes_max=config.topic_bytes_max)
            remote.patterns[request] = interest.generation
            remote.table.add(request.pattern, request)

    def marked(self, subscribed: bool, node_id: bytes, generation: int, now: float) -> None:  # noqa: FBT001
        """Our outlet saw a marker come or go."""
        markers = self._markers.get(node_id)
        if subscribed:
            if markers is None:
                if len(self._markers) >= self._config.peers_max:
                    return
                markers = self._markers[node_id] = set()
            if len(markers) < _MARKERS_PER_PEER_MAX:
                markers.add(generation)
        elif markers is not None:
            markers.discard(generation)
            if not markers:
                del self._markers[node_id]
        peer = self._peers.known.get(node_id)
        if peer is not None and node_id in self.remote:
            self._evaluate(peer, now)

    def attached(self, peer: PeerRecord, positions: Iterable[Position]) -> None:
        """A publisher has our subscriptions in place."""
        remote = self.remote[peer.id]
        remote.attached_to.update(p.topic for p in positions if p.topic in remote.wanted)

    # -- who listens ---------------------------------------------------------------------------

    def _receives(self, peer_id: bytes, topic: str) -> bool:
        remote = self.remote.get(peer_id)
        markers = self._markers.get(peer_id)
        if remote is None or markers is None:
            return False
        newest = max(markers)
        return any(remote.patterns[request] <= newest for request in remote.table.match(topic))

    def _evaluate(self, peer: PeerRecord, now: float) -> None:
        attaching = []
        for outbox in self.outboxes.values():
            if not self._receives(peer.id, outbox.topic):
                self._detach(peer, outbox)
            elif peer.id not in outbox.remote:
                attaching.append(outbox)
        self._attach(peer, attaching, now)
        self._follow(peer, now)

    def _attach(self, peer: PeerRecord, outboxes: list[Outbox], now: float) -> None:
        for outbox in outboxes:
            outbox.remote.add(peer.id)
            outbox.count_listeners()
        self._tell_attached(peer, outboxes, now)
        for outbox in outboxes:
            self._effects.emit(SubscriberJoined(outbox.topic, peer.source))

    def _tell_attached(self, peer: PeerRecord, outboxes: list[Outbox], now: float) -> None:
        for chunk in _chunks([Position(o.topic, o.epoch, o.base) for o in outboxes]):
            self._peers.tell(peer, Attached(chunk), now=now)

    def _detach(self, peer: PeerRecord, outbox: Outbox) -> None:
        if peer.id in outbox.remote:
            outbox.remote.discard(peer.id)
            outbox.count_listeners()
            self._effects.emit(SubscriberLeft(outbox.topic, peer.source))

    # -- whom we follow ------------------------------------------------------------------------

    def _follow(self, peer: PeerRecord, now: float) -> None:
        remote = self.remote[peer.id]
        if not remote.wanted:
            if remote.following is not None:
                self._effects.do(DisconnectFeed(remote.following))
                remote.following = None
                remote.attached_to.clear()
            return
        if remote.following is not None and remote.following in peer.identity.outlet:
            return
        outlet = self._outlet(peer)
        if outlet is None:
            self._peers.dial_again(peer, now)
            return
        if remote.following is not None:
            self._effects.do(DisconnectFeed(remote.following))
        remote.following = outlet
        self._effects.do(ConnectFeed(outlet))

    def _outlet(self, peer: PeerRecord) -> str | None:
        """The outlet's address beside the one that answered; ipc, where it can work, needs no proof."""
        usable = [endpoint for endpoint in peer.identity.outlet if self._usable(endpoint)]
        local = next((endpoint for endpoint in usable if endpoint.startswith("ipc:")), None)
        if local is not None or peer.endpoint is None:
            return local
        host = peer.endpoint.rpartition(":")[0]
        return next((endpoint for endpoint in usable if endpoint.rpartition(":")[0] == host), None)

    # -- once a turn ---------------------------------------------------------------------------

    def flush(self, now: float) -> None:
        """Put what changed since the last turn into filters and INTEREST records."""
        if self._patterns_added or self._patterns_gone:
            self._change_filters()
        if not (self._topics_added or self._topics_gone or self._patterns_added or self._patterns_gone):
            return
        records = list(
            self._interests(
                full=False,
                topics=list(self._topics_added.values()),
                patterns=list(self._patterns_added),
                topics_gone=list(self._topics_gone),
                patterns_gone=list(self._patterns_gone),
            )
        )
        for changes in (self._topics_added, self._topics_gone, self._patterns_added, self._patterns_gone):
            changes.clear()  # type: ignore[attr-defined]
        early, self._attached_early = self._attached_early, []
        for peer in self._peers.up():
            self._peers.tell(peer, *records, now=now)
            self._attach(peer, [outbox for other, outbox in early if other is peer and peer.id in outbox.remote], now)
            self._follow(peer, now)

    def _change_filters(self) -> None:
        added = [Pattern(request.pattern).prefix for request in self._patterns_added]
        gone = [Pattern(request.pattern).prefix for request in self._patterns_gone]
        for prefix in added:
            self._prefixes[prefix] = self._prefixes.get(prefix, 0) + 1
            if self._prefixes[prefix] == 1:
                self._effects.do(AddFilter(prefix))
        self._generation += 1
        self._effects.do(AddFilter(marker(self._me, self._generation)))
        if self._generation > 1:
            self._effects.do(RemoveFilter(marker(self._me, self._generation - 1)))
        for prefix in gone:
            self._prefixes[prefix] -= 1
            if not self._prefixes[prefix]:
                del self._prefixes[prefix]
                self._effects.do(RemoveFilter(prefix))
        if gone:
            for remote in self.remote.values():
                remote.wanted = {topic for topic in remote.wanted if self.local.match(topic)}
                remote.attached_to &= remote.wanted

    def _interests(
        self,
        *,
        full: bool,
        topics: list[TopicOffer],
        patterns: list[PatternRequest],
        topics_gone: Iterable[str] = (),
        patterns_gone: Iterable[PatternRequest] = (),
    ) -> Iterator[Interest]:
        """INTEREST records of bounded size; the first one carries `full` and what is gone."""
        yield Interest(full, self._generation, [], list(topics_gone), [], list(patterns_gone))
        for some_topics in _chunks(topics):
            yield Interest(False, self._generation, topics=some_topics)
        for some_patterns in _chunks(patterns):
            yield Interest(False, self._generation, patterns=some_patterns)


def _chunks(items: list[T]) -> Iterator[list[T]]:
    for start in range(0, len(items), _ITEMS_PER_RECORD):
        yield items[start : start + _ITEMS_PER_RECORD]
