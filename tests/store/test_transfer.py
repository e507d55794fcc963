"""Export, import and verification."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.store.conftest import Time
from tests.store.crashes import CONFIG
from tests.store.support import P1, P2, append, keyed, messages, one, read_all, stored
from tests.store.test_damage import filled, flip, sealed
from zfabric.errors import RemoteProtocolError, StoreNotFound
from zfabric.store import Commit, Gap, Log, Mark, Position, PositionUpdate, Retention
from zfabric.store.memory import MemoryLog
from zfabric.store.sqlite import SqliteLog
from zfabric.store.transfer import read_records, records, restore_records, verify, write_records


def copied(log: Log, as_json: bool) -> MemoryLog:
    """The log after a journey through a file."""
    file = io.BytesIO()
    write_records(records(log), file, as_json=as_json)
    file.seek(0)
    copy = MemoryLog()
    restore_records(read_records(file, as_json=as_json), copy)
    return copy


@pytest.mark.parametrize("as_json", [False, True], ids=["msgpack", "json"])
def test_a_copy_is_the_same_log(log: Log, time: Time, as_json: bool) -> None:
    """Offsets, batches, times, marks, positions and retention come out of an export as they went in."""
    for base in range(0, 90, 3):
        one(log, append("a", base, 3), append("a", base, 3, producer=P2), keyed("b", base, "xyz"))
        time.pass_s(1)
    one(log, append("a", 0, 2, epoch=5, frames=[b"\0\xff", b"buffer"]))
    log.trim("a", 51)
    log.skip("b", 200)
    one(log, keyed("b", 90, "q"))
    log.retain("b", Retention(messages=1000))
    log.commit([Commit(positions=[PositionUpdate("p", b"\xff", 3), PositionUpdate("q", None, 4)])])

    copy = copied(log, as_json)

    assert read_all(copy, "a", 51) == read_all(log, "a", 51)
    assert read_all(copy, "b") == read_all(log, "b")
    assert copy.marks("a") == log.marks("a") == {P1: Mark(5, 2), P2: Mark(1, 90)}
    assert copy.positions() == log.positions() == {"p": Position(b"\xff", 3), "q": Position(None, 4)}
    assert [(i.name, i.first, i.next, i.retention) for i in copy.streams()] == [
        (i.name, i.first, i.next, i.retention) for i in log.streams()
    ]
    assert copy.last_per_key("b") == log.last_per_key("b")
    assert copy.offset_at("a", time.wall_ns - 5 * 10**9) == log.offset_at("a", time.wall_ns - 5 * 10**9)


def test_a_copy_takes_the_offsets_on_disk(log: Log, reopen: Callable[..., SqliteLog], time: Time) -> None:
    """An import into files finds its way by offset and time, and goes on where the original would."""
    for base in range(60):
        one(log, append("a", base))
        time.pass_s(1)
    log.trim("a", 20)
    file = io.BytesIO()
    write_records(records(log), file, as_json=False)
    file.seek(0)
    time.pass_s(1000)

    disk = reopen()
    restore_records(read_records(file, as_json=False), disk)
    disk = reopen()

    assert messages(disk, "a") == list(range(20, 60))
    assert disk.offset_at("a", time.wall_ns - 1010 * 10**9) == 50
    assert one(disk, append("a", 59), append("a", 60)) == one(log, append("a", 59), append("a", 60))


def test_what_is_no_export_is_refused(log: Log) -> None:
    """Garbage, an export without an end and streams that are there already are refused."""
    stored(log, "a", range(3))
    whole = io.BytesIO()
    write_records(records(log), whole, as_json=True)

    for bad in (b"", b"hello\n", b'{"kind":"log","version":99}\n', b'{"kind":"batch"}\n'):
        with pytest.raises(RemoteProtocolError):
            list(read_records(io.BytesIO(bad), as_json=True))
    for bad in (b"", b"\xc1", b"\x93abc"):
        with pytest.raises(RemoteProtocolError):
            list(read_records(io.BytesIO(bad), as_json=False))
    with pytest.raises(RemoteProtocolError, match="middle"):
        restore_records(list(records(log))[:-1], MemoryLog())
    with pytest.raises(StoreNotFound):
        restore_records(records(log), log)


def test_verification_reads_everything(tmp_path: Path) -> None:
    """`verify` counts what is there; damage shows as gaps in its stream and names the file."""
    filled(tmp_path / "log")
    with SqliteLog(tmp_path / "log", CONFIG) as log:
        assert [(found.stream, found.batches, found.messages, found.gaps) for found in verify(log)] == [
            ("left", 200, 600, []),
            ("right", 200, 600, []),
        ]
    flip(sealed(tmp_path / "log")[0], random.Random(1), 3)
    with SqliteLog(tmp_path / "log", CONFIG) as log:
        gaps = [gap for found in verify(log) for gap in found.gaps]
        assert gaps and all(isinstance(gap, Gap) for gap in gaps)
        assert any(sealed(tmp_path / "log")[0].name in finding for finding in log.damage)
