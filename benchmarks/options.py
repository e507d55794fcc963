"""Types of command-line options: what does not fit is refused with a word on what does."""

from __future__ import annotations

import argparse
from collections.abc import Callable

__all__ = ["number", "numbers", "words"]


def number(text: str) -> int:
    """A number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return int(text)


def numbers(text: str) -> list[int]:
    """Comma-separated numbers above 0."""
    return [number(word) for word in text.split(",")]


def words(*known: str) -> Callable[[str], list[str]]:
    """The type of comma-separated words, each of them known."""

    def read(text: str) -> list[str]:
        found = text.split(",")
        for word in found:
            if word not in known:
                raise argparse.ArgumentTypeError(f"{word!r} is none of {', '.join(known)}")
        return found

    return read
