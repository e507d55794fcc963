"""Payloads that no codec writes."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from typing import Any

import msgpack
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.msgpack import Ext

from tests.wire.codecs import INLINE, Picture, Position, Reading, Row, Vector, encode
from zfabric.errors import DecodeFailed, EncodeFailed
from zfabric.wire.codec import Codec


def packed(code: int, payload: Any) -> bytes:
    """A body of one message with a forged extension."""
    data = payload if isinstance(payload, bytes) else msgpack.packb(payload)
    return msgspec.msgpack.encode([Ext(code, data)])


FORGED = {
    "index out of range": packed(1, 1),
    "index huge": packed(1, 2**64 - 1),
    "index negative": packed(1, -1),
    "index float": packed(1, 0.0),
    "index empty": packed(1, b""),
    "index trailing": packed(1, b"\x00\x00"),
    "array empty": packed(2, b""),
    "array short": packed(2, ["<i4", [4]]),
    "array long": packed(2, ["<i4", [4], bytes(16), 1]),
    "array map": packed(2, {"dtype": "<i4"}),
    "array frame out of range": packed(2, ["|u1", [16], 1]),
    "array frame too small": packed(2, ["|u1", [17], 0]),
    "array frame too large": packed(2, ["|u1", [15], 0]),
    "shape negative": packed(2, ["|u1", [-16], bytes(16)]),
    "shape negative twice": packed(2, ["|u1", [-4, -4], bytes(16)]),
    "shape overflows": packed(2, ["|u1", [2**63, 2], b""]),
    "shape wraps to the size": packed(2, ["|u1", [2**60, 2**4, 16], bytes(16)]),
    "shape empty but huge": packed(2, ["|u1", [0, 2**62], b""]),
    "shape float": packed(2, ["|u1", [16.0], bytes(16)]),
    "dimensions": packed(2, ["|u1", [1] * 33, b"\0"]),
    "dtype object": packed(2, ["|O", [2], bytes(16)]),
    "dtype void": packed(2, ["|V16", [1], bytes(16)]),
    "dtype struct": packed(2, ["i4,O", [1], bytes(12)]),
    "dtype empty text": packed(2, ["<U0", [5], b""]),
    "dtype huge text": packed(2, ["<U999999999", [1], b""]),
    "dtype zero step": packed(2, ["<M8[0s]", [1], bytes(8)]),
    "dtype unit": packed(2, ["<M8[x]", [1], bytes(8)]),
    "dtype step": packed(2, ["<M8[999999999999s]", [1], bytes(8)]),
    "dtype newline": packed(2, ["<i4\n", [1], bytes(4)]),
    "dtype bytes": packed(2, [b"<i4", [1], bytes(4)]),
    "dtype long": packed(2, ["<i4" * 1000, [1], bytes(4)]),
    "bool of 2": packed(2, ["|b1", [2], b"\x01\x02"]),
    "text beyond Unicode": packed(2, ["<U1", [1], b"\xff\xff\xff\x7f"]),
    "text beyond Unicode, big-endian": packed(2, [">U1", [1], b"\x7f\xff\xff\xff"]),
    "timestamp": packed(-1, b"\xff" * 12),
    "timestamp of 5 bytes": packed(-1, b"\xff" * 5),
}

HOSTILE = {
    "empty": b"",
    "not an array": b"\x01",
    "never used": b"\x91\xc1",
    "truncated": b"\x92\x01",
    "trailing": b"\x91\x01\x01",
    "bad UTF-8": b"\x91\xa1\xff",
    "bad UTF-8 key": b"\x91\x81\xa1\xff\x01",
    "unhashable key": b"\x91\x81\x80\x01",
    "unhashable key in a key": b"\x91\x81\x91\x80\x01",
    "depth": b"\x91" * 100_000,
    "depth, complete": b"\x91" * 100_000 + b"\x01",
    "depth of maps": b"\x91" + b"\x81\x01" * 100_000,
    "claimed array": b"\xdd\xff\xff\xff\xff",
    "claimed map": b"\x91\xdf\xff\xff\xff\xff",
    "claimed text": b"\x91\xdb\xff\xff\xff\xff",
    "claimed bytes": b"\x91\xc6\xff\xff\xff\xff",
    "claimed extension": b"\x91\xc9\xff\xff\xff\xff\x02",
    "claimed arrays in arrays": b"\xdd\xff\xff\xff\xff" * 20_000,
}

TYPES: list[Any] = [
    None,
    Reading,
    Picture,
    Vector,
    Position,
    Row,
    int,
    bytes,
    memoryview,
    bytes | list,
    dict[str, float],
]


def survives(codec: Codec, body: bytes, buffers: Sequence[Any]) -> None:
    """Decode in both ways; anything but values and DecodeFailed fails the test."""
    try:
        good = len(codec.decode_many(body, buffers))
    except DecodeFailed:
        good = -1
    try:
        found = [value for _, value in codec.decode_each(body, buffers)]
    except DecodeFailed:
        assert good == -1
    else:
        assert good == -1 or not any(isinstance(value, DecodeFailed) for value in found)
        assert good in (-1, len(found))


class TestHostilePayloads:
    """Any bytes give values or DecodeFailed, in bounded memory."""

    @pytest.mark.parametrize("name", FORGED)
    def test_forged_extension(self, name: str) -> None:
        """Extension data that no codec writes is refused, and costs its own message only."""
        body, buffers = FORGED[name], [bytes(16)]
        codec = Codec(inline_bytes=INLINE)
        with pytest.raises(DecodeFailed):
            codec.decode_many(body, buffers)
        found = dict(codec.decode_each(b"\x93\x01" + body[1:] + b"\x02", buffers))

        assert (found[0], found[2]) == (1, 2)
        assert isinstance(found[1], DecodeFailed)

    @pytest.mark.parametrize("name", HOSTILE)
    @pytest.mark.parametrize("expected", TYPES, ids=str)
    def test_hostile(self, name: str, expected: Any) -> None:
        """Bombs and malformed bodies are refused, whatever the type."""
        codec = Codec(expected, inline_bytes=INLINE)
        with pytest.raises(DecodeFailed):
            codec.decode_many(HOSTILE[name])
        survives(codec, HOSTILE[name], [bytes(16)])

    def test_bombs_take_no_memory(self) -> None:
        """Claimed lengths reserve nothing."""
        codec = Codec(inline_bytes=INLINE)
        tracemalloc.start()
        try:
            for body in HOSTILE.values():
                survives(codec, body, ())
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

        assert peak < 5_000_000

    @given(st.binary(max_size=100), st.sampled_from(TYPES), st.booleans())
    @settings(max_examples=1000, deadline=None)
    def test_random_bytes(self, body: bytes, expected: Any, has_frame: bool) -> None:
        """Random bytes, with a header that makes more of them decode, do no harm."""
        codec = Codec(expected, inline_bytes=INLINE)
        buffers = [bytes(16)] if has_frame else []
        survives(codec, body, buffers)
        survives(codec, b"\x92" + body, buffers)

    @given(st.sampled_from(list(FORGED.values())), st.integers(0, 60), st.integers(0, 255), st.sampled_from(TYPES))
    @settings(max_examples=1000, deadline=None)
    def test_damaged_extensions(self, body: bytes, position: int, byte: int, expected: Any) -> None:
        """One changed byte in forged extensions does no harm either."""
        damaged = bytearray(body)
        damaged[position % len(body)] = byte
        survives(Codec(expected, inline_bytes=INLINE), bytes(damaged), [bytes(16)])

    @pytest.mark.parametrize("expected", [None, bytes])
    def test_a_frame_is_used_once(self, expected: Any) -> None:
        """Naming one frame twice, which could cost its size many times over, is refused."""
        codec = Codec(expected, inline_bytes=INLINE)
        body, buffers = b"\x92" + b"\xd4\x01\x00" * 2, [memoryview(bytes(16))]
        with pytest.raises(DecodeFailed, match="used before"):
            codec.decode_many(body, buffers)
        found = [value for _, value in codec.decode_each(body, buffers)]

        assert found[0] == bytes(16)
        assert isinstance(found[1], DecodeFailed)

    def test_typed_mismatch_costs_one_message(self) -> None:
        """One message that does not fit the type is found by position; the others arrive, frames and all."""
        sender, receiver = Codec(inline_bytes=INLINE), Codec(Picture, inline_bytes=INLINE)
        wrong = {"frame": np.zeros(100), "number": "one"}
        body, buffers = encode(sender, Picture(np.zeros(100), 1), wrong, Picture(np.ones(100), 2))
        with pytest.raises(DecodeFailed, match=r"Expected `int`, got `str` - at `\$\[1\].number`"):
            receiver.decode_many(body, buffers)
        found = dict(receiver.decode_each(body, buffers))

        assert (found[0].number, found[2].number, found[2].frame.sum()) == (1, 2, 100)
        assert isinstance(found[1], DecodeFailed)

    def test_exceptions_of_users_types_are_contained(self) -> None:
        """A `__post_init__` that raises anything makes its message bad, not the loop."""
        codec = Codec(Grumpy, inline_bytes=INLINE)
        with pytest.raises(DecodeFailed, match="KeyError"):
            codec.decode_many(b"\x91\x80")
        with pytest.raises(EncodeFailed, match="KeyError"):
            codec.encode_into({}, bytearray())

    def test_frames_do_not_stay_behind(self) -> None:
        """A batch without frames cannot reach those of the batch before it."""
        codec = Codec(inline_bytes=INLINE)
        codec.decode_many(b"\x91\xd4\x01\x00", [bytes(16)])
        list(codec.decode_each(b"\x91\xd4\x01\x00", [bytes(16)]))
        with pytest.raises(DecodeFailed):
            codec.decode_many(b"\x91\xd4\x01\x00")


class Grumpy(msgspec.Struct):
    """A type whose construction fails."""

    def __post_init__(self) -> None:
        raise KeyError("no")
