"""The power of a store's machine fails: its process ends in the middle of a write, and what was not flushed is cut."""

from __future__ import annotations

import os
import random
import signal
from dataclasses import replace
from pathlib import Path

from tests.store.disk import Disk
from zfabric.config import Config
from zfabric.store import Log
from zfabric.store import node as store_node
from zfabric.store.sqlite import SqliteLog

__all__ = ["fail_after"]

SEGMENT_BYTES = 200_000
CHECKPOINT_BYTES = 50_000
"Small, so that the power fails in the midst of everything that a log does with its files."


class Power(Disk):
    """A disk whose machine loses power."""

    def tick(self) -> None:
        """A write or a flush begins."""
        if self.lose_power_in == 0:
            self.settle(random.Random(os.getpid()))
            os.kill(os.getpid(), signal.SIGKILL)
        self.lose_power_in -= 1


def fail_after(writes: int) -> None:
    """Let this process's store lose power after so many writes and flushes."""
    disk = Power()
    disk.lose_power_in = writes

    def open_log(url: str, config: Config, *, create: bool) -> Log:
        small = replace(config, store_segment_bytes=SEGMENT_BYTES, store_checkpoint_bytes=CHECKPOINT_BYTES)
        return SqliteLog(Path(url), small, create=create, vfs=disk.name)

    setattr(store_node, "open_log", open_log)  # noqa: B010 - another function, on purpose
