"""Values of every kind, and one trip through the codec."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from typing import Any, NamedTuple, TypedDict

import msgspec
import numpy as np
import numpy.typing as npt

from zfabric.wire.codec import Codec

INLINE = 64


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
