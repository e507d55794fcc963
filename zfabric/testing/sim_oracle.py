"""Judges a simulation: sees what is published, delivered, announced and confirmed, and knows what was promised.

It trusts no position that the protocol computes for itself. What it takes from outboxes is who their readers are and
what they keep; whether that was right is judged by what subscriptions really got.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable
from typing import Protocol

import msgspec

from zfabric.config import Config
from zfabric.events import Gap
from zfabric.protocol.core import Core
from zfabric.protocol.outbox import Outbox, Reader
from zfabric.testing.sim_truth import LaneStream, LaneTruth, StreamKey, StreamTruth, Violation, Watch, payload
from zfabric.wire.batch import Batch
from zfabric.wire.ranges import RangeSet

__all__ = ["Oracle", "Witness", "offers"]

RANKS = {"": 0, "at-most-once": 0, "at-least-once": 1, "exactly-once": 2}
HELD_UP_SLACK_S = 2.0

_decode = msgspec.msgpack.decode


class Witness(Protocol):
    """A node, as far as the oracle looks at it."""

    name: str
    id: bytes
    alive: bool
    core: Core
    gaps: dict[tuple[bytes, str], RangeSet]
    resumed_at: float
    left_at: dict[bytes, float]
    "When it noticed that a peer had fallen silent."


def offers(delivery: str, asked: str) -> bool:
    """Whether a publisher offers what a subscription asks for."""
    return RANKS[delivery] >= RANKS[asked]


class Oracle:
    """The history of one simulation, judged as it happens."""

    def __init__(self, config: Config, now: Callable[[], float]) -> None:
        self.config = config
        self.now = now
        self.streams: dict[StreamKey, StreamTruth] = {}
        self.lanes: dict[tuple[bytes, int], LaneTruth] = {}
        self.nodes: dict[bytes, Witness] = {}
        self.delivered = self.published = self.announced = self.confirmed = self.consumed = 0
        self._holes: list[tuple[LaneTruth, LaneStream, int, int]] = []

    # -- operations ----------------------------------------------------------------------------

    def opened(self, outbox: Outbox, key: StreamKey, history: int) -> None:
        """A publisher begins a stream."""
        self.streams[key] = StreamTruth(key, outbox.delivery, history)

    def was_published(self, key: StreamKey, seq: int, size: int, now: float) -> None:
        """A message got its number; size -1 if nobody listened."""
        stream = self.streams[key]
        if seq != len(stream.sizes):
            raise Violation("order", f"message {len(stream.sizes)} of {_show(key)} got number {seq}")
        stream.sizes.append(size)
        stream.times.append(now)
        self.published += 1

    def subscribed(self, lane: LaneTruth) -> None:
        """A subscription is made."""
        self.lanes[lane.node_id, lane.lane] = lane

    def confirmed_before(self, key: StreamKey, before: int, *, processed: bool) -> None:
        """A flush returned: every reader that is still one has everything before this number."""
        self.confirmed += 1
        for reader in self.streams[key].readers:
            lane = self.lanes[reader]
            got = lane.streams.get(key)
            if got is None or got.start is None or lane.closed:
                continue
            if not self._settled(lane, got, max(got.next, got.start), before):
                raise Violation("confirmed-not-received", f"{lane} has {_show(key)} up to {got.next}, not {before}")
            done = max(got.processed, got.start, got.abandoned)
            if processed and lane.alive and not self._settled(lane, got, done, before):
                raise Violation("confirmed-not-processed", f"{lane} processed {_show(key)} up to {got.processed}")

    def _settled(self, lane: LaneTruth, got: LaneStream, start: int, stop: int) -> bool:
        """Whether all of a range was announced as lost, or given up and reported by its publisher."""
        gaps = self.nodes[lane.node_id].gaps.get(got.key[:2], ())
        return not list(RangeSet([*gaps, *got.excused]).missing(start, stop))

    # -- at the subscriber ---------------------------------------------------------------------

    def part(self, lane: LaneTruth, key: StreamKey) -> LaneStream:
        """A subscription's part of a stream."""
        got = lane.streams.get(key)
        if got is None:
            reliable = RANKS[self.streams[key].delivery] > 0 and lane.delivery != "at-most-once"
            got = lane.streams[key] = LaneStream(key, reliable)
        return got

    def arrived(self, node: Witness, key: StreamKey, stop: int) -> None:
        """A batch came to a node that knows its producer."""
        for lane in node.core.interests.lanes.values():
            truth = self.lanes[node.id, lane.request.lane]
            if truth.pattern.matches(key[1]) and offers(self.streams[key].delivery, truth.delivery):
                got = self.part(truth, key)
                got.arrived = max(got.arrived, stop)

    def was_delivered(self, lane: LaneTruth, batch: Batch) -> None:
        """A subscription got a batch."""
        key = batch.producer, batch.topic, batch.epoch
        stream = self.streams.get(key)
        if stream is None:
            raise Violation("invented", f"{lane} got a batch of {_show(key)}, which never was")
        if not offers(stream.delivery, lane.delivery):
            raise Violation(
                "incompatible", f"{lane} asked for {lane.delivery} and got {_show(key)} as {stream.delivery}"
            )
        got = self.part(lane, key)
        waits = stream.alive and key[0] != lane.node_id and key[0] not in self.nodes[lane.node_id].left_at
        if lane.full and got.reliable and waits:
            raise Violation("memory", f"{lane} is full and got {_show(key)} {batch.base}")
        if batch.epoch < lane.epochs.get(key[:2], 0):
            raise Violation("fencing", f"{lane} got {_show(key)} after epoch {lane.epochs[key[:2]]}")
        lane.epochs[key[:2]] = batch.epoch
        first, stop = batch.base + batch.skip, batch.end
        self._check_values(lane, stream, batch)
        if next(iter(got.delivered.missing(first, stop)), None) != (first, stop):
            raise Violation("duplicate", f"{lane} got {_show(key)} {first} to {stop - 1} again")
        if first <= got.last:
            raise Violation("order", f"{lane} got {_show(key)} {first} after {got.last}")
        before = got.last + 1 if got.last >= 0 else got.start
        if got.reliable and before is not None and first > before:
            self._holes.append((lane, got, before, first))
        got.delivered.add(first, stop)
        got.last, got.next = stop - 1, stop
        self.delivered += stop - first

    def _check_values(self, lane: LaneTruth, stream: StreamTruth, batch: Batch) -> None:
        values = _decode(batch.body)
        sizes = stream.sizes[batch.base : batch.end]
        if len(values) != batch.count or len(sizes) != batch.count or -1 in sizes:
            raise Violation(
                "invented", f"{lane} got {_show(stream.key)} {batch.base} to {batch.end - 1}, never sent so"
            )
        for index, (value, size) in enumerate(zip(values, sizes, strict=True)):
            if value != payload(stream.key, batch.base + index, size):
                raise Violation("invented", f"{lane} got {_show(stream.key)} {batch.base + index} as {value!r}")

    def gap(self, node: Witness, gap: Gap) -> None:
        """A node announces a loss."""
        producer = bytes.fromhex(gap.source.id)
        first, stop = gap.first, gap.last + 1
        self.announced += gap.count
        parts = [
            got
            for lane in self.lanes.values()
            if lane.node_id == node.id
            for got in lane.streams.values()
            if got.key[:2] == (producer, gap.topic)
        ]
        possible = [got for got in parts if stop <= len(self.streams[got.key].sizes)]
        if not any(next(iter(got.delivered.missing(first, stop)), None) == (first, stop) for got in possible):
            raise Violation(
                "false-gap", f"{node.name} announces {gap.topic} {first} to {gap.last} as lost ({gap.cause})"
            )
        node.gaps.setdefault((producer, gap.topic), RangeSet()).add(first, stop)
        left_at = node.left_at.get(producer)
        if gap.cause == "closed" and left_at is not None and self.now() - left_at >= self.config.grace_s:
            for got in parts:
                got.excused.add(first, stop)
        for got in parts:
            if first <= got.next < stop:
                got.next = stop

    def check_holes(self) -> None:
        """Call when all events of a turn were told: every hole has its Gap, and its reason."""
        holes, self._holes = self._holes, []
        for lane, got, start, stop in holes:
            gaps = self.nodes[lane.node_id].gaps.get(got.key[:2], RangeSet())
            for first, end in gaps.missing(start, stop):
                raise Violation(
                    "silent-hole", f"{lane} never got {_show(got.key)} {first} to {end - 1}, without a word"
                )
            if self.streams[got.key].alive and not got.given_up:
                for first, end in got.excused.missing(max(start, got.start or 0), stop):
                    raise Violation("hole-without-cause", f"{lane} never got {_show(got.key)} {first} to {end - 1}")

    def uncovered(self, lane: LaneTruth, got: LaneStream, start: int, stop: int) -> list[tuple[int, int]]:
        """What of a range a subscription neither got nor was told about."""
        gaps = self.nodes[lane.node_id].gaps.get(got.key[:2], ())
        return list(RangeSet([*got.delivered, *gaps]).missing(start, stop))

    # -- at the publisher ----------------------------------------------------------------------

    def look(self, node: Witness, now: float) -> None:
        """Compare a node's outboxes with how they were."""
        for outbox in node.core.interests.outboxes.values():
            stream = self.streams[node.id, outbox.topic, outbox.epoch]
            readers, known = outbox.readers, stream.readers
            if outbox.reliable:
                for key in [key for key, watch in known.items() if readers.get(key, watch.reader) is not watch.reader]:
                    self._reader_went(stream, key, now)  # and came again in the same turn
                taken = [key for key in known if key not in readers]
                for key in [key for key in readers if key not in known]:
                    self._reader_came(stream, outbox, readers[key], taken, now)
                for key in taken:
                    self._reader_went(stream, key, now)
                for key, watch in known.items():
                    self._watch(stream, outbox, key, watch, now)
                self._judge_window(node, stream, outbox, now)
            for key in outbox.remote:
                if key not in readers:
                    got = self.part(self.lanes[key], stream.key)
                    if got.start is None:
                        got.start = outbox.base
            for local in outbox.local:
                got = self.part(self.lanes[node.id, local.request.lane], stream.key)
                if got.start is None:
                    got.start = outbox.base

    def _reader_came(
        self, stream: StreamTruth, outbox: Outbox, reader: Reader, taken: list[tuple[bytes, int]], now: float
    ) -> None:
        key = reader.peer_id, reader.lane
        lane = self.lanes[key]
        got = self.part(lane, stream.key)
        kept_from = max(reader.received, outbox.first_kept)
        begun = stream.readers
        old = next(
            (
                k
                for k in taken
                if self._continues(lane, self.lanes[k])
                and (not self.lanes[k].closed or begun[k].processed == reader.received)
            ),
            None,
        )
        waiting = [
            k
            for k in stream.readers
            if self._continues(lane, self.lanes[k]) and not self.lanes[k].closed and k not in outbox.remote
        ]
        if old is not None:
            taken.remove(old)
            before = self.part(self.lanes[old], stream.key)
            kept_from = max(reader.received, stream.readers.pop(old).kept_from)
            got.excused = RangeSet([*got.excused, *before.excused])
            done = max(before.processed, before.start or 0, before.abandoned)
            if not self._settled(self.lanes[old], before, done, reader.received):
                raise Violation("restart", f"{lane} goes on at {reader.received}, {before.processed} was processed")
        elif waiting and got.start is None:
            raise Violation("restart", f"{lane} begins at {reader.received} although its forerunner is waited for")
        elif kept_from > reader.received:
            got.excused.add(reader.received, kept_from)
        if old is None and got.start is None:
            self._judge_start(stream, outbox, lane, reader, now)
        elif old is None and kept_from > (left := got.last + 1 if got.last >= 0 else got.next):
            got.excused.add(left, kept_from)
            if not got.delivered and not self._was_told(lane, stream):
                got.start = None  # it had not heard yet that it was a reader
        if got.given_up:
            got.given_up, got.abandoned = False, reader.processed
        if got.start is None:
            got.start = got.next = got.processed = reader.received
        stream.readers[key] = Watch(reader, reader.received, reader.processed, now, kept_from)

    def _was_told(self, lane: LaneTruth, stream: StreamTruth) -> bool:
        """Whether a subscription knows where it began."""
        here = self.nodes[lane.node_id].core.interests.lanes.get(lane.lane)
        inbox = here.inboxes.get(stream.key[:2]) if here is not None else None
        return inbox is not None and inbox.epoch == stream.key[2] and inbox.expected is not None

    def _continues(self, lane: LaneTruth, old: LaneTruth) -> bool:
        """Whether a subscription looks to its publisher like an old one of a node that was started again."""
        return old.node_id != lane.node_id and old.node == lane.node and old.pattern.text == lane.pattern.text

    def _judge_start(self, stream: StreamTruth, outbox: Outbox, lane: LaneTruth, reader: Reader, now: float) -> None:
        base, asked, got = outbox.base, lane.start, reader.received
        kept = max(0, base - stream.history)
        young = bisect_left(stream.times, now - asked.value)
        latest = {
            "latest": base,
            "earliest": kept,
            "seq": min(int(asked.value), base),
            "last": max(kept, base - int(asked.value)),
            "since": max(kept, min(young, base)),
        }[asked.kind]
        earliest = {"latest": base, "seq": min(int(asked.value), base)}.get(asked.kind, 0)
        if not earliest <= got <= latest:
            wanted = f"{asked.kind} {asked.value}"
            raise Violation("start", f"{lane} asked for {wanted} of {_show(stream.key)} and begins at {got}")

    def _reader_went(self, stream: StreamTruth, key: tuple[bytes, int], now: float) -> None:
        watch = stream.readers.pop(key)
        lane = self.lanes[key]
        got = self.part(lane, stream.key)
        grace = self.config.grace_s - 0.001
        away = watch.away_since is not None and now - watch.away_since >= grace
        since = stream.pressed_since if self.config.evict_slow else stream.full_since
        full = since is not None and now - since >= grace
        stuck = now - watch.progress_at >= grace or self.config.evict_slow
        if not (lane.closed or away or (full and stuck)):
            raise Violation("evicted-early", f"{_show(stream.key)} gave {lane} up without reason")
        got.given_up = True
        got.abandoned = len(stream.sizes)
        if watch.received < len(stream.sizes):
            got.excused.add(watch.received, len(stream.sizes))

    def _watch(self, stream: StreamTruth, outbox: Outbox, key: tuple[bytes, int], watch: Watch, now: float) -> None:
        reader = outbox.readers[key]
        if reader.received > watch.received or reader.processed > watch.processed:
            watch.received, watch.processed, watch.progress_at = reader.received, reader.processed, now
        if key in outbox.remote:
            if watch.away_since is not None:
                watch.away_since, watch.progress_at = None, now
        elif watch.away_since is None:
            watch.away_since = now
        lane = self.lanes[key]
        got = lane.streams[stream.key]
        if lane.alive and not lane.closed and outbox.first_kept > max(watch.kept_from, got.next):
            raise Violation(
                "dropped-unacked", f"{_show(stream.key)} keeps {outbox.first_kept} on; {lane} has come to {got.next}"
            )

    def _judge_window(self, node: Witness, stream: StreamTruth, outbox: Outbox, now: float) -> None:
        if outbox.waiting_bytes > outbox.window_bytes + stream.burst_bytes:
            raise Violation(
                "window", f"{_show(stream.key)} holds {outbox.waiting_bytes} of {outbox.window_bytes} bytes"
            )
        if stream.history and outbox.first_kept > max(0, outbox.base - stream.history):
            raise Violation("retention", f"{_show(stream.key)} keeps {outbox.first_kept} on, not {stream.history}")
        if outbox.waiting_bytes >= outbox.window_bytes:
            stream.pressed_since = now if stream.pressed_since is None else stream.pressed_since
        elif outbox.waiting_bytes * 2 <= outbox.window_bytes:
            stream.pressed_since = None
        if outbox.waiting_bytes < outbox.window_bytes or not stream.readers:
            stream.full_since = None
        elif stream.full_since is None:
            stream.full_since = now
        else:
            worst = min(stream.readers.values(), key=lambda watch: watch.processed)
            since = max(stream.full_since, worst.progress_at, node.resumed_at)
            if now - since > 2 * self.config.grace_s + HELD_UP_SLACK_S:
                raise Violation("held-up", f"{_show(stream.key)} waits for a stuck reader since {since:.3f}")

    # -- in calm -------------------------------------------------------------------------------

    def unfinished(self) -> tuple[str, str] | None:
        """The first thing that calm has not mended yet: (rule, detail)."""
        living = [node for node in self.nodes.values() if node.alive]
        for node in living:
            lacks = [o.name for o in living if o is not node and o.id not in {peer.id for peer in node.core.peers.up()}]
            if lacks:
                return "stuck-peers", f"{node.name} has not found {lacks}"
        for lane in self.lanes.values():
            if lane.alive and not lane.closed:
                for stream in self.streams.values():
                    found = self._unfinished_part(lane, stream)
                    if found is not None:
                        return found
        for node in living:
            for outbox in node.core.interests.outboxes.values():
                if gone := [key for key in outbox.readers if key not in outbox.remote]:
                    return (
                        "stuck-reader",
                        f"{_show((node.id, outbox.topic, outbox.epoch))} waits for {self.lanes[gone[0]]}",
                    )
        return None

    def _unfinished_part(self, lane: LaneTruth, stream: StreamTruth) -> tuple[str, str] | None:
        key = stream.key
        if not lane.pattern.matches(key[1]) or not offers(stream.delivery, lane.delivery):
            return None
        got = lane.streams.get(key)
        if not stream.alive:
            return self._unfinished_remains(lane, got)
        outbox = self.nodes[key[0]].core.interests.outboxes[key[1]]
        here = key[0] == lane.node_id
        if got is None or got.start is None or not (here or (lane.node_id, lane.lane) in outbox.remote):
            return "stuck-attach", f"{lane} is not in place at {_show(key)}"
        left = self.uncovered(lane, got, got.start, outbox.base)
        if left:
            return "stuck-delivery" if got.reliable else "stuck-announcement", f"{lane} lacks {_show(key)} {left[:3]}"
        reader = outbox.readers.get((lane.node_id, lane.lane))
        if got.reliable and not here and (reader is None or reader.received < outbox.base):
            return "stuck-acks", f"{_show(key)} waits for {reader} to have {outbox.base}"
        if reader is not None and reader.processed < outbox.base:
            return "stuck-acks", f"{_show(key)} waits for {reader} to process {outbox.base}"
        return None

    def _unfinished_remains(self, lane: LaneTruth, got: LaneStream | None) -> tuple[str, str] | None:
        """A stream that ended: all that had come to the node is settled."""
        newer = sum(1 for key in self.streams if got is not None and key[:2] == got.key[:2] and key[2] > got.key[2])
        if got is None or got.start is None or not got.arrived or newer > 1:
            return None
        start = got.start
        if got.reliable:
            core = self.nodes[lane.node_id].core
            inbox = core.interests.lanes[lane.lane].inboxes.get(got.key[:2])
            if inbox is None or not (got.delivered if inbox.epoch != got.key[2] else inbox.expected is not None):
                return None
        else:
            start = max(start, min((first for first, _ in got.delivered), default=got.arrived))
        left = self.uncovered(lane, got, start, got.arrived)
        return ("swallowed", f"{lane} lost {_show(got.key)} {left[:3]} without a word") if left else None

    def positions(self) -> Iterable[int]:
        """Numbers that grow while something happens."""
        return self.delivered, self.announced, self.confirmed, self.consumed


def _show(key: StreamKey) -> str:
    producer, topic, epoch = key
    return f"{topic}@{producer[:3].hex()}/{epoch}"
