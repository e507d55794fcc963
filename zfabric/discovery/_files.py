"""The registry's files: where they lie, and how one is written, read, judged and removed."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path

import msgspec

from zfabric.discovery import _liveness
from zfabric.discovery._endpoints import ipc_path, parse_tcp
from zfabric.discovery.base import Announcement

__all__ = [
    "Garbage",
    "Record",
    "examine",
    "fabric_dir",
    "fabric_dirs",
    "names",
    "remove_if_dead",
    "runtime_dir",
    "write",
]

_RECORD_BYTES_MAX = 16 * 1024
_NAME = re.compile(r"[0-9a-f]{32}")
_READ = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)


class Record(msgspec.Struct, frozen=True, array_like=True):
    """What one file holds."""

    announcement: Announcement
    pid: int
    "The writer's process, which stands for its life where files cannot be locked."


class Garbage(ValueError):
    """A file that no node wrote."""


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Record)


def runtime_dir() -> Path:
    """The user's directory for the registry and for ipc sockets, created when missing.

    `$ZFABRIC_RUNTIME_DIR`, else `$XDG_RUNTIME_DIR/zfabric`, else `zfabric-<uid>` among the temporary files.
    Raises PermissionError for a directory in which somebody else could put files, OSError when there can be none.
    """
    path = _runtime_path()
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, "the runtime directory is something else", str(path))
    if _uid() is not None:
        if found.st_uid != _uid():
            raise PermissionError(errno.EPERM, "the runtime directory belongs to somebody else", str(path))
        if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise PermissionError(errno.EPERM, "others may write to the runtime directory", str(path))
    return path


def _runtime_path() -> Path:
    if chosen := os.environ.get("ZFABRIC_RUNTIME_DIR"):
        return Path(chosen).absolute()
    if session := os.environ.get("XDG_RUNTIME_DIR"):
        # After `sudo` it may still name the directory of the user before.
        with suppress(OSError):
            if Path(session).stat().st_uid == _uid():
                return Path(session).absolute() / "zfabric"
    uid = _uid()
    return Path(tempfile.gettempdir()) / ("zfabric" if uid is None else f"zfabric-{uid}")


def _uid() -> int | None:
    return os.getuid() if hasattr(os, "getuid") else None


def fabric_dir(fabric: str) -> Path:
    """Where the files of one fabric lie; it may not exist yet."""
    return runtime_dir() / "nodes" / _digest(fabric)


def fabric_dirs() -> list[Path]:
    """The directories of all fabrics that ever had a node here."""
    try:
        return sorted(path for path in (runtime_dir() / "nodes").iterdir() if path.is_dir())
    except FileNotFoundError:
        return []


def _digest(fabric: str) -> str:
    return hashlib.sha256(fabric.encode()).hexdigest()[:16]


def names(directory: Path, at_most: int) -> dict[str, tuple[int, int]]:
    """Names of the files in a fabric's directory, each with what changes when it is replaced."""
    return dict(islice(_stamps(directory), at_most))


def _stamps(directory: Path) -> Iterator[tuple[str, tuple[int, int]]]:
    with os.scandir(directory) as entries:
        for entry in entries:
            if _NAME.fullmatch(entry.name):
                with suppress(FileNotFoundError):
                    found = entry.stat(follow_symlinks=False)
                    yield entry.name, (found.st_ino, found.st_mtime_ns)


def write(directory: Path, announcement: Announcement) -> int | None:
    """Put a node's file in place at once and whole; returns the descriptor that keeps it alive.

    The file is claimed before it gets its name, so no reader ever sees it unclaimed. The descriptor of
    the version before must be closed after this, not earlier: see `remove_if_dead`.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    name = announcement.node_id.hex()
    unnamed = directory / f".{name}.new"
    unnamed.unlink(missing_ok=True)
    descriptor = os.open(unnamed, _CREATE, 0o600)
    kept: int | None = None
    try:
        _liveness.hold(descriptor)
        os.write(descriptor, _encoder.encode(Record(announcement, os.getpid())))
        if _liveness.has_locks():
            unnamed.replace(directory / name)
            kept = descriptor
    finally:
        if kept is None:
            os.close(descriptor)
    if kept is None:
        # Windows replaces closed files only.
        unnamed.replace(directory / name)
    return kept


def examine(path: Path) -> tuple[Record, bool]:
    """What a file says and whether its writer lives. Raises Garbage, or OSError when it is gone."""
    descriptor = _open(path)
    try:
        record = _read(descriptor, path)
        return record, _lives(descriptor, record)
    finally:
        os.close(descriptor)


def remove_if_dead(path: Path) -> bool:
    """Remove the file of a dead writer, and the ipc sockets that it left; False while its writer lives.

    A writer that replaces its file names the new one, claimed, before it lets go of the old one. So
    whoever gets the lock of a file that still has its name knows that nobody will replace it.
    """
    try:
        descriptor = _open(path)
    except (Garbage, OSError):
        return False
    try:
        try:
            record: Record | None = _read(descriptor, path)
        except Garbage:
            record = None
        if _lives(descriptor, record):
            return False
        with suppress(OSError):
            if os.path.samestat(os.fstat(descriptor), path.lstat()):
                for endpoint in record.announcement.endpoints if record else ():
                    _remove_socket(endpoint)
                path.unlink()
        return True
    finally:
        os.close(descriptor)


def _lives(descriptor: int, record: Record | None) -> bool:
    if _liveness.has_locks():
        return _liveness.is_held(descriptor)
    return record is not None and _liveness.pid_exists(record.pid)


def _open(path: Path) -> int:
    try:
        descriptor = os.open(path, _READ)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise Garbage("a symbolic link") from None
        raise
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or (_uid() is not None and found.st_uid != _uid()):
        os.close(descriptor)
        raise Garbage("not a file of this user")
    return descriptor


def _read(descriptor: int, path: Path) -> Record:
    content = os.read(descriptor, _RECORD_BYTES_MAX + 1)
    if len(content) > _RECORD_BYTES_MAX:
        raise Garbage("too long")
    try:
        record = _decoder.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Garbage(str(error)) from None
    announcement = record.announcement
    if announcement.node_id.hex() != path.name or _digest(announcement.fabric) != path.parent.name:
        raise Garbage("it lies in another's place")
    if not all(ipc_path(endpoint) or parse_tcp(endpoint) for endpoint in announcement.endpoints):
        raise Garbage("an endpoint is no address")
    return record


def _remove_socket(endpoint: str) -> None:
    path = ipc_path(endpoint)
    if path is None or path.parent != _runtime_path():
        return
    with suppress(OSError):
        if stat.S_ISSOCK(Path(path).lstat().st_mode):
            Path(path).unlink()
