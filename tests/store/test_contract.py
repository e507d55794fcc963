"""The contract of a log, on every engine."""

from __future__ import annotations

import itertools
from typing import Any

import msgspec
import pytest

from tests.store.conftest import Time
from tests.store.support import P1, P2, append, keyed, messages, one, read_all, stored
from zfabric.errors import NotStored, OutOfSequence, PositionFenced, ProducerFenced, StoreFailed, TopicError
from zfabric.security.keys import FabricKey
from zfabric.store import Commit, Gap, Key, Log, Mark, Position, PositionUpdate, Retention, StoredBatch
from zfabric.wire.batch import BatchWriter

# -- appending -------------------------------------------------------------------------------------


def test_offsets_follow_each_other_in_each_stream(log: Log) -> None:
    """Every append gets the offsets after those before it in its stream, also within one commit."""
    outcome = one(log, append("a", 0, 3), append("b", 0, 2), append("a", 3, 4))
    later = one(log, append("b", 2, 5))

    assert [appended.offset for appended in outcome] == [0, 0, 3]
    assert [appended.offset for appended in later] == [2]
    assert [(info.name, info.first, info.next) for info in log.streams()] == [("a", 0, 7), ("b", 0, 7)]


def test_a_batch_comes_back_as_it_was(log: Log, time: Time) -> None:
    """Frames, keys and everything that was said about a batch are read unchanged, with the time it was stored."""
    sent = keyed("a", 0, "xyx", deletes="y")
    sent = append("a", 0, 3, frames=[b"head", bytearray(b""), memoryview(b"buffer")], keys=sent.keys)  # type: ignore[list-item]

    one(log, sent)

    (batch,) = log.read("a", 0, 1)
    assert isinstance(batch, StoredBatch)
    assert batch.frames == (b"head", b"", b"buffer")
    assert batch.keys == tuple(sent.keys)
    assert (batch.producer, batch.epoch, batch.base, batch.count, batch.next) == (P1, 1, 0, 3, 3)
    assert (batch.published_ns, batch.stored_ns, batch.flags, batch.dropped) == (1, time.wall_ns, 0, ())


def test_a_repeated_batch_is_confirmed_and_not_stored_again(log: Log) -> None:
    """A batch below its producer's mark is there already."""
    one(log, append("a", 0, 5))
    one(log, append("a", 5, 5))

    outcome = one(log, append("a", 0, 5), append("a", 5, 5), append("a", 10, 1))

    assert [appended.duplicate for appended in outcome] == [True, True, False]
    assert messages(log, "a") == list(range(11))


def test_a_batch_repeated_within_one_group_is_stored_once(log: Log) -> None:
    """Marks count at once, also for commits that share a flush."""
    first, second = log.commit([Commit([append("a", 0, 5)]), Commit([append("a", 0, 5)])])

    assert not isinstance(first, NotStored) and not first[0].duplicate
    assert not isinstance(second, NotStored) and second[0].duplicate
    assert messages(log, "a") == list(range(5))


@pytest.mark.parametrize(("base", "count"), [(3, 4), (6, 1), (4, 2)])
def test_a_batch_out_of_sequence_is_refused(log: Log, base: int, count: int) -> None:
    """A batch that overlaps the mark or leaves a gap is refused, with what should come."""
    one(log, append("a", 0, 5))

    with pytest.raises(OutOfSequence) as refused:
        one(log, append("a", base, count))

    assert (refused.value.expected, refused.value.base, refused.value.stream) == (5, base, "a")
    assert messages(log, "a") == list(range(5))


def test_an_unknown_producer_begins_at_0(log: Log) -> None:
    """A producer that the log does not know cannot begin in the middle: what was before might be lost."""
    one(log, append("a", 0, 5))

    with pytest.raises(OutOfSequence) as refused:
        one(log, append("a", 7, 1, producer=P2))

    assert refused.value.expected == 0


def test_an_unknown_producer_may_begin_where_it_is(log: Log) -> None:
    """When it says so: then nothing that was before can come, and what follows must follow."""
    one(log, append("a", 0, 3, epoch=0))
    begun = msgspec.structs.replace(append("a", 7, 3), gone=0)

    assert [appended.offset for appended in one(log, begun)] == [3]
    assert one(log, begun)[0].duplicate
    for base, gone in ((5, 0), (12, 11), (12, None)):
        with pytest.raises(OutOfSequence) as refused:
            one(log, msgspec.structs.replace(append("a", base, 8), gone=gone))
        assert refused.value.expected == 10
    assert one(log, append("a", 10, 1))[0].offset == 6


def test_a_known_producer_may_go_on_behind_what_is_gone(log: Log) -> None:
    """A log that was put back, or away for long, goes on; but not while something before the hole may still come."""
    one(log, append("a", 0, 5))
    later = append("a", 9, 1)
    with pytest.raises(OutOfSequence):
        one(log, msgspec.structs.replace(later, gone=7))

    assert one(log, msgspec.structs.replace(later, gone=5))[0].offset == 5
    assert log.marks("a")[P1].next == 10


def test_a_newer_epoch_fences_the_older(log: Log) -> None:
    """Once a producer came back with a newer epoch, which begins at 0, its older self is refused, repeats also."""
    one(log, append("a", 0, 5, epoch=1))
    with pytest.raises(OutOfSequence):
        one(log, append("a", 5, 1, epoch=2))

    one(log, append("a", 0, 2, epoch=2))

    for base in (0, 5):
        with pytest.raises(ProducerFenced) as refused:
            one(log, append("a", base, 5, epoch=1))
        assert (refused.value.epoch, refused.value.current) == (1, 2)
    assert log.mark(P1, "a") == Mark(2, 2)
    assert log.marks("a") == {P1: Mark(2, 2)}


def test_a_commit_happens_as_a_whole(log: Log) -> None:
    """When one part is refused nothing of that commit is there, and the commits beside it are stored."""
    one(log, append("a", 0, 1))

    outcomes = log.commit(
        [
            Commit([append("b", 0, 1)]),
            Commit([append("c", 0, 1), append("a", 9, 1)], [PositionUpdate("p", b"1")]),
            Commit([append("a", 1, 1)], [PositionUpdate("q", b"2")]),
        ]
    )

    assert [isinstance(outcome, NotStored) for outcome in outcomes] == [False, True, False]
    assert [info.name for info in log.streams()] == ["a", "b"]
    assert log.position("p") is None
    assert log.position("q") == Position(b"2", 0)
    assert messages(log, "a") == [0, 1]


def test_what_is_no_topic_or_no_batch_is_refused(log: Log) -> None:
    """A stream has the name of a topic and a batch has messages; a refusal harms nobody else."""
    outcomes = log.commit([Commit([append("a b", 0, 1)]), Commit([append("a", 0, 0)]), Commit([append("a", 0, 1)])])

    assert [isinstance(outcome, NotStored) for outcome in outcomes] == [True, True, False]
    with pytest.raises(TopicError):
        log.retain("a b", Retention())


@pytest.mark.parametrize(
    "wrong",
    [
        {"base": -1},
        {"epoch": 2**62 + 1},
        {"published_ns": 2**63},
        {"published_ns": -1},
        {"stored_ns": 2**63},
        {"flags": 2**31},
        {"producer": b"short"},
    ],
    ids=str,
)
def test_numbers_that_no_engine_can_keep_are_refused(log: Log, wrong: dict[str, Any]) -> None:
    """Whatever a batch says, only its own commit is refused, and the log goes on."""
    forged = msgspec.structs.replace(append("a", 0), **wrong)

    outcomes = log.commit([Commit([forged]), Commit([append("a", 0)])])

    assert [isinstance(outcome, NotStored) for outcome in outcomes] == [True, False]
    assert messages(log, "a") == [0]


# -- positions -------------------------------------------------------------------------------------


def test_positions_are_kept_by_name(log: Log) -> None:
    """A position is written, replaced, deleted and found by the beginning of its name."""
    log.commit(
        [Commit(positions=[PositionUpdate("g/1", b"x"), PositionUpdate("g/2", b"y"), PositionUpdate("h", b"z")])]
    )
    log.commit([Commit(positions=[PositionUpdate("g/2", None)])])

    assert log.position("g/1") == Position(b"x", 0)
    assert log.positions("g/") == {"g/1": Position(b"x", 0)}
    assert list(log.positions()) == ["g/1", "h"]
    assert log.position("nobody") is None


def test_a_stale_epoch_cannot_write_a_position(log: Log) -> None:
    """The highest epoch that wrote a position owns it until it is deleted; its appends are refused with it."""
    log.commit([Commit(positions=[PositionUpdate("p", b"2", 2)])])
    log.commit([Commit(positions=[PositionUpdate("p", b"3", 3)])])

    (refused,) = log.commit([Commit([append("out", 0)], [PositionUpdate("p", None, 2)])])

    assert isinstance(refused, PositionFenced)
    assert (refused.epoch, refused.current) == (2, 3)
    assert log.info("out") is None
    assert log.position("p") == Position(b"3", 3)

    deleted, again = log.commit(
        [Commit(positions=[PositionUpdate("p", None, 3)]), Commit(positions=[PositionUpdate("p", b"1", 1)])]
    )

    assert deleted == again == ()
    assert log.position("p") == Position(b"1", 1)


def test_an_epoch_takes_over_within_one_group(log: Log) -> None:
    """Of two commits in one group the later sees the epoch of the earlier."""
    first, second = log.commit(
        [Commit(positions=[PositionUpdate("p", b"new", 5)]), Commit(positions=[PositionUpdate("p", b"old", 4)])]
    )

    assert first == ()
    assert isinstance(second, PositionFenced)
    assert log.position("p") == Position(b"new", 5)


# -- reading ---------------------------------------------------------------------------------------


def test_reading_goes_on_where_it_stopped(log: Log) -> None:
    """Reading from any offset gives the batch that covers it and all that follow, in pieces of about the given size."""
    for base in range(0, 100, 5):
        one(log, append("a", base, 5), append("other", base, 5))

    assert messages(log, "a") == list(range(100))
    for offset in (0, 1, 4, 5, 42, 99):
        (first, *_) = log.read("a", offset, 1)
        assert first.offset == offset - offset % 5
    assert len(log.read("a", 0, 1)) == 1
    assert 2 <= len(log.read("a", 0, 3 * 64)) <= 4
    assert log.read("a", 100, 1000) == []
    assert log.read("nobody", 0, 1000) == []


def test_time_finds_an_offset(log: Log, time: Time) -> None:
    """The first message stored at or after a time is found; after the last one it is the next offset."""
    times = []
    for base in range(0, 40, 2):
        times.append(time.wall_ns)
        one(log, append("a", base, 2), append("b", base, 2))
        time.pass_s(10)

    for place, stored_ns in enumerate(times):
        assert log.offset_at("a", stored_ns) == 2 * place
        assert log.offset_at("a", stored_ns - 1) == 2 * place
        assert log.offset_at("a", stored_ns + 1) == 2 * place + 2
    assert log.offset_at("a", 0) == 0
    assert log.offset_at("nobody", 0) == 0


def test_the_clock_may_be_set(log: Log, time: Time) -> None:
    """When the time of day is set, forwards or backwards, messages stay in order of the time they were stored at."""
    stored_at = []
    for base, jump_s in enumerate([0, -3600, 7200, -(10**6)]):
        time.wall_ns += jump_s * 10**9
        time.pass_s(1)
        one(log, append("a", base))
        stored_at.append(read_all(log, "a")[-1].stored_ns)  # type: ignore[union-attr]

    assert [late - early for early, late in itertools.pairwise(stored_at)] == [10**9] * 3


def test_the_last_n_messages(log: Log) -> None:
    """The offset from which on the newest N messages are."""
    one(log, append("a", 0, 7), append("a", 7, 3))

    assert [log.offset_of_last("a", n) for n in (0, 1, 4, 10, 11)] == [10, 9, 6, 0, 0]
    assert log.offset_of_last("nobody", 5) == 0


def test_the_last_of_each_key(log: Log) -> None:
    """The offset of the newest message of each key; deleted keys are left out, and come back when written again."""
    one(log, keyed("a", 0, "abca"))
    one(log, keyed("a", 4, "cde"))
    one(log, keyed("a", 7, "dae", deletes="de"))
    for base in range(10, 60, 5):
        one(log, append("a", base, 5))
    one(log, keyed("a", 60, "e"))

    assert log.last_per_key("a") == {b"a": 8, b"b": 1, b"c": 4, b"e": 60}
    log.trim("a", 5)
    assert log.last_per_key("a") == {b"a": 8, b"e": 60}
    assert log.last_per_key("nobody") == {}


# -- forgetting ------------------------------------------------------------------------------------


def test_trimmed_offsets_are_a_gap(log: Log) -> None:
    """What was trimmed is told as expired; the rest can be read, and offsets go on."""
    for base in range(0, 100, 5):
        one(log, append("a", base, 5), append("b", base, 5))

    assert log.trim("a", 42) == 42

    assert log.read("a", 0, 1)[0] == Gap("a", 0, 42, "expired")
    assert messages(log, "a") == list(range(40, 100))
    assert messages(log, "b") == list(range(100))
    assert log.trim("a", 10) == 42
    assert log.trim("a", 1000) == 100
    assert one(log, append("a", 100))[0].offset == 100
    assert log.trim("nobody", 5) == 0


def test_purge_forgets_messages_but_not_marks(log: Log) -> None:
    """After a purge the stream is empty, its offsets go on, and a repeated batch is still known."""
    stored(log, "a", range(50))

    assert log.purge("a") == 50

    assert read_all(log, "a") == [Gap("a", 0, 50, "expired")]
    assert one(log, append("a", 49))[0].duplicate
    assert one(log, append("a", 50))[0].offset == 50
    assert messages(log, "a") == [50]
    assert log.purge("nobody") == 0


def test_delete_forgets_everything(log: Log) -> None:
    """A deleted stream is gone; one of the same name begins anew."""
    stored(log, "a", range(50))
    stored(log, "b", range(5))

    log.delete("a")
    log.delete("nobody")

    assert [info.name for info in log.streams()] == ["b"]
    assert log.mark(P1, "a") is None
    assert log.read("a", 0, 1) == []
    stored(log, "a", range(3))
    assert messages(log, "a") == [0, 1, 2]
    assert messages(log, "b") == list(range(5))


def test_skipped_offsets_are_no_loss(log: Log) -> None:
    """Offsets may be left out; readers step over them."""
    stored(log, "a", range(3))

    log.skip("a", 10)
    log.skip("a", 5)
    one(log, append("a", 3, 2))

    assert messages(log, "a") == [0, 1, 2, 10, 11]
    assert all(isinstance(item, StoredBatch) for item in read_all(log, "a"))
    log.skip("new", 7)
    assert one(log, append("new", 0))[0].offset == 7


@pytest.mark.parametrize(
    ("retention", "expected"),
    [
        (Retention(), 0),
        (Retention(messages=7), 33),
        (Retention(bytes=64 * 9), 31),
        (Retention(age_s=100), 30),
        (Retention(age_s=100, messages=3), 37),
        (Retention(messages=1000, bytes=10**6, age_s=10**6), 0),
        (Retention(age_s=0.5), 40),
    ],
)
def test_retention_lets_the_oldest_go(log: Log, time: Time, retention: Retention, expected: int) -> None:
    """Age, bytes and messages each bound a stream on their own; other streams are not touched."""
    for base in range(40):
        one(log, append("a", base), append("b", base))
        time.pass_s(10)
    log.retain("a", retention)

    log.enforce()

    info = log.info("a")
    assert info is not None and info.retention == retention
    assert info.first == expected
    assert messages(log, "a") == list(range(expected, 40))
    assert messages(log, "b") == list(range(40))


def test_the_log_tells_its_own_time(log: Log, time: Time) -> None:
    """That which batches are stored by: how old something is does not change when the clock is set."""
    stored(log, "a", range(1))
    time.pass_s(60)
    time.wall_ns -= 365 * 86_400 * 10**9
    stored(log, "a", range(1, 2))

    assert log.offset_at("a", log.now_ns() - 30 * 10**9) == 1
    assert log.offset_at("a", log.now_ns() - 90 * 10**9) == 0


def test_retention_survives_a_set_clock(log: Log, time: Time) -> None:
    """A clock that is set a year ahead does not empty a stream that keeps its messages for an hour."""
    log.retain("a", Retention(age_s=3600))
    stored(log, "a", range(20))

    time.wall_ns += 365 * 86_400 * 10**9
    log.enforce()

    assert messages(log, "a") == list(range(20))


def test_compaction_keeps_the_last_of_each_key(log: Log) -> None:
    """Values that a later one replaced go; messages without a key, and what may still be written to, stay."""
    for base in range(0, 600, 3):
        one(log, keyed("a", base, ["x", f"k{base}", "y"]), append("b", base, 3))
    one(log, append("a", 600, 2))
    last = log.last_per_key("a")

    log.compact("a")
    log.compact("a")

    left = messages(log, "a")
    assert set(last.values()) <= set(left)
    assert {base + 1 for base in range(0, 600, 3)} | {597, 599, 600, 601} <= set(left)
    assert all(isinstance(item, StoredBatch) for item in read_all(log, "a"))
    assert log.last_per_key("a") == last
    assert messages(log, "b") == list(range(600))
    for offset in range(0, 600, 50):
        assert log.read("a", offset, 1)[0].next > offset


def test_compaction_leaves_signed_batches_as_they_were(log: Log) -> None:
    """A batch without one of its values would verify no more: what was superseded is dropped by place only."""
    signed = FabricKey("plant", bytes(32)).signs()
    frames = {}
    for base in range(0, 300, 3):
        writer = BatchWriter("a", P1, 1, sign=signed)
        for place, key in enumerate(("x", f"k{base}", "y")):
            writer.buffer += bytes([0xC4, 100]) + bytes(100)
            writer.annotate(key, None, None)
            writer.count = place + 1
        frames[base] = bytes(writer.seal(base, 1)[0])
        keys = [Key(place, key.encode()) for place, key in enumerate(("x", f"k{base}", "y"))]
        one(log, append("a", base, 3, frames=[frames[base]], keys=keys))
    log.compact("a")
    log.compact("a")

    left = [item for item in read_all(log, "a") if isinstance(item, StoredBatch)]
    assert {item.base for item in left} == set(frames)
    assert all(bytes(item.frames[0]) == frames[item.base] for item in left)
    assert sum(bool(item.dropped) for item in left) > 50
    assert {base + 1 for base in frames} <= set(messages(log, "a"))


@pytest.mark.parametrize("log", ["memory", "sqlite-small-files"], indirect=True)
def test_tombstones_outlive_what_they_delete(log: Log, time: Time) -> None:
    """A deleted key is compacted away at once, its tombstone after `tombstone_s`."""
    log.retain("a", Retention(compact=True, tombstone_s=100))
    one(log, keyed("a", 0, "x"))
    one(log, keyed("a", 1, "x", deletes="x"))
    stored_filler(log, 2)

    log.compact("a")
    assert [offset for offset in messages(log, "a") if offset < 2] == [1]

    time.pass_s(101)
    log.compact("a")
    assert [offset for offset in messages(log, "a") if offset < 2] == []
    assert log.last_per_key("a") == {b"other": 101}
    assert messages(log, "a")[-1] == 101


def stored_filler(log: Log, base: int) -> None:
    """A hundred more batches of another key."""
    for offset in range(base, base + 100):
        one(log, keyed("a", offset, ["other"]))


def test_a_closed_log_says_so(log: Log) -> None:
    """Nothing is stored after `close()`, which may be called twice."""
    log.close()
    log.close()

    with pytest.raises(StoreFailed, match="closed"):
        log.commit([Commit([append("a", 0)])])
