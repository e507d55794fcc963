"""The publishers: one process per source, each sending real psutil readings at its own rate."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

import zfabric

from .control import Report
from .pacing import Pace
from .part import RECEIVERS, Part, Settings
from .readings import Cpu, Disk, Memory, Network, Process, Processes, Reading, Traffic, topic_of

__all__ = ["SAMPLERS", "SourcePart", "Window"]


class Window:
    """The oldest sample of the last `span_s`: what to compare the newest counters with.

    Kernel counters tick every 10 ms. A rate taken over a longer window than the one between two
    readings is smooth at any rate of publishing, and every reading is still a sample of its own.
    """

    def __init__(self, span_s: float) -> None:
        self._span_s = span_s
        self._samples: deque[tuple[float, Any]] = deque()

    def turn(self, now_s: float, sample: Any) -> tuple[float, Any]:
        """Add a sample; returns the seconds to the oldest one kept, and that one."""
        samples = self._samples
        samples.append((now_s, sample))
        while len(samples) > 2 and samples[1][0] <= now_s - self._span_s:
            samples.popleft()
        return max(now_s - samples[0][0], 1e-9), samples[0][1]


def _busy_and_total(times: Any) -> tuple[float, float]:
    """Seconds that a core was busy, and seconds in all, since the machine started."""
    # Guest time is already part of user time.
    total = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
    return total - times.idle - getattr(times, "iowait", 0.0), total


def _share_percent(old: Sequence[tuple[float, float]], new: Sequence[tuple[float, float]]) -> tuple[float, ...]:
    shares = []
    for (busy_before, total_before), (busy, total) in zip(old, new, strict=False):
        share = (busy - busy_before) / (total - total_before) if total > total_before else 0.0
        shares.append(round(min(100.0, max(0.0, 100 * share)), 1))
    return tuple(shares)


def cpu_sampler() -> Callable[[], Cpu]:
    """Samples the cores' counters."""
    window = Window(0.5)

    def sample() -> Cpu:
        times = [_busy_and_total(core) for core in psutil.cpu_times(percpu=True)]
        _, before = window.turn(time.monotonic(), times)
        cores = _share_percent(before, times)
        return Cpu(cores=cores, load=round(psutil.getloadavg()[0], 2), sent_ns=time.monotonic_ns())

    return sample


def memory_sampler() -> Callable[[], Memory]:
    """Samples main memory and swap."""

    def sample() -> Memory:
        memory = psutil.virtual_memory()
        swap_percent = psutil.swap_memory().percent
        return Memory(
            total_bytes=memory.total,
            available_bytes=memory.available,
            used_percent=memory.percent,
            swap_percent=swap_percent,
            sent_ns=time.monotonic_ns(),
        )

    return sample


def network_sampler() -> Callable[[], Network]:
    """Samples the interfaces' byte counters; interfaces without any traffic are left out."""
    window = Window(0.5)

    def sample() -> Network:
        counters = {
            name: (counter.bytes_recv, counter.bytes_sent)
            for name, counter in psutil.net_io_counters(pernic=True).items()
            if counter.bytes_recv or counter.bytes_sent
        }
        elapsed_s, before = window.turn(time.monotonic(), counters)
        traffic = {}
        for name, (received, sent) in counters.items():
            received_before, sent_before = before.get(name, (received, sent))
            # Counters of an interface that was replaced start again from 0.
            traffic[name] = Traffic(
                round(max(0, received - received_before) / elapsed_s), round(max(0, sent - sent_before) / elapsed_s)
            )
        return Network(interfaces=traffic, sent_ns=time.monotonic_ns())

    return sample


def disk_sampler() -> Callable[[], Disk]:
    """Samples the disks' byte counters and the root file system."""
    window = Window(1.0)

    def sample() -> Disk:
        counters = psutil.disk_io_counters()
        moved = (counters.read_bytes, counters.write_bytes) if counters is not None else (0, 0)
        elapsed_s, before = window.turn(time.monotonic(), moved)
        return Disk(
            read_bytes_per_s=round(max(0, moved[0] - before[0]) / elapsed_s),
            written_bytes_per_s=round(max(0, moved[1] - before[1]) / elapsed_s),
            used_percent=psutil.disk_usage(Path.cwd().anchor).percent,
            sent_ns=time.monotonic_ns(),
        )

    return sample


def processes_sampler(busiest: int = 5) -> Callable[[], Processes]:
    """Samples all processes, and ranks them by the cpu time of the last second."""
    window = Window(1.0)

    def sample() -> Processes:
        found: dict[int, tuple[str, float, int]] = {}
        for process in psutil.process_iter(["name", "cpu_times", "memory_info"]):
            info = process.info
            if info["cpu_times"] is not None and info["memory_info"] is not None:
                used_s = info["cpu_times"].user + info["cpu_times"].system
                found[process.pid] = (info["name"] or "?", used_s, info["memory_info"].rss)
        elapsed_s, before = window.turn(time.monotonic(), found)
        ranked = [
            Process(pid, name, round(100 * max(0.0, used_s - before[pid][1]) / elapsed_s, 1), rss)
            for pid, (name, used_s, rss) in found.items()
            if pid in before
        ]
        ranked.sort(key=lambda process: (-process.cpu_percent, -process.memory_bytes))
        return Processes(count=len(found), busiest=tuple(ranked[:busiest]), sent_ns=time.monotonic_ns())

    return sample


SAMPLERS: dict[str, Callable[[], Callable[[], Reading]]] = {
    "cpu": cpu_sampler,
    "memory": memory_sampler,
    "network": network_sampler,
    "disk": disk_sampler,
    "processes": processes_sampler,
}
"By source: makes the function that takes one sample."


class SourcePart(Part):
    """Publishes one source's readings, each made when its slot is due."""

    publisher: zfabric.Publisher

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._sample = SAMPLERS[settings.name]()
        self._published = 0
        self._skipped = 0
        self._stop = False
        self._stopped = asyncio.Event()

    def connect(self, node: zfabric.Node) -> None:
        """Declare the publisher."""
        self.publisher = node.publisher(topic_of(self.settings.name, self.settings.host))
        self._sample()  # The first sample of a rate says nothing: there is none to compare it with.

    async def matched(self) -> None:
        """All receivers must be connected before the first reading, so that none is missed."""
        await self.publisher.wait_for(subscribers=len(RECEIVERS))

    async def run(self) -> None:
        """Publish at the asked rate."""
        clock = asyncio.get_running_loop().time
        pace = Pace(self.settings.rate_hz, clock())
        while not self._stop:
            for _ in range(pace.due(clock())):
                await self.publisher.publish(self._sample())
                self._published += 1
            self._skipped = pace.skipped
            await asyncio.sleep(pace.next_s - clock())
        self._stopped.set()

    async def finish(self, published: dict[str, int]) -> Report:
        """Stop, send what is still in the open batch, and say how many there were."""
        self._stop = True
        await self._stopped.wait()
        await self.publisher.flush()
        return Report(published={self.publisher.topic: self._published}, skipped=self._skipped)
