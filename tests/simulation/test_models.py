"""Outbox and ReliableInbox against models that hypothesis drives: plain sets that cannot be wrong."""

from __future__ import annotations

import random
from math import inf

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, precondition, rule

from zfabric.config import Config
from zfabric.protocol.inbox import ReliableInbox
from zfabric.protocol.outbox import Outbox, Reader
from zfabric.wire.batch import FLAG_RELIABLE, Batch
from zfabric.wire.records import RANGES_MAX, Ack, PatternRequest

WINDOW = 600
HISTORY = 5
_encode_into = msgspec.msgpack.Encoder().encode_into
settings.register_profile("models", deadline=None, max_examples=60, stateful_step_count=40, print_blob=True)
SETTINGS = settings.get_profile("models")


class ReaderModel:
    """What one reader has really acknowledged."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.received = self.processed = reader.received


class OutboxMachine(RuleBasedStateMachine):
    """A publisher with readers that come, acknowledge (also late, twice, impossibly), go away and are dropped."""

    readers: Bundle[ReaderModel] = Bundle("readers")

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.box = Outbox(
            "t", b"p" * 16, 1, "at-least-once", Config(), with_crc=False, window_bytes=WINDOW, history=HISTORY
        )
        self.bytes: dict[int, int] = {}
        self.models: list[ReaderModel] = []
        self.lanes = 0
        self.settled = 0

    @rule(count=st.integers(1, 4), size=st.integers(0, 200))
    @precondition(lambda self: not self.box.full)
    def publish(self, count: int, size: int) -> None:
        """Seal a batch."""
        base = self.box.base
        for _ in range(count):
            _encode_into("x" * size, self.box.writer.buffer, -1)
            self.box.writer.count += 1
        assert self.box.next_seq == base + count
        frames = self.box.seal(1, self.now)
        self.bytes[self.box.base] = sum(map(len, frames))
        assert self.box.base == base + count
        self._settle()

    @rule(target=readers, back=st.integers(0, HISTORY))
    def join(self, back: int) -> ReaderModel:
        """A reader begins at the newest message, or a few earlier."""
        self.lanes += 1
        start = max(self.box.first_kept, self.box.base - back)
        reader = Reader(b"r" * 16, "r", PatternRequest(self.lanes, "t", ""), start, self.now)
        self.box.readers[reader.peer_id, reader.lane] = reader
        model = ReaderModel(reader)
        self.models.append(model)
        return model

    @rule(model=readers, received=st.integers(0, 60), processed=st.integers(0, 60))
    def acknowledge(self, model: ReaderModel, received: int, processed: int) -> None:
        """Any ack at all: what was never sent is refused, what is old changes nothing."""
        possible = processed <= received <= self.box.base
        ack = Ack(model.reader.lane, "t", 1, received, processed)
        assert self.box.acknowledge(model.reader, ack, self.now) is possible
        if possible:
            model.received = max(model.received, received)
            model.processed = max(model.processed, processed)
            self._settle()

    @rule(model=readers)
    def acknowledge_everything(self, model: ReaderModel) -> None:
        """A reader that has caught up."""
        self.acknowledge(model, self.box.base, self.box.base)

    @rule(model=consumes(readers))
    def drop(self, model: ReaderModel) -> None:
        """A reader is waited for no longer; what it did not acknowledge is told."""
        missed = self.box.drop_reader(model.reader, self.now)
        self.models.remove(model)
        self._settle()
        assert missed == ((model.received, self.box.base) if model.received < self.box.base else None)

    @invariant()
    def positions_are_what_was_acknowledged(self) -> None:
        """Confirmations count what every reader told, and nothing else."""
        assert all(m.reader.received == m.received and m.reader.processed == m.processed for m in self.models)
        assert self.box.received_by_all() == min((m.received for m in self.models), default=self.box.base)
        assert self.box.received_by_all(processed=True) == min(
            (m.processed for m in self.models), default=self.box.base
        )

    @invariant()
    def what_may_be_asked_for_is_kept(self) -> None:
        """Everything that a reader has not processed, and the history, can be sent again, without a hole."""
        needed = min([max(0, self.box.base - HISTORY), *(m.processed for m in self.models)])
        assert self.box.first_kept <= needed
        kept = list(self.box.kept_between(0, self.box.base))
        assert [sealed.base for sealed in kept[1:]] == [sealed.end for sealed in kept[:-1]]
        assert (kept[-1].end if kept else self.box.base) == self.box.base

    @invariant()
    def the_window_counts_what_is_not_acknowledged(self) -> None:
        """It is full exactly while that many bytes wait, and never holds more than one batch beyond its size."""
        assert self.box.waiting_bytes == sum(nbytes for stop, nbytes in self.bytes.items() if stop > self.settled)
        assert self.box.full is (self.box.waiting_bytes >= WINDOW)
        assert self.box.waiting_bytes <= WINDOW + max(self.bytes.values(), default=0)
        assert (self.box.full_since < inf) is self.box.full

    def _settle(self) -> None:
        """What all readers of some moment had processed waits no more, whoever comes later."""
        self.settled = max(self.settled, min((m.processed for m in self.models), default=self.box.base))


class InboxMachine(RuleBasedStateMachine):
    """A stream that arrives in any order, twice, in part, with repairs, and partly never."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.config = Config(reorder_bytes=500)
        self.inbox = ReliableInbox(1, "t", 1, self.config, random.Random(0))
        self.stops = [0]
        self.start: int | None = None
        self.delivered: list[int] = []
        self.told_lost: set[int] = set()
        self.gone: set[int] = set()
        self.processed = 0

    @initialize(counts=st.lists(st.integers(1, 4), min_size=3, max_size=15))
    def stream(self, counts: list[int]) -> None:
        """Which batches the publisher has sent."""
        for count in counts:
            self.stops.append(self.stops[-1] + count)

    def _drain(self) -> None:
        progressed = False
        while True:
            gap = self.inbox.next_gap()
            batch = None if gap is not None else self.inbox.next_batch()
            if gap is not None:
                self.told_lost.update(range(gap[0], gap[1]))
            elif batch is not None:
                self.delivered.extend(range(batch.base + batch.skip, batch.end))
            else:
                break
            progressed = True
        if progressed:
            self.inbox.delivered(self.now)

    @rule(position=st.integers(0, 20))
    def attach(self, position: int) -> None:
        """ATTACHED comes, perhaps again; the first one counts."""
        position = min(position, self.stops[-1])
        if self.start is None:
            self.start = self.processed = position
        self.inbox.anchor(position, self.now)
        self._drain()

    @rule(index=st.integers(0, 14))
    def arrive(self, index: int) -> None:
        """One of the batches arrives, for the first time or not."""
        index %= len(self.stops) - 1
        base, stop = self.stops[index], self.stops[index + 1]
        self.inbox.accept(Batch("t", b"p" * 16, 1, base, stop - base, 0, b"", None, (), 100, FLAG_RELIABLE), self.now)
        self._drain()

    @rule()
    def hear(self) -> None:
        """POSITIONS tell how far the publisher is."""
        self.inbox.heard(0, self.stops[-1], self.now)
        self._drain()

    @rule(index=st.integers(0, 14))
    @precondition(lambda self: self.start is not None)
    def lose(self, index: int) -> None:
        """A batch will never come."""
        index %= len(self.stops) - 1
        self.gone.update(range(self.stops[index], self.stops[index + 1]))
        self.inbox.missing(self.stops[index], self.stops[index + 1], "expired", self.now)
        self._drain()

    @rule(count=st.integers(1, 5))
    @precondition(lambda self: self.delivered)
    def process(self, count: int) -> None:
        """The reader is done with some more of what it got."""
        waiting = [seq for seq in self.delivered if seq >= self.processed]
        if waiting:
            self.processed = waiting[:count][-1] + 1
            self.inbox.was_processed(self.processed, self.now)

    @rule()
    def wait(self) -> None:
        """Time passes: acks and requests are due, and say what is true."""
        self.now = max(self.now, min(self.inbox.timer(), self.now + 10.0))
        ack = self.inbox.take_ack(self.now)
        have = set(self.delivered) | self.told_lost
        if ack is not None:
            assert self.start is not None
            assert set(range(self.start, ack.received)) <= have
            assert ack.processed <= ack.received
            owed = [seq for seq in self.delivered if seq >= self.processed]
            assert ack.processed <= min(owed, default=ack.received)
            assert all(start < stop and start > ack.received for start, stop in ack.ranges)
        repair = self.inbox.take_repair(self.now, has_room=True)
        if repair is not None:
            asked = {seq for start, stop in repair.ranges for seq in range(start, stop)}
            assert 0 < len(repair.ranges) <= RANGES_MAX
            assert not asked & have
            assert not asked & self.gone
            assert max(asked) < self.stops[-1]

    @invariant()
    def nothing_twice_and_in_order(self) -> None:
        """What is delivered grows, and is neither skipped silently nor announced as lost."""
        assert self.delivered == sorted(set(self.delivered))
        assert not set(self.delivered) & self.told_lost
        if self.start is None:
            assert not self.delivered
            assert self.inbox.expected is None
        elif self.inbox.expected is not None:
            had = set(self.delivered) | self.told_lost
            assert had == set(range(self.start, self.inbox.expected))
            assert self.told_lost <= self.gone

    @invariant()
    def memory_is_bounded(self) -> None:
        """The reorder buffer holds its bound, and one batch that fills a hole."""
        assert (
            0 <= self.inbox.pending_bytes <= max(self.config.reorder_bytes, 0 if self.start is not None else inf) + 100
        )

    def teardown(self) -> None:
        """In the end all that is repaired arrives, and everything is accounted for."""
        if self.start is None:
            return
        self.hear()
        for _ in range(len(self.stops)):
            for index in range(len(self.stops) - 1):
                if self.stops[index] not in self.gone:
                    self.arrive(index)
        assert self.inbox.expected == max(self.stops[-1], self.start)
        assert not self.inbox.behind


TestOutbox = OutboxMachine.TestCase
TestOutbox.settings = SETTINGS
TestInbox = InboxMachine.TestCase
TestInbox.settings = SETTINGS
