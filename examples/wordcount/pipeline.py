"""What every process of the example knows: the stages, and the functions they call."""

from __future__ import annotations

import re
import sysconfig
from collections import Counter
from pathlib import Path

from zfabric.patterns.pipeline import Pipeline

__all__ = ["count", "files", "pipeline"]

_words = re.compile(r"[A-Za-z_]+").findall


def files(limit: int | None = None) -> list[str]:
    """The source files of the Python installation's library, in order."""
    library = Path(sysconfig.get_path("stdlib"))
    found = sorted(str(path) for path in library.rglob("*.py") if "site-packages" not in path.parts)
    return found[:limit]


def read(path: str) -> str:
    """A file's text."""
    return Path(path).read_text("utf-8", "replace")


def count(text: str) -> dict[str, int]:
    """How often each word occurs."""
    return Counter(_words(text.lower()))


pipeline = Pipeline("wordcount").map(read).map(count)
