"""The directory of a store: its lock, its format, its witness, its reserve, and the names in it.

FORMAT         says that this is a store, of which version, and which one: the id that its checksums begin with, and its
               own, if it is a copy: what a copy goes on with is another log
lock           held by the process that has it open
log-*.db       batches as they came; the one with the highest number is the *head*, which is written to
pack-*.db      what is left of older files after they were thinned out
witness        how far the head had come, written without a flush after each commit
reserve        room that is given up when the disk is full, so that positions and retention still work
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import struct
import sys
from contextlib import suppress
from pathlib import Path
from zlib import crc32

import apsw

from zfabric.errors import StoreDamaged, StoreLocked, StoreNotFound

__all__ = ["Directory", "fsync_directory", "make_private"]

logger = logging.getLogger("zfabric.store")

_FORMAT_LINE = re.compile(r"zfabric store (\d+) ([0-9a-f]{32})(?: ([0-9a-f]{32}))?\n")
_FORMAT_VERSION = 1
_WITNESS = struct.Struct(">QQI")
_FILE_NAME = re.compile(r"(log|pack)-(\d{8,})\.db")
_UNFINISHED = "FORMAT.unfinished"
_BESIDE_THE_LOG = {"lock", "witness", "reserve", f"{_UNFINISHED}.new"}
_CHUNK = 1024 * 1024


def fsync_directory(path: Path) -> None:
    """Make names in a directory safe. Where directories cannot be opened (Windows) the system sees to it."""
    if sys.platform == "win32":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_private(path: Path) -> None:
    """Make an empty file that only its owner can read, unless it is there: whoever opens a new one asks the umask."""
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))


def write_durably(path: Path, content: bytes) -> None:
    """Create a small file so that it is there, whole, after a power loss."""
    new = path.with_name(f"{path.name}.new")
    make_private(new)
    with new.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    fsync_directory(path.parent)


class Directory:
    """An open, locked store directory."""

    def __init__(self, path: Path, *, create: bool, reserve_bytes: int, copy_of: bytes = b"") -> None:
        """`copy_of`: the `origin` of the log whose files a new one gets.

        Raises StoreNotFound, StoreLocked, StoreDamaged, OSError.
        """
        self.path = path
        if not (path / "FORMAT").exists():
            self._check_may_create(create)
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._reserve_bytes = reserve_bytes
        self._lock = _lock(path)
        try:
            self.is_new = not (path / "FORMAT").exists()
            own = os.urandom(16)
            self.origin, self.id = (copy_of or own, own) if self.is_new else self._read_format()
            if self.is_new:
                self._begin()
            self._witness = os.open(path / "witness", os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o600)
        except BaseException:
            self._lock.close()
            raise

    def _check_may_create(self, create: bool) -> None:
        if not create:
            raise StoreNotFound(str(self.path), "no store here")
        if (self.path / _UNFINISHED).exists() or not self.path.exists():
            return
        for entry in self.path.iterdir():
            if entry.name not in _BESIDE_THE_LOG:
                reason = f"a new store needs an empty directory; this one holds {entry.name!r}"
                raise StoreNotFound(str(self.path), reason)

    def _begin(self) -> None:
        """Until the format has its name there is no store, and whoever finds this may begin again."""
        ids = " ".join(each.hex() for each in dict.fromkeys((self.origin, self.id)))
        write_durably(self.path / _UNFINISHED, f"zfabric store {_FORMAT_VERSION} {ids}\n".encode())
        for name in self.files():
            self.remove(name)

    def complete(self) -> None:
        """Make a new directory a store, at the end of its making."""
        (self.path / _UNFINISHED).replace(self.path / "FORMAT")
        fsync_directory(self.path)
        self.is_new = False

    def _read_format(self) -> tuple[bytes, bytes]:
        found = _FORMAT_LINE.fullmatch((self.path / "FORMAT").read_text(encoding="ascii", errors="replace"))
        if found is None:
            raise StoreDamaged(str(self.path / "FORMAT"), "not the format of a store")
        if int(found[1]) != _FORMAT_VERSION:
            raise StoreDamaged(str(self.path), f"a store of format {found[1]}; this zfabric knows {_FORMAT_VERSION}")
        return bytes.fromhex(found[2]), bytes.fromhex(found[3] or found[2])

    def close(self) -> None:
        """Let go of it."""
        with suppress(OSError):
            os.fsync(self._witness)
        os.close(self._witness)
        self._lock.close()

    # -- names ---------------------------------------------------------------------------------

    def numbered(self, kind: str, number: int) -> str:
        """The name of a file: `log` or `pack`."""
        return f"{kind}-{number:08d}.db"

    def files(self) -> dict[str, tuple[str, int]]:
        """The log's files: name -> (kind, number)."""
        found = {}
        for entry in self.path.iterdir():
            if match := _FILE_NAME.fullmatch(entry.name):
                found[entry.name] = match[1], int(match[2])
        return found

    def head(self) -> int | None:
        """The number of the head; None when there is none."""
        return max((number for kind, number in self.files().values() if kind == "log"), default=None)

    def publish(self, new: Path, name: str) -> None:
        """Give a finished file its name: from now on it counts, also after a power loss."""
        with new.open("rb+") as file:
            os.fsync(file.fileno())
        new.replace(self.path / name)
        fsync_directory(self.path)

    def remove(self, name: str) -> None:
        """Remove a file and what SQLite keeps beside it."""
        (self.path / name).unlink(missing_ok=True)
        self.remove_beside(name)

    def remove_beside(self, name: str) -> None:
        """Remove what SQLite keeps beside a file, which must be closed and complete."""
        for suffix in ("-wal", "-shm", "-journal"):
            (self.path / f"{name}{suffix}").unlink(missing_ok=True)

    def remove_unfinished(self) -> None:
        """Remove what was being made when the store went down."""
        for path in [*self.path.glob("*.new"), *self.path.glob("*.new-*")]:
            path.unlink()

    # -- witness -------------------------------------------------------------------------------

    def testify(self, head: int, commits: int) -> None:
        """Note how far the head has come; must be called after each commit.

        The commit is safe without it: one that is behind, or torn, only tells less.
        """
        record = _WITNESS.pack(head, commits, 0)[:-4]
        try:
            os.lseek(self._witness, 0, os.SEEK_SET)
            os.write(self._witness, record + crc32(record, crc32(self.id)).to_bytes(4, "big"))
        except OSError as error:
            logger.warning("the witness of %s cannot be written: %s", self.path, error)

    def testimony(self) -> tuple[int, int]:
        """How far the head had come at least; (0, 0) when nobody can tell."""
        os.lseek(self._witness, 0, os.SEEK_SET)
        record = os.read(self._witness, _WITNESS.size)
        if len(record) == _WITNESS.size:
            head, commits, crc = _WITNESS.unpack(record)
            if crc == crc32(record[:-4], crc32(self.id)):
                return head, commits
        return 0, 0

    # -- room ----------------------------------------------------------------------------------

    def free_bytes(self) -> int:
        """Room on the disk."""
        return shutil.disk_usage(self.path).free

    def take_reserve(self) -> None:
        """Set the reserve aside. Raises OSError when there is no room for it."""
        path = self.path / "reserve"
        if path.exists() and path.stat().st_size == self._reserve_bytes:
            return
        make_private(path)
        with path.open("wb") as file:
            for start in range(0, self._reserve_bytes, _CHUNK):
                file.write(bytes(min(_CHUNK, self._reserve_bytes - start)))
            file.flush()
            os.fsync(file.fileno())

    def give_reserve(self) -> None:
        """Give the reserve up: the disk is full."""
        (self.path / "reserve").unlink(missing_ok=True)

    def has_room(self) -> bool:
        """Whether a disk that was full has room again, for the reserve and a quarter more."""
        return self.free_bytes() >= self._reserve_bytes * 5 // 4


def _lock(path: Path) -> apsw.Connection:
    """SQLite's own lock on an empty file: it works on every system, and ends with the process."""
    make_private(path / "lock")
    connection = apsw.Connection(str(path / "lock"))
    try:
        connection.execute("BEGIN EXCLUSIVE")
    except apsw.BusyError:
        connection.close()
        raise StoreLocked(str(path)) from None
    except apsw.Error as error:
        connection.close()
        raise StoreDamaged(str(path / "lock"), str(error)) from error
    return connection
