"""A plain loop whose calls run in worker processes, which a pool starts and keeps alive."""

from __future__ import annotations

import asyncio
import signal
import sys

from zfabric.patterns.executor import FabricExecutor, exported
from zfabric.patterns.worker_pool import WorkerPool

import zfabric


def primes(start: int, stop: int) -> int:
    """How many prime numbers there are from `start` to before `stop`."""
    return sum(all(n % d for d in range(2, int(n**0.5) + 1)) for n in range(max(2, start), stop))


async def work(fabric: str) -> None:
    """A worker: exports the function until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with zfabric.Node("worker", fabric=fabric) as node, exported(node, primes):
        await stop.wait()


def count(fabric: str) -> None:
    """The plain program: no event loop needed."""
    with FabricExecutor(fabric=fabric) as executor:
        starts = range(0, 20_000, 1000)
        print(sum(executor.map(primes, starts, range(1000, 21_000, 1000))), "primes below 20,000")


async def main(fabric: str = "executor") -> None:
    """Start two workers, and count with them."""
    async with WorkerPool([sys.executable, __file__, fabric, "worker"], size=2):
        await asyncio.to_thread(count, fabric)


if __name__ == "__main__":
    asyncio.run(work(sys.argv[1]) if sys.argv[2:] == ["worker"] else main(*sys.argv[1:]))
