"""What a backlog of durable jobs costs its store: `python -m tests.durable.backlog 1000000`.

Jobs of 100 bytes are pushed, the store starts anew, and all of them are pulled. Prints the store's highest resident
memory, the longest turn of its event loop (CPU time, so other processes do not count) and its CPU time for each job.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import resource
import sys
import tempfile
import time
import uuid
from multiprocessing.connection import Connection
from typing import Any

from zfabric import Config, Node
from zfabric.store import Store

CONFIG = Config(mdns=False)
BATCH = 10_000


async def keep(path: str, fabric: str, pipe: Connection) -> None:
    """The store's process, until it is told to end."""
    longest = 0.0
    tick_s = 0.001
    async with Store(path, fabric=fabric, config=CONFIG):
        pipe.send("open")
        before, began = time.thread_time(), time.process_time()
        while not pipe.poll():
            await asyncio.sleep(tick_s)
            now = time.thread_time()
            longest, before = max(longest, now - before), now
        cpu = time.process_time() - began
    pipe.send((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, longest, cpu))


def kept(path: str, fabric: str, pipe: Connection) -> None:
    """Runs `keep` in a process of its own."""
    asyncio.run(keep(path, fabric, pipe))


def beside_a_store(path: str, fabric: str, work: Any) -> tuple[float, float, float]:
    """Do some work while a store runs; returns what that tells at its end."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=kept, args=(path, fabric, theirs))
    process.start()
    ours.recv()
    asyncio.run(work)
    ours.send("end")
    told: tuple[float, float, float] = ours.recv()
    process.join()
    return told


async def push(fabric: str, count: int) -> None:
    """All jobs, confirmed."""
    async with Node("pusher", fabric=fabric, config=CONFIG) as node:
        jobs = node.pusher("jobs", durable=True)
        await jobs.wait_for(stores=1, timeout=20)
        for _ in range(0, count, BATCH):
            await jobs.push_many([bytes(100)] * BATCH)


async def pull(fabric: str, count: int) -> None:
    """All jobs, acknowledged."""
    async with Node("worker", fabric=fabric, config=CONFIG) as node, node.puller("jobs") as jobs:
        async for batch in jobs.batches():
            count -= len(batch)
            if count <= 0:
                return


def main(count: int) -> None:
    """Push, start anew, pull, print."""
    fabric = f"backlog-{uuid.uuid4().hex[:8]}"
    with tempfile.TemporaryDirectory() as folder:
        for name, work in (("pushed", push), ("pulled", pull)):
            memory, longest, cpu = beside_a_store(f"{folder}/data", fabric, work(fabric, count))
            figures = {"rss_MB": round(memory), "longest_turn_ms": round(longest * 1e3, 1)}
            print(json.dumps({name: count, **figures, "cpu_us_per_job": round(cpu / count * 1e6, 2)}), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) // BATCH * BATCH)
