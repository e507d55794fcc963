"""The protocol of one node behind a few verbs: `receive*`, `handle_timer`, `timer`, `actions`.

Everything here is a function of its inputs: frames, the caller's clock readings and the user's calls. The driver
feeds it and carries out `actions()`; tests and the simulator do the same without sockets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from zfabric.config import Config
from zfabric.errors import RemoteProtocolError, TopicError
from zfabric.events import Gap, PeerJoined, PeerLeft, ProtocolError
from zfabric.model import Peer, Source
from zfabric.protocol.effects import Action, Effects, Route
from zfabric.protocol.inbox import Inbox
from zfabric.protocol.interests import Interests, parse_marker
from zfabric.protocol.membership import Step
from zfabric.protocol.peers import PeerRecord, PeerTable
from zfabric.wire.batch import Batch, Buffer, parse_batch
from zfabric.wire.records import (
    Attached,
    Goodbye,
    Heartbeat,
    Hello,
    Identity,
    Interest,
    Peers,
    Record,
    Refuse,
    Unknown,
    VersionMismatch,
    Welcome,
    decode_envelope,
)
from zfabric.wire.topics import check_topic

__all__ = ["Core", "Delivered"]

Delivered = tuple[Batch, Source, Sequence[object]]
"""A batch, who published it, and the subscriptions (handles) that it is for."""


class Core:
    """All protocol state of one node."""

    def __init__(self, me: bytes, config: Config, usable: Callable[[str], bool], wall_offset: float = 0.0) -> None:
        """`usable` tells whether an endpoint can work from here; `wall_offset` turns `now` into UTC seconds."""
        self.me = me
        self._wall_offset = wall_offset
        self._config = config
        self._effects = Effects(me)
        self.peers = PeerTable(me, config, self._effects, usable, self._on_step)
        self.interests = Interests(me, config, self._effects, self.peers, usable)
        self._inboxes: dict[tuple[bytes, str], Inbox] = {}
        self._now = 0.0
        self.protocol_errors = 0
        self.strangers = 0
        self.received: dict[str, int] = {}
        self.lost: dict[str, int] = {}

    # -- who we are ----------------------------------------------------------------------------

    def introduce(self, identity: Identity) -> None:
        """Set, or change, what HELLO and WELCOME say of this node."""
        self.peers.identity = identity

    def reintroduce(self, now: float) -> None:
        """The identity changed: greet every peer again."""
        for peer in self.peers.up():
            self.peers.tell(peer, Hello(peer.id, self.peers.identity), now=now)

    def found(self, peer_id: bytes, endpoints: Iterable[str], now: float) -> None:
        """Discovery saw a node of this fabric."""
        self._now = now
        self.peers.found(peer_id, endpoints, now)

    def seek(self, endpoint: str, now: float) -> None:
        """Keep trying to reach a seed."""
        self.peers.dialler.seek_seed(endpoint, now)

    def goodbye(self) -> None:
        """Tell every peer that this node closes."""
        for peer in self.peers.known.values():
            self.peers.tell(peer, Goodbye(), now=self._now)

    # -- the control plane ---------------------------------------------------------------------

    def receive(self, route: Route, frame: bytes, now: float) -> None:
        """One control frame."""
        self._now = now
        try:
            sender, records = decode_envelope(frame, self._config.control_records_max)
        except VersionMismatch as error:
            self._effects.tell(route, Refuse("version", str(error)))
            self._not_protocol(f"route {route!r}", error)
            return
        except RemoteProtocolError as error:
            self._not_protocol(f"route {route!r}", error)
            return
        for record in records:
            if not self._greeting(route, sender, record, now) and not self._session(route, sender, record, now):
                self.strangers += 1
                return

    def _greeting(self, route: Route, sender: bytes, record: Record, now: float) -> bool:
        """Records that need no session. Returns whether it was one."""
        if isinstance(record, Hello):
            self.peers.hello(route, sender, record, now)
        elif isinstance(record, Welcome):
            self.peers.welcome(route, sender, record, now)
        elif isinstance(record, Refuse):
            self.peers.refused(route, record, now)
        elif isinstance(record, Unknown):
            self.peers.unknown(route, now)
        else:
            return False
        return True

    def _session(self, route: Route, sender: bytes, record: Record, now: float) -> bool:
        """Records of a peer. Returns False if the sender is none."""
        if isinstance(record, Goodbye):
            self.peers.goodbye(sender, route, now)
            return True
        peer = self.peers.traffic(route, sender, now)
        if peer is None:
            return False
        if isinstance(record, Interest):
            self.interests.received(peer, record, now)
        elif isinstance(record, Attached):
            self.interests.attached(peer, record.positions)
            for position in record.positions:
                if position.topic in self.interests.remote[peer.id].wanted:
                    self._inbox(peer.id, position.topic, position.epoch).anchor(position.epoch, position.next_seq)
        elif isinstance(record, Heartbeat):
            self.peers.heartbeat(peer, record, now)
        elif isinstance(record, Peers):
            for other in record.peers:
                self.found(other.id, other.inbox, now)
        return True

    def route_lost(self, route: Route, now: float) -> None:
        """The transport could not send on a route."""
        self.peers.route_lost(route, now)

    def _not_protocol(self, address: str, error: RemoteProtocolError) -> None:
        self.protocol_errors += 1
        self._effects.emit(ProtocolError(address, error.reason))

    def _on_step(self, step: Step, peer: PeerRecord, reason: str) -> None:
        if step is Step.LEAVE:
            self._effects.emit(PeerLeft(self.describe(peer), reason))
            self.interests.peer_left(peer)
            for key in [key for key in self._inboxes if key[0] == peer.id]:
                del self._inboxes[key]
            return
        self.interests.peer_joined(peer, self._now)
        if step is Step.JOIN:
            self._effects.emit(PeerJoined(self.describe(peer)))

    def describe(self, peer: PeerRecord) -> Peer:
        """A peer as users see it."""
        remote = self.interests.remote.get(peer.id)
        identity = peer.identity
        return Peer(
            id=peer.source.id,
            name=identity.name,
            host=identity.host,
            pid=identity.pid,
            endpoint=peer.endpoint or "",
            since=peer.since + self._wall_offset,
            topics=() if remote is None else tuple(remote.topics),
            patterns=() if remote is None else tuple(request.pattern for request in remote.patterns),
        )

    # -- the data plane ------------------------------------------------------------------------

    def receive_filter(self, data: bytes, now: float) -> None:
        """A subscription or its end, as our outlet received it."""
        self._now = now
        found = parse_marker(data)
        if found is not None:
            self.interests.marked(*found, now)

    def receive_batch(self, frames: Sequence[Buffer], now: float) -> Delivered | None:
        """One batch from the feed: what to deliver to whom, if anything."""
        self._now = now
        try:
            batch = self._parse(frames)
        except RemoteProtocolError as error:
            self._not_protocol("feed", error)
            return None
        peer = self.peers.known.get(batch.producer)
        if peer is None:
            self.strangers += 1
            return None
        peer.last_heard = now
        handles = self.interests.local.match(batch.topic)
        if not handles:
            return None
        try:
            inbox = self._inbox(peer.id, batch.topic, batch.epoch)
        except TopicError as error:
            self._not_protocol(str(peer.source), RemoteProtocolError(str(error)))
            return None
        new, gap = inbox.accept(batch)
        if gap is not None:
            self.count_lost(Gap(peer.source, batch.topic, *gap, cause="overflow"))
        if not new:
            return None
        self.received[batch.topic] = self.received.get(batch.topic, 0) + batch.count
        return batch, peer.source, handles

    def loop_back(self, frames: Sequence[Buffer], source: Source, handles: Sequence[object]) -> Delivered:
        """A batch of this node's own for its own subscriptions."""
        batch = self._parse(frames)
        self.received[batch.topic] = self.received.get(batch.topic, 0) + batch.count
        return batch, source, handles

    def _parse(self, frames: Sequence[Buffer]) -> Batch:
        config = self._config
        return parse_batch(
            frames,
            messages_max=config.batch_messages_max,
            buffers_max=config.buffers_per_batch_max,
            topic_bytes_max=config.topic_bytes_max,
        )

    def count_lost(self, gap: Gap) -> None:
        """Count and report messages that will not arrive."""
        self.lost[gap.topic] = self.lost.get(gap.topic, 0) + gap.count
        self._effects.emit(gap)

    def _inbox(self, producer: bytes, topic: str, epoch: int) -> Inbox:
        key = (producer, topic)
        inbox = self._inboxes.get(key)
        if inbox is None:
            check_topic(topic, reserved=True, bytes_max=self._config.topic_bytes_max)
            if len(self._inboxes) >= self._config.inboxes_max:
                del self._inboxes[next(iter(self._inboxes))]
            inbox = self._inboxes[key] = Inbox(epoch)
        return inbox

    def forget_unwanted(self) -> None:
        """A subscription ended: positions of streams that nobody listens to are no longer kept."""
        for key in [key for key in self._inboxes if not self.interests.local.match(key[1])]:
            del self._inboxes[key]

    # -- time, and what to do ------------------------------------------------------------------

    def timer(self) -> float:
        """When `handle_timer` has something to do; infinity if never."""
        return self.peers.timer()

    def handle_timer(self, now: float) -> None:
        """Time has passed."""
        self._now = now
        self.peers.handle_timer(now)

    def actions(self, now: float) -> list[Action]:
        """What the driver must do now, in order. Call it after every other verb."""
        self.interests.flush(now)
        return self._effects.take()
