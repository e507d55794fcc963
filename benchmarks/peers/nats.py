"""NATS: nats-py with a nats-server, core publish and subscribe, requests, queue groups, and JetStream.

nats-py's own pending limits are lifted where nothing may be lost. JetStream publishes with `publish_async`, up to 4,000
unconfirmed, to a stream on disk: once as the server syncs by default (every two
minutes), once with `sync_interval: always`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

import nats

from benchmarks.ask import Call, calling_async, serving_async
from benchmarks.drive import AsyncReceiver, Sender, receiving_async, sending_async
from benchmarks.model import Entry, Link, Run, program
from benchmarks.servers import accepts, free_port, running

__all__ = ["ENTRIES", "publish", "subscribe"]

SERVER = program("nats-server")
UNCONFIRMED = 4_000


@contextmanager
def server(run: Run, sync: str = "") -> Iterator[str]:
    """A nats-server with JetStream."""
    port = free_port()
    config = Path(run.directory, "nats.conf")
    store = f'store_dir: "{run.directory}/js"' + (f", sync_interval: {sync}" if sync else "")
    config.write_text(f"listen: 127.0.0.1:{port}\njetstream {{ {store} }}\nwrite_deadline: 60s\nmax_pending: 1GB\n")
    with running([SERVER, "-c", str(config)], run, partial(accepts, port)):
        yield f"nats://127.0.0.1:{port}"


@asynccontextmanager
async def publish(run: Run, link: Link) -> AsyncIterator[Sender]:
    """Core publish."""
    async with await nats.connect(run.server) as client:
        await link.meet_async()
        yield Sender(sends=[partial(client.publish, name) for name in run.topic_names], flush=client.flush)


@asynccontextmanager
async def subscribe(run: Run, link: Link, queue: str = "") -> AsyncIterator[AsyncReceiver]:
    """Iterate over a core subscription."""
    limits = {} if run.bounded else {"pending_msgs_limit": -1, "pending_bytes_limit": -1}
    async with await nats.connect(run.server) as client:
        subscription = await client.subscribe("benchmark.*", queue=queue, **limits)
        await client.flush()
        await link.meet_async()
        yield AsyncReceiver(
            messages=lambda: subscription.messages,
            value=attrgetter("data"),
            progress=lambda: (client.stats["in_msgs"], subscription.pending_msgs),
        )


@asynccontextmanager
async def publish_stored(run: Run, link: Link) -> AsyncIterator[Sender]:
    """Publish to a stream on disk; flush waits for every confirmation."""
    async with await nats.connect(run.server) as client:
        stream = client.jetstream(publish_async_max_pending=UNCONFIRMED)
        await stream.add_stream(name="benchmark", subjects=["benchmark.*"], storage="file")
        yield Sender(
            sends=[partial(stream.publish_async, name) for name in run.topic_names],
            flush=stream.publish_async_completed,
        )


@asynccontextmanager
async def publish_one(run: Run, link: Link) -> AsyncIterator[Sender]:
    """Publish to a stream on disk; each call waits for its confirmation."""
    async with await nats.connect(run.server) as client:
        stream = client.jetstream()
        await stream.add_stream(name="benchmark", subjects=["benchmark.*"], storage="file")
        yield Sender(sends=[partial(stream.publish, name) for name in run.topic_names])


@asynccontextmanager
async def ask(run: Run, link: Link) -> AsyncIterator[Call]:
    """Request."""
    async with await nats.connect(run.server) as client:
        await link.meet_async()
        yield partial(client.request, "benchmark.echo", timeout=30)


@asynccontextmanager
async def reply(run: Run, link: Link) -> AsyncIterator[None]:
    """Answer requests."""

    async def echo(message: Any) -> None:
        await message.respond(message.data)

    async with await nats.connect(run.server) as client:
        await client.subscribe("benchmark.echo", cb=echo, pending_msgs_limit=-1, pending_bytes_limit=-1)
        await client.flush()
        await link.meet_async()
        yield


_CORE = {"sender": sending_async(publish), "receiver": receiving_async(subscribe)}
_QUEUE = {"sender": sending_async(publish), "receiver": receiving_async(partial(subscribe, queue="workers"))}
_REQUEST = {"client": calling_async(ask), "server": serving_async(reply)}
_STORED = {"sender": sending_async(publish_stored)}
_MAX = 100_000

ENTRIES = [
    Entry(
        workloads=("throughput", "fanout", "topics", "cost"), peer="NATS", roles=_CORE, server=server, messages_max=_MAX
    ),
    Entry(workloads=("latency",), peer="NATS", roles=_CORE, server=server, messages_max=_MAX),
    Entry(workloads=("queue",), peer="NATS queue group", roles=_QUEUE, server=server, messages_max=_MAX),
    Entry(workloads=("requests",), peer="NATS request", roles=_REQUEST, server=server),
    Entry(workloads=("durable",), peer="NATS JetStream, file", roles=_STORED, server=server, messages_max=30_000),
    Entry(
        workloads=("durable",),
        peer="NATS JetStream, file, sync always",
        roles=_STORED,
        server=partial(server, sync="always"),
        messages_max=10_000,
    ),
    Entry(
        workloads=("confirm",),
        peer="NATS JetStream, file, sync always",
        roles={"sender": sending_async(publish_one)},
        server=partial(server, sync="always"),
    ),
]
