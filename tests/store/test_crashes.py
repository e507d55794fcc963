"""Kills, power failures and failing writes: what was confirmed is there, whole and once."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest

from tests.store.crashes import CONFIG, POINTS
from tests.store.disk import Disk
from tests.store.oracle import STREAMS, Oracle, batch, confirmed, transaction
from zfabric.errors import NotStored, ProducerFenced, StoreFailed
from zfabric.store import head, rules
from zfabric.store.sqlite import SqliteLog

ROOT = Path(__file__).parents[2]


def crashes(directory: Path, kills: int, without: str = "") -> dict[str, Any]:
    """Run the program that kills writers; what it found."""
    command = [sys.executable, "-m", "tests.store.crashes", str(directory), "--kills", str(kills), "--without", without]
    outcome = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr
    found = json.loads(outcome.stdout)
    assert isinstance(found, dict)
    return found


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_hundred_kills(tmp_path: Path) -> None:
    """A writer that is killed a hundred times, at every named point, loses, invents, repeats and tears nothing."""
    found = crashes(tmp_path, 100)

    assert found["complaints"] == []
    assert sum(found["kills"].values()) == 100
    assert set(found["kills"]) == set(POINTS)
    assert found["confirmed"] > 1000


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mechanism", "complaint"),
    [("commit before confirmation", "lost"), ("marks", "duplicate"), ("atomic commits", "torn")],
)
def test_kills_show_a_missing_mechanism(tmp_path: Path, mechanism: str, complaint: str) -> None:
    """With one mechanism switched off the same kills are not survived, and the oracle says what is wrong."""
    assert complaint in crashes(tmp_path, 100, mechanism)["complaints"]


# -- power -----------------------------------------------------------------------------------------


@pytest.fixture
def disk() -> Iterator[Disk]:
    """A disk of its own for the test."""
    disk = Disk()
    yield disk
    disk.unregister()


def replace_two_files(log: SqliteLog) -> None:
    """Thin out the two oldest files, whether it is worth it or not."""
    segments = dict.fromkeys(held.segment for held in log._catalog.streams[STREAMS[0]].sealed)
    with log._layout:
        log._replace(list(segments)[:2], {})


def run_until_power_fails(path: Path, disk: Disk, oracle: Oracle, chance: random.Random) -> None:
    """Write on where the last confirmation was until the power fails, which it may do at any write or flush."""
    log = SqliteLog(path, CONFIG, create=True, vfs=disk.name)
    disk.lose_power_in = chance.randrange(1, 400)
    try:
        while True:
            number = oracle.confirmed
            oracle.sent = max(oracle.sent, number + 1)
            assert confirmed(log, number)
            oracle.confirmed = number + 1
            if chance.random() < 0.05:
                replace_two_files(log)
    except StoreFailed:
        # The witness is written without a flush: it may be an older one.
        if chance.random() < 0.5:
            (path / "witness").write_bytes(b"")
    log.close()
    disk.settle(chance)


@pytest.mark.parametrize("seed", range(8))
def test_power_failures(tmp_path: Path, disk: Disk, seed: int) -> None:
    """What was not flushed vanishes or is torn when the power fails; what was confirmed is there, and nothing else."""
    chance = random.Random(seed)
    oracle = Oracle()
    for _ in range(6):
        run_until_power_fails(tmp_path / "log", disk, oracle, chance)
        with SqliteLog(tmp_path / "log", CONFIG, vfs=disk.name) as log:
            assert oracle.complaints(log) == set()
            assert log.damage == ()


def test_power_failures_show_a_missing_flush(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the flush before the confirmation, power failures are not survived."""
    monkeypatch.setitem(head._SETTINGS, "synchronous", "off")
    found: set[str] = set()
    for seed in range(10):
        disk = Disk()
        oracle = Oracle()
        run_until_power_fails(tmp_path / str(seed), disk, oracle, random.Random(seed))
        try:
            with SqliteLog(tmp_path / str(seed), CONFIG, vfs=disk.name) as log:
                found |= oracle.complaints(log)
        except Exception as refused:  # noqa: BLE001 - a log that does not open has lost everything, but says so
            found.add(type(refused).__name__)
        disk.unregister()

    assert found & {"lost", "StoreDamaged"}


# -- failing writes --------------------------------------------------------------------------------


def write_on(log: SqliteLog, oracle: Oracle) -> None:
    """Write until something happens."""
    for number in range(10_000):
        oracle.sent = number + 1
        assert confirmed(log, number)
        oracle.confirmed = number + 1


@pytest.mark.parametrize("what", ["flush", "write"])
@pytest.mark.parametrize("after", range(0, 40, 5))
def test_a_failed_write_ends_all_confirming(tmp_path: Path, disk: Disk, what: str, after: int) -> None:
    """After one failed flush or write nothing is confirmed, though the disk works again; a restart has what was."""
    oracle = Oracle()
    with SqliteLog(tmp_path / "log", CONFIG, create=True, vfs=disk.name) as log:
        setattr(disk, f"fail_{what}_in", after)
        with pytest.raises(StoreFailed):
            write_on(log, oracle)
        setattr(disk, f"fail_{what}_in", -1)
        with pytest.raises(StoreFailed):
            log.commit([transaction(oracle.sent)])
        assert oracle.complaints(log) == set()

    with SqliteLog(tmp_path / "log", CONFIG, vfs=disk.name) as log:
        assert oracle.complaints(log) == set()
        assert confirmed(log, oracle.confirmed)


# -- fencing ---------------------------------------------------------------------------------------


def zombie(log: SqliteLog) -> list[str]:
    """A producer comes back with a newer epoch while its older self still writes; what the older one was told."""
    log.commit([transaction(0, epoch=1)])
    log.commit([transaction(0, epoch=2)])
    (outcome,) = log.commit([transaction(1, epoch=1)])
    return [type(outcome).__name__ if isinstance(outcome, NotStored) else "stored"]


def test_a_zombie_is_fenced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A producer that was replaced writes nothing any more; without the epoch of marks and positions it would."""
    with SqliteLog(tmp_path / "a", CONFIG, create=True) as log:
        assert zombie(log)[0] in {"ProducerFenced", "PositionFenced"}
        assert isinstance(log.commit([transaction(1, epoch=1)])[0], NotStored)
        (outcome,) = log.commit([type(transaction(1))([batch("left", 1, epoch=1)])])
        assert isinstance(outcome, ProducerFenced)

    monkeypatch.setattr(rules, "_is_new", lambda append, mark: True)
    monkeypatch.setattr(rules, "PositionFenced", lambda *_: apsw.Error())
    with SqliteLog(tmp_path / "b", CONFIG, create=True) as log:
        log.commit([type(transaction(0))([batch("left", 0, epoch=2)])])
        (outcome,) = log.commit([type(transaction(1))([batch("left", 1, epoch=1)])])
        assert not isinstance(outcome, NotStored)
