"""zfabric's queues: jobs that are leased, acknowledged and redelivered; pulled one by one, or a lease at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from operator import attrgetter
from typing import Any

from benchmarks.drive import AsyncReceiver, Sender, receiving_async, sending_async
from benchmarks.model import Entry, Link, Run, work_of
from benchmarks.peers.zfabric_pubsub import bench_node
from zfabric import Puller

__all__ = ["ENTRIES", "batches", "jobs", "push"]

QUEUE = "benchmark.jobs"
WAIT_S = 10.0


@asynccontextmanager
async def push(run: Run, link: Link) -> AsyncIterator[Sender]:
    """Push; flush waits until every job is done."""
    async with bench_node("sender", run) as node, node.pusher(QUEUE) as pusher:
        await pusher.wait_for(workers=run.receivers, timeout=WAIT_S)
        yield Sender(sends=[], many=pusher.push_many, flush=pusher.flush)


@asynccontextmanager
async def jobs(run: Run, link: Link) -> AsyncIterator[AsyncReceiver]:
    """Iterate over the jobs; each is acknowledged when the next one is asked for."""
    async with bench_node(link.name, run) as node, node.puller(QUEUE) as puller:
        await puller.wait_for(pushers=1, timeout=WAIT_S)
        work_s = work_of(run, link)
        yield AsyncReceiver(
            messages=partial(_worked, puller, work_s) if work_s else puller.__aiter__,
            value=attrgetter("value"),
            progress=lambda: (puller.handed, puller.pending),
        )


async def _worked(puller: Puller, work_s: float) -> AsyncIterator[Any]:
    async for job in puller:
        await asyncio.sleep(work_s)
        yield job


@asynccontextmanager
async def batches(run: Run, link: Link) -> AsyncIterator[AsyncReceiver]:
    """Iterate over lists of jobs."""
    async with bench_node(link.name, run) as node, node.puller(QUEUE) as puller:
        await puller.wait_for(pushers=1, timeout=WAIT_S)
        yield AsyncReceiver(messages=puller.batches, lists=True, value=attrgetter("value"))


ENTRIES = [
    Entry(
        workloads=workloads,
        peer=f"zfabric queue, {how}",
        roles={"sender": sending_async(push), "receiver": receiving_async(pull)},
        transports=("tcp", "ipc"),
    )
    for how, pull, workloads in (("async for", jobs, ("queue", "fairness")), ("batches", batches, ("queue",)))
]
