"""The head: the file that is written to. It holds the newest batches and all that the log knows beside them.

So one SQLite transaction changes batches of any number of streams, their marks and positions together. When the head
is long enough it is sealed: a new file takes over everything but the batches, and counts from the moment that it has
its name. Until then the old one is the head, whatever happens.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn
from urllib.parse import quote

import apsw

from zfabric.config import Config
from zfabric.errors import NotStored, StoreDamaged, StoreFailed
from zfabric.store.catalog import header_crc
from zfabric.store.directory import Directory
from zfabric.store.records import (
    APPLICATION_ID,
    BATCHES,
    FORGOT_MARKS,
    FORMAT,
    HEAD_TABLES,
    INSERT_FILE,
    INSERT_POSITION,
    INSERT_RANGE,
    INSERT_STATE,
    INSERT_STREAM,
    PAGE_BYTES,
    BadRow,
    Row,
    seal,
    unseal,
)
from zfabric.store.segment import Segment

__all__ = ["DISK_FULL", "Head", "NoRoom", "copy_head", "create_head", "new_file"]

logger = logging.getLogger("zfabric.store")

DISK_FULL = "the disk is full"
_BUSY_MS = 5000
_SETTINGS = {
    "journal_mode": "wal",
    "synchronous": "full",
    "fullfsync": "on",  # only macOS tells the disk apart from its cache
    "checkpoint_fullfsync": "on",
    "wal_autocheckpoint": 0,  # the writer folds it when nobody waits
    "cache_size": -8192,
    "cell_size_check": "on",
    "trusted_schema": "off",
    "temp_store": "memory",
}


def _open(path: Path, vfs: str) -> apsw.Connection:
    """Open the head for writing. Raises StoreDamaged when it is none."""
    try:
        connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE, vfs=vfs or None)
        connection.set_busy_timeout(_BUSY_MS)
        found = connection.pragma("application_id"), connection.pragma("user_version")
        if found != (APPLICATION_ID, FORMAT):
            raise StoreDamaged(str(path), f"not a log of format {FORMAT}")
        for name, value in _SETTINGS.items():
            connection.pragma(name, value)
    except (apsw.NotADBError, apsw.CorruptError, apsw.CantOpenError) as error:
        raise StoreDamaged(str(path), str(error)) from error
    return connection


def new_file(path: Path, vfs: str) -> apsw.Connection:
    """An empty file of the log. Nobody needs it before it is finished, so it has no journal on the disk."""
    for leftover in (path, path.with_name(f"{path.name}-journal")):
        leftover.unlink(missing_ok=True)
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))  # SQLite would ask the umask
    flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE | apsw.SQLITE_OPEN_URI
    connection = apsw.Connection(str(path), flags=flags, vfs=vfs or None)
    connection.pragma("page_size", PAGE_BYTES)
    connection.pragma("journal_mode", "memory")
    connection.pragma("synchronous", "full")
    connection.pragma("application_id", APPLICATION_ID)
    connection.pragma("user_version", FORMAT)
    connection.execute(BATCHES)
    return connection


def create_head(path: Path, vfs: str, seed: int) -> None:
    """Make the first head of a new log."""
    connection = new_file(path, vfs)
    try:
        connection.execute(f"BEGIN; {HEAD_TABLES}")
        connection.execute(INSERT_STATE, seal(seed, 1, 0, 0, 2, 1))
        connection.execute("COMMIT")
        connection.pragma("journal_mode", "wal")
    finally:
        connection.close()


def _succeed(path: Path, old: Path, vfs: str, seed: int, *, marks_max: int) -> None:
    """Make the head that follows `old`, which nobody has open any more, and enter `old` in the manifest.

    Raises BadRow when `old` is damaged.
    """
    connection = new_file(path, vfs)
    try:
        connection.execute("ATTACH ? AS old", (f"file:{quote(str(old.absolute()))}?mode=ro&immutable=1",))
        connection.execute(f"BEGIN; {HEAD_TABLES}")
        connection.execute("INSERT INTO marks SELECT * FROM old.marks ORDER BY used DESC LIMIT ?", (marks_max,))
        # Positions that earlier versions deleted are rows without a value.
        connection.execute("INSERT INTO positions SELECT * FROM old.positions WHERE value NOT NULL")
        for table in ("files", "ranges"):
            connection.execute(f"INSERT INTO {table} SELECT * FROM old.{table}")
        if connection.execute("SELECT 1 FROM old.marks LIMIT 1 OFFSET ?", (marks_max,)).fetchone() is not None:
            connection.execute(INSERT_POSITION, seal(seed, FORGOT_MARKS, b"", 0))
        connection.execute(INSERT_FILE, seal(seed, old.name, old.stat().st_size, header_crc(old)))
        for row in connection.execute("SELECT * FROM old.streams").fetchall():
            stream, name, first, end, start, nbytes, first_ns, last_ns, retention = unseal(seed, row)
            connection.execute(INSERT_STREAM, seal(seed, stream, name, first, end, end, 0, 0, 0, retention))
            if end > max(start, first):
                connection.execute(INSERT_RANGE, seal(seed, stream, start, end, old.name, nbytes, first_ns, last_ns))
        for row in connection.execute("SELECT * FROM old.state").fetchall():
            _, commits, stored_ns, next_file, next_stream = unseal(seed, row)
            connection.execute(INSERT_STATE, seal(seed, 1, commits, stored_ns, next_file + 1, next_stream))
        connection.execute("COMMIT")
        connection.execute("DETACH old")
        connection.pragma("journal_mode", "wal")
    finally:
        connection.close()


def copy_head(head: Path, target: Path, vfs: str) -> None:
    """Copy the head as it is at one moment, while it is written to."""
    source = apsw.Connection(str(head), flags=apsw.SQLITE_OPEN_READONLY, vfs=vfs or None)
    copy = apsw.Connection(str(target))
    try:
        source.set_busy_timeout(_BUSY_MS)
        with copy.backup("main", source, "main") as backup:
            backup.step(-1)
    finally:
        copy.close()
        source.close()


class NoRoom(Exception):
    """The disk is full; nothing of the transaction is there."""


class Head:
    """The head of an open store, for its writer. The caller holds the writer's lock."""

    def __init__(
        self, directory: Directory, config: Config, vfs: str, seed: int, new_segment: Callable[[str], Segment]
    ) -> None:
        """Open the newest head there is. Raises StoreDamaged when there is none."""
        number = directory.head()
        if number is None:
            raise StoreDamaged(str(directory.path), "the head of the log is gone")
        self.failure: StoreFailed | None = None
        "Why nothing can be written any more."
        self.full = False
        "The disk is full: the reserve was given up, and appends are refused."
        self._directory = directory
        self._config = config
        self._vfs = vfs
        self._seed = seed
        self._new_segment = new_segment
        self.number = number
        self._connect()
        self.behind = self._compare(*directory.testimony())
        "How it is known to be older than the newest head there was; empty when it is not."
        self.bytes = 0
        "Bytes of batches in it, about."

    def _compare(self, known_head: int, known_commits: int) -> str:
        if self.number < known_head:
            return f"the head of the log, number {known_head}, is gone"
        if self.number == known_head and self.commits < known_commits:
            return f"it was cut or put back: it has {self.commits:,} commits, but {known_commits:,} were confirmed"
        return ""

    def _connect(self) -> None:
        name = self._directory.numbered("log", self.number)
        self.segment = self._new_segment(name)
        self.connection = _open(self.segment.path, self._vfs)
        try:
            (row,) = self.connection.execute("SELECT * FROM state")
            _, self.commits, self.stored_ns, self.next_file, self.next_stream = unseal(self._seed, row)
        except (apsw.Error, BadRow, ValueError) as error:
            self.connection.close()
            raise StoreDamaged(str(self.segment.path), str(error)) from error
        self._unfolded = 0
        "Bytes in the write-ahead log."
        self.connection.set_wal_hook(self._after_commit)

    def _after_commit(self, _connection: apsw.Connection, _database: str, wal_pages: int) -> int:
        self._unfolded = wal_pages * PAGE_BYTES
        return apsw.SQLITE_OK

    def close(self) -> None:
        """Close it; nothing can be written any more."""
        self.failure = self.failure or StoreFailed("the log is closed")
        self.segment.close()
        self.connection.close()

    # -- transactions --------------------------------------------------------------------------

    def check_writable(self) -> None:
        """Raise StoreFailed when writing has ended."""
        if self.failure is not None:
            raise self.failure

    def ask(self, sql: str, *parameters: str | bytes | int) -> Row | None:
        """One sealed row, also of the transaction under way. A head that cannot be read is no longer written to."""
        try:
            row = self.connection.execute(sql, parameters).fetchone()
            return None if row is None else unseal(self._seed, row)
        except (apsw.Error, BadRow) as error:
            self.fail(error)

    def transact(self, work: Callable[[apsw.Connection], object], *, stored_ns: int = 0) -> None:
        """Do `work` in one durable transaction. Raises NoRoom, or StoreFailed when nobody knows what is there."""
        connection = self.connection
        try:
            connection.execute("BEGIN IMMEDIATE")
            work(connection)
            self.stored_ns = max(self.stored_ns, stored_ns)
            state = 1, self.commits + 1, self.stored_ns, self.next_file, self.next_stream
            connection.execute(INSERT_STATE, seal(self._seed, *state))
            connection.execute("COMMIT")
        except apsw.FullError as error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise NoRoom from error
        except (apsw.Error, OSError) as error:
            self.fail(error)
        self.commits += 1
        self._directory.testify(self.number, self.commits)

    def transact_small(self, work: Callable[[apsw.Connection], object]) -> None:
        """`transact` for changes that must also work on a full disk: the reserve is there for them."""
        self.check_writable()
        try:
            self.transact(work)
        except NoRoom:
            self.become_full()
            try:
                self.transact(work)
            except NoRoom:
                raise NotStored(DISK_FULL) from None

    def fail(self, error: Exception) -> NoReturn:
        """A write failed: what is on the disk is unknown until it is read again. Nothing is confirmed any more."""
        self.failure = StoreFailed(f"{self._directory.path}: {type(error).__name__}: {error}")
        logger.critical("the store stops: %s", self.failure)
        with suppress(apsw.ConnectionClosedError):
            # Closing must not touch the file either.
            self.connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        raise self.failure from error

    # -- room ----------------------------------------------------------------------------------

    def become_full(self) -> None:
        """Give up the reserve."""
        if not self.full:
            logger.error("the disk of %s is full: nothing is stored until there is room", self._directory.path)
        self.full = True
        self._directory.give_reserve()

    def take_reserve(self) -> bool:
        """Set the reserve aside, if it is not; False when there is no room for it."""
        try:
            self._directory.take_reserve()
        except OSError:
            self.become_full()
        return not self.full

    def has_room(self) -> bool:
        """Whether appends are possible; a disk that was full is looked at again."""
        if self.full and self._directory.has_room():
            self.full = False
            if self.take_reserve():
                logger.warning("the disk of %s has room again", self._directory.path)
        return not self.full

    # -- folding and sealing -------------------------------------------------------------------

    @property
    def is_long(self) -> bool:
        """Whether it should be sealed."""
        return self.bytes >= self._config.store_segment_bytes and not self.full

    def fold(self) -> None:
        """Fold the write-ahead log into the file when it is long."""
        if self._unfolded >= self._config.store_checkpoint_bytes:
            self._checkpoint(apsw.SQLITE_CHECKPOINT_PASSIVE)

    def _checkpoint(self, mode: int) -> bool:
        """Whether all of it was folded: there was room, and no reader in the way."""
        try:
            frames, folded = self.connection.wal_checkpoint(mode=mode)
        except apsw.BusyError:
            return False
        except apsw.FullError:
            self.become_full()
            return False
        except apsw.Error as error:
            self.fail(error)
        self._unfolded = 0
        return folded == frames

    def seal(self) -> Segment | None:
        """Begin a new head; returns the file that was sealed, or None when there was no room: the old one goes on."""
        old = self.segment
        old.close()
        if not self._checkpoint(apsw.SQLITE_CHECKPOINT_TRUNCATE):
            return None
        self.connection.close()
        try:
            self._publish_successor(old)
        except (apsw.Error, OSError, BadRow) as error:
            self._connect_again(old)
            if not _is_for_want_of_room(error) or self._directory.head() != self.number:
                self.fail(error)  # if it has its name, what the old one gets from now on would not count
            self.become_full()
            return None
        self._connect_again(old)
        old.seal()
        self._directory.remove_beside(old.name)
        self.bytes = 0
        self._directory.testify(self.number, self.commits)
        return old

    def _publish_successor(self, old: Segment) -> None:
        new = self._directory.path / "head.new"
        number = self.next_file
        try:
            _succeed(new, old.path, self._vfs, self._seed, marks_max=self._config.store_marks_max)
            self._directory.publish(new, self._directory.numbered("log", number))
        except BaseException:
            new.unlink(missing_ok=True)
            raise
        self.number = number

    def _connect_again(self, old: Segment) -> None:
        """Open what is the head now; when that fails the old one can still be read."""
        try:
            self._connect()
        except (apsw.Error, OSError, StoreDamaged) as error:
            self.segment = old
            self.fail(error)
        if self.segment.name == old.name:
            self.segment = old


def _is_for_want_of_room(error: Exception) -> bool:
    return isinstance(error, apsw.FullError) or (isinstance(error, OSError) and error.errno == errno.ENOSPC)
