"""The log on disk: its files, and what opening it finds."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from unittest.mock import Mock

import msgspec
import pytest

from tests.store.conftest import SMALL, Time
from tests.store.support import P1, P2, append, keyed, messages, one, read_all, stored
from tests.waiting import wait_until
from zfabric import Config
from zfabric.errors import NotStored, OutOfSequence, StoreDamaged, StoreFailed, StoreLocked, StoreNotFound
from zfabric.store import Commit, Key, Mark, Position, PositionUpdate, Retention, StoredBatch, directory, open_log
from zfabric.store.memory import MemoryLog
from zfabric.store.sqlite import SqliteLog
from zfabric.wire.batch import BatchWriter, Meta, parse_batch

Reopen = Callable[..., SqliteLog]


def names(path: Path) -> list[str]:
    """The files of batches in a store's directory."""
    return sorted(entry.name for entry in path.glob("*.db"))


def test_everything_is_there_after_reopening(reopen: Reopen, time: Time) -> None:
    """Batches, marks, positions, retention and the end of each stream survive closing, over many files."""
    log = reopen()
    for base in range(0, 300, 5):
        one(log, append("a", base, 5), keyed("b", base, "abcde"))
        time.pass_s(1)
    log.commit([Commit(positions=[PositionUpdate("p", b"1", 7)])])
    log.retain("a", Retention(age_s=1e6))
    log.trim("b", 250)
    before = log.streams(), read_all(log, "a"), read_all(log, "b"), log.last_per_key("b")

    log = reopen()

    assert (log.streams(), read_all(log, "a"), read_all(log, "b"), log.last_per_key("b")) == before
    assert log.mark(P1, "a") == Mark(1, 300)
    assert log.position("p") == Position(b"1", 7)
    assert one(log, append("a", 300), append("a", 0, 5))[1].duplicate
    assert log.damage == ()


def test_a_full_file_is_sealed_and_removed_when_nobody_needs_it(reopen: Reopen, tmp_path: Path) -> None:
    """`Config.store_segment_bytes` bounds a file; retention removes whole files and nothing else."""
    log = reopen()
    stored(log, "a", range(200))
    many = names(tmp_path / "again")

    log.trim("a", 190)

    assert len(many) > 4
    assert len(names(tmp_path / "again")) <= 2
    assert messages(log, "a") == list(range(190, 200))


def test_few_files_are_open(reopen: Reopen, tmp_path: Path) -> None:
    """`Config.store_open_files_max` bounds the descriptors of a long log."""
    log = reopen(store_open_files_max=2)
    stored(log, "a", range(200))
    assert len(names(tmp_path / "again")) > 5

    assert messages(log, "a") == list(range(200))

    held = {link.readlink() for link in Path("/proc/self/fd").iterdir() if link.is_symlink()}
    assert 1 <= len([path for path in held if path.is_relative_to(tmp_path) and path.suffix == ".db"]) <= 3


def test_streams_are_bounded(reopen: Reopen) -> None:
    """`Config.store_streams_max` bounds the streams; those that are there go on."""
    log = reopen(store_streams_max=2)
    outcomes = log.commit(
        [Commit([append("a", 0)]), Commit([append("b", 0), append("c", 0)]), Commit([append("b", 0)])]
    )

    assert [isinstance(outcome, NotStored) for outcome in outcomes] == [False, True, False]
    with pytest.raises(Exception, match="store_streams_max"):
        log.retain("c", Retention())
    stored(log, "a", range(1, 5))


def test_marks_are_bounded(reopen: Reopen) -> None:
    """`Config.store_marks_max` marks survive the sealing of a file: those used last."""
    log = reopen(store_marks_max=2)
    for producer in (b"3" * 16, P2, P1):
        one(log, append("a", 0, producer=producer))
    while log.mark(b"3" * 16, "a"):
        one(log, append("a", log.marks("a")[P1].next))

    assert set(log.marks("a")) == {P1, P2}
    with pytest.raises(OutOfSequence):  # it may be one that was forgotten
        one(log, msgspec.structs.replace(append("a", 7, producer=b"3" * 16), gone=0))


def test_marks_are_bounded_in_memory() -> None:
    """As on disk."""
    log = MemoryLog(Config(store_marks_max=2))
    for producer in (b"3" * 16, P2, P1, P2):
        one(log, append("a", 0, producer=producer))

    assert set(log.marks("a")) == {P1, P2}
    with pytest.raises(OutOfSequence):
        one(log, msgspec.structs.replace(append("a", 7, producer=b"3" * 16), gone=0))


def test_the_write_ahead_log_is_folded(reopen: Reopen, tmp_path: Path) -> None:
    """After `Config.store_checkpoint_bytes` the write-ahead log starts over instead of growing."""
    log = reopen(store_segment_bytes=10**9, store_checkpoint_bytes=100_000)
    stored(log, "a", range(500))

    (wal,) = (tmp_path / "again").glob("*-wal")
    assert wal.stat().st_size < 1_000_000


def test_a_second_store_is_refused(reopen: Reopen, tmp_path: Path) -> None:
    """Nobody else opens a directory that is in use, neither in this process nor in another."""
    reopen()
    program = "import sys; from zfabric.store import open_log; open_log(sys.argv[1])"

    with pytest.raises(StoreLocked):
        SqliteLog(tmp_path / "again")
    other = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "again")], capture_output=True, text=True, check=False
    )

    assert other.returncode != 0 and "StoreLocked" in other.stderr


def test_only_a_store_is_opened(tmp_path: Path) -> None:
    """Without `create` there must be a store, and with it nothing else may be there."""
    with pytest.raises(StoreNotFound):
        open_log(str(tmp_path / "nothing"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(StoreNotFound, match=r"letter\.txt"):
        open_log(f"sqlite://{tmp_path}/mine", create=True)
    with pytest.raises(StoreNotFound, match=r"memory, sqlite"):
        open_log("papyrus:/scroll")
    assert not (tmp_path / "nothing").exists()


def test_engines_are_found_by_url(tmp_path: Path) -> None:
    """`memory:`, `sqlite://` and a plain path each open their engine."""
    with open_log("memory:") as memory, open_log(f"sqlite://{tmp_path}/a", Config(**SMALL), create=True) as disk:
        assert isinstance(memory, MemoryLog)
        assert isinstance(disk, SqliteLog)
    with open_log(str(tmp_path / "a"), Config(**SMALL)) as disk:
        assert isinstance(disk, SqliteLog)


def test_another_format_is_refused(reopen: Reopen, tmp_path: Path) -> None:
    """A store of a later version says so."""
    reopen().close()
    (tmp_path / "again" / "FORMAT").write_text("zfabric store 9 " + "0" * 32 + "\n")

    with pytest.raises(StoreDamaged, match="format 9"):
        SqliteLog(tmp_path / "again", Config(**SMALL))


def test_a_store_without_its_format_is_not_made_anew(tmp_path: Path) -> None:
    """When the file that says that this is a store is gone, `create` does not wipe what is there."""
    with SqliteLog(tmp_path / "a", Config(**SMALL), create=True):
        pass
    (tmp_path / "a" / "FORMAT").unlink()

    with pytest.raises(StoreNotFound, match=r"log-00000001\.db"):
        SqliteLog(tmp_path / "a", Config(**SMALL), create=True)


def test_a_store_that_was_never_finished_is_made_again(tmp_path: Path) -> None:
    """A directory whose making was interrupted before the last step is taken over."""
    with SqliteLog(tmp_path / "a", Config(**SMALL), create=True):
        pass
    (tmp_path / "a" / "FORMAT").rename(tmp_path / "a" / "FORMAT.unfinished")

    with SqliteLog(tmp_path / "a", Config(**SMALL), create=True) as log:
        stored(log, "a", range(3))
        assert messages(log, "a") == [0, 1, 2]


def test_a_store_whose_making_had_hardly_begun_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed when the first file was about to have its name."""
    monkeypatch.setattr(Path, "replace", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        SqliteLog(tmp_path / "a", Config(**SMALL), create=True)
    monkeypatch.undo()

    with SqliteLog(tmp_path / "a", Config(**SMALL), create=True) as log:
        stored(log, "a", range(3))
        assert messages(log, "a") == [0, 1, 2]


def test_a_witness_that_cannot_be_written_stops_nothing(reopen: Reopen, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it would have told of is flushed: on a full disk that copies on write, say."""
    log = reopen()
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", Mock(side_effect=OSError(errno.ENOSPC, "no room")))
        stored(log, "a", range(3))
        log.retain("a", Retention(messages=2))
    stored(log, "a", range(3, 5))

    log = reopen()
    log.enforce()
    assert messages(log, "a") == [3, 4]


def test_a_new_head_whose_name_may_not_be_safe_stops_the_log(reopen: Reopen, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when a full disk is the reason: what the old one got then would be taken back when the log opens again."""
    log = reopen()
    monkeypatch.setattr(directory, "fsync_directory", Mock(side_effect=OSError(errno.ENOSPC, "no room")))
    confirmed = []
    with suppress(StoreFailed):
        for base in range(100):
            confirmed += [one(log, append("a", base))]
    monkeypatch.undo()

    assert 0 < len(confirmed) < 100
    log = reopen()
    assert messages(log, "a")[: len(confirmed)] == list(range(len(confirmed)))


def test_a_file_that_is_mostly_dead_is_thinned_out(reopen: Reopen, tmp_path: Path, time: Time) -> None:
    """When a stream that is kept shares its files with one that is not, its batches move into fewer, smaller files."""
    log = reopen(store_segment_bytes=1_000_000)
    for base in range(60):
        one(log, append("big", base, frames=[bytes(60_000)]), append("small", base))
    before = sum(path.stat().st_size for path in (tmp_path / "again").glob("*.db"))
    log.retain("big", Retention(messages=1))

    log.enforce()

    after = sum(path.stat().st_size for path in (tmp_path / "again").glob("*.db"))
    assert after < before / 3
    assert messages(log, "small") == list(range(60))
    assert messages(log, "big") == [59]
    log = reopen(store_segment_bytes=1_000_000)
    assert messages(log, "small") == list(range(60))
    assert one(log, append("small", 60))[0].offset == 60
    assert log.damage == ()


def test_enforcing_compacts_what_is_to_be_compacted(reopen: Reopen, tmp_path: Path) -> None:
    """`Retention(compact=True)` is applied by `enforce()` and gives room back."""
    log = reopen(store_segment_bytes=10_000)
    log.retain("a", Retention(compact=True))
    for base in range(300):
        one(log, keyed("a", base, [f"k{base % 10}"]), append("b", base))
    files = len(names(tmp_path / "again"))
    assert files > 3

    log.enforce()
    log.enforce()

    assert len(messages(log, "a")) < 150
    assert len(log.last_per_key("a")) == 10
    assert messages(log, "b") == list(range(300))
    assert reopen().damage == ()


def test_readers_go_on_while_files_are_replaced(reopen: Reopen) -> None:
    """A reader never sees a gap where compaction or retention of another stream replaces its files."""
    log = reopen(store_segment_bytes=3000)
    for base in range(200):
        one(log, keyed("a", base, [f"k{base % 5}"]), append("b", base))
    found: list[list[int]] = []
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            found.append(messages(log, "b"))

    reader = threading.Thread(target=read)
    reader.start()
    wait_until(lambda: found)
    for base in range(200, 230):
        one(log, keyed("a", base, ["k0"]), append("b", base))
        log.compact("a")
    stop.set()
    reader.join()

    assert len(found) > 1
    assert all(offsets == list(range(len(offsets))) and len(offsets) >= 200 for offsets in found)
    assert log.damage == ()


def test_a_backup_is_the_log_at_one_moment(reopen: Reopen, tmp_path: Path) -> None:
    """A backup is made while the log is written to; it opens by itself and holds a beginning of what is there."""
    log = reopen()
    for base in range(100):
        one(log, append("a", base), append("b", base))
    done = threading.Event()

    def write() -> None:
        base = 100
        while not done.is_set():
            one(log, append("a", base), append("b", base))
            base += 1

    writer = threading.Thread(target=write)
    writer.start()
    log.backup(tmp_path / "backup")
    done.set()
    writer.join()

    with SqliteLog(tmp_path / "backup", Config(**SMALL)) as copy:
        saved = messages(copy, "a")
        assert saved == messages(copy, "b") == list(range(len(saved)))
        assert 100 <= len(saved) <= len(messages(log, "a"))
        assert one(copy, append("a", len(saved)))[0].offset == len(saved)
        assert copy.damage == ()
    with pytest.raises(StoreNotFound):
        log.backup(tmp_path / "backup")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter").touch()
    with pytest.raises(StoreNotFound):
        log.backup(tmp_path / "other")


def test_compaction_empties_batches(reopen: Reopen) -> None:
    """What compaction drops from a batch that stays gives its room back; what stays in it is as it was."""
    log = reopen(store_segment_bytes=10**9)
    for number in range(100):
        writer = BatchWriter("a", P1, 1, with_crc=number % 2 == 0)
        for place in range(50):
            if place % 10 == 0:
                writer.annotate(f"k{place}", {"number": number}, 5)
            writer.buffer += msgspec.msgpack.encode(f"value {number} {place} ".ljust(200))
            writer.count += 1
        frames = [bytes(frame) for frame in writer.seal(50 * number, 7)]
        keys = [Key(place, b"k%d" % place) for place in range(50)]
        keys[20] = Key(20, b"only %d" % number)
        one(log, append("a", 50 * number, 50, frames=frames, keys=keys))
    before = log.streams()[0].bytes

    log.compact("a")

    assert log.streams()[0].bytes < before / 8
    items = read_all(log, "a", max_bytes=10**6)
    assert len(items) == 100
    for number, item in enumerate(items[:-1]):
        assert isinstance(item, StoredBatch)
        assert item.dropped == ((0, 20), (21, 50))
        batch = parse_batch(item.frames, messages_max=50, buffers_max=0, topic_bytes_max=10)
        values = msgspec.msgpack.decode(batch.body)
        assert values[20].rstrip() == f"value {number} 20" and values[:20] == [None] * 20
        assert batch.meta == Meta({20: "k20"}, {20: {"number": number}}, {20: 5})
        assert (batch.base, batch.count, batch.published_ns) == (50 * number, 50, 7)
