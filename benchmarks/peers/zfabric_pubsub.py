"""zfabric, used as its documentation says: in batches where the rate matters, `async for` where it does not.

The node is an ordinary one with mDNS off (the same-host registry finds the peer), so that no other traffic disturbs the
figures. Queues are as unbounded as those of the raw sockets where nothing may be lost. `publish_nowait` gives the
event loop its turn after every 1,000 messages, as any program that produces in a loop must.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import Any

from benchmarks import payloads
from benchmarks.drive import AsyncReceiver, OpenAsyncReceiver, OpenAsyncSender, Sender, receiving_async, sending_async
from benchmarks.model import Entry, Link, Role, Run
from benchmarks.started import starting
from zfabric import Config, Delivery, Node, Publisher, Subscription, Topic
from zfabric.node.environment import Machine
from zfabric.security.identities import create
from zfabric.security.keys import FabricKey
from zfabric.transport.base import Receiver, Transport

__all__ = ["ENTRIES", "batches", "bench_node", "messages", "nowait", "publish_many"]

TURN = 1_000
"Messages published in one turn of the event loop."
QUEUE_BYTES = 1 << 36
WAIT_S = 60.0
FABRIC = "benchmark"
KEY = FabricKey(FABRIC, bytes(32)).text
"No secret: it only makes nodes encrypt."

START_ONE = """
import asyncio
import zfabric


async def main():
    async with zfabric.Node() as node:
        subscription = node.subscribe("hello")
        await node.publisher("hello").publish("hello")
        print((await subscription.receive()).value, flush=True)


asyncio.run(main())
"""
START_TWO = """
import asyncio
import zfabric


async def main():
    async with zfabric.Node() as one, zfabric.Node() as two:
        publisher, subscription = one.publisher("hello"), two.subscribe("hello")
        await publisher.wait_for(subscribers=1)
        await publisher.publish("hello")
        print((await subscription.receive()).value, flush=True)


asyncio.run(main())
"""


def bench_node(name: str, run: Run) -> Node:
    """A node for this run."""
    config = Config(mdns=False, ipc=run.transport == "ipc")
    if not run.bounded:
        config = replace(config, outlet_queue_bytes=QUEUE_BYTES, buffer_bytes=QUEUE_BYTES)
    key = _identity(run) if run.signed else KEY if run.secure else None
    return Node(name, fabric=FABRIC, key=key, config=config)


def _identity(run: Run) -> Path:
    """One identity for both roles, made by whichever comes first."""
    made = Path(tempfile.mkdtemp(dir=run.directory))
    create(made, FABRIC, "bench")
    with suppress(OSError):
        made.rename(Path(run.directory) / "bench.d")
    return Path(run.directory) / "bench.d"


@asynccontextmanager
async def nowait(run: Run, link: Link) -> AsyncIterator[Sender]:
    """Send with publish_nowait."""
    async with bench_node("sender", run) as node:
        publishers = [node.publisher(topic) for topic in _topics(run)]
        for publisher in publishers:
            await publisher.wait_for(subscribers=run.receivers, timeout=WAIT_S)
        sends = [publisher.publish_nowait for publisher in publishers]
        yield Sender(sends=sends, flush=partial(_flush, publishers), turn=max(TURN, run.topics))


@asynccontextmanager
async def publish(run: Run, link: Link) -> AsyncIterator[Sender]:
    """Send at-least-once with `await publish`, which waits while the window is full."""
    async with bench_node("sender", run) as node:
        publisher = node.publisher(_topics(run)[0], delivery=Delivery.AT_LEAST_ONCE)
        await publisher.wait_for(subscribers=run.receivers, timeout=WAIT_S)
        yield Sender(sends=[publisher.publish], flush=publisher.flush)


@asynccontextmanager
async def publish_many(run: Run, link: Link, delivery: Delivery = Delivery.AT_MOST_ONCE) -> AsyncIterator[Sender]:
    """Send with publish_many; done when everything is on its way, or acknowledged by every subscriber."""
    async with bench_node("sender", run) as node:
        publisher = node.publisher(_topics(run)[0], delivery=delivery, sign=run.signed)
        await publisher.wait_for(subscribers=run.receivers, timeout=WAIT_S)
        yield Sender(sends=[], many=publisher.publish_many, flush=publisher.flush)


@asynccontextmanager
async def loan(run: Run, link: Link) -> AsyncIterator[Sender]:
    """Send one array that was filled in shared memory, as raw pyzmq sends one without a copy."""
    async with bench_node("sender", run) as node:
        publisher = node.publisher(_topics(run)[0])
        await publisher.wait_for(subscribers=run.receivers, timeout=WAIT_S)
        yield Sender(sends=[], many=partial(_publish_loaned, publisher), flush=publisher.flush)


async def _publish_loaned(publisher: Publisher, values: Iterator[Any]) -> None:
    array = next(values)
    loaned = publisher.loan(array.shape, array.dtype)
    loaned[:] = array
    await publisher.publish_many(chain([loaned], (loaned for _ in values)))


@asynccontextmanager
async def batches(run: Run, link: Link, loss: float = 0.0) -> AsyncIterator[AsyncReceiver]:
    """Receive lists of messages and look at every value."""
    async with _subscribed(run, link, loss) as (_, subscription):
        yield AsyncReceiver(messages=subscription.batches, lists=True, value=attrgetter("value"))


@asynccontextmanager
async def messages(run: Run, link: Link) -> AsyncIterator[AsyncReceiver]:
    """Receive message by message."""
    async with _subscribed(run, link) as (node, subscription):
        progress = partial(_progress, node, subscription)
        yield AsyncReceiver(messages=subscription.__aiter__, value=attrgetter("value"), progress=progress)


@asynccontextmanager
async def _subscribed(run: Run, link: Link, loss: float = 0.0) -> AsyncIterator[tuple[Node, Any]]:
    node = bench_node(link.name, run)
    if loss:
        node._environment = LossyMachine(loss)  # noqa: SLF001 - there is no public way to lose batches
    topic: Any = _topics(run)[0] if run.topics == 1 else "benchmark.*"
    async with node, node.subscribe(topic, signed=run.signed) as subscription:
        await subscription.wait_for(publishers=1, timeout=WAIT_S)
        yield node, subscription


def _topics(run: Run) -> list[Any]:
    return [Topic(name, payloads.Reading) if run.payload == "struct" else name for name in run.topic_names]


async def _flush(publishers: list[Publisher]) -> None:
    for publisher in publishers:
        await publisher.flush()


def _progress(node: Node, subscription: Subscription) -> tuple[int, int]:
    return node.statistics().total("received"), subscription.pending


class LossyMachine(Machine):
    """This computer, with a network that loses some batches; which ones is the same in every run."""

    def __init__(self, loss: float) -> None:
        self._loss = loss
        self._random = random.Random(0)

    def transport(self, *arguments: Any) -> Transport:
        """ZeroMQ, with a loss between the feed and the node."""
        transport = super().transport(*arguments)
        transport.open = partial(self._open, transport.open)  # type: ignore[method-assign]
        return transport

    def _open(self, real: Callable[[Receiver], None], receiver: Receiver) -> None:
        real(receiver)
        receiver.on_batch = partial(self._take, receiver.on_batch)  # type: ignore[method-assign]

    def _take(self, real: Callable[..., None], *batch: Any) -> None:
        if self._random.random() >= self._loss:
            real(*batch)


def _roles(sender: OpenAsyncSender, receiver: OpenAsyncReceiver) -> Mapping[str, Role]:
    return {"sender": sending_async(sender), "receiver": receiving_async(receiver)}


def _entries(name: str, roles: Mapping[str, Role], *workloads: str, kinds: str = "bytes") -> Iterator[Entry]:
    for payload in kinds.split():
        peer, transports = f"zfabric {name}", ("tcp", "ipc")
        yield Entry(
            workloads=workloads, peer=peer, roles=roles, payload=payload, transports=transports, can_encrypt=True
        )


_ALL = "bytes dict struct numpy"
_RELIABLY = partial(publish_many, delivery=Delivery.AT_LEAST_ONCE)
_LOSING = partial(batches, loss=0.01)

ENTRIES = [
    *_entries("publish_many -> batches", _roles(publish_many, batches), "throughput", kinds=_ALL),
    *_entries("publish_many -> async for", _roles(publish_many, messages), "throughput", kinds=_ALL),
    *_entries("publish_nowait -> batches", _roles(nowait, batches), "throughput"),
    *_entries("publish_nowait -> async for", _roles(nowait, messages), "throughput", kinds="bytes dict struct"),
    *_entries("publish_many -> batches, at-least-once", _roles(_RELIABLY, batches), "throughput"),
    *_entries("publish_many -> batches, at-least-once, 1 % lost", _roles(_RELIABLY, _LOSING), "throughput"),
    *_entries("at-most-once", _roles(publish_many, batches), "fanout", "cost"),
    *_entries("at-least-once", _roles(_RELIABLY, batches), "fanout", "cost"),
    *_entries("batches", _roles(nowait, batches), "topics"),
    *_entries("async for", _roles(nowait, messages), "latency"),
    *_entries("at-least-once", _roles(publish, messages), "latency"),
    *_entries("publish_many -> batches", _roles(publish_many, batches), "frames", kinds="numpy"),
    *_entries("loan -> batches", _roles(loan, batches), "frames", kinds="numpy"),
    Entry(workloads=("startup",), peer="zfabric, one node", roles={"start": starting(START_ONE)}),
    Entry(workloads=("startup",), peer="zfabric, two nodes", roles={"start": starting(START_TWO)}),
]
