"""Looking after the files of the log on disk: sealing, giving room back, compaction, backup."""

from __future__ import annotations

import logging
import shutil
import threading
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

import apsw
import msgspec

from zfabric.config import Config
from zfabric.errors import NotStored, StoreNotFound
from zfabric.store.catalog import Stream, header_crc
from zfabric.store.clock import SteadyClock
from zfabric.store.directory import Directory, make_private
from zfabric.store.head import Head, copy_head
from zfabric.store.reading import ReadableLog
from zfabric.store.records import INSERT_FILE, INSERT_RANGE, BadRow, seal
from zfabric.store.segment import Range, Segment
from zfabric.store.thinning import groups, mostly_dead, pieces_of, retained_from, superseded_in, write_pack

__all__ = ["TendedLog"]

logger = logging.getLogger("zfabric.store")


class TendedLog(ReadableLog):
    """Replaces and removes whole files; what is in them is written elsewhere."""

    _clock: SteadyClock
    _config: Config
    _directory: Directory
    _layout: threading.Lock
    _vfs: str
    _writer: Head
    _writing: threading.RLock

    @abstractmethod
    def _segment(self, name: str, *, sealed: bool) -> Segment:
        """A file of this log."""

    @abstractmethod
    def _trim(self, cuts: Mapping[Stream, int]) -> None:
        """Forget what is before an offset of each stream. The caller holds `_writing`."""

    # -- files ---------------------------------------------------------------------------------

    def _seal(self) -> None:
        """Begin a new head, unless files must stay as they are just now."""
        if not self._layout.acquire(blocking=False):
            return
        try:
            self._seal_in_layout()
        finally:
            self._layout.release()

    def _seal_in_layout(self) -> None:
        sealed = self._writer.seal()
        if sealed is not None:
            self._catalog.files[sealed.name] = sealed
            self._catalog.rolled()

    def _reclaim(self) -> list[Segment]:
        """Take the files that no stream needs any more out of the manifest; when the head is one, seal it first.

        On a full disk also if less than half of it is needed: sealed files can be thinned out.
        Holds `_writing`. The caller gives them to `_discard` when it has let go of that: unlinking takes its time.
        """
        if not self._layout.acquire(blocking=False):
            return []
        try:
            live = self._catalog.live()
            needed, written = live.get(self._head.name, 0), self._writer.bytes
            if (not needed and written >= self._config.store_segment_bytes // 2) or (
                self._writer.full and 2 * needed < written
            ):
                self._seal_in_layout()
            dead = [name for name in self._catalog.files if name not in live]
            if dead:
                sql = "DELETE FROM files WHERE name = ?"
                self._writer.transact_small(lambda connection: connection.executemany(sql, [(name,) for name in dead]))
            return [self._catalog.files.pop(name) for name in dead]
        finally:
            self._layout.release()

    def _discard(self, segments: Sequence[Segment]) -> None:
        """Remove files that are in the manifest no more."""
        for segment in segments:
            self._pool.forget(segment)
            self._directory.remove(segment.name)

    def enforce(self) -> None:
        """See `Log.enforce`."""
        now = self._clock()
        cuts = {stream: retained_from(stream, now) for stream in self._catalog}
        with self._writing:
            self._trim(cuts)
            dead = self._reclaim()
        self._discard(dead)
        with self._layout:
            for stream in self._catalog:
                if stream.retention.compact and _is_worth_compacting(stream):
                    self._compact(stream)
            live = self._catalog.live()
            thin = mostly_dead(self._catalog, self._config.store_segment_bytes)
            for group in groups(thin, live, self._config.store_segment_bytes):
                self._replace(group, {})

    def compact(self, stream: str) -> None:
        """See `Log.compact`."""
        with self._layout:
            with self._writing:
                self._writer.check_writable()
                known = self._catalog.streams.get(stream)
                if known is not None and known.head is not None:
                    self._seal_in_layout()
            known = self._catalog.streams.get(stream)
            if known is not None:
                self._compact(known)

    def _compact(self, stream: Stream) -> None:
        """Compact what is sealed. Holds `_layout`."""
        segments, dropping = superseded_in(stream, self._clock(), self._segment_of)
        for group in groups(segments, self._catalog.live(), self._config.store_segment_bytes):
            self._replace(group, dropping)

    def backup(self, target: Path) -> None:
        """Copy the log into an empty or new directory, as it is at one moment, while it is written to.

        The copy has an id of its own: from there on it is another log. Files are neither sealed nor removed meanwhile.
        Raises StoreNotFound when something is in the directory.
        """
        with self._layout:
            origin = self._directory.origin
            copy = Directory(target, create=True, reserve_bytes=self._config.store_reserve_bytes, copy_of=origin)
            try:
                if not copy.is_new:
                    raise StoreNotFound(str(target), "a backup needs a directory of its own; this is a store")
                for name in self._catalog.files:
                    make_private(target / f"{name}.new")
                    shutil.copyfile(self._directory.path / name, target / f"{name}.new")
                    copy.publish(target / f"{name}.new", name)
                make_private(target / "head.new")
                copy_head(self._head.path, target / "head.new", self._vfs)
                copy.publish(target / "head.new", self._head.name)
                copy.complete()
            finally:
                copy.close()

    def _replace(self, segments: Sequence[Segment], dropping: Mapping[tuple[int, int], set[int]]) -> None:
        """Put one new file in the place of some sealed ones, with what is still needed of them. Holds `_layout`."""
        with self._writing:
            self._writer.check_writable()
            name = self._directory.numbered("pack", self._writer.next_file)
            self._writer.next_file += 1
        new = self._directory.path / f"{name}.new"
        try:
            ranges = write_pack(new, self._vfs, self._seed, pieces_of(self._catalog, segments), dropping)
            self._directory.publish(new, name)
        except (BadRow, apsw.Error, OSError) as error:
            # The old files stay as they are. A full disk is no reason to stop, and readers will tell of damage.
            new.unlink(missing_ok=True)
            logger.warning("%s cannot be thinned out: %s", ", ".join(old.name for old in segments), error)
            return
        pack = self._segment(name, sealed=True)
        with self._writing:
            changed = self._with_pack({old.name for old in segments}, pack, ranges)
            size, header = pack.path.stat().st_size, header_crc(pack.path)

            def work(connection: apsw.Connection) -> None:
                for old in segments:
                    connection.execute("DELETE FROM files WHERE name = ?", (old.name,))
                    connection.execute("DELETE FROM ranges WHERE file = ?", (old.name,))
                connection.execute(INSERT_FILE, seal(self._seed, name, size, header))
                for stream in changed:
                    for held in stream.sealed:
                        if held.segment is pack:
                            values = stream.id, held.first, held.next, name, held.bytes, held.first_ns, held.last_ns
                            connection.execute(INSERT_RANGE, seal(self._seed, *values))

            try:
                self._writer.transact_small(work)
            except NotStored:
                self._directory.remove(name)
                raise
            self._catalog.files[name] = pack
            for stream in changed:
                self._catalog.put(stream)
            for old in segments:
                del self._catalog.files[old.name]
        self._discard(segments)

    def _with_pack(
        self, replaced: set[str], pack: Segment, ranges: Sequence[tuple[Stream, int, int, int, int, int]]
    ) -> list[Stream]:
        """The streams with their pieces in the pack, as far as they still need them."""
        pieces: dict[int, list[Range]] = {}
        for stream, *values in ranges:
            pieces.setdefault(stream.id, []).append(Range(pack, *values))
        changed = []
        for stream in self._catalog:
            kept = [held for held in stream.sealed if held.segment.name not in replaced]
            moved = [held for held in pieces.get(stream.id, ()) if held.next > stream.first]
            if moved or len(kept) < len(stream.sealed):
                sealed = tuple(sorted(kept + moved, key=lambda held: held.first))
                changed.append(msgspec.structs.replace(stream, sealed=sealed))
        return changed


def _is_worth_compacting(stream: Stream) -> bool:
    """Whether half of what is sealed came after the last time."""
    new = sum(held.bytes for held in stream.sealed if held.segment.name.startswith("log-"))
    return new > 0 and 2 * new >= sum(held.bytes for held in stream.sealed)
