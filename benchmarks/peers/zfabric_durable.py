"""zfabric's durable topics: a store in a process of its own, which confirms what its disk has after an fsync."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from itertools import repeat
from operator import attrgetter
from pathlib import Path
from typing import Any

from benchmarks import payloads
from benchmarks.drive import AsyncReceiver, Sender, receiving_async, sending_async
from benchmarks.meter import Transmission
from benchmarks.model import Entry, Link, Run
from benchmarks.peers.zfabric_pubsub import bench_node
from zfabric import Delivery, Node
from zfabric.store.node import Store

__all__ = ["ENTRIES", "fill", "publish", "publish_one", "replay", "store"]

WAIT_S = 10.0


@asynccontextmanager
async def publish(run: Run, link: Link) -> AsyncIterator[Sender]:
    """Publish to a durable topic; flush waits until all of it is stored."""
    async with bench_node("sender", run) as node:
        publisher = node.publisher(run.topic_names[0], delivery=Delivery.AT_LEAST_ONCE, durable=True)
        await publisher.wait_for(stores=1, timeout=WAIT_S)
        yield Sender(sends=[], many=publisher.publish_many, flush=publisher.flush)


@asynccontextmanager
async def publish_one(run: Run, link: Link) -> AsyncIterator[Sender]:
    """Publish one message to a durable topic at a time: each call returns when it is stored."""
    async with bench_node("sender", run) as node:
        publisher = node.publisher(run.topic_names[0], delivery=Delivery.AT_LEAST_ONCE, durable=True, confirm="stored")
        await publisher.wait_for(stores=1, timeout=WAIT_S)
        yield Sender(sends=[publisher.publish])


def fill(run: Run, link: Link) -> Mapping[str, Any]:
    """Have everything stored, then let the reader start."""
    return asyncio.run(_fill(run, link))


async def _fill(run: Run, link: Link) -> Mapping[str, Any]:
    async with publish(run, link) as sender:
        assert sender.many is not None
        await sender.many(repeat(payloads.make(run.payload, run.size), run.messages))
        await sender.flush()
        for _ in (run.warmup, run.messages):
            await link.meet_async()
            clock = Transmission()
            await link.meet_async()
        return clock.result()


@asynccontextmanager
async def replay(run: Run, link: Link) -> AsyncIterator[AsyncReceiver]:
    """Read lists of messages from the earliest on; each phase is a new reader, the first one stops early."""
    async with bench_node(link.name, run) as node:
        yield AsyncReceiver(messages=partial(_read, node, run), lists=True, value=attrgetter("value"))


async def _read(node: Node, run: Run) -> AsyncIterator[Any]:
    async with node.subscribe(run.topic_names[0], start="earliest") as subscription:
        async for messages in subscription.batches():
            yield messages


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
    ),
    Entry(workloads=("confirm",), peer="zfabric store", roles={"store": store, "sender": sending_async(publish_one)}),
    Entry(
        workloads=("replay",),
        peer="zfabric store",
        roles={"store": store, "sender": fill, "receiver": receiving_async(replay)},
    ),
]
