"""numpy arrays through the codec and back, and the memory of their copies."""

from __future__ import annotations

import sys
from typing import Any

import msgpack
import numpy as np
import pytest

from tests.wire.codecs import INLINE, Picture, Vector, encode, round_trip, same
from zfabric.errors import DecodeFailed, EncodeFailed
from zfabric.wire import snapshots
from zfabric.wire.codec import Codec

ARRAYS = [
    np.array(1.5),
    np.zeros((0,)),
    np.zeros((0, 3), "i2"),
    np.arange(24, dtype="<i4").reshape(2, 3, 4),
    np.arange(24, dtype=">u2").reshape(4, 6).T,
    np.asfortranarray(np.arange(100.0).reshape(10, 10)),
    np.arange(100)[::-3],
    np.array([True, False]),
    np.arange(60).astype("datetime64[ns]"),
    np.arange(3).astype("timedelta64[25s]"),
    np.array(["a", "grün", "\U0001f600"]),
    np.array(["a", "b"], ">U3"),
    np.array([b"ab", b""], "S2"),
    np.array([1 + 2j, 3]),
    np.arange(5, dtype=np.float16),
    np.broadcast_to(np.float32(1), (5, 5)),
]


class TestArrays:
    """numpy arrays, inline and out of band."""

    @pytest.mark.parametrize("array", ARRAYS, ids=lambda array: f"{array.dtype.str}{array.shape}")
    @pytest.mark.parametrize("inline_bytes", [1, 1_000_000], ids=["frame", "inline"])
    def test_round_trip(self, array: Any, inline_bytes: int) -> None:
        """Any plain dtype, shape and layout comes back equal, read-only and C-contiguous, alone or nested."""
        for value in (array, {"k": [array, array]}):
            result = round_trip(value, inline_bytes=inline_bytes)
            for found in [result] if value is array else result["k"]:
                assert (found.dtype, found.shape) == (array.dtype, array.shape)
                np.testing.assert_array_equal(found, array)
                assert not found.flags.writeable
                assert found.flags.c_contiguous

    def test_frozen_array_is_not_copied(self) -> None:
        """An array that nobody can change goes and comes without a copy; so it can be sent on for nothing."""
        codec = Codec(inline_bytes=INLINE)
        array = np.frombuffer(bytes(800), "f8").reshape(10, 10)
        for _ in range(2):
            body, buffers = encode(codec, array)
            assert np.shares_memory(np.frombuffer(buffers[0], "f8"), array)
            (received,) = codec.decode_many(body, [bytes(buffers[0])])
            array = received

    def test_owner_that_is_read_only_is_not_copied(self) -> None:
        """`flags.writeable = False` on an array that owns its data is enough."""
        codec = Codec(inline_bytes=INLINE)
        array = np.zeros(100)
        array.flags.writeable = False

        assert np.shares_memory(np.frombuffer(encode(codec, array)[1][0], "f8"), array)

    @pytest.mark.parametrize("view", [lambda a: a, lambda a: a[:], lambda a: np.frombuffer(a.data.toreadonly(), "f8")])
    def test_mutable_array_is_copied(self, view: Any) -> None:
        """What is changed after `publish` is not sent, also when a read-only view was published."""
        codec = Codec(inline_bytes=INLINE)
        owner = np.zeros(100)
        published = view(owner)
        if published is not owner:
            published.flags.writeable = False
        body, buffers = encode(codec, published)
        owner[:] = 1

        assert codec.decode_many(body, buffers)[0].sum() == 0

    def test_typed_struct(self) -> None:
        """An array is a field like others, small or large, among other messages of the batch."""
        codec = Codec(Picture, inline_bytes=INLINE)
        pictures = [Picture(np.full((2, size), size), size) for size in (1, 100, 2, 200)]
        body, buffers = encode(codec, *pictures)
        results = codec.decode_many(body, buffers)

        assert len(buffers) == 2
        for result, picture in zip(results, pictures, strict=True):
            np.testing.assert_array_equal(result.frame, picture.frame)
            assert result.number == picture.number

    def test_typed_dtype(self) -> None:
        """`NDArray[float64]` takes arrays of float64; arrays may be the whole value, or missing."""
        np.testing.assert_array_equal(round_trip(Vector(np.ones(30)), Vector).items, np.ones(30))
        np.testing.assert_array_equal(round_trip(np.ones(30), np.ndarray | None), np.ones(30))
        assert round_trip(None, np.ndarray | None) is None

    @pytest.mark.parametrize(
        ("scalar", "plain"),
        [
            (np.float64(1.5), 1.5),
            (np.float32(0.5), 0.5),
            (np.int8(-3), -3),
            (np.uint64(2**64 - 1), 2**64 - 1),
            (np.bool_(True), True),
            (np.str_("a"), "a"),
            (np.bytes_(b"a"), b"a"),
        ],
    )
    def test_scalars_are_python_numbers(self, scalar: Any, plain: Any) -> None:
        """numpy's scalars arrive as Python's, also as keys."""
        assert same(round_trip([scalar, {scalar: scalar}]), [plain, {plain: plain}])

    def test_golden(self) -> None:
        """The bytes on the wire, as `msgpack` writes and reads them."""
        codec = Codec(inline_bytes=INLINE)
        small = msgpack.ExtType(2, msgpack.packb(["<i2", [2], b"\x01\x00\x02\x00"]))
        large = msgpack.ExtType(2, msgpack.packb(["|u1", [2, 50], 1]))
        values = [np.array([1, 2], "<i2"), b"y" * INLINE, np.zeros((2, 50), "u1")]
        body, buffers = encode(codec, *values)

        assert msgpack.unpackb(body) == [small, msgpack.ExtType(1, b"\x00"), large]
        assert [bytes(buffer) for buffer in buffers] == [b"y" * INLINE, bytes(100)]
        decoded = codec.decode_many(msgpack.packb([small, msgpack.ExtType(1, b"\x00"), large]), buffers)
        assert [np.asarray(value).tobytes() for value in decoded] == [b"\x01\x00\x02\x00", b"y" * INLINE, bytes(100)]

    def test_without_numpy(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where numpy is missing plain values work, and an array names the cure."""
        codec = Codec(inline_bytes=INLINE)
        body, _ = encode(codec, np.zeros(2))
        monkeypatch.setitem(sys.modules, "numpy", None)

        assert round_trip({"a": 1}) == {"a": 1}
        with pytest.raises(DecodeFailed, match="pip install numpy"):
            codec.decode_many(body)
        with pytest.raises(EncodeFailed, match="object cannot travel"):
            codec.encode_into(object(), bytearray())


def test_memory_of_snapshots_is_used_again_only_when_nobody_holds_it() -> None:
    """What waits to be sent, or was received here, stays as it was; the rest costs no fresh memory."""
    codec = Codec(inline_bytes=1000)
    array = np.zeros((100, 100))

    def snapshot(value: float) -> Any:
        array.fill(value)
        codec.buffers = []
        codec.encode_into(array, bytearray())
        return codec.buffers.pop()

    first, second = snapshot(1), snapshot(2)
    received = np.ndarray((100, 100), np.float64, first)  # as decoding does
    addresses = {np.frombuffer(frame).ctypes.data for frame in (first, second)}
    del first
    third = snapshot(3)
    assert (received == 1).all()
    assert (np.frombuffer(second) == 2).all()
    addresses.add(np.frombuffer(third).ctypes.data)
    assert len(addresses) == 3
    del received, second, third

    again = [snapshot(value) for value in range(3)]
    assert {np.frombuffer(frame).ctypes.data for frame in again} == addresses
    assert [np.frombuffer(frame)[0] for frame in again] == [0, 1, 2]


def test_free_memory_of_snapshots_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """In bytes for each size, and in sizes."""
    monkeypatch.setattr(snapshots, "KEPT_BYTES", 50_000)
    made = snapshots.Snapshots()
    for size in (1000, 2000, 3000):
        held = [made.take(np, np.zeros(size)) for _ in range(20)]
        del held

    assert {size: len(free) for size, free in made._free.items()} == {24_000: 2}
