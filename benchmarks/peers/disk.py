"""The disk by itself: as many bytes as a message has, written to a plain file and flushed, one after the other."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO

from benchmarks.drive import Sender, sending
from benchmarks.model import Entry, Link, Run

__all__ = ["ENTRIES", "write"]


@contextmanager
def write(run: Run, link: Link) -> Iterator[Sender]:
    """Append to a file."""
    with Path(run.directory, "flushed").open("wb", buffering=0) as file:
        yield Sender(sends=[partial(_write, file)])


def _write(file: IO[bytes], value: bytes) -> None:
    file.write(value)
    os.fsync(file.fileno())


ENTRIES = [Entry(workloads=("confirm",), peer="the disk's own flush", roles={"sender": sending(write)})]
