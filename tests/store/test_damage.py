"""Damaged files: what is served is what was written, what is not there is told, and nothing is taken back silently."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import apsw
import pytest

from tests.store.crashes import CONFIG
from tests.store.oracle import STREAMS, Oracle, confirmed
from zfabric.errors import StoreDamaged
from zfabric.store import Gap, Log, Retention
from zfabric.store.sqlite import SqliteLog


def filled(path: Path, transactions: int = 200) -> Oracle:
    """A closed log of several files, and what is in it."""
    oracle = Oracle()
    with SqliteLog(path, CONFIG, create=True) as log:
        while oracle.confirmed < transactions:
            oracle.sent += 1
            assert confirmed(log, oracle.confirmed)
            oracle.confirmed += 1
    return oracle


def sealed(path: Path) -> list[Path]:
    """The sealed files, the oldest first."""
    return sorted(path.glob("*.db"))[:-1]


def gaps(log: Log) -> int:
    """How many messages of the first stream are told as missing."""
    total, offset = 0, 0
    while items := log.read(STREAMS[0], offset, 10**6):
        total += sum(item.next - item.offset for item in items if isinstance(item, Gap))
        offset = items[-1].next
    return total


def flip(path: Path, chance: random.Random, bits: int) -> None:
    """Turn some bits of a file over."""
    content = bytearray(path.read_bytes())
    for _ in range(bits):
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.write_bytes(content)


@pytest.mark.parametrize("seed", range(25))
def test_flipped_bits_in_a_sealed_file(tmp_path: Path, seed: int) -> None:
    """Whatever bits of sealed files flip, every message is served as it was sent or told as a gap; the rest go on."""
    chance = random.Random(seed)
    oracle = filled(tmp_path / "log", 120)
    flip(chance.choice(sealed(tmp_path / "log")), chance, 1 + seed)

    with SqliteLog(tmp_path / "log", CONFIG) as log:
        assert oracle.complaints(log, gaps_allowed=True) == set()
        assert bool(gaps(log)) <= bool(log.damage)
        assert confirmed(log, oracle.confirmed)


@pytest.mark.parametrize("seed", range(25))
def test_flipped_bits_in_the_head(tmp_path: Path, seed: int) -> None:
    """Bits that flip in the head make it refuse to open, or give gaps, but never a message that was not sent."""
    chance = random.Random(seed)
    oracle = filled(tmp_path / "log", 60)
    flip(max((tmp_path / "log").glob("log-*.db")), chance, 1 + seed % 5)

    try:
        log = SqliteLog(tmp_path / "log", CONFIG)
    except StoreDamaged:
        return
    with log:
        assert oracle.complaints(log, gaps_allowed=True) <= {"torn"}


def test_one_bad_batch_is_one_gap(tmp_path: Path) -> None:
    """A flipped bit in a payload costs that batch alone, told once, and reported as damage."""
    filled(tmp_path / "log")
    victim = sealed(tmp_path / "log")[1]
    content = victim.read_bytes()
    place = content.index(b"left ", len(content) // 2)
    victim.write_bytes(content[:place] + b"L" + content[place + 1 :])

    with SqliteLog(tmp_path / "log", CONFIG) as log:
        assert gaps(log) == 3
        assert len(log.damage) == 1 and victim.name in log.damage[0] and "checksum" in log.damage[0]


@pytest.mark.parametrize(
    "harm",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(path.read_bytes()[:-8192]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"x" * path.stat().st_size),
    ],
    ids=["deleted", "truncated", "emptied", "overwritten"],
)
def test_a_harmed_file_is_found_when_the_log_opens(tmp_path: Path, harm: Callable[[Path], None]) -> None:
    """A sealed file that is gone, short or another is reported at once; the others are served."""
    oracle = filled(tmp_path / "log")
    victim = sealed(tmp_path / "log")[1]
    harm(victim)

    with SqliteLog(tmp_path / "log", CONFIG) as log:
        assert [finding for finding in log.damage if victim.name in finding]
        assert oracle.complaints(log, gaps_allowed=True) == set()
        assert 0 < gaps(log) < 400


@pytest.mark.parametrize("column", ["count", "stored_ns", "gone"])
def test_retention_lets_nothing_go_because_of_damage(tmp_path: Path, column: str) -> None:
    """What a bad row says of its end and its age is not believed, and what cannot be read keeps what comes after it."""
    path = tmp_path / "log"
    filled(path)
    victim = sealed(path)[0]
    if column == "gone":
        victim.write_bytes(victim.read_bytes()[: 2 * 8192])
    else:
        connection = apsw.Connection(str(victim))
        connection.execute(f"UPDATE batches SET {column} = ?", (1 if column == "stored_ns" else 10**12,))
        connection.close()

    with SqliteLog(path, CONFIG) as log:
        stream = log._catalog.streams[STREAMS[0]]
        damaged = stream.sealed[0]
        log.retain(STREAMS[0], Retention(bytes=stream.bytes - damaged.bytes // 2, age_s=3600))
        log.enforce()
        info = log.info(STREAMS[0])
        assert info is not None and info.first <= damaged.next
        assert log.offset_at(STREAMS[0], log.now_ns() - 3600 * 10**9) <= damaged.next


def test_a_sealed_file_that_was_put_back_is_found(tmp_path: Path) -> None:
    """An older copy of a file, from when it was still written to, is no substitute for it."""
    path = tmp_path / "log"
    oracle = filled(path, 5)
    old = tmp_path / "old"
    shutil.copy(path / "log-00000001.db", old)
    with SqliteLog(path, CONFIG) as log:
        while len(list(path.glob("*.db"))) < 3:
            oracle.sent += 1
            assert confirmed(log, oracle.confirmed)
            oracle.confirmed += 1
    shutil.copy(old, path / "log-00000001.db")

    with SqliteLog(path, CONFIG) as log:
        assert any("log-00000001.db" in finding for finding in log.damage)
        assert oracle.complaints(log, gaps_allowed=True) == set()
        assert gaps(log)


def test_a_head_that_was_put_back_is_refused(tmp_path: Path) -> None:
    """An older copy of the head would take back what was confirmed: the log does not open."""
    path = tmp_path / "log"
    filled(path, 5)
    shutil.copy(path / "log-00000001.db", tmp_path / "old")
    with SqliteLog(path, CONFIG) as log:
        assert confirmed(log, 5)
    shutil.copy(tmp_path / "old", path / "log-00000001.db")

    with pytest.raises(StoreDamaged, match="confirmed"):
        SqliteLog(path, CONFIG)


def test_a_head_that_is_gone_is_refused(tmp_path: Path) -> None:
    """Without its newest head the log does not go on from an older one."""
    path = tmp_path / "log"
    filled(path)
    max(path.glob("log-*.db")).unlink()

    with pytest.raises(StoreDamaged, match="gone"):
        SqliteLog(path, CONFIG)
    for left in path.glob("log-*.db"):
        left.unlink()
    with pytest.raises(StoreDamaged, match="gone"):
        SqliteLog(path, CONFIG)


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
def test_a_cut_write_ahead_log_is_refused(tmp_path: Path, kept: float) -> None:
    """A write-ahead log that lost its end holds less than was confirmed: that is noticed."""
    path = tmp_path / "log"
    filled(path, 3)
    with SqliteLog(path, replace(CONFIG, store_checkpoint_bytes=10**9)) as log:
        for number in range(3, 20):
            assert confirmed(log, number)
        shutil.copytree(path, tmp_path / "killed")
    (wal,) = (tmp_path / "killed").glob("*-wal")
    wal.write_bytes(wal.read_bytes()[: int(kept * wal.stat().st_size)])

    with pytest.raises(StoreDamaged, match="cut or put back"):
        SqliteLog(tmp_path / "killed", CONFIG)


def test_a_file_of_another_store_is_not_served(tmp_path: Path) -> None:
    """A file with the right name and the rows of another store gives gaps."""
    filled(tmp_path / "a")
    filled(tmp_path / "b")
    shutil.copy(sealed(tmp_path / "b")[0], sealed(tmp_path / "a")[0])

    with SqliteLog(tmp_path / "a", CONFIG) as log:
        assert gaps(log) > 0
        assert log.damage


@pytest.mark.parametrize("harm", ["put back", "gone"])
def test_a_loss_can_be_accepted(tmp_path: Path, harm: str) -> None:
    """A log whose newest part is lost opens when told to; what was lost is a gap, and its offsets never come again."""
    path = tmp_path / "log"
    oracle = filled(path, 150)
    head = max(path.glob("log-*.db"))
    shutil.copy(head, tmp_path / "old")
    with SqliteLog(path, replace(CONFIG, store_segment_bytes=10**9)) as log:
        for number in range(150, 155):
            assert confirmed(log, number)
        end = log.streams()[0].next
    if harm == "gone":
        head.unlink()
    else:
        shutil.copy(tmp_path / "old", head)
    with pytest.raises(StoreDamaged):
        SqliteLog(path, CONFIG)

    with SqliteLog(path, CONFIG, accept_loss=True) as log:
        oracle.confirmed = 0
        (mark,) = log.marks(STREAMS[0]).values()
        assert confirmed(log, mark.next // 3)
        oracle.sent = 155
        assert gaps(log) > 2**31
        assert log.streams()[0].next > end + 2**31
        items = log.read(STREAMS[0], log.streams()[0].next - 3, 1)
        assert not isinstance(items[0], Gap)
    with SqliteLog(path, CONFIG) as log:
        assert gaps(log) > 2**31
        assert log.read(STREAMS[0], 0, 10**6)[0].next == 3
