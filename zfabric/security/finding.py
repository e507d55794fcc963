"""Which key a node uses."""

from __future__ import annotations

import os
from pathlib import Path

from zfabric.errors import InvalidKey
from zfabric.security.identities import Identities
from zfabric.security.keyfiles import identities_path, key_path, read_key
from zfabric.security.keys import FabricKey

__all__ = ["KEY_FILE", "find_credentials"]

KEY_FILE = "ZFABRIC_KEY_FILE"
"The environment variable that names a key file, or a directory of identities."


def find_credentials(fabric: str, key: str | bytes | Path | None) -> FabricKey | Identities | None:
    """What to use for a fabric: the given key, else `$ZFABRIC_KEY_FILE`, else the user's, else None.

    A path is that of a key file, or of a directory of identities. Raises InvalidKey for what is malformed, of another
    fabric, or open to others; OSError for what cannot be read.
    """
    if isinstance(key, Path):
        return _read(key, fabric)
    if key is not None:
        return _of_fabric(FabricKey.parse(key), fabric)
    if path := os.environ.get(KEY_FILE):
        return _read(Path(path), fabric)
    try:
        users = identities_path(fabric), key_path(fabric)
    except RuntimeError:  # nobody's home
        return None
    return next((_read(path, fabric) for path in users if path.exists()), None)


def _read(path: Path, fabric: str) -> FabricKey | Identities:
    return Identities(path, fabric) if path.is_dir() else _of_fabric(read_key(path), fabric)


def _of_fabric(key: FabricKey, fabric: str) -> FabricKey:
    if key.fabric != fabric:
        raise InvalidKey(f"it belongs to fabric {key.fabric!r}, not to {fabric!r}")
    return key
