"""Values through the codec and back, against the `msgpack` package."""

from __future__ import annotations

import datetime as dt
import decimal
import gc
import uuid
from typing import Annotated, Any

import msgpack
import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.msgpack import Ext

from tests.wire.codecs import INLINE, Colour, Pair, Picture, Position, Reading, Row, Vector, encode, round_trip, same
from zfabric.errors import DecodeFailed, EncodeFailed
from zfabric.wire.codec import SPECIAL_TYPES, Codec

HEAD = 5
UTC = dt.UTC

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
