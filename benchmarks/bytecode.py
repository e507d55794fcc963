"""Compiled modules are kept, as for any installed program, also where the environment forbids to write them beside the
sources (PYTHONDONTWRITEBYTECODE): else each process would compile its library first, and be measured with that.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

__all__ = ["environment", "keep"]

FOLDER = Path(__file__).parent / "__pycache__" / "measured"
FORBIDDEN = "PYTHONDONTWRITEBYTECODE"


def keep() -> None:
    """In this process, from now on."""
    if sys.dont_write_bytecode:
        sys.dont_write_bytecode, sys.pycache_prefix = False, str(FOLDER)


def environment() -> dict[str, str]:
    """The environment of another process that shall do the same."""
    if FORBIDDEN not in os.environ:
        return dict(os.environ)
    rest = {name: value for name, value in os.environ.items() if name != FORBIDDEN}
    return {**rest, "PYTHONPYCACHEPREFIX": str(FOLDER)}
