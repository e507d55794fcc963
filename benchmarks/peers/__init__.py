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
            missing.append(Missing(peer=module.name, why=f"package {error.name} is not installed"))
        except Unavailable as error:
            missing.append(Missing(peer=module.name, why=f"{error} is not installed"))
        except Exception as error:  # noqa: BLE001 - one broken library must not keep the others from being measured
            missing.append(Missing(peer=module.name, why=f"it cannot be loaded: {type(error).__name__}: {error}"))
    return entries, missing
