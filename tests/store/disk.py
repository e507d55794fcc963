"""A disk that lies, fails, fills up and loses power: an SQLite VFS over real files."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, field
from pathlib import Path

import apsw

__all__ = ["Disk"]

_numbers = itertools.count()


@dataclass
class _File:
    """What was written to a file since its last flush, and what it takes to undo it."""

    size: int = 0
    undo: list[tuple[int, bytes]] = field(default_factory=list)
    writes: list[tuple[int, bytes]] = field(default_factory=list)
    truncated: list[bytes] = field(default_factory=list)


class Disk(apsw.VFS):
    """The VFS. Its files are real ones; when it loses power they are put into a state that a disk might keep."""

    def __init__(self) -> None:
        self.name = f"disk-{next(_numbers)}"
        super().__init__(self.name, "")
        self.unflushed: dict[str, _File] = {}
        self.flushes = 0
        self.fail_flush_in = -1
        "Flushes that still succeed before one fails; -1 for ever."
        self.fail_write_in = -1
        self.lose_power_in = -1
        "Writes and flushes that still happen before the power fails; -1 for ever."
        self.full = False
        self.dead = False

    def xOpen(  # noqa: N802 - SQLite's name
        self, name: str | apsw.URIFilename | None, flags: list[int]
    ) -> DiskFile:
        """Open a file of this disk."""
        return DiskFile(self, name, flags)

    def xDelete(self, filename: str, syncdir: bool) -> None:  # noqa: N802
        """Delete a file, unless there is no power."""
        if not self.dead:
            self.unflushed.pop(filename, None)
            super().xDelete(filename, syncdir)

    def tick(self) -> None:
        """The power fails when its time has come: from then on nothing reaches the disk."""
        if self.lose_power_in == 0:
            self.dead = True
            raise apsw.IOError("the power failed")
        self.lose_power_in -= self.lose_power_in > 0

    def settle(self, chance: random.Random) -> None:
        """Put closed files into a state that they may have when the power is back.

        What was not flushed is there, or torn, or not, as chance has it.
        """
        for name, file in list(self.unflushed.items()):  # a process may have threads that go on
            path = Path(name)
            if not path.exists():
                continue
            with path.open("rb+") as real:
                for offset, old in reversed(file.undo):
                    real.seek(offset)
                    real.write(old)
                real.truncate(file.size)
                for offset, data in file.writes:
                    fate = chance.random()
                    if fate < 0.4:
                        continue
                    kept = data if fate < 0.7 else data[: chance.randrange(len(data))]
                    real.seek(offset)
                    real.write(kept)
        self.unflushed.clear()
        self.dead = False
        self.lose_power_in = -1


class DiskFile(apsw.VFSFile):
    """One file of a `Disk`."""

    def __init__(self, disk: Disk, name: str | apsw.URIFilename | None, flags: list[int]) -> None:
        super().__init__("", name, flags)
        self._disk = disk
        self._name = name.filename() if isinstance(name, apsw.URIFilename) else str(name)

    def _state(self) -> _File:
        known = self._disk.unflushed.get(self._name)
        if known is None:
            known = self._disk.unflushed[self._name] = _File(self.xFileSize())
        return known

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802
        """Write, remembering what was there."""
        disk = self._disk
        disk.tick()
        if disk.full:
            raise apsw.FullError("the disk is full")
        if disk.fail_write_in == 0:
            raise apsw.IOError("write failed")
        disk.fail_write_in -= disk.fail_write_in > 0
        state = self._state()
        old = min(len(data), max(0, self.xFileSize() - offset))
        state.undo.append((offset, self.xRead(old, offset) if old else b""))
        state.writes.append((offset, bytes(data)))
        super().xWrite(data, offset)

    def xTruncate(self, newsize: int) -> None:  # noqa: N802
        """Truncate, remembering what was there."""
        if self._disk.dead:
            return
        state = self._state()
        size = self.xFileSize()
        if newsize < size:
            state.undo.append((newsize, self.xRead(size - newsize, newsize)))
        super().xTruncate(newsize)

    def xSync(self, flags: int) -> None:  # noqa: N802
        """Flush: from here on the file survives."""
        disk = self._disk
        disk.tick()
        if disk.fail_flush_in == 0:
            raise apsw.IOError("flush failed")
        disk.fail_flush_in -= disk.fail_flush_in > 0
        disk.flushes += 1
        super().xSync(flags)
        disk.unflushed.pop(self._name, None)
