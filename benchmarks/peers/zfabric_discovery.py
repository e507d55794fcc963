"""zfabric's discovery on one host: with mDNS and the same-host registry as by default, and with either alone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Any

import psutil

from benchmarks.model import Entry, Link, Run
from zfabric import Config, Node
from zfabric.security.keys import FabricKey

__all__ = ["ENTRIES", "idle", "mesh", "mesh_mdns", "mesh_registry", "pair", "pair_mdns", "pair_registry"]

FABRIC = "benchmark"
SETTLE_S = 1.5
"Time for an idle node to finish announcing itself."


def pair(run: Run, link: Link) -> Mapping[str, Any]:
    """One of two nodes, both ways of discovery."""
    return asyncio.run(_pair(run, link, Config()))


def pair_mdns(run: Run, link: Link) -> Mapping[str, Any]:
    """One of two nodes, by mDNS."""
    return asyncio.run(_pair(run, link, Config(registry=False)))


def pair_registry(run: Run, link: Link) -> Mapping[str, Any]:
    """One of two nodes, by the registry."""
    return asyncio.run(_pair(run, link, Config(mdns=False)))


def mesh(run: Run, link: Link) -> Mapping[str, Any]:
    """Several nodes of a mesh, both ways of discovery."""
    return asyncio.run(_mesh(run, link, Config()))


def mesh_mdns(run: Run, link: Link) -> Mapping[str, Any]:
    """Several nodes of a mesh, by mDNS."""
    return asyncio.run(_mesh(run, link, Config(registry=False)))


def mesh_registry(run: Run, link: Link) -> Mapping[str, Any]:
    """Several nodes of a mesh, by the registry."""
    return asyncio.run(_mesh(run, link, Config(mdns=False)))


def idle(run: Run, link: Link) -> Mapping[str, Any]:
    """A node that has nothing to do."""
    return asyncio.run(_idle(run, link))


def _key(run: Run) -> str | None:
    return FabricKey(FABRIC, bytes(32)).text if run.secure else None


async def _pair(run: Run, link: Link, config: Config) -> Mapping[str, Any]:
    """Open, wait until matched, publish one message and receive the other's."""
    other = next(name for name in await link.meet_async() if name != link.name)
    start = time.monotonic()
    async with (
        Node(link.name, fabric=FABRIC, key=_key(run), config=config) as node,
        node.subscribe(f"hello.{other}") as hellos,
    ):
        publisher = node.publisher(f"hello.{link.name}")
        await publisher.wait_for(subscribers=1, timeout=run.timeout_s)
        await publisher.publish("hello")
        await hellos.receive(timeout=run.timeout_s)
        done = time.monotonic()
        await link.meet_async()
    return {"start": start, "done": done}


async def _mesh(run: Run, link: Link, config: Config) -> Mapping[str, Any]:
    """Open all nodes of this process at once, and wait until each sees all others."""
    nodes = [Node(f"{link.name}-{index}", fabric=FABRIC, key=_key(run), config=config) for index in range(run.nodes)]
    await link.meet_async()
    start = time.monotonic()
    async with AsyncExitStack() as stack:
        await asyncio.gather(*(stack.enter_async_context(node) for node in nodes))
        await asyncio.gather(*(node.wait_for_peers(run.nodes_total - 1, timeout=run.timeout_s) for node in nodes))
        done = time.monotonic()
        await link.meet_async()
    return {"start": start, "done": done}


async def _idle(run: Run, link: Link) -> Mapping[str, Any]:
    """CPU time of the whole process, all threads, while the node waits."""
    await link.meet_async()
    async with Node("idle", fabric=FABRIC, key=_key(run)):
        await asyncio.sleep(min(SETTLE_S, run.seconds))
        cpu, start = time.process_time(), time.monotonic()
        await asyncio.sleep(run.seconds)
        cpu, elapsed = time.process_time() - cpu, time.monotonic() - start
        return {"cpu_percent": 100 * cpu / elapsed, "memory_bytes": psutil.Process().memory_info().rss}


ENTRIES = [
    Entry(workloads=("discovery",), peer="zfabric", roles={"pair": pair, "mesh": mesh, "idle": idle}),
    Entry(workloads=("discovery",), peer="zfabric, mDNS alone", roles={"pair": pair_mdns, "mesh": mesh_mdns}),
    Entry(
        workloads=("discovery",), peer="zfabric, registry alone", roles={"pair": pair_registry, "mesh": mesh_registry}
    ),
]
