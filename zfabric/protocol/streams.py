"""The receiving half of the data plane: what arrives goes to inboxes and lanes, in order or as gaps.

Everything here concerns one peer and one stream at a time; who is matched with whom is decided in `interests.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any

from zfabric.config import Config
from zfabric.errors import LimitExceeded, TopicError
from zfabric.events import Evicted, Gap
from zfabric.model import Source
from zfabric.protocol.effects import Effects
from zfabric.protocol.inbox import Inbox, Jitter, ReliableInbox
from zfabric.protocol.interests import Interests
from zfabric.protocol.lanes import Lane
from zfabric.protocol.outbox import Outbox
from zfabric.protocol.peers import PeerRecord, PeerTable
from zfabric.protocol.sending import Sending
from zfabric.protocol.signatures import Signatures
from zfabric.wire.batch import Batch
from zfabric.wire.bundle import Bundle
from zfabric.wire.records import Attached, Missing, Position, Positions, Resume
from zfabric.wire.records import Evicted as EvictedRecord
from zfabric.wire.topics import check_topic

__all__ = ["Streams"]

Key = tuple[bytes, str]


class Departed:
    """A producer that fell silent."""

    __slots__ = ("forgotten_at", "given_up_at", "peer")

    def __init__(self, peer: PeerRecord, now: float, config: Config) -> None:
        self.peer = peer
        # It may notice later than we that we do not hear each other, and waits for grace_s from then on.
        self.given_up_at = now + config.grace_s + 2 * config.peer_timeout_s
        self.forgotten_at = max(self.given_up_at, now + config.rejoin_s)

    def timer(self) -> float:
        """When something is to be done about it."""
        return min(self.given_up_at, self.forgotten_at)


class Streams(Sending):
    """All streams of one node: the receiving ends here, the sending ends in the base class."""

    def __init__(
        self,
        config: Config,
        effects: Effects,
        peers: PeerTable,
        interests: Interests,
        jitter: Jitter,
        signatures: Signatures,
    ) -> None:
        super().__init__(config, effects, peers, interests)
        self._signatures = signatures
        self._jitter = jitter
        self._inboxes: dict[Key, Inbox] = {}
        self._busy: dict[tuple[int, bytes, str], tuple[Lane, ReliableInbox]] = {}
        self._settling: dict[Key, tuple[Inbox, Source]] = {}
        self._departed: dict[bytes, Departed] = {}
        self.received: dict[str, int] = {}
        self.lost: dict[str, int] = {}
        self.duplicates = 0
        self.repaired = 0

    # -- receiving -----------------------------------------------------------------------------

    def take(self, peer: PeerRecord, batch: Batch, lanes: tuple[Lane, ...], now: float) -> None:
        """A batch from the feed. Raises TopicError for a stream with an impossible name, or LimitExceeded."""
        reliable = batch.reliable
        best_effort = [lane for lane in lanes if lane.best_effort or not (reliable or lane.request.delivery)]
        if best_effort:
            self._take_best_effort(peer, batch, best_effort)
        for lane in lanes if reliable else ():
            if not lane.best_effort:
                inbox = self._reliable_inbox(lane, peer.id, batch.topic, batch.epoch)
                self._report_late(peer, inbox, batch)
                if batch.epoch >= inbox.epoch:
                    self._renew(lane, peer, inbox, batch.epoch, now)
                    self._accept(lane, peer, inbox, batch, now)

    def _report_late(self, peer: PeerRecord, inbox: Inbox | ReliableInbox, batch: Batch) -> None:
        """What comes after a newer incarnation of its stream is fenced off, and counts as lost."""
        if batch.epoch < inbox.epoch:
            lost = inbox.late(batch)
            if lost is not None:
                self.count_lost(Gap(peer.source, batch.topic, *lost, cause="epoch"))

    def _take_best_effort(self, peer: PeerRecord, batch: Batch, lanes: list[Lane]) -> None:
        if self._goes_on(peer, batch):
            takers = self._takers(peer, batch, lanes)
            if takers:
                self.count(batch)
            for lane in takers:
                lane.sink.deliver(batch, peer.source)

    def _goes_on(self, peer: PeerRecord, batch: Batch) -> bool:
        """Whether an at-most-once batch is new; what was lost before it is counted."""
        inbox = self._inbox(peer, batch.topic, batch.epoch)
        self._report_late(peer, inbox, batch)
        new, gap = inbox.accept(batch)
        if gap is not None:
            self.count_lost(Gap(peer.source, batch.topic, *gap, cause="overflow"))
        self.duplicates += not new
        return new

    def _takers(self, peer: PeerRecord, batch: Batch, lanes: list[Lane]) -> list[Lane]:
        """The lanes that take a batch although it is signed as it is, or not at all."""
        takers = [lane for lane in lanes if self._signatures.check(batch, required=lane.signed)]
        if len(takers) < len(lanes):
            self.count_lost(_refused(batch, peer.source))
        return takers

    def take_bundle(self, peer: PeerRecord, bundle: Bundle, may: Callable[[str], bool] | None) -> None:
        """Batches of several at-most-once streams, but for topics that the peer may not publish.

        Raises TopicError or LimitExceeded after what could be taken in.
        """
        inboxes, received, match, producer = self._inboxes, self.received, self._interests.local.match, peer.id
        taken: dict[tuple[Lane, ...], tuple[list[Lane], list[Lane], list[int]]] = {}
        refused: TopicError | LimitExceeded | None = None
        columns = zip(bundle.topics, bundle.epochs, bundle.bases, bundle.counts, strict=True)
        for index, (topic, epoch, base, count) in enumerate(columns):
            inbox = inboxes.get((producer, topic))
            try:
                if inbox is None:
                    check_topic(topic, reserved=True, bytes_max=self._config.topic_bytes_max)
                if may is not None and not may(topic):
                    continue
                lanes = match(topic)
                if lanes not in taken:
                    taken[lanes] = *self._takers_of_unsigned(lanes), []
                takers, refusing, indices = taken[lanes]
                if not (takers or refusing):
                    continue
                if inbox is not None and inbox.epoch == epoch and inbox.expected == base:  # as nearly always
                    inbox.expected = base + count
                elif not self._goes_on(peer, bundle.batch(index)):
                    continue
            except (TopicError, LimitExceeded) as error:
                refused = error
                continue
            indices.append(index)
            if takers:
                received[topic] = received.get(topic, 0) + count
        for takers, refusing, indices in taken.values():
            if indices:
                self._deliver_bundle(peer, bundle.select(indices), takers, refusing)
        if refused is not None:
            raise refused

    def _deliver_bundle(self, peer: PeerRecord, bundle: Bundle, takers: list[Lane], refusing: list[Lane]) -> None:
        for lane in takers:
            lane.sink.deliver_bundle(bundle, peer.source)
        for batch in bundle.batches() if refusing else ():
            self._takers(peer, batch, refusing)

    def _takers_of_unsigned(self, lanes: tuple[Lane, ...]) -> tuple[list[Lane], list[Lane]]:
        """The lanes that take what is at-most-once and not signed, and those that would if it were signed."""
        unreliable = [lane for lane in lanes if lane.best_effort or not lane.request.delivery]
        takers = [lane for lane in unreliable if not (lane.signed or self._signatures.required)]
        return takers, [lane for lane in unreliable if lane not in takers]

    def _accept(self, lane: Lane, peer: PeerRecord, inbox: ReliableInbox, batch: Batch, now: float) -> None:
        before = inbox.duplicates
        inbox.accept(batch, now)
        self.duplicates += inbox.duplicates - before
        self._drain(lane, peer, inbox, now)

    def _drain(self, lane: Lane, peer: PeerRecord, inbox: ReliableInbox, now: float, *, wait: bool = True) -> None:
        """Hand on what is in order, as long as there is room."""
        progressed = False
        while not (wait and lane.full):
            gap = inbox.next_gap()
            if gap is not None:
                first, stop, reason = gap
                self._missed(lane, inbox.epoch, Gap(peer.source, inbox.topic, first, stop - 1, cause=reason), now)
            elif (batch := inbox.next_batch()) is not None:
                if lane.request.store or self._signatures.check(batch, required=lane.signed):
                    self._deliver(lane, batch, peer.source, now)
                else:
                    inbox.pass_over(batch)
                    self._missed(lane, inbox.epoch, _refused(batch, peer.source), now)
            else:
                break
            progressed = True
        if progressed:
            inbox.delivered(now)
        self._watch(lane, peer.id, inbox)

    def _deliver(self, lane: Lane, batch: Batch, source: Source, now: float) -> None:
        if lane.history is None:
            self.count(batch)
            lane.sink.deliver(batch, source)
        else:
            lane.history.take(batch, source, now)

    def _missed(self, lane: Lane, epoch: int, gap: Gap, now: float) -> None:
        if lane.history is None or not lane.history.missed(epoch, gap, now):
            self.count_lost(gap)

    def deliver_local(self, outbox: Outbox, batch: Batch, source: Source, now: float) -> None:
        """A batch of this node's own for its own subscriptions."""
        if outbox.local and not all(lane.history for lane in outbox.local):
            self.count(batch)
        for lane in outbox.local:
            if not self._signatures.check(batch, required=lane.signed):
                self.count_lost(_refused(batch, source))
            elif lane.history is None:
                lane.sink.deliver(batch, source)
            else:
                lane.history.take(batch, source, now)
        if outbox.reliable:
            outbox.set_local_full(any(lane.full for lane in outbox.local), now)

    def has_room(self, lane: Lane, now: float) -> None:
        """A full subscription was read: go on where its streams stopped, or were stopped."""
        for (producer, topic), inbox in lane.inboxes.items():
            peer = self._peers.known.get(producer)
            departed = self._departed.get(producer)
            if peer is None and departed is not None:
                self._drain(lane, departed.peer, inbox, now)
            elif peer is not None:
                self._drain(lane, peer, inbox, now)
                if inbox.ended and not lane.full:
                    self._peers.tell(peer, Resume(lane.request.lane, topic), now=now)
        for outbox in self._interests.outboxes.values():
            if outbox.local_full:
                outbox.set_local_full(any(other.full for other in outbox.local), now)

    def processed(self, lane: Lane, producer: bytes, topic: str, epoch: int, before: int, now: float) -> None:
        """A subscription is done with all messages of a stream before `before`."""
        inbox = lane.inboxes.get((producer, topic))
        if inbox is not None and inbox.epoch == epoch:
            inbox.was_processed(before, now)
            self._watch(lane, producer, inbox)
            peer = self._peers.known.get(producer)
            if inbox.ended and peer is not None:
                self._resume(lane, peer, inbox, now)

    def _resume(self, lane: Lane, peer: PeerRecord, inbox: ReliableInbox, now: float) -> None:
        """Ask to go on after an eviction, once all that had arrived is dealt with: a stuck reader has to move first."""
        if not lane.full and inbox.idle:
            self._peers.tell(peer, Resume(lane.request.lane, inbox.topic), now=now)

    def count(self, batch: Batch) -> None:
        """A batch was handed on."""
        self.received[batch.topic] = self.received.get(batch.topic, 0) + batch.count - batch.skip

    def count_lost(self, gap: Gap) -> None:
        """Count and report messages that will not arrive."""
        self.lost[gap.topic] = self.lost.get(gap.topic, 0) + gap.count
        self._effects.emit(gap)

    # -- where streams stand -------------------------------------------------------------------

    def attached(self, peer: PeerRecord, record: Attached, now: float) -> None:
        """A publisher has subscriptions of ours in place."""
        for position in record.positions:
            self._attached(peer, position, now)

    def _attached(self, peer: PeerRecord, position: Position, now: float) -> None:
        lane = self._interests.lanes.get(position.lane)
        offer = self._interests.remote[peer.id].topics.get(position.topic)
        if lane is None or offer is None or not lane.pattern.matches(position.topic):
            return
        lane.attached.add((peer.id, position.topic))
        if offer.delivery == "at-most-once" or lane.best_effort:
            best_effort = self._inbox(peer, position.topic, position.epoch)
            lost = best_effort.anchor(position.epoch, position.next_seq, now)
            if lost is not None:
                self.count_lost(Gap(peer.source, position.topic, *lost, cause="overflow"))
            self._settle(peer, position.topic, best_effort)
            return
        inbox = self._reliable_inbox(lane, peer.id, position.topic, position.epoch)
        if position.epoch >= inbox.epoch:
            self._renew(lane, peer, inbox, position.epoch, now)
            inbox.ended = False
            inbox.anchor(position.next_seq, now)
            self._drain(lane, peer, inbox, now)

    def heard(self, peer: PeerRecord, record: Positions, now: float) -> None:
        """A publisher tells how far its streams have come."""
        for position in record.positions:
            self._heard(peer, position, now)

    def _heard(self, peer: PeerRecord, position: Position, now: float) -> None:
        key = peer.id, position.topic
        lane = self._interests.lanes.get(position.lane)
        if lane is None:
            return
        inbox = lane.inboxes.get(key)
        if inbox is not None and inbox.epoch == position.epoch:
            inbox.heard(position.first_kept, position.next_seq, now)
            self._drain(lane, peer, inbox, now)
        best_effort = self._inboxes.get(key)
        if best_effort is not None and inbox is None:
            best_effort.heard(position.epoch, position.next_seq, now)
            self._settle(peer, position.topic, best_effort)

    def _settle(self, peer: PeerRecord, topic: str, inbox: Inbox) -> None:
        """Give what an at-most-once stream lacks at its end some time to arrive."""
        due = inbox.timer(self._config)
        if due < inf:
            self._settling[peer.id, topic] = inbox, peer.source
            self._due = min(self._due, due)

    def repaired_batch(self, peer: PeerRecord, lane_id: int, batch: Batch, now: float) -> None:
        """A batch that we had asked for again."""
        lane = self._interests.lanes.get(lane_id)
        inbox = lane.inboxes.get((peer.id, batch.topic)) if lane is not None else None
        if lane is not None and inbox is not None and inbox.epoch == batch.epoch:
            self.repaired += 1
            self._accept(lane, peer, inbox, batch, now)

    def missing(self, peer: PeerRecord, record: Missing, now: float) -> None:
        """A publisher cannot repair a range."""
        lane = self._interests.lanes.get(record.lane)
        inbox = lane.inboxes.get((peer.id, record.topic)) if lane is not None else None
        if lane is not None and inbox is not None and inbox.epoch == record.epoch:
            inbox.missing(record.start, record.stop, record.reason, now)
            self._drain(lane, peer, inbox, now)

    def evicted(self, peer: PeerRecord, record: EvictedRecord, now: float) -> None:
        """A publisher gave one of our subscriptions up. If it is not stuck it goes on: only its acks were held up."""
        lane = self._interests.lanes.get(record.lane)
        if lane is None or record.topic not in self._interests.remote[peer.id].topics:
            return
        inbox = self._reliable_inbox(lane, peer.id, record.topic, record.epoch)
        if record.epoch < inbox.epoch:
            return
        self._renew(lane, peer, inbox, record.epoch, now)
        inbox.ended = True
        lane.attached.discard((peer.id, record.topic))
        self._effects.emit(Evicted(record.topic, peer.source, record.reason, here=True))
        self._resume(lane, peer, inbox, now)

    def _inbox(self, peer: PeerRecord, topic: str, epoch: int) -> Inbox:
        key = peer.id, topic
        inbox = self._inboxes.get(key)
        if inbox is None:
            check_topic(topic, reserved=True, bytes_max=self._config.topic_bytes_max)
            self._make_room(self._inboxes)
            inbox = self._inboxes[key] = Inbox(epoch)
        if epoch > inbox.epoch:
            missing = inbox.renew(epoch)
            if missing is not None:
                self.count_lost(Gap(peer.source, topic, *missing, cause="epoch"))
        return inbox

    def _reliable_inbox(self, lane: Lane, producer: bytes, topic: str, epoch: int) -> ReliableInbox:
        key = producer, topic
        inbox = lane.inboxes.get(key)
        if inbox is None:
            check_topic(topic, reserved=True, bytes_max=self._config.topic_bytes_max)
            self._make_room(lane.inboxes)
            inbox = lane.inboxes[key] = ReliableInbox(
                lane.request.lane, topic, epoch, self._config, self._jitter, stores=lane.request.store
            )
        return inbox

    def _make_room(self, inboxes: dict[Key, Any]) -> None:
        """The oldest stream of a producer that left goes first; those that flow are never cut for a new one."""
        if len(inboxes) < self._config.inboxes_max:
            return
        departed = next((key for key in inboxes if key[0] not in self._peers.known), None)
        if departed is None:
            raise LimitExceeded("inboxes_max", len(inboxes) + 1, self._config.inboxes_max)
        del inboxes[departed]

    def _renew(self, lane: Lane, peer: PeerRecord, inbox: ReliableInbox, epoch: int, now: float) -> None:
        if epoch > inbox.epoch:
            before, missing = inbox.epoch, inbox.renew(epoch)
            if missing is not None:
                self._missed(lane, before, Gap(peer.source, inbox.topic, *missing, cause="epoch"), now)

    def peer_joined(self, peer_id: bytes) -> None:
        """A producer is there, perhaps again: its streams go on where they stopped."""
        self._departed.pop(peer_id, None)

    def awaits(self, producer: bytes) -> bool:
        """Whether a producer told of messages that are not here yet."""
        if any(inbox.behind for key, inbox in self._inboxes.items() if key[0] == producer):
            return True
        reliable = (item for lane in self._interests.lanes.values() for item in lane.inboxes.items())
        return any(inbox.behind for key, inbox in reliable if key[0] == producer)

    def peer_left(self, peer: PeerRecord, now: float, *, for_good: bool) -> None:
        """A producer or subscriber is gone; positions are kept as long as it may come back."""
        peer_id = peer.id
        self._budgets.pop(peer_id, None)
        for key in [key for key in self._answered if key[0] == peer_id]:
            del self._answered[key]
        if for_good:
            self._finish(peer, now)
            self.forget(peer_id)
        else:
            self._departed[peer_id] = departed = Departed(peer, now, self._config)
            self._due = min(self._due, departed.timer())

    def _finish(self, peer: PeerRecord, now: float) -> None:
        """Hand on whatever a producer left behind, room or not, and report what is missing."""
        for lane in self._interests.lanes.values():
            for inbox in [inbox for key, inbox in lane.inboxes.items() if key[0] == peer.id and inbox.behind]:
                inbox.close(now)
                self._drain(lane, peer, inbox, now, wait=False)
        for key, best_effort in self._inboxes.items():
            if key[0] == peer.id and (lost := best_effort.close()) is not None:
                self.count_lost(Gap(peer.source, key[1], *lost, cause="overflow"))

    def forget(self, producer: bytes | None = None) -> None:
        """Drop positions in a producer's streams, or in all streams that nobody here listens to any more."""
        for key in list(self._inboxes):
            if key[0] == producer or (producer is None and not self._interests.local.match(key[1])):
                del self._inboxes[key]
                self._settling.pop(key, None)
        if producer is not None:
            for lane in self._interests.lanes.values():
                for key in [key for key in lane.inboxes if key[0] == producer]:
                    del lane.inboxes[key]
        for busy in list(self._busy):
            lane_now = self._interests.lanes.get(busy[0])
            if lane_now is None or busy[1:] not in lane_now.inboxes:
                del self._busy[busy]

    # -- time ----------------------------------------------------------------------------------

    def _watch(self, lane: Lane, producer: bytes, inbox: ReliableInbox) -> None:
        due = inbox.timer()
        if due < inf:
            self._busy[lane.request.lane, producer, inbox.topic] = lane, inbox
            self._due = min(self._due, due)

    def timer(self) -> float:
        """When `handle_timer` has something to do."""
        return self._due

    def handle_timer(self, now: float) -> None:
        """Send the acks, repair requests and positions that are due; end waits that were long enough."""
        if now < self._due:
            return
        self._due = inf
        for key, (lane, inbox) in list(self._busy.items()):
            peer = self._peers.known.get(key[1])
            pause = self._config.repair_retry_s
            if peer is not None and peer.routes:
                self._tend(lane, peer, inbox, now)
                pause = 0.001
            if peer is None or inbox.timer() == inf:
                self._busy.pop(key, None)
            else:
                self._due = min(self._due, max(inbox.timer(), now + pause))
        for stream, (best_effort, source) in list(self._settling.items()):
            lost = best_effort.overdue(self._config, now)
            if lost is not None:
                self.count_lost(Gap(source, stream[1], *lost, cause="overflow"))
            if best_effort.timer(self._config) == inf:
                del self._settling[stream]
            else:
                self._due = min(self._due, best_effort.timer(self._config))
        for peer_id, departed in list(self._departed.items()):
            if now >= departed.given_up_at:
                departed.given_up_at = inf
                self._finish(departed.peer, now)
            if now >= departed.forgotten_at:
                del self._departed[peer_id]
                self.forget(peer_id)
                self._interests.forget(peer_id)
            else:
                self._due = min(self._due, departed.timer())
        if now >= self._outboxes_due:
            self._tend_outboxes(now)
        self._due = min(self._due, self._outboxes_due)

    def _tend(self, lane: Lane, peer: PeerRecord, inbox: ReliableInbox, now: float) -> None:
        ack = inbox.take_ack(now)
        if ack is not None:
            self._peers.tell(peer, ack, now=now)
        repair = inbox.take_repair(now, has_room=not lane.full)
        if repair is not None and inbox.give_up(now):
            self._drain(lane, peer, inbox, now)
        elif repair is not None:
            self._peers.tell(peer, repair, now=now)


def _refused(batch: Batch, source: Source) -> Gap:
    return Gap(source, batch.topic, batch.base + batch.skip, batch.end - 1, cause="signature")
