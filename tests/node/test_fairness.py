"""How near to the ideal schedule workers come when one of them is slow: on a virtual clock, so exactly."""

from __future__ import annotations

import asyncio

import pytest

from zfabric import Job, Node
from zfabric.testing import MemoryFabric
from zfabric.testing.loop import run

SLOWER = 10


async def elapsed(jobs: int, work_s: float, *, handlers: bool) -> float:
    """Seconds for all jobs, with four workers, of whom the first takes ten times as long."""
    loop = asyncio.get_running_loop()
    async with MemoryFabric(seed=1) as fabric:
        pusher = (await fabric.open("pusher")).pusher("jobs")

        async def iterate(node: Node, takes_s: float) -> None:
            async with node.puller("jobs") as puller:
                async for _ in puller:
                    await asyncio.sleep(takes_s)

        def handle(node: Node, takes_s: float) -> None:
            @node.worker("jobs")
            async def work(job: Job) -> None:
                await asyncio.sleep(takes_s)

        readers = []
        for name, takes_s in zip("abcd", (work_s * SLOWER, work_s, work_s, work_s), strict=True):
            node = await fabric.open(name)
            if handlers:
                handle(node, takes_s)
            else:
                readers.append(asyncio.create_task(iterate(node, takes_s)))
        await pusher.wait_for(workers=4, timeout=10)
        began = loop.time()
        await pusher.push_many([b"job"] * jobs)
        await pusher.flush()
        ended = loop.time()
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)
        return ended - began


@pytest.mark.parametrize("handlers", [False, True])
@pytest.mark.parametrize(("jobs", "work_s"), [(500, 0.005), (1000, 0.001), (300, 0.02)])
def test_one_slow_worker_costs_little(jobs: int, work_s: float, *, handlers: bool) -> None:
    """Less than 15 % of the ideal schedule, which nobody reaches with jobs of that size."""
    ideal = jobs * work_s / (3 + 1 / SLOWER)
    assert run(elapsed(jobs, work_s, handlers=handlers)) < 1.15 * ideal
