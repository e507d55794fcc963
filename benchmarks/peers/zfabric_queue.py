"""zfabric's queues: jobs that are leased and acknowledged, pulled one by one or a lease at a time; or sent once."""

from __future__ import annotations

import asyncio
import time
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
LEASED, PLAIN = "at-least-once", "at-most-once"
WAIT_S = 10.0


@asynccontextmanager
async def push(run: Run, link: Link, delivery: str = LEASED) -> AsyncIterator[Sender]:
    """Push; flush waits until every job is done."""
    async with bench_node("sender", run) as node, node.pusher(QUEUE, delivery=delivery) as pusher:
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
    late = 0.0
    async for job in puller:
        begun = time.perf_counter()
        await asyncio.sleep(work_s - late)
        late += time.perf_counter() - begun - work_s  # timers are late by a millisecond: the mean is exact
        yield job


@asynccontextmanager
async def batches(run: Run, link: Link, delivery: str = LEASED) -> AsyncIterator[AsyncReceiver]:
    """Iterate over lists of jobs."""
    async with bench_node(link.name, run) as node, node.puller(QUEUE, delivery=delivery) as puller:
        await puller.wait_for(pushers=1, timeout=WAIT_S)
        yield AsyncReceiver(messages=puller.batches, lists=True, value=attrgetter("value"))


ENTRIES = [
    Entry(
        workloads=workloads,
        peer=f"zfabric queue, {how}",
        roles={"sender": sending_async(send), "receiver": receiving_async(pull)},
        transports=("tcp", "ipc"),
    )
    for how, send, pull, workloads in (
        ("async for", push, jobs, ("queue", "fairness")),
        ("batches", push, batches, ("queue",)),
        ("at most once", partial(push, delivery=PLAIN), partial(batches, delivery=PLAIN), ("queue",)),
    )
]
