"""The batch: written, read back, damaged, forged."""

from __future__ import annotations

import random
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.vectors import make
from zfabric.errors import RemoteProtocolError
from zfabric.wire.batch import Batch, BatchWriter, Buffer, parse_batch
from zfabric.wire.loans import Loan, encode_loan

LIMITS = {"messages_max": 1000, "buffers_max": 3, "topic_bytes_max": 50}
EPOCH_AND_BASE = b"\xce" + (1).to_bytes(4) + b"\xcf" + bytes(8)
GOLDEN = [[bytes(frame) for frame in build()] for build in make.BATCHES.values()]

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


def parse(*frames: Buffer, **limits: Any) -> Batch:
    """Parse with small limits."""
    return parse_batch(frames, **{**LIMITS, "loans": True, **limits})


def write(*items: Any, crc: bool = False, topic: str = "t", base: int = 0) -> bytes:
    """One batch's only frame."""
    writer = BatchWriter(topic, bytes(16), 1, with_crc=crc)
    for item in items:
        writer.buffer += msgpack.packb(item)
        writer.count += 1
    return bytes(writer.seal(base, 5)[0])


@settings(max_examples=40)
@given(st.lists(values, min_size=1, max_size=20), st.booleans(), st.integers(0, 2**62 - 20))
def test_what_is_written_is_read(items: list[Any], crc: bool, base: int) -> None:
    """Any values, with and without a checksum."""
    batch = parse(write(*items, crc=crc, base=base))

    assert (batch.topic, batch.base, batch.count, batch.end) == ("t", base, len(items), base + len(items))
    assert msgpack.unpackb(bytes(batch.body), strict_map_key=False) == items


def test_a_writer_starts_afresh_after_sealing() -> None:
    """Nothing of one batch is in the next."""
    writer = BatchWriter("t", bytes(16), 1)
    writer.buffer += b"\x01"
    writer.buffers.append(b"buffer")
    writer.count = 1
    writer.annotate("key", {"a": 1}, 5)
    first = writer.seal(0, 1)
    writer.buffer += b"\x02"
    writer.count = 1

    second = parse(*writer.seal(1, 2))

    assert len(first) == 2
    assert (second.base, bytes(second.body)[-1], second.meta, len(second.buffers)) == (1, 2, None, 0)


def test_a_checksum_finds_every_flipped_bit() -> None:
    """No bit of a frame or its buffer changes unnoticed, but for the flag that says that there is a checksum."""
    buffer = b"a buffer"
    writer = BatchWriter("t", bytes(16), 1, with_crc=True)
    writer.buffer += msgpack.packb("x")
    writer.buffers.append(buffer)
    writer.count = 1
    frame = bytes(writer.seal(0, 5)[0])
    unnoticed = []

    for bit in range((len(frame) + len(buffer)) * 8):
        damaged = bytearray(frame + buffer)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            parse(damaged[: len(frame)], damaged[len(frame) :])
        except RemoteProtocolError:
            continue
        unnoticed.append(bit)

    assert [bit // 8 for bit in unnoticed] == [frame.index(b"\xcc\x01\xce") + 1]


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        ([], "no frames"),
        ([b""], "not a batch"),
        ([b"\0"], "not a batch"),
        ([b"topic"], "not a batch"),
        ([b"t\0" + b"\xc4\x3d"], "not a batch"),
        ([write(1)[:-1]], "truncated"),
        ([write(*[1] * 1001)], "batch of 1001 messages is over Config.batch_messages_max"),
        ([write(1), b"", b"\x91"], "malformed loan"),
        ([write(1), b"", encode_loan(Loan(1, [], [None] * 4))], "batch with 4 buffers"),
        ([write(1), b"x", b"", b"", b""], "batch with 4 buffers is over Config.buffers_per_batch_max"),
        ([write(1, topic="t" * 51)], "not a batch"),
        ([b"\xff" + write(1)], "malformed"),
        ([write(1) + b"\xc1"], "malformed"),
        ([write(1) + b"\x91" * 100_000], "malformed"),
        ([write(1).replace(b"\xcc\x01\xc4", b"\xcc\x02\xc4")], "version 2"),
        ([write(1, base=2**62 + 1)], "malformed"),
        ([write(1).replace(b"\xcf" + (5).to_bytes(8), b"\xcf" + (2**63).to_bytes(8))], r"malformed.*\$\[5\]"),
        ([write(1).replace(EPOCH_AND_BASE, b"\xcf" + b"\xff" * 8 + b"\xce" + bytes(4))], r"malformed.*\$\[2\]"),
        ([BatchWriter("t", bytes(16), 1).seal(0, 0)[0]], "malformed"),
    ],
)
def test_what_is_refused(frames: list[Buffer], reason: str) -> None:
    """Each fault has its words, and the limits their names."""
    with pytest.raises(RemoteProtocolError, match=reason):
        parse(*frames)


@given(st.lists(st.binary(max_size=200), max_size=5))
def test_arbitrary_frames_give_a_batch_or_a_protocol_error(frames: list[bytes]) -> None:
    """Nothing else ever comes out."""
    try:
        parse(*frames)
    except RemoteProtocolError as error:
        assert error.reason


@given(st.sampled_from(GOLDEN), st.integers(0, 2**32), st.integers(1, 8))
def test_mutated_batches_give_a_batch_or_a_protocol_error(golden: list[bytes], seed: int, changes: int) -> None:
    """Bytes changed, cut, doubled or put in: whatever is accepted keeps to the limits."""
    frame = mutate(golden[0], random.Random(seed), changes)

    try:
        batch = parse(frame, *golden[1:])
    except RemoteProtocolError:
        return

    assert 1 <= batch.count <= 1000
    assert 0 <= batch.base <= batch.end <= 2**62 + 1000
    assert len(batch.producer) == 16
    assert batch.topic.isascii() and len(batch.topic) <= 50


def mutate(frame: bytes, noise: random.Random, changes: int) -> bytes:
    """Damage a frame."""
    damaged = bytearray(frame)
    for _ in range(changes):
        at = noise.randrange(len(damaged) + 1)
        match noise.randrange(5):
            case 0:
                del damaged[at : at + noise.randrange(1, 9)]
            case 1:
                damaged[at:at] = noise.randbytes(noise.randrange(1, 9))
            case 2:
                damaged[at:at] = damaged[at : at + 40]
            case 3:
                damaged[at : at + 1] = bytes([noise.choice([0, 0x7F, 0x80, 0x91, 0xC1, 0xC6, 0xDD, 0xDF, 0xFF])])
            case _ if at < len(damaged):
                damaged[at] ^= 1 << noise.randrange(8)
    return bytes(damaged)
