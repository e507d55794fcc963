"""The sending end: numbers, the window, history and who has what."""

from __future__ import annotations

from math import inf
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zfabric.config import Config
from zfabric.protocol.outbox import Outbox, Reader
from zfabric.wire.batch import FLAG_ACK_NOW, FLAG_RELIABLE, Batch, parse_batch
from zfabric.wire.records import Ack, PatternRequest, Start

CONFIG = Config()
_encode = msgspec.msgpack.Encoder().encode


def outbox(delivery: str = "at-least-once", **options: Any) -> Outbox:
    """An outbox of the topic `t`."""
    return Outbox("t", b"p" * 16, 1, delivery, CONFIG, with_crc=False, **options)


def publish(box: Outbox, count: int = 1, now: float = 0.0, size: int = 10) -> Batch:
    """Seal a batch of that many messages."""
    for _ in range(count):
        box.writer.buffer += _encode("x" * size)
        box.writer.count += 1
    frames = [bytes(frame) for frame in box.seal(int(now * 1e9), now)]
    return parse_batch(frames, messages_max=10_000, buffers_max=10, topic_bytes_max=255)


def read(box: Outbox, name: str = "r", start: int = 0, lane: int = 1, now: float = 0.0) -> Reader:
    """Attach a reader."""
    request = PatternRequest(lane, "t", "at-least-once")
    reader = Reader(name.encode().ljust(16, b"."), name, request, start, now)
    box.readers[reader.peer_id, lane] = reader
    box.remote[reader.peer_id, lane] = request
    box.count_listeners()
    return reader


def ack(received: int, processed: int = 0, ranges: list[tuple[int, int]] | None = None) -> Ack:
    """An acknowledgement."""
    return Ack(1, "t", 1, received, processed, ranges or [])


def test_numbers_follow_each_other() -> None:
    """Batches and skipped messages share one sequence."""
    box = outbox("at-most-once")

    assert [box.skip(), box.skip()] == [0, 1]
    sent = publish(box, 3)
    assert (sent.base, sent.count, box.next_seq, box.skipped) == (2, 3, 5, 2)


def test_a_best_effort_stream_keeps_nothing() -> None:
    """At-most-once needs no memory and is never full."""
    box = outbox("at-most-once")
    for _ in range(100):
        publish(box, size=1_000_000)

    assert (box.full, box.waiting_bytes, box.first_kept) == (False, 0, 100)


def test_batches_say_whether_they_can_be_repaired() -> None:
    """The flag is in the header, so a receiver knows without the topic's offer."""
    assert not publish(outbox("at-most-once")).flags & FLAG_RELIABLE
    assert publish(outbox()).flags & FLAG_RELIABLE


def test_the_window_fills_and_empties() -> None:
    """What is not processed counts: a subscriber that crashes needs it again. When it is, there is room again."""
    box = outbox(window_bytes=1000)
    reader = read(box)
    while not box.full:
        publish(box, size=100, now=5.0)
    assert 1000 <= box.waiting_bytes < 1300
    assert box.full_since == 5.0

    assert box.acknowledge(reader, ack(box.base), 5.5)
    assert box.full
    assert box.acknowledge(reader, ack(box.base, box.base), 6.0)

    assert (box.full, box.waiting_bytes, box.full_since) == (False, 0, inf)


def test_the_slowest_reader_counts() -> None:
    """The window waits for everybody."""
    box = outbox()
    fast, slow = read(box, "fast"), read(box, "slow", lane=2)
    publish(box, 5)

    box.acknowledge(fast, ack(5, 5), 0.0)
    assert box.received_by_all() == 0
    assert list(box.slowest()) == [slow]
    box.acknowledge(slow, ack(3, 2), 0.0)
    assert (box.received_by_all(), box.received_by_all(processed=True)) == (3, 2)


def test_a_half_full_window_asks_for_acks() -> None:
    """Before it is full, readers are asked not to delay their acks."""
    box = outbox(window_bytes=1000)
    read(box)

    flags = [bool(publish(box, size=150).flags & FLAG_ACK_NOW) for _ in range(5)]

    assert flags[0] is False
    assert flags[-1] is True


@pytest.mark.parametrize("wrong", [ack(6), ack(3, 4), ack(2**63)])
def test_impossible_acks_are_refused(wrong: Ack) -> None:
    """Nobody can acknowledge what was never sent, nor process what was not received."""
    box = outbox()
    reader = read(box)
    publish(box, 5)

    assert not box.acknowledge(reader, wrong, 0.0)
    assert reader.received == 0


def test_old_acks_change_nothing() -> None:
    """Acks may be reordered or repeated."""
    box = outbox()
    reader = read(box)
    publish(box, 5)
    box.acknowledge(reader, ack(5, 4), 0.0)

    assert box.acknowledge(reader, ack(2, 1), 0.0)
    assert (reader.received, reader.processed) == (5, 4)


@given(st.lists(st.tuples(*[st.integers(0, 2**64)] * 2), max_size=5))
def test_ranges_of_acks_are_not_trusted(ranges: list[tuple[int, int]]) -> None:
    """Backward, overlapping or impossible ranges are left out."""
    box = outbox()
    reader = read(box)
    publish(box, 10)

    assert box.acknowledge(reader, ack(2, 0, ranges), 0.0)
    assert all(2 < start < stop <= 10 for start, stop in reader.beyond)


def test_what_everybody_has_is_forgotten_or_becomes_history() -> None:
    """Without history nothing acknowledged is kept; with it, the last messages are."""
    plain, keeping = outbox(), outbox(history=10)
    for box in (plain, keeping):
        reader = read(box)
        for _ in range(10):
            publish(box, 3)
        box.acknowledge(reader, ack(30, 30), 0.0)

    assert plain.first_kept == 30
    assert 18 <= keeping.first_kept <= 20
    assert keeping.waiting_bytes == 0
    assert [sealed.base for sealed in keeping.kept_between(25, 28)] == [24, 27]


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        (Start(), 30),
        (Start("earliest"), 18),
        (Start("last", 5), 25),
        (Start("last", 500), 18),
        (Start("seq", 22), 22),
        (Start("since", 2.5), 24),
        (Start("since", 1000), 18),
        (Start("since", 0), 30),
    ],
)
def test_where_a_subscription_begins(start: Start, expected: int) -> None:
    """Every kind of start is a sequence number, within what is kept."""
    box = outbox(history=12)
    for second in range(10):
        publish(box, 3, now=float(second))

    assert box.start_of(start, 10.0) == expected


def test_a_reader_away_holds_the_window_until_it_is_dropped() -> None:
    """Dropping it tells what it never acknowledged, and frees the window."""
    box = outbox(window_bytes=100)
    reader = read(box)
    publish(box, 5, size=100)
    box.acknowledge(reader, ack(0), 0.0)
    assert box.full

    assert box.drop_reader(reader, 1.0) == (0, 5)
    assert (box.full, box.readers) == (False, {})


def test_a_full_local_subscription_is_back_pressure_too() -> None:
    """A node's own slow reader stops its reliable publisher like a remote one."""
    box = outbox()
    box.set_local_full(True, 1.0)
    assert box.full
    box.set_local_full(False, 2.0)
    assert not box.full


def test_positions_are_due_after_a_batch_only() -> None:
    """Somebody is told how far the stream has come soon after it moved."""
    box = outbox()
    assert box.timer() == inf
    read(box)

    publish(box, now=10.0)

    assert box.timer() == 10.0 + CONFIG.position_interval_s
