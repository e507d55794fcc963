"""The protocol of one node behind a few verbs: `receive*`, `handle_timer`, `timer`, `actions`.

Everything here is a function of its inputs: frames, the caller's clock readings and the user's calls. The driver
feeds it and carries out `actions()`; tests and the simulator do the same without sockets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from math import inf
from typing import Any

import msgspec

from zfabric.config import Config
from zfabric.errors import LimitExceeded, RemoteProtocolError, TopicError
from zfabric.events import (
    AuthenticationFailed,
    PeerJoined,
    PeerLeft,
    PeerRefused,
    ProtocolError,
    SignatureRefused,
)
from zfabric.model import Peer, Source
from zfabric.protocol.authority import Authority, Everybody, Signer
from zfabric.protocol.bundling import BUNDLED_MIN, group, seal
from zfabric.protocol.calls import Calls
from zfabric.protocol.channels import Channels
from zfabric.protocol.deadlines import Timed
from zfabric.protocol.effects import Action, AddFilter, Effects, Route
from zfabric.protocol.gate import Gate
from zfabric.protocol.histories import Histories
from zfabric.protocol.inbox import Jitter
from zfabric.protocol.interests import Interests
from zfabric.protocol.lending import Lending, LoanLost, Memory
from zfabric.protocol.markers import MarkerCounts, parse_marker
from zfabric.protocol.membership import Step
from zfabric.protocol.outbox import Outbox
from zfabric.protocol.peers import PeerRecord, PeerTable
from zfabric.protocol.queues import Queues
from zfabric.protocol.serving import Serving
from zfabric.protocol.shares import Shares
from zfabric.protocol.signatures import Signatures
from zfabric.protocol.stores import Stores
from zfabric.protocol.streams import Streams
from zfabric.wire.batch import Batch, Buffer, parse_batch
from zfabric.wire.bundle import Bundle, address, addressee, parse_bundle, tagged
from zfabric.wire.letters import Broken, Letter, LetterAck
from zfabric.wire.records import (
    Ack,
    Attached,
    Data,
    Denied,
    Evicted,
    Goodbye,
    Heartbeat,
    Hello,
    Identity,
    Incompatible,
    Interest,
    Mapped,
    Missing,
    Peers,
    Positions,
    Record,
    Refuse,
    Repair,
    Resume,
    Returned,
    Unknown,
    VersionMismatch,
    Welcome,
    decode_envelope,
)

__all__ = ["Core"]

HELLOS_PER_FRAME_MAX = 4
"Each is answered with everything that this node publishes and subscribes to."


class Core:
    """All protocol state of one node."""

    def __init__(
        self,
        me: bytes,
        config: Config,
        usable: Callable[[str], bool],
        jitter: Jitter,
        wall_offset: float = 0.0,
        authority: Authority | None = None,
        signer: Signer | None = None,
        memory: Memory | None = None,
    ) -> None:
        """`usable` tells whether an endpoint can work from here; `wall_offset` turns `now` into UTC seconds.

        Without `authority` every peer may do anything; without `signer` nobody can tell who signed a batch; without
        `memory` all buffers travel as frames.
        """
        self.me = me
        self._authority = authority or Everybody()
        self._wall_offset = wall_offset
        self._config = config
        self._parse = partial(
            parse_batch,
            messages_max=config.batch_messages_max,
            buffers_max=config.buffers_per_batch_max,
            topic_bytes_max=config.topic_bytes_max,
        )
        self._effects = Effects(me)
        self._effects.do(AddFilter(address(me)))
        self.peers = PeerTable(me, config, self._effects, usable, self._on_step)
        self.interests = Interests(me, config, self._effects, self.peers, usable)
        self.gate = Gate(self._authority, config, self._effects, self.peers)
        self.lending = Lending(me, config, self.peers, memory)
        self.interests.on_follow = self.lending.followed
        self.channels = Channels(me, config, self._effects, self.peers)
        self.signatures = Signatures(signer, self._not_signed, required=config.require_signatures)
        self.streams = Streams(config, self._effects, self.peers, self.interests, jitter, self.signatures)
        if self._authority.distinguishes:
            self.channels.screen = self.gate.screen
        self.calls = Calls(config, self.channels, jitter)
        self.serving = Serving(config, self.channels)
        self.queues = Queues(config, self._effects, self.channels, self.not_protocol, self.interests.reachable)
        self.channels.register(self.queues)
        self.channels.register(self.calls)
        self.channels.register(self.serving)
        self.stores = Stores(config, self.channels, self.interests, self._parse, self.not_protocol, self.signatures)
        self.channels.register(self.stores)
        self.shares = Shares(config, self.channels, self._parse, self.not_protocol, self.stores.home)
        self.channels.register(self.shares)
        self.stores.watch(self.shares.stores_changed)
        self.histories = Histories(config, self._effects, self.peers, self.streams, self.stores)
        self._timed: tuple[Timed, ...] = (
            self.peers, self.streams, self.channels, self.calls, self.serving, self.queues, self.shares, self.histories
        )  # fmt: skip
        self._dispatch = self._handlers()
        self._now = 0.0
        self.protocol_errors = 0
        self.strangers = 0
        self.authentication_failures = 0
        self._markers = MarkerCounts()

    def _handlers(self) -> dict[type[Record], Callable[[PeerRecord, Any, float], None]]:
        return {
            Ack: self._on_ack,
            Attached: self.streams.attached,
            Broken: self.channels.broken,
            Data: self._on_data,
            Denied: self.gate.denied,
            Evicted: self.streams.evicted,
            Heartbeat: self.peers.heartbeat,
            Incompatible: self.interests.incompatible,
            Interest: self._on_interest,
            Letter: self.channels.heard,
            LetterAck: self.channels.acked,
            Mapped: self.lending.mapped,
            Missing: self.streams.missing,
            Peers: self._on_peers,
            Positions: self.streams.heard,
            Repair: self.streams.repair,
            Resume: self.interests.resume,
            Returned: self.lending.returned,
        }

    # -- who we are ----------------------------------------------------------------------------

    def introduce(self, identity: Identity) -> None:
        """Set, or change, what HELLO and WELCOME say of this node."""
        self.peers.identity = identity
        self.channels.own.source = Source(self.me.hex(), identity.name)

    def reintroduce(self, now: float) -> None:
        """The identity changed: greet every peer again."""
        for peer in self.peers.up():
            self.peers.tell(peer, Hello(peer.id, self.peers.identity), now=now)

    def found(self, peer_id: bytes, endpoints: Iterable[str], now: float) -> None:
        """Discovery saw a node of this fabric."""
        self._now = self.gate.now = now
        self.peers.found(peer_id, endpoints, now)

    def seek(self, endpoint: str, now: float) -> None:
        """Keep trying to reach a seed."""
        self.peers.dialler.seek_seed(endpoint, now)

    def goodbye(self) -> None:
        """Tell every peer that this node closes, and look for no others."""
        self.peers.dialler.stop()
        self.streams.last_words(self._now)
        self.channels.last_words(self._now)
        for peer in self.peers.known.values():
            self.peers.tell(peer, Goodbye(), now=self._now)

    # -- the control plane ---------------------------------------------------------------------

    def receive(self, route: Route, frame: bytes, now: float, user: str = "") -> bool:
        """One control frame of a verified identity. Returns whether all it may have changed is in `streams_due`."""
        self._now = self.gate.now = now
        try:
            sender, records = decode_envelope(frame, self._config.control_records_max)
        except RemoteProtocolError as error:
            self._not_understood(route, error)
            return False
        if self._authority.distinguishes and not self._speaks_for_itself(sender, user, now):
            return False
        if len(records) > HELLOS_PER_FRAME_MAX < sum(isinstance(record, Hello) for record in records):
            self.not_protocol(self.peers.address(route), RemoteProtocolError("one frame holds too many HELLOs"))
            return False
        for record in records:
            known = type(record) in self._dispatch or not self._greeting(route, sender, record, now)
            if known and not self._session(route, sender, record, now):
                self.strangers += sender not in self.peers.known  # else it came late, by a route that was hung up
                return False
        return len(records) == 1 and type(records[0]) is Heartbeat

    def _not_understood(self, route: Route, error: RemoteProtocolError) -> None:
        self.not_protocol(self.peers.address(route), error)
        if isinstance(error, VersionMismatch):
            self._effects.tell(route, Refuse("version", str(error)))
            self._effects.emit(PeerRefused(self.peers.address(route), "version", str(error)))
        else:
            self.peers.damaged(route)

    def _speaks_for_itself(self, sender: bytes, user: str, now: float) -> bool:
        """Whether whoever speaks is trusted, and the node id is its own: an id belongs to one identity."""
        known = self.peers.known.get(sender)
        if not self._authority.trusts(user):
            self.not_authenticated(user, "it is not trusted any more", now)
        elif known is not None and known.user != user:
            self.not_authenticated(known.address, f"{user!r} speaks in the name of this node of {known.user!r}", now)
        elif not self._authority.owns(user, sender):
            self.not_authenticated(user, f"it speaks for node {sender.hex()}, which is not one of its own", now)
        else:
            self.peers.user = user
            return True
        return False

    def _greeting(self, route: Route, sender: bytes, record: Record, now: float) -> bool:
        """Records that need no session. Returns whether it was one."""
        if isinstance(record, Hello):
            self.peers.hello(route, sender, record, now)
        elif isinstance(record, Welcome):
            if not self.peers.welcome(route, sender, record, now):
                self.strangers += sender not in self.peers.known
        elif isinstance(record, Refuse):
            self.peers.refused(route, record, now)
        elif isinstance(record, Unknown):
            self.peers.unknown(route, now)
        else:
            return False
        return True

    def _session(self, route: Route, sender: bytes, record: Record, now: float) -> bool:
        """Records of a peer. Returns False if the sender is none."""
        if type(record) is Goodbye:
            patience_s = self._config.gap_settle_s if self.streams.awaits(sender) else 0.0
            self.peers.goodbye(sender, route, patience_s, now)
            return True
        peer = self.peers.traffic(route, sender, now)
        if peer is None:
            return False
        try:
            self._dispatch[type(record)](peer, record, now)
        except (TopicError, LimitExceeded, RemoteProtocolError) as error:
            self.not_protocol(peer.address, RemoteProtocolError(str(error)))
        return True

    def _on_ack(self, peer: PeerRecord, ack: Ack, now: float) -> None:
        if not self.streams.acked(peer, ack, now):
            raise RemoteProtocolError("acknowledges what was never sent")

    def _on_interest(self, peer: PeerRecord, interest: Interest, now: float) -> None:
        if self._authority.distinguishes:
            topics = [offer for offer in interest.topics if self.gate.may(peer, "publish", offer.topic)]
            patterns = [request for request in interest.patterns if self.gate.may_listen(peer, request)]
            interest = msgspec.structs.replace(interest, topics=topics, patterns=patterns)
        self.interests.received(peer, interest, now)

    def _on_data(self, peer: PeerRecord, data: Data, now: float) -> None:
        batch = self._parse(data.frames)
        if batch.producer != peer.id:
            raise RemoteProtocolError("repairs what another node has published")
        if self.gate.may(peer, "publish", batch.topic):
            self.streams.repaired_batch(peer, data.lane, batch, now)

    def _on_peers(self, _: PeerRecord, peers: Peers, now: float) -> None:
        for other in peers.peers:
            self.peers.found(other.id, other.inbox, now)

    def route_lost(self, route: Route, now: float) -> None:
        """The transport could not send on a route."""
        self._now = self.gate.now = now
        self.peers.not_sent(route, now)

    def unreachable(self, route: int, now: float) -> None:
        """A connection that we dialled was not made, or ended and was not made again."""
        self._now = self.gate.now = now
        self.peers.unreachable(route, now)

    def not_protocol(self, address: str, error: RemoteProtocolError) -> None:
        """Count and report something that is not the protocol."""
        self.protocol_errors += 1
        self._effects.emit(ProtocolError(address, error.reason))

    def not_authenticated(self, address: str, reason: str, now: float) -> None:
        """Count a connection that came to nothing because of keys; report it unless that was done lately."""
        self.authentication_failures += 1
        if self.gate.is_news(now, address, reason):
            self._effects.emit(AuthenticationFailed(address, reason))

    def _not_signed(self, batch: Batch, reason: str) -> None:
        """Report a batch that counts for nothing, unless that was done lately for its stream."""
        if self.gate.is_news(self._now, batch.producer.hex(), batch.topic, reason):
            peer = self.peers.known.get(batch.producer)
            source = Source(batch.producer.hex(), "") if peer is None else peer.source
            self._effects.emit(SignatureRefused(source, batch.topic, batch.base, batch.end - 1, reason))

    # -- who may do what -----------------------------------------------------------------------

    def trust_changed(self, now: float) -> None:
        """The authority judges differently from now on: part with those whom it does not trust, greet the others."""
        self._now = self.gate.now = now
        for outbox in self.interests.outboxes.values():
            outbox.permit(allowed=self._authority.may(self._authority.name, "publish", outbox.topic))
        for peer in [peer for peer in self.peers.known.values() if not self._authority.trusts(peer.user)]:
            self.peers.revoked(peer, now)
        self.gate.reported.clear()
        self.reintroduce(now)

    def _on_step(self, step: Step, peer: PeerRecord, reason: str) -> None:
        if step is Step.LEAVE:
            self._effects.emit(PeerLeft(self.describe(peer), reason))
            self.interests.peer_left(peer, self._now, for_good=reason in ("goodbye", "revoked"))
            self.streams.peer_left(peer, self._now, for_good=reason in ("goodbye", "revoked"))
            self.channels.peer_left(peer, self._now)
            self.lending.left(peer)
            return
        self.lending.greeted(peer, self._now)
        self.streams.peer_joined(peer.id)
        self.interests.peer_joined(peer, self._now)
        self.channels.peer_joined(peer, self._now)
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
            patterns=() if remote is None else remote.subscribed(),
            services=self.calls.offered_by(peer.id),
            durable=() if remote is None else tuple(topic for topic, offer in remote.topics.items() if offer.durable),
            stores=self.stores.patterns_of(peer.id),
        )

    # -- the data plane ------------------------------------------------------------------------

    def receive_filter(self, data: bytes, now: float, user: str = "") -> None:
        """A subscription or its end, as our outlet received it; of no `user` where libzmq says it itself."""
        self._now = self.gate.now = now
        found = parse_marker(data)
        if found is None:
            return
        subscribed, node_id, generation = found
        if self._authority.distinguishes:
            peer = self.peers.known.get(node_id)
            own = (peer is None or peer.user == user) if user else None
            if not self._markers.changed(data[1:], subscribed=subscribed, own=own):
                return
        self.interests.marked(subscribed, node_id, generation, now)

    def receive_batch(self, frames: Sequence[Buffer], now: float, user: str = "") -> bool:
        """One batch from the feed, from the identity that the transport has verified.

        Returns whether all that it may have changed is in `streams_due`.
        """
        self._now = self.gate.now = now
        to = addressee(frames)
        try:
            batch: Batch | Bundle
            if to is None:
                batch = self._parse(frames, loans=True)
            else:
                batch = parse_bundle(frames, messages_max=self._config.batch_messages_max)
        except RemoteProtocolError as error:
            self.not_protocol("feed", error)
            return False
        peer = self.peers.known.get(batch.producer)
        if peer is None:
            self.strangers += 1
            return False
        if self._authority.distinguishes and peer.user != user:
            self.not_authenticated(peer.address, f"{user!r} publishes in the name of this node", now)
            return False
        may = partial(self.gate.may, peer, "publish") if self._authority.distinguishes else None
        if isinstance(batch, Batch) and may is not None and not may(batch.topic):
            return False
        peer.last_heard = now
        plain = peer.leaves_at == inf
        try:
            if isinstance(batch, Bundle):
                if to == self.me:  # who subscribes to everything hears what is for others, too
                    self.streams.take_bundle(peer, batch, may)
            else:
                if batch.loan is not None:
                    plain = False
                    batch = self._parse(self.lending.borrow(peer, batch.loan, frames, now))
                lanes = self.interests.local.match(batch.topic)
                self.streams.take(peer, batch, lanes, now)
                plain = plain and not any(lane.history for lane in lanes)
        except LoanLost:
            return False
        except (TopicError, LimitExceeded, RemoteProtocolError) as error:
            self.not_protocol(peer.address, RemoteProtocolError(str(error)))
        if peer.leaves_at < inf and not self.streams.awaits(peer.id):
            self.peers.depart(peer, now)
        return plain

    def receive_jobs(self, puller: int, frames: Sequence[Buffer], now: float, user: str = "") -> None:
        """One batch from the socket of a puller at-most-once, from the identity that the transport has verified."""
        self._now = self.gate.now = now
        try:
            batch = self._parse(frames)
        except RemoteProtocolError as error:
            self.not_protocol(f"somebody at puller {puller}", error)
            return
        own = self.channels.own
        peer = own if batch.producer == self.me else self.peers.known.get(batch.producer)
        if peer is None:
            self.strangers += 1
        elif self._authority.distinguishes and user != (self._authority.name if peer is own else peer.user):
            self.not_authenticated(peer.address, f"{user!r} pushes in the name of this node", now)
        elif peer is own or not self._authority.distinguishes or self.gate.may(peer, "push", batch.topic):
            peer.last_heard = now
            self.queues.plain.received(puller, peer, batch, now)

    def seal(self, outbox: Outbox, published_ns: int, now: float) -> list[Buffer]:
        """Finish an outbox's open batch: the frames to publish."""
        frames = outbox.seal(published_ns, now)
        self.streams.sent(outbox)
        return frames

    def bundle(
        self, outboxes: list[Outbox], published_ns: int, now: float, least: int = BUNDLED_MIN
    ) -> tuple[list[bytes], list[Outbox]]:
        """Finish the open batches that travel together, `least` or more: the frames to publish, and the others."""
        together, alone = group(outboxes, least)
        frames = []
        for audience, members in together.items():
            to = [tagged(address(peer_id), self.peers.known[peer_id].user) for peer_id in audience]
            for rest in seal(members, self.me, self._config, published_ns, now):
                frames += [front + rest for front in to]
            self.streams.sent(members[0])
        return frames, alone

    def loop_back(self, outbox: Outbox, frames: Sequence[Buffer], source: Source, now: float) -> None:
        """Hand a batch of this node's own to its own subscriptions."""
        batch = self._parse(frames)
        batch.signer = self.signatures.own if batch.signature else ""
        self.streams.deliver_local(outbox, batch, source, now)

    # -- time, and what to do ------------------------------------------------------------------

    def timer(self) -> float:
        """When `handle_timer` has something to do; infinity if never."""
        return min([part.timer() for part in self._timed])

    def handle_timer(self, now: float) -> None:
        """Time has passed."""
        self._now = self.gate.now = now
        for part in self._timed:
            part.handle_timer(now)

    def streams_due(self) -> float:
        """When `actions` has something that comes from streams alone; in the past if it has now."""
        return -inf if self._effects.waiting else self.streams.timer()

    def actions(self, now: float) -> list[Action]:
        """What the driver must do now, in order. Call it after every other verb."""
        self.interests.flush(now)
        while self.interests.waiting:
            self.streams.sent(self.interests.waiting.pop())
        self.streams.handle_timer(now)
        self.queues.flush(now)
        self.shares.flush(now)
        self.channels.flush(now)
        self.lending.flush(now)
        return self._effects.take()
