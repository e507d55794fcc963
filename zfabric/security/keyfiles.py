"""Where keys lie: files that only their owner can read."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import sys
from pathlib import Path
from urllib.parse import quote

from zfabric.errors import InvalidKey
from zfabric.security.keys import KEY_CHARS_MAX, FabricKey

__all__ = [
    "config_dir",
    "identities_path",
    "key_files",
    "key_path",
    "read_key",
    "read_private",
    "write_key",
    "write_private",
]

_NAME_CHARS_MAX = 200
_FILE_BYTES_MAX = KEY_CHARS_MAX + 2048
_READ = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)


def config_dir() -> Path:
    """The user's directory for configuration, perhaps not there yet: `$XDG_CONFIG_HOME`, else the system's custom."""
    if chosen := os.environ.get("XDG_CONFIG_HOME"):
        return Path(chosen).absolute() / "zfabric"
    if sys.platform == "win32":
        return Path(os.environ.get("APPDATA") or Path.home() / "AppData" / "Roaming") / "zfabric"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "zfabric"
    return Path.home() / ".config" / "zfabric"


def key_path(fabric: str) -> Path:
    """Where the key of a fabric lies, if the user has it."""
    name = quote(fabric, safe="")
    if len(name) > _NAME_CHARS_MAX:
        name = hashlib.blake2b(fabric.encode(), digest_size=16).hexdigest()
    return config_dir() / "keys" / f"{name}.key"


def key_files() -> list[Path]:
    """Every key file, and every directory of identities, of this user."""
    return sorted(path for pattern in ("*.key", "*.d") for path in (config_dir() / "keys").glob(pattern))


def identities_path(fabric: str) -> Path:
    """Where the identities of a fabric lie, if the user has them."""
    return key_path(fabric).with_suffix(".d")


def read_key(path: Path) -> FabricKey:
    """The key in a file. Raises InvalidKey, or OSError when the file cannot be read."""
    lines = [line for line in read_private(path).splitlines() if line.strip() and not line.startswith(b"#")]
    if len(lines) != 1:
        raise InvalidKey(f"{path} holds {len(lines)} keys instead of one")
    try:
        return FabricKey.parse(lines[0])
    except InvalidKey as error:
        raise InvalidKey(f"{path}: {error.reason}") from None


def write_key(path: Path, key: FabricKey) -> None:
    """Write a new key file. Raises FileExistsError rather than replace one."""
    warning = "# Whoever has this key reads and writes everything in its fabric."
    write_private(path, f"{warning}\n# Fingerprint {key.fingerprint}\n{key.text}\n".encode())


def read_private(path: Path, bytes_max: int = _FILE_BYTES_MAX) -> bytes:
    """The content of a file that only its owner can read. Raises InvalidKey if others can, or OSError."""
    descriptor = os.open(path, _READ)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise InvalidKey(f"{path} is no file")
        if hasattr(os, "getuid"):
            if found.st_uid not in (os.getuid(), 0):
                raise InvalidKey(f"{path} belongs to somebody else")
            if found.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise InvalidKey(f"others may read or write {path}: chmod 600 it, and make a new key if they did")
        content = os.read(descriptor, bytes_max + 1)
    finally:
        os.close(descriptor)
    if len(content) > bytes_max:
        raise InvalidKey(f"{path} is too long for a key")
    return content


def write_private(path: Path, content: bytes) -> None:
    """Write a new file that only its owner can read, whole or not at all. Raises FileExistsError."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, _CREATE, 0o600)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise FileExistsError(errno.EEXIST, "a symbolic link is there", str(path)) from None
        raise
    try:
        os.write(descriptor, content)
        os.fsync(descriptor)
    except BaseException:
        path.unlink()
        raise
    finally:
        os.close(descriptor)
