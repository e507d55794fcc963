"""Finding nodes of the same user on the same host: one small file per node.

A node writes its own file first and lists the others after, so of two that start together at least one
sees the other. Every file is locked by its writer for life; one that can be locked belonged to a node that
died, and whoever notices removes it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
import weakref
from contextlib import suppress
from pathlib import Path

from zfabric.config import Config
from zfabric.discovery import _files
from zfabric.discovery._files import Garbage, runtime_dir
from zfabric.discovery.base import Announcement, Found

__all__ = ["RegistryDiscovery", "announcements", "is_alive", "runtime_dir"]

logger = logging.getLogger("zfabric.discovery")

_CLOCK_STEP_NS = 2_000_000_000
"Coarsest step of a directory's time: what was written within one step after a look may not show in it."


def announcements(*, records_max: int = Config().discovery_records_max) -> list[Announcement]:
    """Every living node of this user on this host, of any fabric. Raises OSError where there can be no registry."""
    found: list[Announcement] = []
    for directory in _files.fabric_dirs():
        for name in _files.names(directory, records_max - len(found)):
            with suppress(Garbage, OSError):
                record, lives = _files.examine(directory / name)
                if lives:
                    found.append(record.announcement)
    return found


def is_alive(fabric: str, node_id: bytes) -> bool:
    """Whether the node of this user on this host runs; False for nodes of other hosts and users."""
    try:
        return _files.examine(_files.fabric_dir(fabric) / node_id.hex())[1]
    except (Garbage, OSError):
        return False


class RegistryDiscovery:
    """Announces and browses in the registry of the same user on the same host."""

    name = "registry"

    def __init__(self, config: Config) -> None:
        self.ignored = 0
        "Files that were not a node's."
        self._config = config
        self._announcement: Announcement | None = None
        self._found: Found | None = None
        self._directory: Path | None = None
        self._descriptor: int | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._looked_at: int | None = None
        "The directory's time when it was read last; None when it has to be read again."
        self._known: dict[str, tuple[int, int]] = {}
        self._failing = False

    async def start(self, announcement: Announcement, found: Found) -> None:
        """Write the own file, report the others that live, and look again from time to time."""
        self._announcement, self._found = announcement, found
        self._directory = _files.fabric_dir(announcement.fabric)
        try:
            self._write(announcement)
            self._look()
        except BaseException:
            await self.close()
            raise
        self._schedule()

    async def update(self, announcement: Announcement) -> None:
        """Replace the own file. Raises OSError when it cannot be written now."""
        self._announcement = announcement
        if self._directory is not None:
            self._write(announcement)

    async def close(self) -> None:
        """Remove the own file and stop looking."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._found = None
        if self._directory is not None and self._announcement is not None:
            with suppress(OSError):
                (self._directory / self._announcement.node_id.hex()).unlink()
        self._directory = None
        self._release()

    def _write(self, announcement: Announcement) -> None:
        assert self._directory is not None
        descriptor = _files.write(self._directory, announcement)
        self._release()
        self._descriptor = descriptor
        if descriptor is not None:
            _holders.add(self)

    def _release(self) -> None:
        """Let go of the own file's lock. In a forked child too, or the child would keep a dead parent alive."""
        if self._descriptor is not None:
            with suppress(OSError):
                os.close(self._descriptor)
            self._descriptor = None
        _holders.discard(self)

    def _schedule(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._config.registry_poll_s, self._poll)

    def _poll(self) -> None:
        try:
            self._keep_own()
            self._look()
            self._failing = False
        except OSError as error:
            if not self._failing:
                logger.warning("the registry of this host cannot be read now: %s", error)
            self._failing = True
        finally:
            if self._directory is not None:
                self._schedule()

    def _keep_own(self) -> None:
        """Write the own file again when it, or the whole directory, was cleaned away."""
        assert self._directory is not None
        assert self._announcement is not None
        if not (self._directory / self._announcement.node_id.hex()).exists():
            self._directory = _files.fabric_dir(self._announcement.fabric)
            self._write(self._announcement)

    def _look(self) -> None:
        directory = self._directory
        assert directory is not None
        changed_at = directory.stat().st_mtime_ns
        if changed_at == self._looked_at:
            return
        settled = time.time_ns() - changed_at > _CLOCK_STEP_NS
        names = _files.names(directory, self._config.discovery_records_max)
        fresh = [name for name, stamp in names.items() if self._known.get(name) != stamp]
        self._known = names
        self._looked_at = changed_at if settled else None
        for name in fresh:
            self._report(directory / name)

    def _report(self, path: Path) -> None:
        if self._found is None or self._announcement is None or path.name == self._announcement.node_id.hex():
            return
        try:
            record, lives = _files.examine(path)
        except Garbage as reason:
            self.ignored += 1
            if not _files.remove_if_dead(path):
                logger.debug("ignored %s: %s", path, reason)
            return
        except OSError:
            self._known.pop(path.name, None)
            return
        if not lives:
            _files.remove_if_dead(path)
        elif len(record.announcement.endpoints) <= self._config.endpoints_per_peer_max:
            self._found(record.announcement)
        else:
            self.ignored += 1


_holders: weakref.WeakSet[RegistryDiscovery] = weakref.WeakSet()


def _release_in_child() -> None:
    for holder in list(_holders):
        holder._release()  # noqa: SLF001 - the same module


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_release_in_child)
