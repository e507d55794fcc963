"""The log of `zfabric.store` on its own: SQLite files on the disk that holds this checkout."""

from __future__ import annotations

import os
import statistics
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import psutil

from benchmarks.model import Entry, Link, Run
from benchmarks.workloads.storelog import BATCHES
from zfabric.store import Append, Commit, Log, Retention, Writer, open_log

__all__ = ["ENTRIES", "log"]

STREAM = "benchmark.log"
READ_BYTES = 1024 * 1024
READERS = 4
COMMITS_MAX = 500
SMALL_COMMITS_MAX = 20_000


class Producer:
    """Says one batch after the other."""

    def __init__(self, size: int) -> None:
        self.next = 0
        self._payload = os.urandom(size * BATCHES[-1])
        self._size = size
        self._id = os.urandom(16)

    def commits(self, messages: int, count: int) -> Iterator[Commit]:
        """So many messages, in batches of `count`."""
        frames = (self._payload[: count * self._size],)
        for _ in range(messages // count):
            yield Commit(
                [
                    Append(
                        stream=STREAM,
                        producer=self._id,
                        epoch=1,
                        base=self.next,
                        count=count,
                        published_ns=time.time_ns(),
                        frames=frames,
                    )
                ]
            )
            self.next += count


def log(run: Run, link: Link) -> Mapping[str, Any]:
    """Measure everything in a directory beside the checkout, which is removed at the end."""
    link.meet()
    with tempfile.TemporaryDirectory(prefix=".storelog-", dir=Path(__file__).parents[2]) as directory:
        return _measure(run, Path(directory))


def _measure(run: Run, directory: Path) -> Mapping[str, Any]:
    producer = Producer(run.size)
    figures: dict[str, float] = {}
    url = f"sqlite:{directory / 'log'}"
    with open_log(url, create=True) as opened:
        for count in BATCHES:
            messages = min(run.messages // 4, SMALL_COMMITS_MAX * count)
            figures[f"append_{count}"] = _append(opened, producer, messages, count)
        figures["append_bytes"] = figures[f"append_{BATCHES[-1]}"] * run.size / 1000
        figures["commit"], figures["flush"] = _one_at_a_time(opened, producer, directory / "flushed")
        opened.purge(STREAM)
        opened.enforce()
        tenth = max(BATCHES[-1], run.messages // 10)
        figures["append_grown"] = [_append(opened, producer, tenth, BATCHES[-1]) for _ in range(10)][-1]
        figures["replay"] = _replay(opened, producer.next)
        figures["readers_memory"] = _read_together(opened)
    began = time.perf_counter()
    with open_log(url) as opened:
        figures["open"] = (time.perf_counter() - began) * 1e3
        opened.retain(STREAM, Retention(messages=run.messages // 2))
        began = time.perf_counter()
        opened.enforce()
        figures["retention"] = (time.perf_counter() - began) * 1e3
    return figures


def _append(opened: Log, producer: Producer, messages: int, count: int) -> float:
    """Thousands of messages a second, each confirmed, with the writer's queue half full."""
    waiting: deque[Future[Any]] = deque()
    began = time.perf_counter()
    first = producer.next
    with Writer(opened) as writer:
        for commit in producer.commits(messages, count):
            while writer.waiting_bytes > 16 * READ_BYTES:
                waiting.popleft().result()
            waiting.append(writer.submit(commit))
        for future in waiting:
            future.result()
    return (producer.next - first) / (time.perf_counter() - began) / 1000


def _one_at_a_time(opened: Log, producer: Producer, beside: Path) -> tuple[float, float]:
    """Median microseconds of a confirmed message and, in turn, of as many bytes put into a plain file and flushed."""
    commits, flushes = [], []
    with Writer(opened) as writer, beside.open("wb", buffering=0) as file:
        for commit in producer.commits(COMMITS_MAX, 1):
            began = time.perf_counter()
            writer.submit(commit).result()
            commits.append(time.perf_counter() - began)
            began = time.perf_counter()
            file.write(bytes(commit.nbytes))
            os.fsync(file.fileno())
            flushes.append(time.perf_counter() - began)
    return statistics.median(commits) * 1e6, statistics.median(flushes) * 1e6


def _replay(opened: Log, end: int) -> float:
    """Thousands of messages a second into one reader, their checksums verified."""
    began = time.perf_counter()
    offset = first = opened.streams()[0].first
    while offset < end:
        offset = opened.read(STREAM, offset, READ_BYTES)[-1].next
    return (offset - first) / (time.perf_counter() - began) / 1000


def _read_together(opened: Log) -> float:
    """Megabytes of this process, at most, while four readers go through the log."""
    readers = [threading.Thread(target=_replay, args=(opened, opened.streams()[0].next)) for _ in range(READERS)]
    most = 0
    for reader in readers:
        reader.start()
    while any(reader.is_alive() for reader in readers):
        most = max(most, psutil.Process().memory_info().rss)
        readers[-1].join(0.01)
    return most / 1e6


ENTRIES = [Entry(workloads=("storelog",), peer="zfabric log", roles={"log": log}, transports=("disk",))]
