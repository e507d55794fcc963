"""The sending half of the data plane: acks come in; repairs, positions and evictions go out."""

from __future__ import annotations

from math import inf

from zfabric.config import Config
from zfabric.events import Evicted, StoreLacks, Undelivered
from zfabric.model import Source
from zfabric.protocol.effects import Effects
from zfabric.protocol.interests import Interests
from zfabric.protocol.keeping import Keeping
from zfabric.protocol.outbox import Outbox, Reader
from zfabric.protocol.peers import PeerRecord, PeerTable
from zfabric.wire.batch import REPAIR_BYTES
from zfabric.wire.records import Ack, Data, Missing, Position, Positions, Repair
from zfabric.wire.records import Evicted as EvictedRecord

__all__ = ["Sending"]

OUTBOX_PAUSE_S = 4e-5
"Pause between two looks at all outboxes, for each of them."
OUTBOXES_POLL_S = 1.0
"Longest such pause while anybody acknowledges: a subscription may be gone without a sound."
POSITIONS_PER_RECORD = 500
REPAIR_MERGE_S = 0.005
"Equal repair requests of one peer within this time are answered once."


class Sending:
    """What this node publishes, and how far each reader has come."""

    def __init__(self, config: Config, effects: Effects, peers: PeerTable, interests: Interests) -> None:
        self._config = config
        self._effects = effects
        self._peers = peers
        self._interests = interests
        self._due = self._outboxes_due = inf
        self._positions: dict[PeerRecord, list[Position]] = {}
        self._budgets: dict[bytes, tuple[float, float]] = {}
        self._answered: dict[tuple[bytes, int, str], tuple[float, Repair]] = {}

    def acked(self, peer: PeerRecord, ack: Ack, now: float) -> bool:
        """A subscriber acknowledges. Returns False if the ack is impossible."""
        outbox = self._interests.outboxes.get(ack.topic)
        reader = outbox.readers.get((peer.id, ack.lane)) if outbox is not None else None
        if outbox is None or reader is None or outbox.epoch != ack.epoch:
            return True
        return outbox.acknowledge(reader, ack, now)

    def repair(self, peer: PeerRecord, repair: Repair, now: float) -> None:
        """A subscriber misses messages: send them, or say that they are gone, within the peer's budget."""
        outbox = self._interests.outboxes.get(repair.topic)
        reader = outbox.readers.get((peer.id, repair.lane)) if outbox is not None else None
        if outbox is None or outbox.epoch != repair.epoch or reader is None:
            start = min((first for first, _ in repair.ranges), default=0)
            stop = max((end for _, end in repair.ranges), default=0)
            if outbox is None or outbox.epoch != repair.epoch:
                reason = "closed"
            elif (peer.id, repair.lane) in outbox.evicted:
                reason = "evicted"
            else:  # it is about to be a reader again: what is kept it can have then
                stop, reason = min(stop, outbox.first_kept), "expired"
            self._tell(peer, Missing(repair.lane, repair.topic, repair.epoch, start, stop, reason), now)
            return
        key = peer.id, repair.lane, repair.topic
        answered_at, last = self._answered.get(key, (-inf, None))
        if last == repair and now - answered_at < REPAIR_MERGE_S:
            return
        self._answered[key] = now, repair
        budget = min(self._budget(peer.id, now), self._config.repair_reply_bytes)
        spent = 0
        for start, stop in repair.ranges:
            if start < outbox.first_kept:
                gone = min(stop, outbox.first_kept)
                self._tell(peer, Missing(repair.lane, repair.topic, repair.epoch, start, gone, "expired"), now)
            for sealed in outbox.kept_between(start, min(stop, outbox.base)):
                if sealed.base in reader.beyond:
                    continue
                if spent >= budget:
                    break
                if sealed.nbytes + REPAIR_BYTES > peer.identity.frame_bytes_max:
                    span = sealed.base, sealed.end
                    self._tell(peer, Missing(repair.lane, repair.topic, repair.epoch, *span, "too-large"), now)
                    continue
                spent += sealed.nbytes
                data = Data(repair.lane, [bytes(frame) for frame in sealed.frames])
                self._peers.tell_bulk(peer, data, sealed.nbytes, now=now)
        level, at = self._budgets[peer.id]
        self._budgets[peer.id] = level - spent, at

    def _budget(self, peer_id: bytes, now: float) -> float:
        rate = self._config.repair_bytes_per_s
        level, at = self._budgets.get(peer_id, (float(rate), now))
        level = min(rate, level + (now - at) * rate)
        self._budgets[peer_id] = level, now
        return level

    def _tell(self, peer: PeerRecord, record: Missing, now: float) -> None:
        self._peers.tell(peer, record, now=now)

    def sent(self, outbox: Outbox) -> None:
        """A batch left: its outbox may need the timer."""
        self._outboxes_due = min(self._outboxes_due, outbox.timer())
        self._due = min(self._due, self._outboxes_due)

    def last_words(self, now: float) -> None:
        """This node closes: tell how far every stream has come that is not known to have arrived."""
        for outbox in self._interests.outboxes.values():
            if outbox.position_at < inf:
                self._tell_positions(outbox, now)
        self._send_positions(now)

    def _tend_outboxes(self, now: float) -> None:
        """Look at every outbox, but not all the time: thousands of them take a while."""
        due, outboxes = inf, self._interests.outboxes.values()
        for outbox in outboxes:
            next_look = outbox.timer()
            if next_look <= now:
                self._tend_outbox(outbox, now)
                next_look = outbox.timer()
            if outbox.readers:
                next_look = min(next_look, now + OUTBOXES_POLL_S)
            due = min(due, next_look)
        self._send_positions(now)
        self._outboxes_due = max(due, now + len(outboxes) * OUTBOX_PAUSE_S)

    def _tell_of_stores(self, outbox: Outbox, keeping: Keeping) -> None:
        lacking, keeping.lacking = keeping.lacking, []
        for peer_id, first, stop, elsewhere in lacking:
            peer = self._peers.known.get(peer_id)
            if peer is not None:
                event = StoreLacks(peer.source, outbox.topic, first, stop - 1, elsewhere=elsewhere)
                self._effects.emit(event)

    def _tend_outbox(self, outbox: Outbox, now: float) -> None:
        if outbox.position_at <= now:
            self._tell_positions(outbox, now)
        if outbox.keeping is not None:
            outbox.keeping.handle_timer(now)
            self._tell_of_stores(outbox, outbox.keeping)
            outbox.judge()
        grace = self._config.grace_s
        for reader in list(outbox.readers.values()):
            if reader.away_since is not None and now >= reader.away_since + grace:
                self.give_up_reader(outbox, reader, "away", now)
        if now >= outbox.full_since + grace:
            for reader in list(outbox.slowest()):
                if self._config.evict_slow or now - reader.progress_at >= grace:
                    self._evict(outbox, reader, now)
            outbox.restart_grace(min((reader.progress_at for reader in outbox.slowest()), default=now))

    def _tell_positions(self, outbox: Outbox, now: float) -> None:
        waiting = False
        faded = outbox.position_pause >= self._config.position_interval_s_max
        for peer_id, lane in outbox.remote:
            reader = outbox.readers.get((peer_id, lane))
            peer = self._peers.known.get(peer_id)
            if peer is None or (reader is not None and reader.processed >= outbox.base):
                continue
            waiting = waiting or reader is not None or not faded  # who acknowledges nothing is not told for ever
            position = Position(lane, outbox.topic, outbox.epoch, outbox.first_kept, outbox.base)
            self._positions.setdefault(peer, []).append(position)
        outbox.position_pause = min(outbox.position_pause * 2, self._config.position_interval_s_max)
        outbox.position_at = now + outbox.position_pause if waiting else inf

    def _send_positions(self, now: float) -> None:
        positions, self._positions = self._positions, {}
        for peer, told in positions.items():
            for start in range(0, len(told), POSITIONS_PER_RECORD):
                self._peers.tell(peer, Positions(told[start : start + POSITIONS_PER_RECORD]), now=now)

    def _evict(self, outbox: Outbox, reader: Reader, now: float) -> None:
        peer = self._peers.known.get(reader.peer_id)
        reason = f"the window was full for {self._config.grace_s:g} s"
        if peer is not None:
            self._peers.tell(peer, EvictedRecord(reader.lane, outbox.topic, outbox.epoch, reason), now=now)
        key = reader.peer_id, reader.lane
        if outbox.remote.pop(key, None) is not None:
            outbox.evicted.add(key)  # until it asks to go on; who is away just begins anew
            if reader.request.store and outbox.keeping is not None:
                outbox.keeping.detached(reader.peer_id, now, (reader.received, reader.processed))
        self._effects.emit(Evicted(outbox.topic, Source(reader.peer_id.hex(), reader.name), reason, here=False))
        self.give_up_reader(outbox, reader, "evicted", now)

    def give_up_reader(self, outbox: Outbox, reader: Reader, reason: str, now: float) -> None:
        """Stop to wait for a reader; what it did not acknowledge, or took with it, is reported."""
        if reader.request.store:  # what no store has stays in the window
            outbox.drop_reader(reader, now)
            return
        took = reader.processed if reason == "away" else reader.received
        outbox.give_up(reader, reason, now)
        if took < outbox.base:
            source = Source(reader.peer_id.hex(), reader.name)
            self._effects.emit(Undelivered(source, outbox.topic, took, outbox.base - 1, reason))
