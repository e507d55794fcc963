"""What floods do to good traffic: `python -m tests.hostile.floods [--secure] [FLOOD...]` measures it.

Two good nodes in this process exchange a message every 2 ms; the attackers (tests/hostile/attacks.py) are a process of
their own, on a core of its own where there is one: else their own work would be measured, and not what they cost
us. Before each flood the same is measured without it, and at the end all of it again while the same floods attack a
bystander: a node in another process on our core. What messages wait for then is what it costs to share this core, so a
node stands a flood well that makes its messages wait no longer than that. It prints a Markdown table; nothing is
asserted here, as figures depend on the machine. What must hold on any machine stands in the tests.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from tests.hostile.attackers import port
from tests.hostile.attacks import FLOODS, HISTORY
from tests.hostile.conftest import QUICK
from tests.waiting import wait_until_async
from zfabric import Node, Publisher, Subscription, new_key

BEGIN_S, RECOVER_S = 1.0, 1.0
PAUSE_S = 0.002
SAMPLE_S = 0.2
COLUMNS = (
    "flood", "p50 ms", "p99 ms", "flooded p50", "flooded p99", "control p50", "control p99", "items/s", "us/item",
    "of it loop", "attacker CPU", "RSS MB", "files",
)  # fmt: skip


@dataclass
class Sample:
    """A stretch of good traffic."""

    trips_ms: list[float]
    cpu_share: float
    "Of this process..."
    loop_share: float
    "...and of its event loop: the rest is libzmq's I/O thread and zeroconf's."
    rss_mb: float
    files: int
    "Both at their highest."

    def percentile(self, share: float) -> float:
        """Milliseconds."""
        return self.trips_ms[int(len(self.trips_ms) * share)] if self.trips_ms else float("nan")


class Pair:
    """Two good nodes, and the way between them."""

    def __init__(self, publisher: Publisher, subscription: Subscription) -> None:
        self._publisher = publisher
        self._subscription = subscription
        self._process = psutil.Process()

    async def measure(self, seconds: float) -> Sample:
        """How long messages take that are published from now on."""
        sample = Sample([], 0.0, 0.0, 0.0, 0)
        tasks = [asyncio.ensure_future(self._receive(sample)), asyncio.ensure_future(self._watch(sample))]
        begin, spent, spent_here = time.perf_counter(), time.process_time(), time.thread_time()
        while time.perf_counter() < begin + seconds:
            await self._publisher.publish(time.perf_counter())
            await asyncio.sleep(PAUSE_S)
        elapsed = time.perf_counter() - begin
        sample.cpu_share = (time.process_time() - spent) / elapsed
        sample.loop_share = (time.thread_time() - spent_here) / elapsed
        await self._publisher.flush()
        await asyncio.sleep(SAMPLE_S)
        for task in tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        sample.trips_ms.sort()
        return sample

    async def _receive(self, sample: Sample) -> None:
        async for message in self._subscription:
            sample.trips_ms.append((time.perf_counter() - message.value) * 1000)

    async def _watch(self, sample: Sample) -> None:
        while True:
            sample.rss_mb = max(sample.rss_mb, self._process.memory_info().rss / 2**20)
            sample.files = max(sample.files, self._process.num_fds())
            await asyncio.sleep(SAMPLE_S)


class Attack:
    """The attackers' process; the victim is given by inbox, outlet and fabric."""

    def __init__(self, name: str, victim: Sequence[str], key: str | None, cpu: int | None) -> None:
        self._counter = os.memfd_create("items")
        os.ftruncate(self._counter, 8)
        argv = (
            *(
                sys.executable,
                "-m",
                "tests.hostile.attacks",
                name,
                *victim,
            ),
            *(key or "", str(self._counter), "" if cpu is None else str(cpu)),
        )
        self._popen = subprocess.Popen(argv, cwd=Path(__file__).parents[2], pass_fds=[self._counter])
        self._process = psutil.Process(self._popen.pid)

    def read(self) -> tuple[int, float]:
        """Items so far, and seconds of CPU."""
        assert self._popen.poll() is None, "the attacker has ended"
        times = self._process.cpu_times()
        return struct.unpack("=Q", os.pread(self._counter, 8, 0))[0], times.user + times.system

    def end(self) -> None:
        """Kill it."""
        self._popen.kill()
        self._popen.wait()
        os.close(self._counter)


class Bystander:
    """A node like the victim, in a process of its own."""

    def __init__(self, key: str | None) -> None:
        argv = sys.executable, "-m", "tests.hostile.floods", "--bystander", key or ""
        self._popen = subprocess.Popen(
            argv, cwd=Path(__file__).parents[2], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._popen.stdout is not None
        self.addresses = self._popen.stdout.readline().split()

    def end(self) -> None:
        """Let it close."""
        self._popen.communicate()


async def stand_by(key: str | None) -> None:
    """Be the bystander, until stdin ends."""
    async with good_pair(key) as (victim, _):
        print(*addresses(victim), flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


def addresses(victim: Node) -> tuple[str, ...]:
    """What attackers need to know."""
    return port(victim, "inbox-tcp"), port(victim, "outlet-tcp"), victim.fabric


@dataclass
class Flooded:
    """What became of good traffic."""

    quiet: Sample
    flooded: Sample
    rate: float
    "Items a second."
    attacker_share: float

    def cells(self, control: Flooded) -> tuple[str, ...]:
        """The columns of a row, from the second on."""
        ours_us, loop_us = (
            (more - less) / self.rate * 1e6 if self.rate else float("nan")
            for more, less in (
                (self.flooded.cpu_share, self.quiet.cpu_share),
                (self.flooded.loop_share, self.quiet.loop_share),
            )
        )
        samples = self.quiet, self.flooded, control.flooded
        waits = (f"{sample.percentile(share):.2f}" for sample in samples for share in (0.5, 0.99))
        return (
            *waits, f"{self.rate:,.0f}", f"{ours_us:,.1f}", f"{loop_us:,.1f}", f"{self.attacker_share:.0%}",
            f"{self.flooded.rss_mb:.0f}", str(self.flooded.files),
        )  # fmt: skip


async def flood(
    name: str, pair: Pair, victim: Sequence[str], key: str | None, cpu: int | None, seconds: float
) -> Flooded:
    """Measure without and with it."""
    quiet = await pair.measure(seconds / 2)
    attack = Attack(name, victim, key, cpu)
    try:
        await wait_until_async(lambda: attack.read()[0])
        await asyncio.sleep(BEGIN_S)
        items, spent = attack.read()
        begin = time.perf_counter()
        flooded = await pair.measure(seconds)
        elapsed = time.perf_counter() - begin
        later, spent_later = attack.read()
    finally:
        attack.end()
    await asyncio.sleep(RECOVER_S)
    return Flooded(quiet, flooded, (later - items) / elapsed, (spent_later - spent) / elapsed)


@asynccontextmanager
async def good_pair(key: str | None, *, mdns: bool = True) -> AsyncIterator[tuple[Node, Pair]]:
    """The victim, with a history that others may ask for, and its friend."""
    fabric = f"floods-{os.getpid()}" if key is None else key.split(":")[1]
    options: dict[str, Any] = {"fabric": fabric, "key": key}
    options["config"] = replace(QUICK, mdns=mdns, handshake_timeout_s=3.0)
    async with (
        Node("victim", **options) as victim,
        Node("friend", **options) as friend,
        friend.subscribe("good", delivery="at-least-once") as subscription,
    ):
        history = victim.publisher(HISTORY, delivery="at-least-once", history=100)
        await history.publish_many([bytes(5000)] * 100)
        publisher = victim.publisher("good", delivery="at-least-once")
        await publisher.wait_for(1, timeout=10)
        yield victim, Pair(publisher, subscription)


def cores() -> tuple[int | None, int | None]:
    """One for us and one for the attackers, where there are two to choose from."""
    if not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) == 1:
        return None, None
    ours, theirs, *_ = sorted(os.sched_getaffinity(0))
    return ours, theirs


async def main(*, secure: bool, seconds: float, names: list[str]) -> None:
    """Measure each flood, and its control."""
    ours, theirs = cores()
    if ours is not None:
        os.sched_setaffinity(0, {ours})
    key = new_key(f"floods-{os.getpid()}") if secure else None
    print(f"{'with' if secure else 'without'} a key; attackers {'share our core' if ours is None else 'have a core'}\n")
    async with good_pair(key) as (victim, pair):
        found = [await flood(name, pair, addresses(victim), key, theirs, seconds) for name in names]
    bystander = Bystander(key)
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    async with good_pair(key, mdns=False) as (_, pair):
        for name, flooded in zip(names, found, strict=True):
            control = await flood(name, pair, bystander.addresses, key, theirs, seconds)
            print(f"| {name} | {' | '.join(flooded.cells(control))} |", flush=True)
    bystander.end()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--secure", action="store_true", help="the fabric has a key")
    parser.add_argument("--seconds", type=float, default=4.0, help="how long each flood is measured")
    parser.add_argument("--bystander", metavar="KEY", help=argparse.SUPPRESS)
    parser.add_argument("floods", nargs="*", default=list(FLOODS), help=f"of {', '.join(FLOODS)}")
    options = parser.parse_args()
    if options.bystander is not None:
        asyncio.run(stand_by(options.bystander or None))
    else:
        asyncio.run(main(secure=options.secure, seconds=options.seconds, names=options.floods))
