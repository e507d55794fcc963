"""Capture files: written, cut, damaged, split, compressed, and read again."""

from __future__ import annotations

import os
import random
import resource
import stat
import struct
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import msgpack
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.capture.files import BEGAN, SENSOR, batch, content, write
from zfabric import CaptureError, Config, LimitExceeded, Source
from zfabric.capture import CaptureReader, CaptureWriter
from zfabric.capture.format import encode_block

pytestmark = pytest.mark.skipif(os.name == "nt", reason="modes and limits of POSIX files")

BATCHES = [
    batch({"c": 21.5}, {"c": 22}, base=5, keys={0: "line1"}, headers={1: {"unit": "C"}}),
    batch("on", topic="plant.state", at=0.5, source=Source("cd" * 16, "switch")),
    batch(b"\x00\xff", None, [1, 2], base=7, at=2.0),
]
EXPECTED = [
    ("plant.temp", 5, {"c": 21.5}),
    ("plant.temp", 6, {"c": 22}),
    ("plant.state", 0, "on"),
    ("plant.temp", 7, b"\x00\xff"),
    ("plant.temp", 8, None),
    ("plant.temp", 9, [1, 2]),
]


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("each", [False, True])
def test_round_trip(tmp_path: Path, compress: bool, each: bool) -> None:
    """Topics, numbers, times, sources, keys, headers and values come back, and the file is only its owner's."""
    path = write(
        tmp_path / "run.zfr", *BATCHES, each=each, compress=compress, fabric="plant", patterns=("#",), recorder="r"
    )

    reader = CaptureReader(path)

    assert content(reader) == EXPECTED
    messages = list(reader.messages())
    assert [message.key for message in messages] == ["line1", None, None, None, None, None]
    assert [message.headers for message in messages] == [None, {"unit": "C"}, None, None, None, None]
    assert [message.source.name for message in messages] == ["sensor", "sensor", "switch", "sensor", "sensor", "sensor"]
    assert messages[0].timestamp == BEGAN - 0.001
    assert [found.received - BEGAN for found in reader.batches()] == [0, 0.5, 2]
    assert (reader.header.fabric, reader.header.patterns, reader.header.recorder) == ("plant", ("#",), "r")
    assert reader.complete and reader.check() == ()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_summary(tmp_path: Path) -> None:
    """Totals of each stream are the same from the index and, in a file without one, from reading through it."""
    with_index = CaptureReader(write(tmp_path / "a.zfr", *BATCHES))
    without = CaptureReader(write(tmp_path / "b.zfr", *BATCHES, closed=False))

    assert (with_index.complete, without.complete) == (True, False)
    summary = with_index.summary()
    assert summary.streams == without.summary().streams
    assert (summary.messages, summary.duration_s) == (6, 2.0)
    assert summary.file_bytes == (tmp_path / "a.zfr").stat().st_size
    state, temp = summary.streams
    assert (state.topic, state.messages, state.source.name, state.missing) == ("plant.state", 1, "switch", 0)
    assert (temp.first_seq, temp.last_seq, temp.messages, temp.missing) == (5, 9, 5, 0)
    assert temp.nbytes == sum(len(msgspec.msgpack.encode(value)) for topic, _, value in EXPECTED if "temp" in topic)


def test_missing_messages_are_counted(tmp_path: Path) -> None:
    """A hole in a stream's numbers is told; another publisher's messages do not fill it."""
    other = Source("cd" * 16, "sensor")
    path = write(tmp_path / "run.zfr", batch(1, base=3), batch(2, 3, base=7, at=1), batch(1, 2, 3, 4, source=other))

    missing = {stream.source.id: stream.missing for stream in CaptureReader(path).summary().streams}

    assert missing == {SENSOR.id: 3, other.id: 0}


def test_any_msgpack_reader_can_read_it(tmp_path: Path) -> None:
    """The specification is enough: the `msgpack` package and zlib alone find every value."""
    path = write(tmp_path / "run.zfr", *BATCHES, compress=True)
    values, kinds = [], []

    with path.open("rb") as file:
        for kind, compression, size, crc, payload in msgpack.Unpacker(file):
            assert crc == zlib.crc32(payload, zlib.crc32(msgpack.packb([kind, compression, size])))
            kinds.append(kind)
            if compression == "zlib":
                payload = zlib.decompress(payload)  # noqa: PLW2901 - as another implementation would
            assert len(payload) == size
            if kind == 1:
                topics, sources, batches = msgpack.unpackb(payload, strict_map_key=False)
                for topic, source, base, count, _, _, body, _, _ in batches:
                    assert len(body) == count and len(sources[source][0]) == 32
                    values += [(topics[topic], base + index, value) for index, value in enumerate(body)]

    assert kinds == [0, 1, 1, 1, 2, 3]
    assert values == EXPECTED


def test_start_and_until(tmp_path: Path) -> None:
    """A part of the time is read from where the index says, without what lies before it."""
    batches = [batch(number, base=number, at=number) for number in range(100)]
    closed = CaptureReader(write(tmp_path / "a.zfr", *batches))
    torn = CaptureReader(write(tmp_path / "b.zfr", *batches, closed=False))

    for reader in (closed, torn):
        assert [m.value for m in reader.messages(start=90, until=93.5)] == [90, 91, 92, 93]
        assert [m.value for m in reader.messages(start=98.5)] == [99]
        assert list(reader.messages(start=1000)) == []
        assert reader.origin == BEGAN

    (tmp_path / "a.zfr").write_bytes(_damaged((tmp_path / "a.zfr").read_bytes(), 400))
    skipping = CaptureReader(tmp_path / "a.zfr")
    assert len(list(skipping.messages(start=50))) == 50
    assert skipping.problems == ()


@pytest.mark.parametrize("compress", [False, True])
def test_torn_at_every_byte(tmp_path: Path, compress: bool) -> None:
    """Wherever a file ends, every chunk before that place is read, and the rest is told to be torn."""
    whole = write(tmp_path / "whole.zfr", *BATCHES, compress=compress).read_bytes()
    ends = _block_ends(whole)
    path = tmp_path / "run.zfr"

    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        if length < ends[0]:
            with pytest.raises(CaptureError):
                CaptureReader(path)
            continue
        reader = CaptureReader(path)
        chunks = sum(end <= length for end in ends[1:4])
        assert content(reader) == EXPECTED[: (0, 2, 3, 6)[chunks]], length
        assert reader.summary().messages == (0, 2, 3, 6)[chunks]
        assert not reader.complete
        begin = max(end for end in ends if end <= length)
        assert [(p.offset, p.torn) for p in reader.problems] == ([] if begin == length else [(begin, True)]), length


@pytest.mark.parametrize("bit", [0x01, 0x10])
def test_every_flipped_bit_is_seen(tmp_path: Path, bit: int) -> None:
    """A damaged chunk is left out and told, the others are read; nothing wrong is ever read."""
    whole = write(tmp_path / "whole.zfr", *BATCHES).read_bytes()
    ends = _block_ends(whole)
    path = tmp_path / "run.zfr"
    groups = [EXPECTED[:2], EXPECTED[2:3], EXPECTED[3:]]

    for offset in range(ends[0], ends[3]):
        path.write_bytes(_damaged(whole, offset, bit))
        reader = CaptureReader(path)
        hit = sum(end <= offset for end in ends) - 1
        expected = [message for index, group in enumerate(groups) if index != hit for message in group]
        assert content(reader) == expected, offset
        assert [(p.offset, p.torn) for p in reader.check()] == [(ends[hit], False)], offset


def test_damaged_index_costs_nothing_but_time(tmp_path: Path) -> None:
    """With its index or end damaged, a file is read through instead."""
    whole = write(tmp_path / "whole.zfr", *BATCHES).read_bytes()
    path = tmp_path / "run.zfr"

    for offset in range(_block_ends(whole)[3], len(whole)):
        path.write_bytes(_damaged(whole, offset))
        reader = CaptureReader(path)
        assert content(reader) == EXPECTED, offset
        assert reader.summary().messages == 6
        assert not reader.complete


def _damaged(data: bytes, offset: int, bit: int = 0x10) -> bytes:
    return data[:offset] + bytes([data[offset] ^ bit]) + data[offset + 1 :]


def _block_ends(data: bytes) -> list[int]:
    unpacker = msgpack.Unpacker(max_buffer_size=0)
    unpacker.feed(data)
    return [unpacker.tell() for _ in unpacker]


# -- splitting -------------------------------------------------------------------------------------


def test_split_by_bytes(tmp_path: Path) -> None:
    """No part is larger than asked, each can be read alone, and naming the first one reads all."""
    batches = [batch(random.Random(number).randbytes(300), base=number, at=number) for number in range(40)]

    path = write(tmp_path / "run.zfr", *batches, split_bytes=2000)

    reader = CaptureReader(path)
    assert len(reader.paths) >= 6
    assert [found.name for found in reader.paths[:3]] == ["run.zfr", "run.1.zfr", "run.2.zfr"]
    assert {stat.S_IMODE(found.stat().st_mode) for found in reader.paths} == {0o600}
    assert [m.seq for m in reader.messages()] == list(range(40))
    assert [m.seq for m in reader.messages(start=35)] == list(range(35, 40))
    assert reader.summary().streams[0].messages == 40 and reader.complete
    alone = [m.seq for found in reader.paths for m in CaptureReader(found).messages()]
    assert alone[:1] == [0] and alone[-1] == 39
    last = CaptureReader(reader.paths[-1])
    assert (last.header.part, last.header.run) == (len(reader.paths) - 1, reader.header.run)
    chunks_bytes = [int.from_bytes(found.read_bytes()[-8:], "big") for found in reader.paths]
    assert max(chunks_bytes) <= 2000


def test_split_by_time(tmp_path: Path) -> None:
    """A part covers no more than the time that was asked for."""
    path = write(tmp_path / "run.zfr", *(batch(n, base=n, at=n) for n in range(10)), split_s=3)

    reader = CaptureReader(path)

    assert [len(list(CaptureReader(found).chunks())) for found in reader.paths] == [10, 3, 3, 1]
    assert [m.value for m in reader.messages()] == list(range(10))


def test_foreign_parts_are_not_followed(tmp_path: Path) -> None:
    """A file that has the next part's name but belongs to another recording is left alone; a damaged one is told."""
    path = write(tmp_path / "run.zfr", *BATCHES)
    write(tmp_path / "run.1.zfr", *BATCHES)
    write(tmp_path / "other.zfr", *BATCHES, split_s=1)

    assert CaptureReader(path).paths == (path,)
    (tmp_path / "other.1.zfr").rename(tmp_path / "run.1.zfr")
    assert CaptureReader(path).paths == (path,)

    (tmp_path / "run.1.zfr").write_bytes(b"what?")
    assert [problem.path.name for problem in CaptureReader(path).problems] == ["run.1.zfr"]


def test_existing_files_are_kept(tmp_path: Path) -> None:
    """An existing file stops the recording before it begins; `overwrite` replaces it and the parts behind it."""
    path = tmp_path / "run.zfr"
    for name in ("run.zfr", "run.1.zfr", "run.2.zfr", "run.4.zfr"):
        (tmp_path / name).write_text("precious")

    with pytest.raises(FileExistsError, match=r"run\.zfr"):
        write(path)
    path.unlink()
    with pytest.raises(FileExistsError, match=r"run\.1\.zfr"):
        write(path, split_s=1)
    write(path, *BATCHES)
    assert (tmp_path / "run.1.zfr").read_text() == "precious"
    write(path, *BATCHES, split_s=1, overwrite=True)

    assert content(CaptureReader(path)) == EXPECTED
    assert len(CaptureReader(path).paths) == 2
    assert not (tmp_path / "run.2.zfr").exists() and (tmp_path / "run.4.zfr").exists()


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    """What a symbolic link points to is neither written to nor overwritten."""
    target = tmp_path / "target"
    target.write_text("precious")
    path = tmp_path / "run.zfr"
    path.symlink_to(target)

    with pytest.raises(FileExistsError):
        write(path)
    write(path, *BATCHES, overwrite=True)

    assert target.read_text() == "precious"
    assert content(CaptureReader(path)) == EXPECTED


# -- limits ----------------------------------------------------------------------------------------


def test_chunks_have_a_size(tmp_path: Path) -> None:
    """A chunk is written when it is Config.capture_chunk_bytes long."""
    batches = [batch(bytes(1000), base=number) for number in range(20)]

    small = write(tmp_path / "a.zfr", *batches, each=False, config=Config(capture_chunk_bytes=5000))
    large = write(tmp_path / "b.zfr", *batches, each=False)

    assert [len(chunk) for chunk in CaptureReader(small).chunks()] == [5, 5, 5, 5]
    assert [len(chunk) for chunk in CaptureReader(large).chunks()] == [20]


def test_blocks_have_a_limit(tmp_path: Path) -> None:
    """Config.capture_block_bytes_max holds for the writer and for the reader, also for what expands to more."""
    small = Config(capture_block_bytes_max=10_000)
    path = tmp_path / "run.zfr"

    with CaptureWriter(path, started=BEGAN, config=small) as writer:
        writer.add(batch(b"fits"))
        with pytest.raises(LimitExceeded, match="capture_block_bytes_max"):
            writer.add(batch(bytes(6000), base=1))
        with pytest.raises(LimitExceeded, match="capture_block_bytes_max"):
            writer.add(batch(1, base=1, headers={0: {"h": "x" * 6000}}))

    assert [m.value for m in CaptureReader(path, small).messages()] == [b"fits"]
    for compress in (False, True):
        bomb = write(tmp_path / f"{compress}.zfr", batch(bytes(20_000)), batch(1, at=1), compress=compress)
        reader = CaptureReader(bomb, small)
        assert [m.value for m in reader.messages()] == [1], compress
        assert len(reader.problems) == 1
        assert content(CaptureReader(bomb))[0][2] == bytes(20_000)


def test_forged_sizes_buy_no_memory(tmp_path: Path) -> None:
    """A few bytes that claim to be gigabytes, or to expand to them, cost nothing."""
    head = write(tmp_path / "head.zfr", closed=False).read_bytes()
    lies = [
        b"\x95\x01\xa0\xce\xff\xff\xff\xff\xce\x00\x00\x00\x00\xc6\xff\xff\xff\xff",
        b"\xdd\xff\xff\xff\xff",
        b"\x95\x01\xdb\xff\xff\xff\xff",
        b"\x91" * 100_000,
        _zlib_block(bytes(100_000_000), claimed=1000),
        encode_block(1, [[], [], [[0] * 9] * 100]),
    ]
    for lie in lies:
        path = tmp_path / "run.zfr"
        path.write_bytes(head + lie)
        tracemalloc.start()
        reader = CaptureReader(path)
        assert content(reader) == []
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(reader.problems) == 1
        assert peak < 8_000_000


def _zlib_block(payload: bytes, claimed: int) -> bytes:
    stored = zlib.compress(payload)
    head = msgpack.packb([1, "zlib", claimed])
    crc = zlib.crc32(stored, zlib.crc32(head))
    return bytes(b"\x95" + head[1:] + struct.pack(">BI", 0xCE, crc) + msgpack.packb(stored))


def test_reading_takes_the_memory_of_a_chunk(tmp_path: Path) -> None:
    """A file of 24 MB is summed up, read and searched with less than 2 MB."""
    config = Config(capture_chunk_bytes=64 * 1024)
    with CaptureWriter(tmp_path / "run.zfr", started=BEGAN, config=config) as writer:
        for number in range(2400):
            writer.add(batch(bytes(10_000), base=number, at=number))
    data = (tmp_path / "run.zfr").stat().st_size

    tracemalloc.start()
    reader = CaptureReader(tmp_path / "run.zfr")
    count = sum(1 for _ in reader.messages())
    late = sum(1 for _ in reader.messages(start=2000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert (count, late, reader.summary().messages) == (2400, 400, 2400)
    assert data > 24_000_000 and peak < 2_000_000


def test_full_disk(tmp_path: Path) -> None:
    """Where nothing more can be written the error is raised, what was written stays whole, and it can go on later."""
    path = tmp_path / "run.zfr"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    writer = CaptureWriter(path, started=BEGAN)
    writer.add(batch(bytes(3000)))
    writer.flush()
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
    try:
        writer.add(batch(bytes(3000), base=1, at=1))
        with pytest.raises(OSError, match="File too large"):
            writer.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    reader = CaptureReader(path)
    assert [m.seq for m in reader.messages()] == [0] and reader.problems == ()

    writer.close()
    assert [m.seq for m in CaptureReader(path).messages()] == [0, 1] and CaptureReader(path).complete


@pytest.mark.parametrize("options", [{"split_bytes": 10}, {"split_s": 0}, {"split_s": float("nan")}])
def test_writer_refuses_nonsense(tmp_path: Path, options: dict[str, Any]) -> None:
    """Parts of nothing are refused, before a file is made."""
    with pytest.raises(ValueError, match="split_"):
        write(tmp_path / "run.zfr", **options)
    assert list(tmp_path.iterdir()) == []


# -- whatever a file holds ---------------------------------------------------------------------------


def test_other_files_are_refused(tmp_path: Path) -> None:
    """A file that is no capture, and one of a later version, are told apart."""
    path = tmp_path / "run.zfr"
    for other in (b"", b"\n", b"{}", b"\x95", msgpack.packb([1, 2, 3]), os.urandom(1000)):
        path.write_bytes(other)
        with pytest.raises(CaptureError, match="not a capture file"):
            CaptureReader(path)
    path.write_bytes(encode_block(0, {"format": "zfabric capture", "version": 2, "run": "ab"}))
    with pytest.raises(CaptureError, match="version 2; this zfabric reads version 1"):
        CaptureReader(path)
    with pytest.raises(FileNotFoundError):
        CaptureReader(tmp_path / "nothing.zfr")


def test_later_fields_of_the_header_are_ignored(tmp_path: Path) -> None:
    """The header can grow without a new version."""
    path = tmp_path / "run.zfr"
    path.write_bytes(encode_block(0, {"format": "zfabric capture", "version": 1, "run": "ab", "mood": "good"}))

    assert CaptureReader(path).header.run == "ab"


VALID_HEADER = encode_block(0, {"format": "zfabric capture", "version": 1, "run": "ab"})
SCALARS = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary()
CONTENTS = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=9) | st.dictionaries(st.text() | st.integers(0, 5), inner)
)
LOOKALIKES = st.tuples(
    st.lists(st.text(max_size=3), max_size=2),
    st.lists(st.tuples(st.text(max_size=3), st.text(max_size=3)), max_size=2),
    st.lists(
        st.tuples(
            st.integers(-1, 2), st.integers(-1, 2), st.integers(-1, 2**64 - 1), st.integers(-1, 3),
            st.floats(), st.floats(), CONTENTS, st.dictionaries(st.integers(-1, 3), SCALARS, max_size=2),
            st.dictionaries(st.integers(-1, 3), st.dictionaries(st.text(max_size=2), SCALARS, max_size=2), max_size=2),
        ),
        max_size=3,
    ),
)  # fmt: skip
PIECES = st.one_of(
    st.binary(max_size=60),
    st.builds(encode_block, st.integers(0, 5), CONTENTS, st.sampled_from(["", "zlib"])),
    st.builds(encode_block, st.just(1), LOOKALIKES, st.sampled_from(["", "zlib"])),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    begin=st.sampled_from([b"", VALID_HEADER, VALID_HEADER, VALID_HEADER]),
    pieces=st.lists(PIECES, max_size=4),
    cut=st.integers(0, 30),
)
def test_any_bytes_give_messages_or_a_capture_error(
    tmp_path: Path, begin: bytes, pieces: list[bytes], cut: int
) -> None:
    """Whatever a file holds, reading it ends, in messages or in a CaptureError."""
    data = begin + b"".join(pieces)
    path = tmp_path / "run.zfr"
    path.write_bytes(data[: len(data) - cut])
    try:
        reader = CaptureReader(path)
        reader.check()
        reader.summary()
        for message in reader.messages():
            assert message.seq >= 0
    except CaptureError as error:
        assert str(path) in str(error)


def test_a_file_that_cannot_be_begun_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full from the start: the error is told, and no descriptor stays."""
    opened, closed, really_close = list[int](), list[int](), os.close

    def refuse(file: int, _: object) -> int:
        opened.append(file)
        raise OSError(28, "No space left on device")

    def close(file: int) -> None:
        closed.append(file)
        really_close(file)

    monkeypatch.setattr("zfabric.capture.writer.os.write", refuse)
    monkeypatch.setattr("zfabric.capture.writer.os.close", close)
    with pytest.raises(OSError, match="No space left"):
        CaptureWriter(tmp_path / "run.zfr", started=BEGAN)

    assert closed == opened != []
