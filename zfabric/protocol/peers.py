"""The peer table: greetings, refusals, liveness and peer exchange, as `membership.TRANSITIONS` says."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import inf

from zfabric.config import Config
from zfabric.events import DuplicateId, PeerRefused
from zfabric.model import Source
from zfabric.protocol.dialling import Dialler
from zfabric.protocol.effects import Effects, Route
from zfabric.protocol.membership import Input, PeerState, Step, step
from zfabric.wire.records import (
    Heartbeat,
    Hello,
    Identity,
    PeerAddress,
    Peers,
    Record,
    Refuse,
    Unknown,
    Welcome,
)

__all__ = ["PeerRecord", "PeerTable"]

SHUNNED_MAX = 4096
GOSSIP_DOUBLINGS_MAX = 5
INBOUND_ROUTES_MAX = 4
ENDED_DELAY_S = 0.05
"Between the end of a connection and the question whose it was: libzmq tells of it before its sockets know."


class PeerRecord:
    """All that is known about one peer's presence."""

    __slots__ = (
        "endpoint",
        "gossip_doublings",
        "gossiped_at",
        "id",
        "identity",
        "last_heard",
        "last_sent",
        "leaves_at",
        "routes",
        "since",
        "source",
        "state",
        "unwritable",
        "user",
    )

    def __init__(self, peer_id: bytes, identity: Identity, now: float, user: str = "") -> None:
        self.id = peer_id
        self.user = user
        self.identity = identity
        self.source = Source(peer_id.hex(), identity.name)
        self.state = PeerState.ABSENT
        self.routes: list[Route] = []
        self.unwritable: Route | None = None
        "The last connection that took nothing more: what the peer had sent by it, its last words too, may still come."
        self.endpoint: str | None = None
        self.since = self.last_heard = self.last_sent = now
        self.leaves_at = inf
        self.gossiped_at = -inf
        self.gossip_doublings = 0

    @property
    def address(self) -> str:
        """Name and id, for people."""
        return f"{self.source.name} ({self.source.id})"

    def __repr__(self) -> str:
        return f"<PeerRecord {self.identity.name} {self.id.hex()[:8]} {self.state.name} routes={self.routes}>"


class PeerTable:
    """Knows who is there. `on_step(step, peer, reason)` hears of JOIN, RESYNC and LEAVE."""

    def __init__(
        self,
        me: bytes,
        config: Config,
        effects: Effects,
        usable: Callable[[str], bool],
        on_step: Callable[[Step, PeerRecord, str], None],
    ) -> None:
        self._me = me
        self._config = config
        self._effects = effects
        self._on_step = on_step
        self.identity: Identity = Identity(bytes(16), "", "", "", 0, (), ())
        self.dialler = Dialler(config, effects, lambda to: Hello(to, self.identity), self._holder, usable)
        self.known: dict[bytes, PeerRecord] = {}
        self._by_route: dict[Route, PeerRecord] = {}
        self._shunned: dict[bytes, None] = {}
        self._leaving: dict[bytes, PeerRecord] = {}
        self.user = ""
        "The verified identity of whoever is speaking."
        self._digest = int.from_bytes(me[:8], "big")
        self._last_tick = -inf
        self._ended = 0
        "Connections to us that have ended, less the goodbyes that told of it."
        self._ask_at, self._asked_at = inf, -inf

    def address(self, route: Route) -> str:
        """What is known of the other end of a route, for people."""
        peer = self._by_route.get(route)
        if peer is not None:
            return peer.address
        dialled = self.dialler.endpoint(route) if isinstance(route, int) else None
        return dialled or f"connection {route if isinstance(route, int) else route.hex()}"

    def _holder(self, endpoint: str) -> bytes | None:
        return next((peer.id for peer in self.known.values() if peer.endpoint == endpoint), None)

    def up(self) -> list[PeerRecord]:
        """Peers that both sides have heard of."""
        return [peer for peer in self.known.values() if peer.state is PeerState.UP]

    def found(self, peer_id: bytes, endpoints: Iterable[str], now: float) -> None:
        """Discovery or another peer told of a node: a hint to try its addresses."""
        if peer_id in self.known or peer_id == self._me or peer_id in self._shunned:
            return
        self.dialler.seek_peer(peer_id, tuple(endpoints), now, self._config.dial_keep_s)

    def tell(self, peer: PeerRecord, *records: Record, now: float) -> None:
        """Queue records for a peer on its best route; without one they are dropped (its return resyncs)."""
        if peer.routes:
            self._effects.tell(peer.routes[0], *records)
            peer.last_sent = now

    def tell_bulk(self, peer: PeerRecord, record: Record, nbytes: int, *, now: float) -> None:
        """Queue a long record, as `tell` does."""
        if peer.routes:
            self._effects.tell_bulk(peer.routes[0], record, nbytes)
            peer.last_sent = now

    # -- greetings -----------------------------------------------------------------------------

    def hello(self, route: Route, sender: bytes, hello: Hello, now: float) -> None:
        """Somebody connected to us and says who it is."""
        refusal = self._refusal(sender, hello)
        if refusal is not None:
            self._effects.tell(route, refusal)
            address = f"{hello.identity.name} on {hello.identity.host}"
            if refusal.code == "duplicate-id":
                self._effects.emit(DuplicateId(sender.hex(), address))
            if refusal.code != "self":
                self._effects.emit(PeerRefused(address, refusal.code, refusal.detail))
            return
        if sender in self._shunned:
            return
        peer = self.known.get(sender) or PeerRecord(sender, hello.identity, now, self.user)
        self._adopt(peer, route, hello.identity)
        self._effects.tell(route, Welcome(self.identity), self._addresses(besides=sender))
        self._happened(peer, Input.HELLO, now)

    def _refusal(self, sender: bytes, hello: Hello) -> Refuse | None:
        identity = hello.identity
        if sender == self._me:
            if identity.token == self.identity.token:
                return Refuse("self", "this is your own address")
            return Refuse("duplicate-id", f"node id {sender.hex()} is taken by {self.identity.name!r}")
        if identity.fabric != self.identity.fabric:
            return Refuse("fabric", "this node belongs to another fabric")
        if hello.to is not None and hello.to != self._me:
            return Refuse("stranger", "the node that you are looking for is not at this address")
        known = self.known.get(sender)
        if known is not None and known.identity.token != identity.token:
            return Refuse("duplicate-id", f"node id {sender.hex()} is taken by {known.identity.name!r}")
        if known is None and len(self.known) >= self._config.peers_max:
            return Refuse("peers-max", f"this node has Config.peers_max = {self._config.peers_max} peers already")
        return None

    def welcome(self, route: Route, sender: bytes, welcome: Welcome, now: float) -> bool:
        """The answer to our HELLO; False if it is none."""
        identity = welcome.identity
        peer = self.known.get(sender)
        again = peer is not None and route in peer.routes
        if not again and not (isinstance(route, int) and self.dialler.pending(route)):
            return False
        if identity.fabric != self.identity.fabric or sender == self._me:
            return False
        if peer is None:
            if len(self.known) >= self._config.peers_max:
                return False
            peer = PeerRecord(sender, identity, now, self.user)
        elif peer.identity.token != identity.token:
            return False
        if not again and isinstance(route, int):
            endpoint = self.dialler.answered(route, sender)
            if peer.endpoint is not None:
                self._effects.hang_up(route)
                return True
            peer.endpoint = endpoint
        self.dialler.forget_peer(sender)
        self._adopt(peer, route, identity)
        self._happened(peer, Input.WELCOME, now)
        return True

    def refused(self, route: Route, refuse: Refuse, now: float) -> None:
        """Our HELLO was refused."""
        if not isinstance(route, int):
            return
        pending, expected = self.dialler.pending(route), self.dialler.expected(route)
        peer = self._by_route.get(route)
        if not pending and peer is None:
            return
        if refuse.code == "duplicate-id":
            self._effects.emit(DuplicateId(self._me.hex(), refuse.detail))
        if refuse.code != "self":
            self._effects.emit(PeerRefused(self.address(route), refuse.code, refuse.detail))
        if pending:
            for_good = expected is not None and refuse.code != "peers-max"  # that one may have room later
            if for_good and expected is not None and refuse.code != "stranger":
                self._shun(expected)
            self.dialler.refused(route, final=for_good or refuse.code == "self")
        else:
            self.route_lost(route, now)

    def unknown(self, route: Route, now: float) -> None:
        """The other end of a route does not know us (any more): greet again, or stop using its connection."""
        peer = self._by_route.get(route)
        if isinstance(route, int):
            if peer is not None:
                self._effects.tell_once(route, Hello(peer.id, self.identity))
        elif peer is not None:
            self.route_lost(route, now)

    def damaged(self, route: Route) -> None:
        """Something that a peer said was lost: greet again, so that both sides tell everything anew."""
        peer = self._by_route.get(route)
        if peer is not None:
            again = Hello(peer.id, self.identity) if isinstance(route, int) else Unknown()
            self._effects.tell_once(route, again)

    # -- everything after the greeting ---------------------------------------------------------

    def traffic(self, route: Route, sender: bytes, now: float) -> PeerRecord | None:
        """A record other than a greeting: the peer it counts for, or None (the sender is asked to greet)."""
        peer = self.known.get(sender)
        if peer is None or route not in peer.routes:
            if not isinstance(route, int):  # on those that we dialled and hung up nobody need greet again
                self._effects.tell_once(route, Unknown())
            late = peer is not None and route == peer.unwritable and peer.state is PeerState.UP
            return peer if late else None
        peer.last_heard = now
        if peer.routes[0] != route and not isinstance(peer.routes[0], int):
            peer.routes.remove(route)
            peer.routes.insert(0, route)
            self._happened(peer, Input.REROUTED, now)
        if peer.state is not PeerState.UP:
            self._happened(peer, Input.TRAFFIC, now)
        return peer

    def heartbeat(self, peer: PeerRecord, beat: Heartbeat, now: float) -> None:
        """Where two nodes know different sets of peers, they tell each other, with back-off."""
        if beat.peers_digest == self._digest:
            return
        pause = self._config.gossip_interval_s * 2**peer.gossip_doublings
        if now - peer.gossiped_at >= pause:
            peer.gossiped_at = now
            peer.gossip_doublings = min(peer.gossip_doublings + 1, GOSSIP_DOUBLINGS_MAX)
            self.tell(peer, self._addresses(besides=peer.id), now=now)

    def goodbye(self, sender: bytes, route: Route, patience_s: float, now: float) -> None:
        """A peer closes. Its id is never used again, so stale announcements of it are ignored.

        It counts as there for `patience_s` more, because its last batches come by another connection.
        """
        peer = self.known.get(sender)
        if peer is None or (route not in peer.routes and route != peer.unwritable):
            return
        self._ended -= not isinstance(route, int)
        self._shun(sender)
        self.dialler.forget_peer(sender)
        peer.leaves_at = now + patience_s
        self._leaving[sender] = peer
        if not patience_s:
            self.depart(peer, now)

    def depart(self, peer: PeerRecord, now: float) -> None:
        """A peer that said goodbye is gone now."""
        self._happened(peer, Input.GOODBYE, now)

    def revoked(self, peer: PeerRecord, now: float) -> None:
        """A peer's identity is not trusted any more."""
        self.dialler.forget_peer(peer.id)
        self._happened(peer, Input.REVOKED, now)

    def not_sent(self, route: Route, now: float) -> None:
        """A connection took nothing more: the other end has closed it, or its queue is full."""
        peer = self._by_route.get(route)
        self.route_lost(route, now)
        if peer is not None and not isinstance(route, int):
            peer.unwritable = route

    def route_lost(self, route: Route, now: float) -> None:
        """A connection is not used any more."""
        if isinstance(route, int) and self.dialler.pending(route):
            self.dialler.refused(route, final=False)
        peer = self._by_route.pop(route, None)
        if peer is None:
            return
        was_best = route == peer.routes[0]
        peer.routes.remove(route)
        if isinstance(route, int):
            self._effects.hang_up(route)
            peer.endpoint = None
            self.dialler.release(peer.id, now)
        if not peer.routes:
            self.dialler.forget_peer(peer.id)  # what failed before says nothing of whether it is there now
            self.dial_again(peer, now)
        elif was_best:
            self._happened(peer, Input.REROUTED, now)

    def unreachable(self, route: int, now: float) -> None:
        """A connection that we dialled was not made, or ended and was not made again.

        A peer without any other is dialled anew. When all of its addresses refuse all the time, its process has died.
        """
        if route in self._by_route:
            self.route_lost(route, now)
        elif self.dialler.pending(route):
            peer = self.known.get(self.dialler.expected(route) or b"")
            if peer is not None and not peer.routes and self.dialler.not_made(route, now):
                self._happened(peer, Input.GONE, now)

    def interrupted(self, route: int) -> None:
        """A connection that we dialled ended, and libzmq makes it again: the other end does not know whose it is."""
        peer = self._by_route.get(route)
        if peer is not None:
            self._effects.tell_once(route, Hello(peer.id, self.identity))

    def connection_ended(self, now: float) -> None:
        """Somebody's connection to us ended; libzmq does not tell whose."""
        self._ended += 1
        if self._ask_at == inf:
            pause = self._config.heartbeat_interval_s / 4  # whoever connects and leaves buys no more than that
            self._ask_at = max(now + ENDED_DELAY_S, self._asked_at + pause)

    def _ask_who_ended(self, now: float) -> None:
        """Send something to all whose connection it may have been: it fails where there is none."""
        ended, self._ended = self._ended, 0
        self._ask_at, self._asked_at = inf, now
        if ended > 0:
            for peer in self.known.values():
                if peer.routes and not isinstance(peer.routes[0], int):
                    self.tell(peer, Heartbeat(self._digest), now=now)

    # -- time ----------------------------------------------------------------------------------

    def timer(self) -> float:
        """When `handle_timer` has something to do."""
        beat = self._last_tick + self._config.heartbeat_interval_s / 2 if self.known else inf
        leaving = min((peer.leaves_at for peer in self._leaving.values()), default=inf)
        return min(beat, leaving, self._ask_at, self.dialler.timer())

    def handle_timer(self, now: float) -> None:
        """Dial what is due; beat; notice silence."""
        self.dialler.handle_timer(now)
        for peer in [peer for peer in self._leaving.values() if now >= peer.leaves_at]:
            self.depart(peer, now)
        if now >= self._ask_at:
            self._ask_who_ended(now)
        if now < self._last_tick + self._config.heartbeat_interval_s / 2:
            return
        # If this process itself was stopped for a while, nobody else was silent: start counting afresh.
        stalled = now - self._last_tick > self._config.peer_timeout_s / 2
        # At the same moments on all nodes of a host: each wakes once for the beats of many, not for every single one.
        self._last_tick = now - now % (self._config.heartbeat_interval_s / 2)
        for peer in list(self.known.values()):
            if stalled:
                peer.last_heard = now
            if now - peer.last_heard >= self._config.peer_timeout_s:
                self._happened(peer, Input.SILENT, now)
            elif now - peer.last_sent >= self._config.heartbeat_interval_s * 0.9:
                self.tell(peer, Heartbeat(self._digest), now=now)

    # -- transitions ---------------------------------------------------------------------------

    def _happened(self, peer: PeerRecord, happened: Input, now: float) -> None:
        peer.state, todo = step(peer.state, happened)
        if todo is Step.GREET:
            self.known[peer.id] = peer
        elif todo is Step.JOIN:
            self.known[peer.id] = peer
            self._digest ^= int.from_bytes(peer.id[:8], "big")
            peer.since = now
            self.dialler.need_not(peer.id)
            for other in self.known.values():
                other.gossip_doublings = 0
            self._on_step(todo, peer, "")
        elif todo is Step.RESYNC:
            self._on_step(todo, peer, "")
        elif todo in (Step.LEAVE, Step.FORGET):
            self._remove(peer, happened, todo, now)
            if todo is Step.LEAVE:
                self._digest ^= int.from_bytes(peer.id[:8], "big")
                self._on_step(todo, peer, happened.name.lower())

    def _remove(self, peer: PeerRecord, happened: Input, todo: Step, now: float) -> None:
        for route in peer.routes:
            self._by_route.pop(route, None)
            if isinstance(route, int):
                self._effects.hang_up(route)
        peer.routes = []
        peer.endpoint = None
        del self.known[peer.id]
        self._leaving.pop(peer.id, None)
        self.dialler.release(peer.id, now)
        if todo is Step.LEAVE and happened in (Input.SILENT, Input.GONE):
            self.dial_again(peer, now)

    def dial_again(self, peer: PeerRecord, now: float) -> None:
        """Dial a peer that left, or that so far only dialled us, to learn which of its addresses works."""
        if peer.id not in self._shunned:
            self.dialler.seek_peer(peer.id, peer.identity.inbox, now, self._config.rejoin_s)

    def _adopt(self, peer: PeerRecord, route: Route, identity: Identity) -> None:
        if peer.endpoint in peer.identity.inbox and peer.endpoint not in identity.inbox:
            self._leave_address(peer, route)
        peer.identity = identity
        if route in peer.routes:
            return
        if isinstance(route, int):
            peer.routes.insert(0, route)
        else:
            dialled = [r for r in peer.routes if isinstance(r, int)]
            inbound = [r for r in peer.routes if not isinstance(r, int)]
            for old in inbound[INBOUND_ROUTES_MAX - 1 :]:
                self._by_route.pop(old, None)
            peer.routes = [*dialled, route, *inbound[: INBOUND_ROUTES_MAX - 1]]
        self._by_route[route] = peer

    def _leave_address(self, peer: PeerRecord, route: Route) -> None:
        """A peer no longer listens where we dialled it: libzmq would try there for ever, and swallow what we send."""
        peer.endpoint = None
        for old in [old for old in peer.routes if isinstance(old, int) and old != route]:
            peer.routes.remove(old)
            self._by_route.pop(old, None)
            self._effects.hang_up(old)

    def _addresses(self, *, besides: bytes) -> Peers:
        limit = self._config.control_records_max
        others = [p for p in self.known.values() if p.id != besides and p.identity.inbox]
        most = self._config.endpoints_per_peer_max
        return Peers([PeerAddress(peer.id, peer.identity.inbox[:most]) for peer in others[:limit]])

    def _shun(self, peer_id: bytes) -> None:
        self._shunned[peer_id] = None
        if len(self._shunned) > SHUNNED_MAX:
            del self._shunned[next(iter(self._shunned))]
