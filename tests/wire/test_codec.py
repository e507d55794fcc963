"""Values through the codec and back, against the `msgpack` package, and hostile payloads."""

from __future__ import annotations

import datetime as dt
import decimal
import enum
import gc
import math
import sys
import tracemalloc
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple, TypedDict

import msgpack
import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.msgpack import Ext

from zfabric.errors import DecodeFailed, EncodeFailed
from zfabric.wire import snapshots
from zfabric.wire.codec import SPECIAL_TYPES, Codec

INLINE = 64
HEAD = 5
UTC = dt.UTC


class Reading(msgspec.Struct):
    """A typed value."""

    c: float
    name: str = ""


class Picture(msgspec.Struct):
    """A value with an array inside."""

    frame: np.ndarray
    number: int = 0


class Vector(msgspec.Struct):
    """A value with an array of one dtype."""

    items: npt.NDArray[np.float64]


@dataclass
class Position:
    """A dataclass."""

    x: int
    y: int


class Row(TypedDict):
    """A typed dict."""

    x: int


class Pair(NamedTuple):
    """A named tuple."""

    left: int
    right: str


class Colour(enum.Enum):
    """An enumeration."""

    RED = "red"


def encode(codec: Codec, *values: Any) -> tuple[bytes, list[Any]]:
    """The body and the frames of a batch of values."""
    buffer = bytearray(b"\xdd" + len(values).to_bytes(4, "big"))
    codec.buffers = []
    for value in values:
        codec.encode_into(value, buffer)
    return bytes(buffer), codec.buffers


def round_trip(value: Any, expected: Any = None, *, inline_bytes: int = INLINE) -> Any:
    """A value after one trip."""
    codec = Codec(expected, inline_bytes=inline_bytes)
    (result,) = codec.decode_many(*encode(codec, value))
    return result


def same(left: Any, right: Any) -> bool:
    """Equality with NaN equal to itself, and lists equal to tuples."""
    if isinstance(left, float) and isinstance(right, float) and math.isnan(left):
        return math.isnan(right)
    if isinstance(left, list | tuple) and isinstance(right, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    return bool(type(left) is type(right) and left == right)


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=40)
    | st.binary(max_size=40)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5) | st.integers(-5, 5), inner, max_size=5)
    ),
    max_leaves=20,
)


CIRCULAR: list[Any] = []
CIRCULAR.append(CIRCULAR)


class TestPlainValues:
    """What MessagePack carries without us."""

    @given(st.lists(VALUES, max_size=4))
    def test_round_trip(self, values: list[Any]) -> None:
        """A batch of any nested values comes back equal, by both decoding ways, with nothing out of band."""
        codec = Codec(inline_bytes=INLINE)
        body, buffers = encode(codec, *values)

        assert same(codec.decode_many(body, buffers), values)
        assert same([value for _, value in codec.decode_each(body, buffers)], values)
        assert buffers == []

    @given(VALUES)
    def test_msgpack_reads_what_we_write(self, value: Any) -> None:
        """The second implementation decodes our bytes to the same value."""
        body, _ = encode(Codec(inline_bytes=INLINE), value)

        assert same(msgpack.unpackb(body, strict_map_key=False), [value])

    @given(VALUES)
    def test_we_read_what_msgpack_writes(self, value: Any) -> None:
        """We decode the second implementation's bytes to the same value."""
        assert same(Codec(inline_bytes=INLINE).decode_many(msgpack.packb([value])), [value])

    def test_aware_datetime_is_the_timestamp_that_msgpack_knows(self) -> None:
        """Aware datetimes travel as MessagePack's own extension, both ways."""
        moment = dt.datetime(2024, 5, 6, 7, 8, 9, 123456, tzinfo=UTC)
        body, _ = encode(Codec(inline_bytes=INLINE), moment)

        assert msgpack.unpackb(body, timestamp=3) == [moment]
        assert Codec(inline_bytes=INLINE).decode_many(msgpack.packb([moment], datetime=True)) == [moment]

    @pytest.mark.parametrize(
        ("value", "plain", "expected"),
        [
            (dt.datetime(2024, 5, 6, tzinfo=UTC), dt.datetime(2024, 5, 6, tzinfo=UTC), dt.datetime),
            (dt.datetime(2024, 5, 6, 7), "2024-05-06T07:00:00", dt.datetime),  # noqa: DTZ001 - naive on purpose
            (dt.date(2024, 5, 6), "2024-05-06", dt.date),
            (dt.time(1, 2), "01:02:00", dt.time),
            (dt.timedelta(minutes=1), "PT60S", dt.timedelta),
            (uuid.UUID(int=1), str(uuid.UUID(int=1)), uuid.UUID),
            (decimal.Decimal("1.50"), "1.50", decimal.Decimal),
            (Colour.RED, "red", Colour),
            (Position(1, 2), {"x": 1, "y": 2}, Position),
            (Reading(1.5, "a"), {"c": 1.5, "name": "a"}, Reading),
            ({"x": 1}, {"x": 1}, Row),
            (Pair(1, "a"), [1, "a"], Pair),
            ((1, 2), [1, 2], tuple[int, int]),
            ({1}, [1], set[int]),
            (frozenset([1]), [1], frozenset[int]),
            (bytearray(b"ab"), b"ab", bytearray),
            (memoryview(b"ab"), b"ab", memoryview),
            (None, None, int | None),
        ],
    )
    def test_typed_and_untyped(self, value: Any, plain: Any, expected: Any) -> None:
        """What msgspec supports arrives plain without a type, and as itself with one."""
        assert round_trip(value) == plain
        typed = round_trip(value, expected)
        assert typed == value
        assert type(typed) is type(value)

    @pytest.mark.parametrize(
        "value",
        [type("Text", (str,), {})("a"), type("Count", (int,), {})(3), type("Octets", (bytes,), {})(b"a")],
        ids=["str", "int", "bytes"],
    )
    def test_subclasses_of_builtins_travel_as_their_base(self, value: Any) -> None:
        """A subclass of str, int or bytes is its base to everybody else."""
        base = type(value).__mro__[1]

        assert type(round_trip(value)) is base
        assert round_trip([value, {"k": value}]) == [value, {"k": value}]

    def test_other_extensions_pass(self) -> None:
        """Extensions that are not the fabric's come back as they were."""
        result = round_trip(Ext(5, b"abc"))

        assert (result.code, result.data) == (5, b"abc")

    def test_raw_is_one_value(self) -> None:
        """Encoded values can be sent on, but not two at once or half of one, which would shift all that follow."""
        assert round_trip(msgspec.Raw(b"\x92\x01\x02")) == [1, 2]
        for bad in (b"", b"\x01\x02", b"\x92\x01"):
            with pytest.raises(EncodeFailed):
                round_trip(msgspec.Raw(bad))

    def test_what_stays_encoded_is_whole(self) -> None:
        """Values received as Raw hold what travelled out of band: they decode without the frames of their batch."""
        values = [b"x" * 100, {"big": np.arange(100), "small": np.arange(2)}, 7, Ext(5, b"abc"), bytes(200)]
        body, buffers = encode(Codec(inline_bytes=INLINE), *values)
        codec = Codec(msgspec.Raw, inline_bytes=INLINE)
        assert len(buffers) == 3

        raws = codec.decode_many(body, buffers)

        assert raws == [raw for _, raw in codec.decode_each(body, buffers)]
        blob, arrays, number, other, last = (Codec(inline_bytes=INLINE).decode_many(b"\x91" + raw)[0] for raw in raws)
        assert (blob, number, other, last) == (b"x" * 100, 7, Ext(5, b"abc"), bytes(200))
        assert (arrays["big"] == np.arange(100)).all() and (arrays["small"] == np.arange(2)).all()
        with pytest.raises(DecodeFailed, match="missing or was used before"):
            codec.decode_many(body, buffers[:2])

    def test_direct_encoding(self) -> None:
        """The C method that hot loops call appends what `encode_into` appends; typed codecs have none."""
        codec = Codec(inline_bytes=INLINE)
        direct, usual = bytearray(b"x"), bytearray(b"x")
        assert codec.encode_plain is not None
        codec.encode_plain({"a": 1}, direct, -1)
        codec.encode_into({"a": 1}, usual)

        assert direct == usual
        assert Codec(Reading, inline_bytes=INLINE).encode_plain is None

    def test_codecs_are_collected(self) -> None:
        """A codec and its encoders, which refer to each other, do not outlive their topic."""

        def there() -> int:
            gc.collect()
            return sum(isinstance(found, Codec) for found in gc.get_objects())

        before = there()
        for _ in range(100):
            Codec(Reading, inline_bytes=INLINE)

        assert there() - before < 50

    def test_repr(self) -> None:
        """A codec shows its type."""
        assert repr(Codec(Reading, inline_bytes=64)) == "Codec(Reading, inline_bytes=64)"


class TestRefusedValues:
    """What cannot travel is an EncodeFailed at the publisher."""

    @pytest.mark.parametrize(
        ("value", "cure"),
        [
            (2**64, "send larger numbers as text"),
            (-(2**63) - 1, "send larger numbers as text"),
            (object(), "type object cannot travel; send a dict"),
            (len, "send a dict"),
            (1j, "type complex cannot travel"),
            (CIRCULAR, "contains itself"),
            ("\ud800", "lone surrogates"),
            ([memoryview(b"abcd")[::2]], "not C-contiguous"),
            (Ext(1, b"\x00"), "code from 3 to 127"),
            (Ext(2, b"\x00"), "code from 3 to 127"),
            (np.array([object()]), "dtype object cannot travel"),
            (np.zeros(2, [("a", "O")]), "cannot travel"),
            (np.zeros(2, [("a", "i4")]), "send the columns as a dict"),
            (np.zeros(2, np.longdouble), "cannot travel"),
            (np.zeros(2, "V4"), "cannot travel"),
            (np.ma.masked_array([1], [True]), "numpy.asarray"),
            (np.zeros((0, 2**40), "u1"), "huge shape"),
            (np.zeros((1,) * 33), "at most 32 dimensions"),
            (np.datetime64(1, "ns"), "send a numpy array"),
            (np.complex128(1), "send a numpy array"),
            (np.longdouble(1), "send a numpy array"),
        ],
        ids=lambda part: part if isinstance(part, str) else type(part).__name__,
    )
    def test_refused(self, value: Any, cure: str) -> None:
        """Every kind of bad value, alone or inside another, is refused with its cure and leaves no trace."""
        for bad in (value, [{"good": 1, "array": np.zeros(INLINE), "bad": value}]):
            codec = Codec(inline_bytes=INLINE)
            buffer, before = bytearray(b"before"), b"frame"
            codec.buffers.append(before)
            if bad is value or type(value) not in SPECIAL_TYPES:
                with pytest.raises(EncodeFailed, match=cure) as caught:
                    codec.encode_into(bad, buffer)

                assert caught.value.topic == ""
                assert buffer == b"before"
                assert codec.buffers == [before]

    def test_fail_names_the_topic_and_cleans_up(self) -> None:
        """After a direct call `fail` undoes what msgspec left and raises with the caller's topic."""
        codec = Codec(inline_bytes=INLINE)
        buffer = bytearray(b"before")
        assert codec.encode_plain is not None
        with pytest.raises(TypeError) as direct:
            codec.encode_plain([1, 2, object()], buffer, -1)
        with pytest.raises(EncodeFailed, match=r"'a\.b'") as caught:
            codec.fail(direct.value, buffer, 6, 0, "a.b")

        assert caught.value.topic == "a.b"
        assert buffer == b"before"

    def test_fail_keeps_the_reason_of_encode_into(self) -> None:
        """The error of `encode_into` may go through `fail` again to get its topic."""
        codec = Codec(inline_bytes=INLINE)
        with pytest.raises(EncodeFailed) as caught:
            codec.fail(EncodeFailed("", "because"), bytearray(), 0, 0, "a.b")

        assert (caught.value.topic, caught.value.reason) == ("a.b", "because")

    @pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError()], ids=repr)
    def test_fail_passes_what_no_value_is_to_blame_for(self, error: BaseException) -> None:
        """An interrupt cleans up as well, and stays what it is."""
        buffer = bytearray(b"beforemore")
        with pytest.raises(type(error)):
            Codec(inline_bytes=INLINE).fail(error, buffer, 6, 0)

        assert buffer == b"before"

    @pytest.mark.parametrize(
        ("expected", "value", "reason"),
        [
            (Reading, Reading("21", "a"), r"Expected `float`, got `str` - at `\$.c`"),  # type: ignore[arg-type]
            (Reading, {"c": 1, "name": 2}, r"Expected `str`, got `int` - at `\$.name`"),
            (Reading, {"name": "a"}, "missing required field `c`"),
            (Position, Position("1", 2), r"at `\$.x`"),  # type: ignore[arg-type]
            (Row, {"x": None}, r"at `\$.x`"),
            (int, "1", "Expected `int`, got `str`"),
            (Reading, b"x" * INLINE, "Expected `object`, got `bytes`"),
            (Annotated[bytes, msgspec.Meta(max_length=100)], b"x" * 101, "length <= 100"),
            (Picture, Picture([1, 2]), r"Expected `numpy.ndarray`, got `list` - at `\$.frame`"),  # type: ignore[arg-type]
            (Vector, Vector(np.zeros(3, np.int64)), r"Expected an array of `float64`, got `int64`"),
            (Vector, Vector(np.zeros(300, np.int64)), r"Expected an array of `float64`, got `int64`"),
            (np.ndarray, b"x" * INLINE, "Expected `numpy.ndarray`, got `bytes`"),
            (Reading, Ext(5, b""), "got `ext`"),
        ],
    )
    def test_typed(self, expected: Any, value: Any, reason: str) -> None:
        """A value that does not fit its topic's type is refused with the place where it does not."""
        codec = Codec(expected, inline_bytes=INLINE)
        buffer = bytearray(b"before")
        with pytest.raises(EncodeFailed, match=reason):
            codec.encode_into(value, buffer)

        assert buffer == b"before"
        assert codec.buffers == []

    def test_unsupported_type_is_refused_at_once(self) -> None:
        """A type that can never be checked is the caller's error before anything is published."""
        with pytest.raises(TypeError, match="not supported"):
            Codec(Reading | Position, inline_bytes=INLINE)


class TestLargeBytes:
    """Bytes that travel as frames of their own."""

    def test_threshold(self) -> None:
        """From `inline_bytes` on bytes leave the body, at the top level only."""
        codec = Codec(inline_bytes=INLINE)

        assert encode(codec, b"x" * (INLINE - 1))[1] == []
        assert encode(codec, [b"x" * INLINE])[1] == []
        body, buffers = encode(codec, b"x" * INLINE)
        assert (len(body), buffers) == (HEAD + 3, [b"x" * INLINE])

    def test_bytes_are_not_copied(self) -> None:
        """The frame is the very object, going and, if the transport gives bytes, coming."""
        codec = Codec(inline_bytes=INLINE)
        value = b"x" * INLINE
        body, buffers = encode(codec, value, memoryview(value), bytearray(value))

        assert buffers[0] is value
        assert buffers[1].obj is value
        assert codec.decode_many(body, buffers)[0] is value

    def test_bytes_come_back_as_bytes_whatever_their_size(self) -> None:
        """A reader without a type sees one type: not another one from some size on."""
        codec = Codec(inline_bytes=INLINE)
        body, _ = encode(codec, b"x" * INLINE)
        (value,) = codec.decode_many(body, [memoryview(bytearray(b"x" * INLINE))])

        assert type(value) is bytes
        assert value == b"x" * INLINE

    def test_a_topic_of_memoryviews_shares_the_frame(self) -> None:
        """Who wants no copy asks for memoryview, and gets a read-only view of the very frame."""
        codec = Codec(memoryview, inline_bytes=INLINE)
        body, _ = encode(codec, b"x" * INLINE)
        frame = bytearray(b"x" * INLINE)
        (value,) = codec.decode_many(body, [memoryview(frame)])

        assert value.readonly
        assert value.obj is frame

    @pytest.mark.parametrize(
        "kind", [bytes, bytearray, memoryview, bytes | None, Annotated[bytes, "note"], bytes | list]
    )
    @pytest.mark.parametrize("size", [INLINE - 1, INLINE, 70_000])
    @pytest.mark.parametrize("frame", [bytes, bytearray, memoryview])
    def test_typed_bytes_always_are_of_their_type(self, kind: Any, size: int, frame: Any) -> None:
        """A topic typed as some kind of bytes yields that kind, whatever their size and the transport's frames."""
        codec = Codec(kind, inline_bytes=INLINE)
        body, buffers = encode(codec, b"x" * size)
        expected = kind if kind in (bytearray, memoryview) else bytes
        frames = [frame(buffer) for buffer in buffers]

        for (value,) in (codec.decode_many(body, frames), [value for _, value in codec.decode_each(body, frames)]):
            assert type(value) is expected
            assert value == b"x" * size

    def test_typed_bytes_mixed_with_other_members(self) -> None:
        """A union with bytes takes its other members beside out-of-band frames, and refuses the rest."""
        codec = Codec(bytes | list[int] | Ext, inline_bytes=INLINE)
        body, buffers = encode(codec, b"x" * INLINE, [1], Ext(7, b"z"))
        values = codec.decode_many(body, buffers)
        assert values[:2] == [b"x" * INLINE, [1]]
        assert values[2].code == 7

        strict = Codec(bytes, inline_bytes=INLINE)
        with pytest.raises(DecodeFailed):
            strict.decode_many(body, buffers)
        found = [value for _, value in strict.decode_each(body, buffers)]
        assert found[0] == b"x" * INLINE
        assert [type(value) for value in found[1:]] == [DecodeFailed, DecodeFailed]

    @pytest.mark.parametrize("kind", [bytearray, lambda value: memoryview(bytearray(value)).toreadonly()])
    def test_mutable_bytes_are_copied(self, kind: Any) -> None:
        """What is changed after `publish` is not sent, also through a read-only view."""
        codec = Codec(inline_bytes=INLINE)
        value = kind(b"x" * INLINE)
        body, buffers = encode(codec, value)
        (value if isinstance(value, bytearray) else value.obj)[0] = 0

        assert codec.decode_many(body, buffers) == [b"x" * INLINE]

    def test_views_of_any_shape(self) -> None:
        """Views that are strided or of other items are sent as the bytes that they show, small or large."""
        source = bytes(range(200))

        assert round_trip(memoryview(source)[::2]) == source[::2]
        assert round_trip(memoryview(source)[:20:2]) == source[:20:2]
        assert round_trip(memoryview(source).cast("d")) == source
        assert round_trip(memoryview(source).cast("B", (10, 20))) == source


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
