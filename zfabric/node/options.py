"""What users give as options, as the plain values that records are made of.

A peer refuses a record that has a field of another type, and so never hears what comes after it.
"""

from __future__ import annotations

from math import isnan
from numbers import Integral, Real
from typing import Any

from zfabric.wire.fields import NAME_CHARS_MAX

__all__ = ["SECONDS_MAX", "WHOLE_MAX", "flag", "real", "said", "seconds", "text", "texts", "whole"]

WHOLE_MAX = 2**62
"Sums of two still fit the 64 bits of MessagePack."
SECONDS_MAX = 1e9
"Longer than anything runs, and records can say it in milliseconds."


def whole(name: str, value: Any) -> int:
    """A whole number, numpy's too. Raises TypeError, and ValueError for one that records have no room for."""
    if value.__class__ is not int and (isinstance(value, bool) or not isinstance(value, Integral)):
        raise TypeError(f"{name} must be a whole number, not {value!r}")
    number = int(value)
    if abs(number) > WHOLE_MAX:
        raise ValueError(f"{name} must be at most {WHOLE_MAX}, not {number}")
    return number


def real(name: str, value: Any) -> float:
    """A number, numpy's too. Raises TypeError, and ValueError for one that is none."""
    if value.__class__ not in (int, float) and (isinstance(value, bool) or not isinstance(value, Real)):
        raise TypeError(f"{name} must be a number, not {value!r}")
    number = float(value)
    if isnan(number):
        raise ValueError(f"{name} must be a number, not {value!r}")
    return number


def seconds(name: str, value: Any) -> float:
    """A number of seconds; what is longer than a life counts as one. Raises TypeError and ValueError."""
    return min(real(name, value), SECONDS_MAX)


def flag(name: str, value: Any) -> bool:
    """True or False. Raises TypeError."""
    if value.__class__ is bool:
        return bool(value)
    raise TypeError(f"{name} must be True or False, not {value!r}")


def text(name: str, value: Any, length_max: float = NAME_CHARS_MAX) -> str:
    """A text, by default as long as names may be. Raises TypeError, and ValueError for one that is no UTF-8."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be str, not {value!r}")
    if said(value) != value:
        raise ValueError(f"{name} must be UTF-8: {value!r} has lone surrogates")
    if len(value) > length_max:
        raise ValueError(f"{name} must be at most {length_max} characters long, not {len(value)}")
    return str(value)


def texts(name: str, values: Any) -> tuple[str, ...]:
    """Several texts; one alone counts as one, not as its letters. Raises TypeError, and ValueError as `text`."""
    return tuple(text(name, value) for value in ((values,) if isinstance(values, str) else values))


def said(message: str) -> str:
    """A message as it can travel: bytes of a file's name that are not UTF-8, say, are spelt out."""
    return message.encode("utf-8", "backslashreplace").decode()
