"""A log of each engine, closed at the end."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from zfabric import Config
from zfabric.store import Log
from zfabric.store.clock import SteadyClock
from zfabric.store.memory import MemoryLog
from zfabric.store.sqlite import SqliteLog

MEMORY_DISK = Path("/dev/shm")

SMALL: dict[str, Any] = {"store_segment_bytes": 2000, "store_reserve_bytes": 64 * 1024}
"So that a few batches fill a file."


class Time:
    """A clock that only moves when it is told to, and whose hands can be set."""

    def __init__(self) -> None:
        self.wall_ns = 1_700_000_000_000_000_000
        self.monotonic_ns = 5_000_000_000

    def pass_s(self, seconds: float) -> None:
        """Let time pass."""
        self.wall_ns += round(seconds * 1e9)
        self.monotonic_ns += round(seconds * 1e9)

    def steady(self) -> SteadyClock:
        """The store's clock over these hands."""
        return SteadyClock(lambda: self.wall_ns, lambda: self.monotonic_ns)


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """A disk in memory, where there is one: what is tested here is not the speed of a flush."""
    if not MEMORY_DISK.is_dir():
        yield tmp_path
        return
    path = Path(tempfile.mkdtemp(prefix="zfabric-test-", dir=MEMORY_DISK))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def time() -> Time:
    """The time in the store."""
    return Time()


@pytest.fixture(params=["memory", "sqlite", "sqlite-small-files"])
def log(request: pytest.FixtureRequest, tmp_path: Path, time: Time) -> Iterator[Log]:
    """An empty log of each engine, and one of SQLite whose files hold a few batches each."""
    log: Log
    if request.param == "memory":
        log = MemoryLog(clock=time.steady())
    else:
        config = Config(**SMALL) if request.param.endswith("small-files") else Config(store_reserve_bytes=4096)
        log = SqliteLog(tmp_path / "log", config, create=True, clock=time.steady())
    with log:
        yield log


@pytest.fixture
def reopen(tmp_path: Path, time: Time) -> Iterator[Callable[..., SqliteLog]]:
    """Opens the log of one directory, again and again; the one before is closed first."""
    opened: list[SqliteLog] = []

    def open_again(**config: Any) -> SqliteLog:
        if opened:
            opened.pop().close()
        settings = Config(**{**SMALL, **config})
        opened.append(SqliteLog(tmp_path / "again", settings, create=True, clock=time.steady()))
        return opened[-1]

    yield open_again
    for log in opened:
        log.close()
