"""Export, import and verification."""

from __future__ import annotations

import io
import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.store.conftest import Time
from tests.store.crashes import CONFIG
from tests.store.support import P1, P2, append, keyed, messages, one, read_all, stored
from tests.store.test_damage import filled, flip, sealed
from zfabric import Config
from zfabric.errors import RemoteProtocolError, StoreNotFound
from zfabric.store import Commit, Gap, Log, Mark, Position, PositionUpdate, Retention
from zfabric.store.memory import MemoryLog
from zfabric.store.sqlite import SqliteLog
from zfabric.store.transfer import (
    BatchRecord,
    Begin,
    Complete,
    EndRecord,
    PositionRecord,
    Record,
    StreamRecord,
    read_records,
    records,
    restore_records,
    verify,
    write_records,
)


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
    assert copy.positions() == log.positions() == {"p": Position(b"\xff", 3)}
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
        restore_records(list(records(log))[:-2], MemoryLog())
    with pytest.raises(StoreNotFound):
        restore_records(records(log), log)


@pytest.mark.parametrize("as_json", [False, True], ids=["msgpack", "json"])
def test_an_export_that_was_cut_between_records_is_refused(log: Log, as_json: bool) -> None:
    """Else a log that lacks streams or positions would pass for all of it. Exports of the first version had no end."""
    stored(log, "a", range(3))
    log.commit([Commit(positions=[PositionUpdate("p", b"value")])])
    found = list(records(log))
    for length in range(1, len(found)):
        cut = io.BytesIO()
        write_records(found[:length], cut, as_json=as_json)
        cut.seek(0)
        with pytest.raises(RemoteProtocolError, match="cut off"):
            list(read_records(cut, as_json=as_json))

    former = io.BytesIO()
    write_records([Begin(1), *found[1:-1]], former, as_json=as_json)
    former.seek(0)
    assert len(list(read_records(former, as_json=as_json))) == len(found) - 1


def test_a_log_that_begins_within_a_batch_keeps_its_offsets(log: Log) -> None:
    """Trimming leaves whole batches: the copy begins where the original does, and no message moves."""
    for base in range(0, 9, 3):
        one(log, append("a", base, 3))
    log.trim("a", 4)

    copy = copied(log, as_json=False)

    assert read_all(copy, "a", 4) == read_all(log, "a", 4)
    assert [(i.first, i.next) for i in copy.streams()] == [(i.first, i.next) for i in log.streams()] == [(4, 9)]


def exported(*found: Record | dict[str, Any], as_json: bool = False) -> io.BytesIO:
    """A file that begins as an export does, and goes on with these."""
    file = io.BytesIO()
    write_records([Begin(), *found, Complete()], file, as_json=as_json)  # type: ignore[list-item]
    file.seek(0)
    return file


STREAM = StreamRecord("a", 0, Retention())
BATCH = BatchRecord(5, 1, P1, 1, 0, 1, 1, 0, (b"frame",))


@pytest.mark.parametrize("as_json", [False, True], ids=["msgpack", "json"])
def test_records_of_an_export_have_a_limit(as_json: bool) -> None:
    """What is longer than Config.store_record_bytes_max is refused before all of it is in memory."""
    config = Config(store_record_bytes_max=500_000)
    fits, long = (msgspec.structs.replace(BATCH, frames=(bytes(size),)) for size in (300_000, 500_000))

    found = read_records(exported(fits, fits, long, as_json=as_json), as_json=as_json, config=config)

    assert [next(found), next(found), next(found)] == [Begin(), fits, fits]
    with pytest.raises(RemoteProtocolError, match=r"longer than Config\.store_record_bytes_max = 500000"):
        next(found)


@pytest.mark.parametrize("claim", [b"\xc6\xff\xff\xff\xff", b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff"])
def test_sizes_that_an_export_claims_buy_no_memory(claim: bytes) -> None:
    """Memory is taken for what a file has, not for what it says to have."""
    forged = io.BytesIO(exported().getvalue() + claim + bytes(10_000_000))
    tracemalloc.start()
    try:
        with pytest.raises(RemoteProtocolError):
            list(read_records(forged, as_json=False, config=Config(store_record_bytes_max=100_000)))
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "found",
    [
        [BATCH],
        [EndRecord(5, {})],
        [STREAM],
        [STREAM, STREAM],
        [STREAM, BATCH, BATCH],
        [STREAM, BATCH, EndRecord(5, {})],
        [STREAM, msgspec.structs.replace(BATCH, offset=-1)],
        [STREAM, EndRecord(0, {"no producer": (1, 1)})],
        [PositionRecord("p", b"", 2**63)],
        [{"kind": "stream", "name": "a", "first": 0, "retention": {"age_s": float("nan")}}],
        [STREAM, msgspec.structs.asdict(BATCH) | {"kind": "batch", "keys": [(1, b"k", False)]}],
    ],
    ids=str,
)
def test_an_export_without_order_is_refused(found: list[Record]) -> None:
    """Batches stand in their stream and in order, keys have a message, and numbers are in their range."""
    with pytest.raises(RemoteProtocolError):
        restore_records(read_records(exported(*found), as_json=False), MemoryLog())


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
