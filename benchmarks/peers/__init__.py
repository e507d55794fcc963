"""One small file per peer. Each lists its `ENTRIES`; one whose library or program is not there is named as missing."""

from __future__ import annotations

import importlib
import os
import pkgutil

from benchmarks.model import Entry, Missing, Unavailable

__all__ = ["load"]

# Peer files of a user's own, outside of this checkout.
__path__ += [folder for folder in os.environ.get("BENCHMARKS_PEERS", "").split(os.pathsep) if folder]


def load() -> tuple[list[Entry], list[Missing]]:
    """The entries of all peer files, in the files' order, and the files that could not be loaded."""
    entries: list[Entry] = []
    missing: list[Missing] = []
    for module in sorted(pkgutil.iter_modules(__path__), key=lambda module: module.name):
        try:
            entries += importlib.import_module(f"{__name__}.{module.name}").ENTRIES
        except ModuleNotFoundError as error:
            missing.append(Missing(peer=module.name, what=f"package {error.name}"))
        except Unavailable as error:
            missing.append(Missing(peer=module.name, what=str(error)))
    return entries, missing
