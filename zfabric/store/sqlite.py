"""The log on disk, in SQLite files through apsw. `docs/adr/0008-one-head-and-sealed-files.md` tells why it is so.

Writing happens in one head file (`head.py`), under one lock; sealed files are only read, and removed as a whole.
What is confirmed was flushed. A write that fails in any other way than for want of room ends all writing.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from zlib import crc32

import apsw
import msgspec

from zfabric.config import Config
from zfabric.errors import LimitExceeded, NotStored, StoreDamaged
from zfabric.store.catalog import Catalog, Stream
from zfabric.store.clock import SteadyClock
from zfabric.store.directory import Directory
from zfabric.store.head import DISK_FULL, Head, NoRoom, create_head
from zfabric.store.log import Appended, Commit, Mark, Outcome, Retention
from zfabric.store.records import (
    DELETE_POSITION,
    FORGOT_MARKS,
    INSERT,
    INSERT_MARK,
    INSERT_POSITION,
    INSERT_STREAM,
    BadRow,
    Row,
    append_row,
    hole_row,
    seal,
)
from zfabric.store.rules import Judge
from zfabric.store.segment import Range, Segment, SegmentPool
from zfabric.store.upkeep import TendedLog
from zfabric.wire.topics import check_topic

__all__ = ["SqliteLog", "directory_of", "open_sqlite"]

logger = logging.getLogger("zfabric.store")

_encode = msgspec.msgpack.Encoder().encode
_LOST_OFFSETS = 2**32
"More than a log can have lost since its witness was written."
_DAMAGE_MAX = 1000
"Findings that are kept; more are only logged."


def open_sqlite(url: str, config: Config, create: bool) -> SqliteLog:
    """The engine of `sqlite:`: the rest of the URL is the path of a directory."""
    return SqliteLog(directory_of(url), config, create=create)


def directory_of(url: str) -> Path:
    """The directory that a URL of this engine, or a plain path, names."""
    return Path(url.removeprefix("sqlite:").removeprefix("//"))


class SqliteLog(TendedLog):
    """A log in a directory of SQLite files."""

    def __init__(
        self,
        path: Path,
        config: Config | None = None,
        *,
        create: bool = False,
        accept_loss: bool = False,
        vfs: str = "",
        clock: SteadyClock | None = None,
    ) -> None:
        """`vfs` names an SQLite VFS to use instead of the system's.

        `accept_loss` opens a log whose head was cut, put back or lost: each stream gets a gap (`lost`) at its end, so
        that no offset that was given before is ever given again.

        Raises StoreNotFound, StoreLocked, StoreDamaged, OSError.
        """
        self._config = config or Config()
        self._vfs = vfs
        self._clock = clock or SteadyClock()
        self._writing = threading.RLock()
        "Held for every change."
        self._layout = threading.Lock()
        "Held while files must not come or go. Who holds `_writing` may try to get it, but must not wait for it."
        self._closed = False
        self._damage: list[str] = []
        self._pool = SegmentPool(self._config.store_open_files_max)
        self._directory = Directory(path, create=create, reserve_bytes=self._config.store_reserve_bytes)
        try:
            self._seed = crc32(self._directory.origin)
            self._open(accept_loss)
        except BaseException:
            self._directory.close()
            raise

    # -- opening and closing -------------------------------------------------------------------

    def _open(self, accept_loss: bool) -> None:
        directory = self._directory
        if directory.is_new:
            create_head(directory.path / directory.numbered("log", 1), self._vfs, self._seed)
            directory.complete()
        self._writer = Head(
            directory, self._config, self._vfs, self._seed, lambda name: self._segment(name, sealed=False)
        )
        try:
            if self._writer.behind and not accept_loss:
                raise StoreDamaged(str(self._head.path), self._writer.behind)
            self._load()
            if self._writer.behind:
                self._leave_gaps()
        except BaseException:
            self._writer.close()
            raise
        directory.remove_unfinished()
        for name in directory.files():
            if name != self._head.name and name not in self._catalog.files:
                directory.remove(name)
        self._writer.take_reserve()

    @property
    def _head(self) -> Segment:
        return self._writer.segment

    def _load(self) -> None:
        self._catalog = Catalog()
        try:
            self._catalog.load(
                self._writer.connection, self._head, self._seed, lambda name: self._segment(name, sealed=True)
            )
        except (apsw.Error, BadRow, KeyError, ValueError) as error:
            raise StoreDamaged(str(self._head.path), str(error)) from error
        self._clock.not_before(self._writer.stored_ns)
        self._writer.bytes = sum(stream.head.bytes for stream in self._catalog if stream.head is not None)
        for segment in self._catalog.files.values():
            if segment.damaged:
                self._note_damage(f"{segment.name}: {segment.damaged}")

    def _leave_gaps(self) -> None:
        """Nobody knows which offsets were lost: go on far behind them."""
        with self._layout:
            self._seal_in_layout()
        if any(stream.head is not None for stream in self._catalog):
            raise StoreDamaged(str(self._head.path), "there is no room to mend it")
        moved = [msgspec.structs.replace(stream, next=stream.next + _LOST_OFFSETS) for stream in self._catalog]

        def work(connection: apsw.Connection) -> None:
            for stream in moved:
                _write_stream(connection, stream, self._seed)

        self._writer.transact_small(work)
        for stream in moved:
            self._catalog.put(stream)

    def _segment(self, name: str, *, sealed: bool) -> Segment:
        path = self._directory.path / name
        return Segment(path, self._vfs, self._seed, sealed=sealed, on_damage=self._note_damage)

    def _note_damage(self, finding: str) -> None:
        if finding not in self._damage:
            logger.error("damage in the log: %s", finding)
            if len(self._damage) < _DAMAGE_MAX:
                self._damage.append(finding)

    @property
    def id(self) -> bytes:
        """See `Log.id`."""
        return self._directory.id

    def now_ns(self) -> int:
        """See `Log.now_ns`."""
        return self._clock()

    @property
    def damage(self) -> tuple[str, ...]:
        """See `Log.damage`."""
        return tuple(self._damage)

    def close(self) -> None:
        """See `Log.close`."""
        with self._layout, self._writing:
            if self._closed:
                return
            self._closed = True
            self._writer.close()
            for segment in self._catalog.files.values():
                segment.close()
            self._directory.close()

    # -- appending -----------------------------------------------------------------------------

    def commit(self, commits: Sequence[Commit]) -> list[Outcome]:
        """See `Log.commit`."""
        with self._writing:
            writer = self._writer
            writer.check_writable()
            try:
                outcomes = self._store(commits, with_appends=writer.has_room())
            except NoRoom:
                writer.become_full()
                try:
                    outcomes = self._store(commits, with_appends=False)
                except NoRoom:
                    outcomes = [NotStored(DISK_FULL) for _ in commits]
            if writer.is_long:
                self._seal()
            else:
                writer.fold()
            return outcomes

    def _store(self, commits: Sequence[Commit], *, with_appends: bool) -> list[Outcome]:
        judge = Judge(
            self._mark_for_writer,
            self._epoch_for_writer,
            lambda name: found.next if (found := self._catalog.streams.get(name)) else None,
            self._config.store_streams_max - len(self._catalog.streams),
            lambda: self._epoch_for_writer(FORGOT_MARKS) >= 0,
        )
        outcomes: list[Outcome] = []
        accepted = []
        for commit in commits:
            try:
                if commit.appends and not with_appends:
                    raise NotStored(DISK_FULL, commit.appends[0].stream)
                outcome = judge.decide(commit)
            except NotStored as refusal:
                outcomes.append(refusal)
            else:
                outcomes.append(outcome)
                accepted.append((commit, outcome))
        if judge.marks or judge.positions:
            self._write(judge, accepted)
        return outcomes

    def _write(self, judge: Judge, accepted: Sequence[tuple[Commit, tuple[Appended, ...]]]) -> None:
        now = self._clock()
        next_stream = self._writer.next_stream
        changed = {name: self._known_or_new(name) for name in judge.nexts}
        rows: list[Row] = []
        sizes = dict.fromkeys(judge.nexts, 0)
        times = dict.fromkeys(judge.nexts, now)
        for commit, outcome in accepted:
            for append, appended in zip(commit.appends, outcome, strict=True):
                if appended.offset is not None:
                    times[append.stream] = stored_ns = append.stored_ns or now
                    number = changed[append.stream].id
                    row, nbytes = append_row(append, number, appended.offset, stored_ns, self._seed)
                    rows.append(row)
                    sizes[append.stream] += nbytes
        changed = {
            name: _grown(stream, judge.nexts[name], sizes[name], times[name], self._head)
            for name, stream in changed.items()
        }

        def work(connection: apsw.Connection) -> None:
            for stream in changed.values():
                _write_stream(connection, stream, self._seed)
            connection.executemany(INSERT, rows)
            connection.executemany(
                INSERT_MARK,
                [
                    seal(self._seed, producer, changed[name].id, mark.epoch, mark.next, self._writer.commits)
                    for (producer, name), mark in judge.marks.items()
                ],
            )
            connection.executemany(
                INSERT_POSITION,
                [
                    seal(self._seed, update.name, update.value, update.epoch)
                    for update in judge.positions.values()
                    if update.value is not None
                ],
            )
            connection.executemany(
                DELETE_POSITION, [(update.name,) for update in judge.positions.values() if update.value is None]
            )

        try:
            self._writer.transact(work, stored_ns=now)
        except NoRoom:
            self._writer.next_stream = next_stream
            raise
        for stream in changed.values():
            self._catalog.put(stream)
        self._writer.bytes += sum(sizes.values())

    def _known_or_new(self, name: str) -> Stream:
        known = self._catalog.streams.get(name)
        if known is None:
            known = Stream(self._writer.next_stream, name, 0, 0)
            self._writer.next_stream += 1
        return known

    def _mark_for_writer(self, producer: bytes, name: str) -> Mark | None:
        stream = self._catalog.streams.get(name)
        if stream is None:
            return None
        row = self._writer.ask("SELECT * FROM marks WHERE producer = ? AND stream = ?", producer, stream.id)
        return None if row is None else Mark(row[2], row[3])

    def _epoch_for_writer(self, name: str) -> int:
        row = self._writer.ask("SELECT * FROM positions WHERE name = ?", name)
        return -1 if row is None else int(row[2])

    # -- forgetting ----------------------------------------------------------------------------

    def trim(self, stream: str, before: int) -> int:
        """See `Log.trim`."""
        with self._writing:
            known = self._catalog.streams.get(stream)
            if known is None:
                return 0
            self._trim({known: before})
            first = self._catalog.streams[stream].first
            dead = self._reclaim()
        self._discard(dead)
        return first

    def _trim(self, cuts: Mapping[Stream, int]) -> None:
        self._writer.check_writable()
        trimmed = []
        for stream, before in cuts.items():
            now = self._catalog.streams.get(stream.name)
            if now is not None and now.id == stream.id and before > now.first:
                trimmed.append(now.without_expired(min(before, now.next)))
        if not trimmed:
            return

        def work(connection: apsw.Connection) -> None:
            for stream in trimmed:
                _write_stream(connection, stream, self._seed)
                connection.execute("DELETE FROM ranges WHERE stream = ? AND next <= ?", (stream.id, stream.first))

        self._writer.transact_small(work)
        for stream in trimmed:
            self._catalog.put(stream)

    def purge(self, stream: str) -> int:
        """See `Log.purge`."""
        known = self._catalog.streams.get(stream)
        return 0 if known is None else self.trim(stream, known.next)

    def delete(self, stream: str) -> None:
        """See `Log.delete`."""
        with self._writing:
            self._writer.check_writable()
            known = self._catalog.streams.get(stream)
            if known is None:
                return

            def work(connection: apsw.Connection) -> None:
                for table, column in (("streams", "id"), ("ranges", "stream"), ("marks", "stream")):
                    connection.execute(f"DELETE FROM {table} WHERE {column} = ?", (known.id,))

            self._writer.transact_small(work)
            del self._catalog.streams[stream]
            dead = self._reclaim()
        self._discard(dead)

    def skip(self, stream: str, to: int) -> None:
        """See `Log.skip`."""
        with self._writing:
            known = self._create(stream)
            if to <= known.next:
                return
            stored_ns = known.ranges[-1].last_ns if known.ranges else 0
            row = hole_row(known.id, known.next, to - known.next, stored_ns, self._seed)
            if known.first == known.next:
                grown = msgspec.structs.replace(known, first=to, next=to, head=None)
            else:
                grown = _grown(known, to, 0, stored_ns, self._head)

            def work(connection: apsw.Connection) -> None:
                _write_stream(connection, grown, self._seed)
                if grown.head is not None:
                    connection.execute(INSERT, row)

            self._writer.transact_small(work)
            self._catalog.put(grown)

    def retain(self, stream: str, retention: Retention) -> None:
        """See `Log.retain`."""
        with self._writing:
            changed = msgspec.structs.replace(self._create(stream), retention=retention)
            self._writer.transact_small(lambda connection: _write_stream(connection, changed, self._seed))
            self._catalog.put(changed)

    def _create(self, name: str) -> Stream:
        self._writer.check_writable()
        known = self._catalog.streams.get(check_topic(name, reserved=True))
        if known is None:
            if len(self._catalog.streams) >= self._config.store_streams_max:
                raise LimitExceeded("store_streams_max", len(self._catalog.streams) + 1, self._config.store_streams_max)
            known = self._known_or_new(name)
            stream = known
            self._writer.transact_small(lambda connection: _write_stream(connection, stream, self._seed))
            self._catalog.put(known)
        return known


def _grown(stream: Stream, end: int, nbytes: int, now_ns: int, head: Segment) -> Stream:
    """The stream after the head got its messages up to `end`, the last of them at `now_ns`."""
    held = stream.head
    if end == stream.next:
        return stream
    if held is None:
        held = Range(head, stream.next, end, nbytes, now_ns, now_ns)
    else:
        held = msgspec.structs.replace(held, next=end, bytes=held.bytes + nbytes, last_ns=now_ns)
    return msgspec.structs.replace(stream, next=end, head=held)


def _write_stream(connection: apsw.Connection, stream: Stream, seed: int) -> None:
    head = stream.head
    start, *rest = (stream.next, 0, 0, 0) if head is None else (head.first, head.bytes, head.first_ns, head.last_ns)
    retention = _encode(stream.retention)
    row = seal(seed, stream.id, stream.name, stream.first, stream.next, start, *rest, retention)
    connection.execute(INSERT_STREAM, row)
