"""Fair shares of a queue, measured where time is virtual and nothing else takes any."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from zfabric import Job, Node
from zfabric.testing import MemoryFabric, run

WORK_S = 0.005
JOBS = 1000
SLOWER = 10
IDEAL_S = JOBS * WORK_S / (3 + 1 / SLOWER)


async def iterate(node: Node, work_s: float) -> None:
    """Work on jobs one by one."""
    async for _ in node.puller("jobs"):
        await asyncio.sleep(work_s)


async def handle(node: Node, work_s: float) -> None:
    """Be called for each."""

    @node.worker("jobs")
    async def work(_: Job) -> None:
        await asyncio.sleep(work_s)


@pytest.mark.parametrize("way", [iterate, handle])
def test_a_slow_worker_holds_nobody_up(way: Callable[[Node, float], Coroutine[Any, Any, None]]) -> None:
    """With one of four workers ten times slower all jobs are done within 15 % of the ideal schedule."""

    async def main() -> float:
        async with MemoryFabric(seed=1) as fabric, asyncio.TaskGroup() as group:
            pusher = (await fabric.open("pusher")).pusher("jobs")
            work = [WORK_S * SLOWER, WORK_S, WORK_S, WORK_S]
            tasks = [group.create_task(way(await fabric.open(str(index)), each)) for index, each in enumerate(work)]
            await pusher.wait_for(workers=len(work), timeout=10)
            loop = asyncio.get_running_loop()
            began = loop.time()
            await pusher.push_many([None] * JOBS)
            await pusher.flush()
            took = loop.time() - began
            for task in tasks:
                task.cancel()
            return took

    assert IDEAL_S <= run(main()) <= IDEAL_S * 1.15
