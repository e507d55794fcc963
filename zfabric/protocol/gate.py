"""What peers may do: asked for every offer, request and batch, denied with a word to the asker, and counted."""

from __future__ import annotations

from math import inf

import msgspec

from zfabric.config import Config
from zfabric.errors import NotStored, TopicError
from zfabric.events import AccessDenied
from zfabric.protocol.authority import Authority
from zfabric.protocol.effects import Effects
from zfabric.protocol.peers import PeerRecord, PeerTable
from zfabric.wire.batch import Batch
from zfabric.wire.durable_records import KeepQueue
from zfabric.wire.group_records import Join
from zfabric.wire.letters import LetterRecord
from zfabric.wire.plain_records import PlainOffers, PlainPull
from zfabric.wire.queue_records import Pull, QueueOffers
from zfabric.wire.records import Denied, PatternRequest
from zfabric.wire.service_records import Request, ServiceOffers
from zfabric.wire.store_records import AskStreams, Read, StoreOffer
from zfabric.wire.topics import Pattern

__all__ = ["Gate"]

REPORT_PAUSE_S = 60.0
REPORTED_MAX = 1000
"Failed handshakes, denials and bad signatures that are reported once in this time."


class Gate:
    """Asks the authority about peers."""

    def __init__(self, authority: Authority, config: Config, effects: Effects, peers: PeerTable) -> None:
        self._authority = authority
        self._config = config
        self._effects = effects
        self._peers = peers
        self.now = 0.0
        self.denials = 0
        self.reported: dict[tuple[str, ...], float] = {}

    def is_news(self, now: float, *what: str) -> bool:
        """Whether this was not reported lately; it counts as reported from now on."""
        told = self.reported.pop(what, -inf)
        news = now - told >= REPORT_PAUSE_S
        self.reported[what] = now if news else told
        if len(self.reported) > REPORTED_MAX:
            del self.reported[next(iter(self.reported))]
        return news

    # -- questions -----------------------------------------------------------------------------

    def may(self, peer: PeerRecord, action: str, name: str) -> bool:
        """Whether a peer may `publish`, `subscribe` to, `push`, `pull`, `serve` or `request` a name.

        If not, that is counted and reported, and the peer is told.
        """
        return self.allows(peer, action, name) or self._deny(peer, action, name)

    def allows(self, peer: PeerRecord, action: str, name: str) -> bool:
        """`may`, without a word."""
        return self._authority.may(peer.user, action, name)

    def may_read(self, peer: PeerRecord, pattern: str) -> bool:
        """Whether a peer may subscribe to a pattern, as libzmq filters: to all below its literal beginning."""
        return self.reads(peer, pattern) or self._deny(peer, "subscribe", pattern)

    def reads(self, peer: PeerRecord, pattern: str) -> bool:
        """`may_read`, without a word."""
        try:
            prefix = Pattern(pattern, bytes_max=self._config.topic_bytes_max).prefix
        except TopicError:
            return True  # whoever takes it in will complain
        return bool(self._authority.filters(peer.user, prefix))

    def may_store(self, peer: PeerRecord, pattern: str) -> bool:
        """Whether a peer may confirm that durable topics are stored, and tell what was published on them."""
        return self._authority.may_all(peer.user, "store", pattern) or self._deny(peer, "store", pattern)

    def may_listen(self, peer: PeerRecord, request: PatternRequest) -> bool:
        """Whether a peer may have this subscription; that of a store confirms what it gets."""
        if request.store:
            return self.may_store(peer, request.pattern)
        return self.may_read(peer, request.pattern)

    def check_writes(self, peer: PeerRecord, batch: Batch, queue: str | None) -> None:
        """Raise NotStored unless a batch is one that a peer may store: on that topic or queue, in no other's name."""
        action, name = ("publish", batch.topic) if queue is None else ("push", queue)
        if not self.may(peer, action, name):
            raise NotStored(f"{peer.user!r} may not {action} it", name)
        if not self._authority.owns(peer.user, batch.producer):
            raise NotStored(f"{peer.user!r} did not publish it: the producer's id is another identity's", batch.topic)

    def screen(self, peer: PeerRecord, record: LetterRecord) -> LetterRecord | None:
        """What of a letter's record its sender may say."""
        if isinstance(record, Request):
            return record if self.may(peer, "request", record.service) else None
        if isinstance(record, Pull | PlainPull):
            return record if self.may(peer, "pull", record.queue) else None
        if isinstance(record, Join | AskStreams):
            return record if self.may_read(peer, record.pattern) else None
        if isinstance(record, Read):
            return record if self.may(peer, "subscribe", record.topic) else None
        if isinstance(record, ServiceOffers):
            return ServiceOffers([each for each in record.offers if self.may(peer, "serve", each.service)])
        if isinstance(record, QueueOffers | PlainOffers):
            return msgspec.structs.replace(record, queues=[q for q in record.queues if self._may_offer(peer, q)])
        if isinstance(record, KeepQueue):
            return record if self.may(peer, "push", record.queue) else None
        if isinstance(record, StoreOffer):
            patterns = [each for each in record.patterns if self.may_store(peer, each)]
            return msgspec.structs.replace(record, patterns=patterns) if patterns else None
        return record

    def _may_offer(self, peer: PeerRecord, queue: str) -> bool:
        """Whether jobs of a queue may come from a peer: it pushes them, or is a store that keeps them."""
        return self._authority.may_all(peer.user, "store", queue) or self.may(peer, "push", queue)

    # -- denials -------------------------------------------------------------------------------

    def _deny(self, peer: PeerRecord, action: str, name: str) -> bool:
        self.denials += 1
        if self.is_news(self.now, peer.source.id, action, name):
            self._effects.emit(AccessDenied(peer.source, action, name, here=True))
            self._peers.tell(peer, Denied(action, name), now=self.now)
        return False

    def denied(self, peer: PeerRecord, denied: Denied, now: float) -> None:
        """A peer tells what this node may not do."""
        if self.is_news(now, "", peer.source.id, denied.action, denied.name):
            self._effects.emit(AccessDenied(peer.source, denied.action, denied.name, here=False))
