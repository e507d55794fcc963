"""The stores that a node sees: who keeps what, and whatever this node asks them over their channels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

from zfabric.config import Config
from zfabric.errors import RemoteProtocolError, TopicError
from zfabric.protocol.channels import Channels
from zfabric.protocol.interests import Interests
from zfabric.protocol.peers import PeerRecord
from zfabric.protocol.signatures import Signatures
from zfabric.wire.batch import Batch, Buffer, StoredAt
from zfabric.wire.group_records import ToldGroups
from zfabric.wire.letters import LetterRecord
from zfabric.wire.store_records import (
    AskStreams,
    Indexed,
    Read,
    ReadEnd,
    ReadMore,
    ReadStop,
    Stored,
    StoreOffer,
    Storing,
    StreamTold,
    ToldPositions,
    ToldStreams,
    ToldTopics,
    Unreadable,
    Unwritten,
    Written,
)
from zfabric.wire.topics import Pattern

__all__ = ["Answer", "KnownStore", "LogReader", "Stores"]

Answer: TypeAlias = Written | Unwritten | ToldPositions | ToldGroups | ToldTopics
Answered = Callable[[Answer | None], None]
"""Called with the answer, or None when the store left first: then it may have done what it was asked, or not."""


class LogReader(Protocol):
    """Who reads a stream of a log; called in the order of offsets."""

    topic: str
    "The stream; its batches are of no other topic."

    @property
    def signed(self) -> bool:
        """Whether it takes nothing but what is signed."""

    def stored(self, batch: Batch, now: float) -> None:
        """A batch; `batch.stored` says where it stands. `Stores.more` gives its `nbytes` back to the store."""

    def indexed(self, entries: list[tuple[int, int, bytes, int, int]], now: float) -> None:
        """(offset, count, producer, epoch, base) of batches, when it reads without bodies."""

    def unreadable(self, offset: int, end: int, reason: str, now: float) -> None:
        """Offsets before `end` that cannot be read."""

    def ended(self, end: int, now: float) -> None:
        """Everything before `end` was handed over, and there is no more now."""

    def streams(self, streams: list[StreamTold], now: float) -> None:
        """Streams that exist, when it watches them."""

    def lost(self, now: float) -> None:
        """The store left, and the reading is over."""


class KnownStore:
    """A store that is a peer."""

    __slots__ = ("id", "patterns", "peer")

    def __init__(self, peer: PeerRecord, offer: StoreOffer) -> None:
        self.peer = peer
        self.id = offer.store
        self.patterns = tuple(Pattern(pattern) for pattern in offer.patterns)

    def __repr__(self) -> str:
        return f"<KnownStore {self.peer.source.name} {self.id.hex()[:8]}>"

    def covers(self, topic: str) -> bool:
        """Whether it keeps a topic, if that is durable."""
        return any(pattern.matches(topic) for pattern in self.patterns)


class Stores:
    """All stores in sight; a machine that talks over channels."""

    def __init__(
        self,
        config: Config,
        channels: Channels,
        interests: Interests,
        parse: Callable[[Sequence[Buffer]], Batch],
        damaged: Callable[[str, RemoteProtocolError], None],
        signatures: Signatures,
    ) -> None:
        self.records: dict[type[LetterRecord], Callable[[PeerRecord, Any, float], None]] = {
            StoreOffer: self._offered,
            Storing: self._storing,
            Written: self._answered,
            Unwritten: self._answered,
            ToldPositions: self._answered,
            ToldGroups: self._answered,
            ToldTopics: self._answered,
            ToldStreams: self._told_streams,
            Stored: self._stored,
            Unreadable: self._unreadable,
            ReadEnd: self._ended,
            Indexed: self._indexed,
        }
        self._config = config
        self._channels = channels
        self._interests = interests
        self._parse = parse
        self._damaged = damaged
        self._signatures = signatures
        self._known: dict[bytes, KnownStore] = {}
        self._asked: dict[int, tuple[KnownStore, Answered]] = {}
        self._readings: dict[int, tuple[KnownStore, LogReader]] = {}
        self._numbers = 0
        self._watchers: dict[Callable[[float], None], None] = {}

    # -- who is there --------------------------------------------------------------------------

    def all(self) -> list[KnownStore]:
        """Every store, in an order that all nodes agree on."""
        return sorted(self._known.values(), key=lambda store: store.id)

    def keeping(self, topic: str) -> KnownStore | None:
        """The store that is asked about a topic: the same one everywhere, as long as the same stores are there."""
        return next((store for store in self.all() if store.covers(topic)), None)

    def home(self, pattern: str, log: bytes = b"") -> tuple[bytes, PeerRecord] | None:
        """Where the groups of a pattern are: the store of that log, else the one that all nodes agree on."""
        compiled = Pattern(pattern)
        fits = [s for s in self.all() if s.id == log or (not log and (not compiled.literal or s.covers(pattern)))]
        if not fits:
            return None
        newest = [store for store in fits if store.id == fits[0].id][-1]  # one that restarted may be there twice
        return newest.id, newest.peer

    def of_queue(self, queue: str, log: bytes = b"") -> KnownStore | None:
        """The store that a durable queue's jobs go to: that of this log, else the one that all nodes agree on."""
        if not log:
            first = self.keeping(queue)
            log = b"" if first is None else first.id
        return next((store for store in reversed(self.all()) if store.id == log), None)

    def named(self, store_id: bytes) -> KnownStore | None:
        """The store of one log."""
        return next((store for store in self._known.values() if store.id == store_id), None)

    def log_of(self, peer_id: bytes) -> bytes | None:
        """Which log a peer keeps, if it is a store and has said so."""
        store = self._known.get(peer_id)
        return None if store is None else store.id

    def patterns_of(self, peer_id: bytes) -> tuple[str, ...]:
        """What a peer keeps, if it is a store."""
        store = self._known.get(peer_id)
        return () if store is None else tuple(pattern.text for pattern in store.patterns)

    def is_kept(self, publisher: str, topic: str) -> bool:
        """Whether a peer publishes a topic that stores are to keep."""
        remote = self._interests.remote.get(bytes.fromhex(publisher))
        offer = None if remote is None else remote.topics.get(topic)
        return offer is not None and offer.durable

    def watch(self, changed: Callable[[float], None]) -> None:
        """Call `changed` whenever a store comes or goes."""
        self._watchers[changed] = None

    def unwatch(self, changed: Callable[[float], None]) -> None:
        """No more."""
        self._watchers.pop(changed, None)

    def peer_joined(self, peer: PeerRecord, now: float) -> None:
        """If it is a store it will say so."""

    def peer_left(self, peer: PeerRecord, now: float) -> None:
        """A store may be gone: nothing that it was asked will be answered."""
        if self._known.pop(peer.id, None) is None:
            return
        for number in [number for number, (store, _) in self._asked.items() if store.peer.id == peer.id]:
            self._asked.pop(number)[1](None)
        for number in [number for number, (store, _) in self._readings.items() if store.peer.id == peer.id]:
            self._readings.pop(number)[1].lost(now)
        self._changed(now)

    def has_room(self, peer: PeerRecord, now: float) -> None:
        """What is said to stores is bounded by who says it."""

    def _offered(self, peer: PeerRecord, offer: StoreOffer, now: float) -> None:
        try:
            self._known[peer.id] = KnownStore(peer, offer)
        except TopicError as error:
            self._damaged(peer.address, RemoteProtocolError(str(error)))
            return
        self._changed(now)

    def _changed(self, now: float) -> None:
        for changed in list(self._watchers):
            changed(now)

    def _storing(self, peer: PeerRecord, storing: Storing, now: float) -> None:
        outbox = self._interests.outboxes.get(storing.topic)
        if outbox is not None and outbox.keeping is not None and outbox.epoch == storing.epoch:
            outbox.keeping.says(peer.id, storing.reason)
            outbox.judge()

    # -- asking --------------------------------------------------------------------------------

    def ask(
        self, store: KnownStore, make: Callable[[int], LetterRecord], answered: Answered, nbytes: int = 256
    ) -> None:
        """Say `make(request number)` to a store; `answered` is called once, unless the node closes before."""
        if self._known.get(store.peer.id) is not store:
            answered(None)
            return
        number = self._number()
        self._asked[number] = store, answered
        self._channels.tell(store.peer, make(number), nbytes)

    def _number(self) -> int:
        self._numbers += 1
        return self._numbers

    def _answered(self, peer: PeerRecord, answer: Answer, now: float) -> None:
        store, answered = self._asked.get(answer.request, (None, None))
        if store is not None and answered is not None and store.peer.id == peer.id:
            del self._asked[answer.request]
            answered(answer)

    # -- reading -------------------------------------------------------------------------------

    def read(
        self,
        store: KnownStore,
        reader: LogReader,
        topic: str,
        kind: Any,
        value: float | int = 0,
        *,
        credit: int,
        bodies: bool = True,
        rate: float = 0.0,
    ) -> int:
        """Begin to read a stream; returns the reading's number. See `wire.store_records.Read`."""
        return self._begin(
            store, reader, lambda number: Read(number, topic, kind, value, credit, bodies=bodies, rate=rate)
        )

    def watch_streams(self, store: KnownStore, reader: LogReader, pattern: str) -> int:
        """Hear of the streams that match a pattern, now and as they come; returns the reading's number."""
        return self._begin(store, reader, lambda number: AskStreams(number, pattern))

    def _begin(self, store: KnownStore, reader: LogReader, make: Callable[[int], LetterRecord]) -> int:
        number = self._number()
        self._readings[number] = store, reader
        self._channels.tell(store.peer, make(number))
        return number

    def more(self, number: int, nbytes: int) -> None:
        """Let the store send that many bytes more."""
        store, _ = self._readings.get(number, (None, None))
        if store is not None:
            self._channels.tell(store.peer, ReadMore(number, nbytes))

    def stop(self, number: int) -> None:
        """End a reading; its reader hears no more."""
        store, _ = self._readings.pop(number, (None, None))
        if store is not None:
            self._channels.tell(store.peer, ReadStop(number))

    def _reader(self, peer: PeerRecord, number: int) -> tuple[KnownStore | None, LogReader | None]:
        store, reader = self._readings.get(number, (None, None))
        return (None, None) if store is None or store.peer.id != peer.id else (store, reader)

    def _stored(self, peer: PeerRecord, record: Stored, now: float) -> None:
        store, reader = self._reader(peer, record.reading)
        if store is None or reader is None:
            return
        try:
            batch = self._parse(record.frames)
            if batch.topic != reader.topic or any(not a < b <= batch.count for a, b in record.dropped):
                raise RemoteProtocolError("reads out what was not asked for")
        except RemoteProtocolError as error:
            self._damaged(peer.address, error)
            return
        if self._signatures.check(batch, required=reader.signed):
            batch.stored = StoredAt(store.id, record.offset, tuple(record.dropped), record.reading)
            reader.stored(batch, now)
        else:
            self.more(record.reading, batch.nbytes)
            reader.unreadable(record.offset, record.offset + batch.count, "signature", now)

    def _unreadable(self, peer: PeerRecord, record: Unreadable, now: float) -> None:
        _, reader = self._reader(peer, record.reading)
        if reader is not None:
            reader.unreadable(record.offset, record.next, record.reason, now)

    def _ended(self, peer: PeerRecord, record: ReadEnd, now: float) -> None:
        _, reader = self._reader(peer, record.reading)
        if reader is not None:
            reader.ended(record.next, now)

    def _indexed(self, peer: PeerRecord, record: Indexed, now: float) -> None:
        _, reader = self._reader(peer, record.reading)
        if reader is not None:
            reader.indexed(record.entries, now)

    def _told_streams(self, peer: PeerRecord, record: ToldStreams, now: float) -> None:
        _, reader = self._reader(peer, record.reading)
        if reader is not None:
            reader.streams(record.streams, now)
