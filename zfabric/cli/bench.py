"""`zfabric bench`: how fast it is on this machine, between two processes."""

from __future__ import annotations

import asyncio
import secrets
import statistics
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import click

from zfabric.cli import _benchpeer
from zfabric.cli._exits import Exit, Stop
from zfabric.cli._options import Options, output_options
from zfabric.cli._output import Output
from zfabric.cli._running import run
from zfabric.node.node import Node

__all__ = ["command"]

CHUNK = 10_000
"Messages given to `publish_many` at one time."
START_S = 20.0
"How long the other process may take to start, and what it has not counted yet to arrive."


@click.command()
@click.option("--messages", type=click.IntRange(1000, 10_000_000), default=500_000, show_default=True, metavar="N")
@click.option("--size", type=click.IntRange(0, 65_536), default=100, show_default=True, help="Bytes of a message.")
@click.option("--requests", type=click.IntRange(10, 1_000_000), default=2000, show_default=True, metavar="N")
@output_options
def command(options: Options, messages: int, size: int, requests: int) -> int:
    """Measure messages a second and the time of a request, between this process and another one.

    It needs nothing but zfabric. For a comparison with others, `python -m benchmarks report` in a checkout.
    """
    return run(options, lambda output: _bench(output, messages, size, requests))


async def _bench(output: Output, messages: int, size: int, requests: int) -> int:
    fabric, nbytes = f"bench-{secrets.token_hex(8)}", 2 * messages * (size + 64)
    async with _other(fabric, nbytes), _benchpeer.open_bench_node("bench", fabric, nbytes) as node:
        await node.wait_for_service("bench.echo", timeout=START_S)
        rows = [await _publish(output, node, topic, messages, bytes(size)) for topic in _benchpeer.TOPICS]
        rows += await _request(output, node, requests, bytes(size))
    if output.json:
        for what, value, unit in rows:
            output.record({"what": what, "value": round(value, 1), "unit": unit})
    else:
        output.table(("WHAT", "MEASURED", "UNIT"), [(what, f"{value:,.0f}", unit) for what, value, unit in rows])
    return Exit.OK


@asynccontextmanager
async def _other(fabric: str, nbytes: int) -> AsyncIterator[None]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "zfabric.cli._benchpeer", fabric, str(nbytes), stdin=asyncio.subprocess.DEVNULL
    )
    try:
        yield
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _publish(output: Output, node: Node, topic: str, messages: int, value: bytes) -> tuple[str, float, str]:
    delivery, what = _benchpeer.TOPICS[topic]
    output.note(what, verbose=1)
    publisher = node.publisher(topic, delivery=delivery)
    await publisher.wait_for(subscribers=1, timeout=START_S)
    for sent in range(0, messages, CHUNK):
        await publisher.publish_many([value] * min(CHUNK, messages - sent))
    await publisher.flush()
    arrived = 0
    try:
        async with asyncio.timeout(START_S):
            while True:
                arrived, seconds = await node.request("bench.tally", topic)
                if arrived == messages:
                    return what, messages / max(seconds, 1e-6), "messages/s"
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise Stop(Exit.TIMED_OUT, f"{messages - arrived:,} of {messages:,} messages did not arrive") from None


async def _request(output: Output, node: Node, requests: int, value: bytes) -> list[tuple[str, float, str]]:
    output.note("requests", verbose=1)
    loop = asyncio.get_running_loop()
    took = []
    for _ in range(requests):
        began = loop.time()
        await node.request("bench.echo", value)
        took.append((loop.time() - began) * 1e6)
    percentiles = statistics.quantiles(took, n=100)
    return [("request, half of them within", percentiles[49], "us"), ("request, 99 % within", percentiles[98], "us")]
