"""Counting what is lost where libzmq deals out the jobs: only what can come to nobody any more."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from zfabric.config import Config
from zfabric.protocol.effects import Effects
from zfabric.protocol.jobs import QueuePolicy
from zfabric.protocol.plainqueue import PlainQueue
from zfabric.protocol.plainqueues import PlainQueues
from zfabric.protocol.plainsink import TAKEN_AT_ONCE, PlainSink
from zfabric.wire.batch import Batch, BatchWriter
from zfabric.wire.plain_records import TAKEN_MAX, PlainEnd, PlainPull, PlainRecord, PlainTaken

BODY = b"\xdd\x00\x00\x00\x01\x07"
A, B = (b"a" * 16, 1), (b"b" * 16, 1)
PUSHER = b"p" * 16
SETTLE_S = Config().gap_settle_s


def queue_of(batches: int, *pullers: tuple[bytes, int]) -> PlainQueue:
    """So many batches of one job were sent."""
    queue = PlainQueue("q", Config(), QueuePolicy(), BatchWriter("q", PUSHER, 0))
    for puller in pullers:
        queue.join(puller, "somewhere")
    send(queue, batches)
    return queue


def send(queue: PlainQueue, batches: int) -> None:
    """Send batches of one job."""
    for _ in range(batches):
        queue.push_block(1, BODY, 0, 0.0)
        assert queue.head() is not None
        queue.sent(0.0)


def figures(queue: PlainQueue) -> tuple[int, int, int]:
    """(done, lost, neither)."""
    return queue.counters.done, queue.counters.lost, queue.depth


def test_a_batch_is_lost_once_all_pullers_are_beyond_it() -> None:
    """Each connection keeps the order: what one of them may still bring is not lost."""
    queue = queue_of(4, A, B)
    queue.taken(A, [(0, 1), (3, 4)], 4, 1.0)
    assert figures(queue) == (2, 0, 2), "B may have both"
    queue.taken(B, [(2, 3)], 3, 1.0)
    assert figures(queue) == (3, 1, 0), "number 1 is behind both"
    assert queue.take_lost() == 1
    assert queue.floor == 4
    assert queue.nbytes == 0


def test_what_a_lost_puller_had_is_lost_when_the_others_are_beyond_it() -> None:
    """Or at once, when there are no others."""
    queue = queue_of(4, A, B)
    queue.leave(A)
    assert figures(queue) == (0, 0, 4)
    queue.taken(B, [(1, 2)], 2, 1.0)
    assert figures(queue) == (1, 1, 2)
    queue.leave(B)
    assert figures(queue) == (1, 3, 0)


def test_a_puller_that_comes_later_is_not_waited_for() -> None:
    """It cannot have what was sent before it came."""
    queue = queue_of(1, A)
    queue.join(B, "somewhere")
    queue.leave(A)
    assert figures(queue) == (0, 1, 0)
    send(queue, 1)
    assert figures(queue) == (0, 1, 1)


def test_silent_pullers_are_asked_once_how_far_they_are() -> None:
    """When nothing was heard for a while; again only when more was sent."""
    queue = queue_of(2, A, B)
    queue.taken(A, [(0, 1)], 1, 1.0)
    assert queue.to_mark(1.0) == []
    due = queue.timer()
    assert due == 1.0 + SETTLE_S
    assert queue.to_mark(due) == [(A, 2), (B, 2)]
    assert queue.timer() > 1e9
    queue.taken(A, [], 2, due)
    assert queue.to_mark(queue.timer()) == [], "B is asked already"
    queue.taken(B, [], 2, due)
    assert figures(queue) == (1, 1, 0)
    send(queue, 1)
    assert queue.timer() == SETTLE_S, "what alone is sent, and lost, must be asked for as well"
    assert queue.to_mark(queue.timer()) == [(A, 3), (B, 3)], "nobody has told of anything since it was sent"


def test_nonsense_about_batches_changes_nothing() -> None:
    """Numbers that were never sent, halves of batches, and pullers that are none."""
    queue = queue_of(1, A)
    queue.push_block(1, BODY, 0, 0.0)
    for told in ([(0, 2)], [(5, 6)], [(1, 2)]):
        queue.taken(A, told, 0, 1.0)
    queue.taken(B, [(0, 1)], 1, 1.0)
    assert figures(queue) == (0, 0, 2)
    queue.taken(A, [], 100, 1.0)
    assert figures(queue) == (0, 1, 1), "what is not sent yet cannot be behind anybody"
    assert queue.head() is not None
    queue.sent(1.0)
    queue.taken(A, [], 0, 1.0)
    assert figures(queue) == (0, 1, 1), "nor when it is sent later"


def test_a_puller_that_moves_is_the_same_puller() -> None:
    """What it has, or may still get, is not lost because it is reached elsewhere."""
    queue = queue_of(2, A)
    queue.join(A, "elsewhere")
    send(queue, 1)
    queue.taken(A, [(1, 2)], 2, 1.0)
    assert figures(queue) == (1, 1, 1)
    assert queue.targets[A].endpoint == "elsewhere"


class Reader:
    """A puller, what it says, and batches for it."""

    def __init__(self) -> None:
        self.told: list[PlainRecord] = []
        self.sink = PlainSink(
            1, "q", ("tcp://x:1",), Config(), lambda _, record: self.told.append(record), lambda: None
        )
        self.sink.offered(PUSHER)
        assert self.said() == [PlainPull(1, "q", ("tcp://x:1",))]

    def said(self) -> list[PlainRecord]:
        """What was said since the last time."""
        told, self.told = self.told, []
        return told

    def receive(self, base: int, now: float) -> None:
        """A batch of ten jobs."""
        assert self.sink.received(PUSHER, Batch("q", PUSHER, 0, base, 10, 0, b"", None, (), 100), now)


def test_readers_tell_what_they_are_through_with() -> None:
    """Together, after a while; and how far they are, for what never came."""
    reader = Reader()
    reader.receive(0, 0.0)
    reader.receive(30, 0.0)
    for _ in range(2):
        assert reader.sink.take(1.0) is not None
        reader.sink.done(1.0)
    reader.sink.handle_timer(1.0)
    assert reader.said() == []
    reader.sink.handle_timer(reader.sink.timer())
    assert reader.said() == [PlainTaken(1, [(0, 10), (30, 40)], 40)]


def test_a_mark_is_answered_when_nothing_is_left_and_nothing_comes() -> None:
    """A batch that came meanwhile is a reason to wait, and one that nobody has read is, too."""
    reader = Reader()
    reader.sink.marked(PUSHER, 50, 0.0)
    reader.receive(20, SETTLE_S / 2)
    reader.sink.handle_timer(SETTLE_S)
    assert reader.said() == []
    reader.sink.handle_timer(SETTLE_S * 1.5)
    assert reader.said() == [], "nobody has read it"
    reader.sink.take(SETTLE_S)
    reader.sink.done(2 * SETTLE_S)
    reader.sink.handle_timer(3 * SETTLE_S)
    assert reader.said() == [PlainTaken(1, [(20, 30)], 50)]


def test_a_mark_is_not_answered_while_the_socket_is_not_read() -> None:
    """It is full of another pusher's jobs: this one's may wait behind them."""
    reader, other = Reader(), b"o" * 16
    reader.sink.offered(other)
    reader.said()
    big = Batch("q", other, 0, 0, 10, 0, b"", None, (), Config().credit_bytes)
    assert reader.sink.received(other, big, 0.0)
    reader.sink.marked(PUSHER, 50, 0.0)
    reader.sink.handle_timer(5 * SETTLE_S)
    assert reader.said() == []
    assert reader.sink.take(5.5 * SETTLE_S) is not None
    reader.sink.handle_timer(6 * SETTLE_S)
    assert reader.said() == [], "what waits in the socket needs a moment"
    reader.sink.handle_timer(6.5 * SETTLE_S)
    assert reader.said() == [PlainTaken(1, [], 50)]


def test_a_mark_waits_for_silence() -> None:
    """What was read as it came may be followed by more."""
    reader = Reader()
    reader.sink.marked(PUSHER, 50, 0.0)
    reader.receive(20, SETTLE_S / 2)
    reader.sink.take(SETTLE_S / 2)
    reader.sink.done(SETTLE_S / 2)
    reader.sink.handle_timer(SETTLE_S)
    assert reader.said() == [PlainTaken(1, [(20, 30)], 30)]
    reader.sink.handle_timer(SETTLE_S * 1.5)
    assert reader.said() == [PlainTaken(1, [], 50)]


def test_a_batch_of_another_queue_is_refused() -> None:
    """Though its pusher may push to this one."""
    refused: list[str] = []
    queues = PlainQueues(
        Config(), Effects(b"m" * 16), {}, lambda *_: None, lambda _, reason: refused.append(reason), lambda *_: None
    )
    sink = queues.pull(queues.next_number(), "q", ("tcp://x:1",), lambda: None)
    sink.offered(PUSHER)
    batch = Batch("other", PUSHER, 0, 0, 10, 0, b"", None, (), 100)
    queues.received(sink.number, cast("Any", SimpleNamespace(id=PUSHER)), batch, 0.0)
    assert "other" in refused[0]
    assert sink.take(0.0) is None


def test_many_batches_are_told_of_at_once() -> None:
    """Without a wait, when there are many; and in records of bounded length."""
    reader = Reader()
    for number in range(TAKEN_MAX + 1):
        reader.receive(10 * number, 0.0)
        reader.sink.take(0.0)
        reader.sink.done(0.0)
        assert (reader.sink.timer() == 0.0) == (number >= TAKEN_AT_ONCE - 1)
    reader.sink.handle_timer(0.0)
    first, rest = reader.said()
    assert isinstance(first, PlainTaken)
    assert (len(first.taken), first.before) == (TAKEN_MAX, 10 * TAKEN_MAX)
    assert rest == PlainTaken(1, [(10 * TAKEN_MAX, 10 * TAKEN_MAX + 10)], 10 * TAKEN_MAX + 10)


def test_jobs_of_strangers_are_not_taken() -> None:
    """Only who was told of this puller may push to it."""
    reader = Reader()
    assert not reader.sink.received(b"s" * 16, Batch("q", b"s" * 16, 0, 0, 10, 0, b"", None, (), 100), 0.0)
    assert reader.sink.take(0.0) is None


def test_a_puller_that_ends_tells_of_what_was_read_and_of_nothing_else() -> None:
    """What it leaves is the pusher's to count."""
    reader = Reader()
    for base in (0, 10):
        reader.receive(base, 0.0)
    reader.sink.take(0.0)
    reader.sink.done(0.0)
    reader.sink.close(0.0)
    assert reader.said() == [PlainTaken(1, [(0, 10)], 10), PlainEnd(1)]


def test_what_came_in_an_earlier_session_is_read_and_not_told() -> None:
    """The pusher has counted it as lost; its news would be about batches that it does not know."""
    reader = Reader()
    reader.receive(0, 0.0)
    reader.sink.lost(PUSHER)
    reader.sink.offered(PUSHER)
    reader.said()
    assert reader.sink.take(0.0) is not None
    reader.sink.done(0.0)
    reader.sink.marked(PUSHER, 10, 0.0)
    reader.sink.handle_timer(10.0)
    assert reader.said() == [PlainTaken(1, [], 10)]
