"""zfabric's durable topics: a store in a process of its own, which confirms what its disk has after an fsync."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from benchmarks.drive import Sender, sending_async
from benchmarks.model import Entry, Link, Run
from benchmarks.peers.zfabric_pubsub import bench_node
from zfabric import Delivery
from zfabric.store.node import Store

__all__ = ["ENTRIES", "publish", "store"]

WAIT_S = 10.0


@asynccontextmanager
async def publish(run: Run, link: Link) -> AsyncIterator[Sender]:
    """Publish to a durable topic; flush waits until all of it is stored."""
    async with bench_node("sender", run) as node:
        publisher = node.publisher(run.topic_names[0], delivery=Delivery.AT_LEAST_ONCE, durable=True)
        await publisher.wait_for(stores=1, timeout=WAIT_S)
        yield Sender(sends=[], many=publisher.publish_many, flush=publisher.flush)


def store(run: Run, link: Link) -> Mapping[str, Any]:
    """Keep everything, in files of the run's directory."""
    return asyncio.run(_store(run, link))


async def _store(run: Run, link: Link) -> Mapping[str, Any]:
    async with Store(Path(run.directory, "log"), node=bench_node("store", run)):
        for _ in (run.warmup, run.messages):
            await link.meet_async()
            cpu = time.process_time()
            await link.meet_async()
        return {"cpu_s": time.process_time() - cpu}


ENTRIES = [
    Entry(
        workloads=("durable",),
        peer="zfabric store",
        roles={"store": store, "sender": sending_async(publish)},
        transports=("tcp", "ipc"),
    )
]
