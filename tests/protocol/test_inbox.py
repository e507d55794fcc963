"""The receiving end: what is new, what is missing, what is due."""

from __future__ import annotations

import random
from collections.abc import Iterator
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zfabric.config import Config
from zfabric.protocol.inbox import Inbox, ReliableInbox
from zfabric.wire.batch import FLAG_ACK_NOW, FLAG_RELIABLE, Batch
from zfabric.wire.records import RANGES_MAX

CONFIG = Config()


class Mean:
    """No jitter."""

    def random(self) -> float:
        """Always the middle."""
        return 0.5


def batch(base: int, count: int = 1, *, epoch: int = 1, nbytes: int = 100, flags: int = FLAG_RELIABLE) -> Batch:
    """A batch whose contents do not matter."""
    return Batch("t", b"p" * 16, epoch, base, count, 0, b"", None, (), nbytes, flags)


# -- at-most-once ------------------------------------------------------------------------------


def test_a_stream_without_holes_has_no_gaps() -> None:
    """Batches that follow each other are new, one after the other."""
    inbox = Inbox(1)

    assert [inbox.accept(batch(base, 2)) for base in (10, 12, 14)] == [(True, None)] * 3


@pytest.mark.parametrize(("base", "expected"), [(5, (True, (2, 4))), (2, (True, None)), (1, (False, None))])
def test_where_a_batch_stands_decides(base: int, expected: tuple[bool, tuple[int, int] | None]) -> None:
    """Later than expected: a gap. As expected: new. Earlier: not new."""
    inbox = Inbox(1)
    inbox.anchor(1, 2, 0.0)

    assert inbox.accept(batch(base)) == expected


def test_an_anchor_finds_the_loss_of_the_first_batch() -> None:
    """After ATTACHED even the very first message is missed when it does not come."""
    inbox = Inbox(1)
    inbox.anchor(1, 0, 0.0)

    assert inbox.accept(batch(3)) == (True, (0, 2))


def test_an_anchor_that_comes_late_shows_what_was_lost_before_it() -> None:
    """Batches may overtake ATTACHED: what lies between its position and the first of them was lost, told once."""
    inbox = Inbox(1)
    inbox.accept(batch(7))

    assert inbox.anchor(1, 3, 0.0) == (3, 6)
    assert inbox.anchor(1, 3, 0.0) is None
    assert inbox.accept(batch(8)) == (True, None)


def test_a_new_epoch_begins_anew() -> None:
    """A publisher that opened its topic again starts over from 0; the old epoch's stragglers are not new."""
    inbox = Inbox(1)
    inbox.accept(batch(100))
    inbox.heard(1, 105, 0.0)

    assert inbox.renew(2) == (101, 104)
    assert inbox.accept(batch(101, epoch=1)) == (False, None)
    assert inbox.accept(batch(2, epoch=2)) == (True, (0, 1))
    assert inbox.accept(batch(3, epoch=2)) == (True, None)


def test_a_loss_at_the_end_is_known_after_a_while() -> None:
    """What the publisher told of and did not come in Config.gap_settle_s is lost."""
    inbox = Inbox(1)
    inbox.anchor(1, 0, 0.0)
    inbox.accept(batch(0, 3))
    inbox.heard(1, 5, 10.0)

    assert inbox.behind
    assert inbox.timer(CONFIG) == 10.0 + CONFIG.gap_settle_s
    assert inbox.overdue(CONFIG, 10.0) is None
    assert inbox.overdue(CONFIG, 10.0 + CONFIG.gap_settle_s) == (3, 4)
    assert (inbox.behind, inbox.timer(CONFIG)) == (False, inf)


def test_what_arrives_in_time_is_not_lost() -> None:
    """Positions that come before their batches do no harm."""
    inbox = Inbox(1)
    inbox.anchor(1, 0, 0.0)
    inbox.heard(1, 5, 10.0)

    assert inbox.accept(batch(0, 5)) == (True, None)
    assert inbox.timer(CONFIG) == inf
    assert inbox.overdue(CONFIG, 100.0) is None
    assert inbox.close() is None


def test_closing_tells_what_is_missing() -> None:
    """When the producer is gone, so is what it had announced."""
    inbox = Inbox(1)
    inbox.anchor(1, 0, 0.0)
    inbox.heard(1, 5, 10.0)

    assert inbox.close() == (0, 4)
    assert inbox.close() is None


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 5)), max_size=30))
def test_what_is_new_and_what_is_missing_never_overlap(bases: list[tuple[int, int]]) -> None:
    """For any order of arrival no number is delivered twice, nor both delivered and reported missing."""
    inbox = Inbox(1)
    seen: list[int] = []
    for base, count in bases:
        new, gap = inbox.accept(batch(base, count))
        if gap is not None:
            seen += range(gap[0], gap[1] + 1)
        if new:
            seen += range(base, base + count)

    assert len(seen) == len(set(seen))
    assert seen == sorted(seen)


# -- reliable ----------------------------------------------------------------------------------


def reliable(position: int | None = 0) -> ReliableInbox:
    """An inbox that stands at a position."""
    inbox = ReliableInbox(1, "t", 1, CONFIG, Mean())
    if position is not None:
        inbox.anchor(position, 0.0)
        assert inbox.take_ack(0.0) is not None
    return inbox


def drained(inbox: ReliableInbox, now: float = 0.0) -> Iterator[int]:
    """The numbers that can be handed on now."""
    while (got := inbox.next_batch()) is not None:
        yield from range(got.base + got.skip, got.end)
    inbox.delivered(now)


def test_batches_wait_until_the_anchor_tells_where_to_begin() -> None:
    """Live data may overtake ATTACHED; what is older than the position is not delivered."""
    inbox = reliable(None)
    for base in (4, 6, 5):
        inbox.accept(batch(base), 0.0)
    assert list(drained(inbox)) == []

    inbox.anchor(5, 0.0)

    assert list(drained(inbox)) == [5, 6]


def test_order_is_restored() -> None:
    """Whatever order batches come in, they leave in theirs, once."""
    inbox = reliable()
    out: list[int] = []
    for base in (2, 0, 2, 4, 3, 1, 0):
        inbox.accept(batch(base), 0.0)
        out += drained(inbox)

    assert out == [0, 1, 2, 3, 4]
    assert inbox.duplicates == 2


def test_a_batch_that_overlaps_is_cut() -> None:
    """Repairs come in the publisher's batches: the part that was had already is skipped."""
    inbox = reliable(3)

    inbox.accept(batch(0, 6), 0.0)

    assert list(drained(inbox)) == [3, 4, 5]


def test_a_hole_is_asked_for_after_a_moment_and_again() -> None:
    """First a jittered delay, then retries with growing pauses, up to a longest one."""
    inbox = reliable()
    inbox.accept(batch(3, 2), 0.0)
    now, pauses = 0.0, []
    for _ in range(12):
        due = inbox.timer()
        pauses.append(due - now)
        now = due
        repair = inbox.take_repair(now, has_room=True)
        assert repair is not None
        assert repair.ranges == [(0, 3)]

    assert pauses[0] <= 1.5 * CONFIG.repair_delay_s
    assert pauses[1] == pytest.approx(CONFIG.repair_retry_s)
    assert pauses == pytest.approx(sorted(pauses))
    assert pauses[-1] == pytest.approx(CONFIG.repair_retry_s_max)


def test_a_hole_that_closes_is_not_asked_for() -> None:
    """Reordering alone causes no repair."""
    inbox = reliable()
    inbox.accept(batch(1), 0.0)
    inbox.accept(batch(0), 0.0)
    assert list(drained(inbox)) == [0, 1]

    assert inbox.take_repair(1.0, has_room=True) is None


def test_without_room_nothing_is_asked_for() -> None:
    """A full subscription does not fetch what it could not take."""
    inbox = reliable()
    inbox.accept(batch(3), 0.0)

    assert inbox.take_repair(1.0, has_room=False) is None
    assert inbox.take_repair(100.0, has_room=True) is not None


def test_the_last_message_is_missed_too() -> None:
    """A position beyond what is here makes repair due, and one that is not makes an ack due."""
    inbox = reliable()
    inbox.heard(0, 3, 0.0)
    repair = inbox.take_repair(1.0, has_room=True)
    assert repair is not None and repair.ranges == [(0, 3)]

    inbox.accept(batch(0, 3), 1.0)
    list(drained(inbox, 1.0))
    assert inbox.take_ack(2.0) is not None
    assert inbox.take_ack(3.0) is None
    inbox.heard(0, 3, 4.0)
    assert inbox.take_ack(5.0) is not None


@pytest.mark.parametrize("told", ["missing", "first_kept"])
def test_what_is_gone_is_told_when_its_turn_comes(told: str) -> None:
    """A range that the publisher cannot repair becomes a gap at its place in the order."""
    inbox = reliable()
    inbox.accept(batch(5), 0.0)
    if told == "missing":
        inbox.missing(0, 5, "expired", 0.0)
    else:
        inbox.heard(5, 6, 0.0)

    assert inbox.next_gap() == (0, 5, "expired")
    assert list(drained(inbox)) == [5]
    assert inbox.next_gap() is None


def test_nobody_waits_for_ever_for_an_answer() -> None:
    """After Config.repair_attempts_max requests without any answer the first hole is given up."""
    inbox = reliable()
    inbox.accept(batch(2), 0.0)
    now = 0.0
    for _ in range(CONFIG.repair_attempts_max + 1):
        assert not inbox.give_up(now)
        now = inbox.timer()
        inbox.take_repair(now, has_room=True)

    assert inbox.give_up(now)
    assert inbox.next_gap() == (0, 2, "unanswered")


def test_acks_wait_for_more_unless_somebody_waits_for_them() -> None:
    """An ack is delayed by Config.ack_delay_s, but not if the batch asked for it."""
    inbox = reliable()
    inbox.accept(batch(0), 10.0)
    list(drained(inbox, 10.0))
    assert inbox.take_ack(10.0) is None
    assert inbox.timer() == 10.0 + CONFIG.ack_delay_s
    ack = inbox.take_ack(10.0 + CONFIG.ack_delay_s)
    assert ack is not None and (ack.received, ack.processed) == (1, 0)

    inbox.accept(batch(1, flags=FLAG_RELIABLE | FLAG_ACK_NOW), 20.0)
    list(drained(inbox, 20.0))
    ack = inbox.take_ack(20.0)
    assert ack is not None and ack.received == 2


def test_acks_tell_what_is_processed() -> None:
    """Received and processed are different promises."""
    inbox = reliable()
    inbox.accept(batch(0, 5), 0.0)
    list(drained(inbox))
    inbox.was_processed(3, 1.0)
    inbox.was_processed(2, 1.0)

    ack = inbox.take_ack(2.0)
    assert ack is not None and (ack.received, ack.processed) == (5, 3)


def test_acks_name_what_is_here_beyond_a_hole() -> None:
    """So the publisher need not send it again; the list is bounded."""
    inbox = reliable()
    for base in range(2, 2 + 4 * RANGES_MAX, 2):
        inbox.accept(batch(base), 0.0)
    inbox.anchor(0, 0.0)

    ack = inbox.take_ack(1.0)
    assert ack is not None and ack.received == 0
    assert ack.ranges[:2] == [(2, 3), (4, 5)]
    assert len(ack.ranges) == RANGES_MAX


def test_the_reorder_buffer_is_bounded() -> None:
    """Beyond Config.reorder_bytes batches are not kept; they count as known and are asked for again."""
    inbox = reliable()
    big = CONFIG.reorder_bytes // 2
    for base in (1, 2, 3, 4):
        inbox.accept(batch(base, nbytes=big), 0.0)

    assert inbox.pending_bytes <= CONFIG.reorder_bytes
    repair = inbox.take_repair(1.0, has_room=True)
    assert repair is not None and repair.ranges[0] == (0, 1) and repair.ranges[-1][1] == 5


def test_a_renewed_stream_tells_what_the_old_one_still_owed() -> None:
    """When the publisher begins anew, what it had announced and not delivered is lost."""
    inbox = reliable()
    inbox.accept(batch(4), 0.0)

    assert inbox.renew(2) == (0, 4)
    assert (inbox.epoch, inbox.expected) == (2, None)


def test_closing_reports_holes_and_keeps_what_is_here() -> None:
    """When the publisher is gone, the rest is delivered around the holes."""
    inbox = reliable()
    inbox.accept(batch(2, 2), 0.0)
    inbox.heard(0, 6, 0.0)
    inbox.close(0.0)

    assert inbox.next_gap() == (0, 2, "closed")
    assert list(drained(inbox)) == [2, 3]
    assert inbox.next_gap() == (4, 6, "closed")
    assert not inbox.behind


@given(st.randoms(use_true_random=False), st.integers(1, 40))
def test_a_lossy_shuffling_doubling_network_loses_nothing(rng: random.Random, count: int) -> None:
    """With a publisher that answers repairs, every message leaves the inbox once and in order."""
    inbox = reliable()
    out: list[int] = []
    now = 0.0
    inbox.heard(0, count, now)
    flying = [batch(base) for base in range(count) for _ in range(rng.choice([0, 1, 1, 2]))]
    rng.shuffle(flying)
    while len(out) < count:
        for got in flying:
            inbox.accept(got, now)
            out += drained(inbox, now)
        now = max(now, inbox.timer())
        inbox.take_ack(now)
        repair = inbox.take_repair(now, has_room=True)
        asked = [base for start, stop in (repair.ranges if repair is not None else []) for base in range(start, stop)]
        flying = [batch(base) for base in asked if rng.random() < 0.7]
        rng.shuffle(flying)

    assert out == list(range(count))
