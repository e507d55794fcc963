"""A full disk: publishers are told, readers go on, and when there is room again so do the publishers."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.store.crashes import CONFIG
from tests.store.disk import Disk
from tests.store.oracle import STREAMS, Oracle, confirmed, transaction
from tests.store.support import append, messages, one
from zfabric.errors import NotStored
from zfabric.store import Commit, Position, PositionUpdate, Retention
from zfabric.store.sqlite import SqliteLog

DISK_BYTES = 4 * 1024 * 1024
SETTINGS = replace(CONFIG, store_reserve_bytes=512 * 1024, store_segment_bytes=300_000)


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A real file system of 4 MiB."""
    if os.name == "nt" or os.geteuid() != 0 or shutil.which("mount") is None:
        if os.environ.get("CI"):
            pytest.fail("the tests of a full disk need root, to mount a small one")
        pytest.skip("needs root, to mount a small disk")
    path = Path(tempfile.mkdtemp(prefix="zfabric-disk-"))
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", path], capture_output=True, text=True, check=False
    )
    if made.returncode:
        path.rmdir()
        pytest.skip(f"cannot mount a small disk: {made.stderr}")
    yield path
    subprocess.run(["umount", path], check=True)
    path.rmdir()


def fill(log: SqliteLog, oracle: Oracle) -> NotStored:
    """Write until the disk is full; returns what the publisher is told."""
    while True:
        (outcome,) = log.commit([transaction(oracle.confirmed)])
        if isinstance(outcome, NotStored):
            return outcome
        oracle.confirmed += 1
        oracle.sent = oracle.confirmed


def test_a_full_disk(small_disk: Path) -> None:
    """Publishers get NotStored, readers and positions go on, trimming gives room, and everything confirmed is there."""
    oracle = Oracle()
    with SqliteLog(small_disk / "log", SETTINGS, create=True) as log:
        assert "full" in fill(log, oracle).reason
        assert oracle.confirmed > 100
        assert isinstance(log.commit([transaction(oracle.confirmed)])[0], NotStored)
        assert oracle.complaints(log) == set()
        assert log.commit([Commit(positions=[PositionUpdate("mine", b"here")])]) == [()]

    with SqliteLog(small_disk / "log", SETTINGS) as log:
        assert oracle.complaints(log) == set()
        assert log.position("mine") == Position(b"here", 0)
        fill(log, oracle)
        for stream in STREAMS:
            assert log.trim(stream, log.offset_of_last(stream, 30)) > 0
        assert confirmed(log, oracle.confirmed)
        assert messages(log, STREAMS[0])[-33:] == list(range(oracle.confirmed * 3 - 30, oracle.confirmed * 3 + 3))
        assert log.damage == ()


def test_retention_works_on_a_full_disk(small_disk: Path) -> None:
    """`enforce()` makes room where nothing can be written any more, also in a head that some must stay of."""
    oracle = Oracle()
    with SqliteLog(small_disk / "log", SETTINGS, create=True) as log:
        fill(log, oracle)
        for stream in STREAMS:
            log.retain(stream, Retention(messages=30))
        log.enforce()
        assert confirmed(log, oracle.confirmed)

    with SqliteLog(small_disk / "other", replace(SETTINGS, store_segment_bytes=10**9), create=True) as log:
        one(log, append("b", 0))
        for base in range(10_000):
            (outcome,) = log.commit([Commit([append("a", base, frames=[bytes(20_000)])])])
            if isinstance(outcome, NotStored):
                break
        log.purge("a")
        log.enforce()
        assert one(log, append("a", base))[0].offset == base
        assert messages(log, "b") == [0]


def test_a_disk_that_somebody_else_filled(small_disk: Path) -> None:
    """When others fill the disk and tidy up again, the store goes on by itself."""
    with SqliteLog(small_disk / "log", SETTINGS, create=True) as log:
        assert confirmed(log, 0)
        big = small_disk / "big"
        with big.open("wb") as file:
            try:
                while True:
                    file.write(bytes(64 * 1024))
                    file.flush()
            except OSError:
                pass
        oracle = Oracle()
        oracle.confirmed = 1
        fill(log, oracle)
        assert not (small_disk / "log" / "reserve").exists()

        big.unlink()

        assert confirmed(log, oracle.confirmed)
        assert (small_disk / "log" / "reserve").stat().st_size == SETTINGS.store_reserve_bytes


def test_a_full_disk_refuses_only_what_needs_room(tmp_path: Path) -> None:
    """In a group, what could not be stored is refused and nothing of it is there."""
    disk = Disk()
    with SqliteLog(tmp_path / "log", CONFIG, create=True, vfs=disk.name) as log:
        assert confirmed(log, 0)
        disk.full = True
        outcomes = log.commit([transaction(1), Commit(positions=[PositionUpdate("p", b"1")])])
        assert all(isinstance(outcome, NotStored) for outcome in outcomes)
        disk.full = False
        assert messages(log, STREAMS[0]) == [0, 1, 2]
        assert confirmed(log, 1)
    disk.unregister()
