"""zfabric's services, used as documented: a decorated coroutine, and `await node.request(...)`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from benchmarks.ask import Call, calling_async, serving_async
from benchmarks.model import Entry, Link, Run
from benchmarks.peers.zfabric_pubsub import bench_node

__all__ = ["ENTRIES", "ask", "reply"]

WAIT_S = 10.0


@asynccontextmanager
async def reply(run: Run, link: Link) -> AsyncIterator[None]:
    """Provide a service that echoes."""
    async with bench_node("server", run) as node:

        @node.service("benchmark.echo", concurrency=run.in_flight)
        async def echo(value: bytes) -> bytes:
            return value

        await link.meet_async()
        yield


@asynccontextmanager
async def ask(run: Run, link: Link) -> AsyncIterator[Call]:
    """Request it."""
    async with bench_node("client", run) as node:
        await link.meet_async()
        await node.wait_for_service("benchmark.echo", timeout=WAIT_S)
        yield partial(node.request, "benchmark.echo")


ENTRIES = [
    Entry(
        workloads=("requests",),
        peer="zfabric request",
        roles={"client": calling_async(ask), "server": serving_async(reply)},
        transports=("tcp", "ipc"),
    )
]
