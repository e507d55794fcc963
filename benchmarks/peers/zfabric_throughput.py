"""zfabric, used as its documentation says: in batches where the rate matters, `async for` where it does not.

The node is an ordinary one with mDNS off (the same-host registry finds the peer), so that no other traffic disturbs the
figures. Queues are as unbounded as those of the raw sockets, since nothing may be lost. `publish_nowait` gives the
event loop its turn after every 1,000 messages, as any program that produces in a loop must.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks import payloads
from benchmarks.meter import Reception, Transmission
from benchmarks.model import Entry, Link, Run
from zfabric import Config, Delivery, Node, Publisher, Subscription, Topic
from zfabric.discovery import Scope, runtime_dir
from zfabric.node.environment import Machine
from zfabric.transport.base import Credentials, Receiver, Transport
from zfabric.transport.sockets import ZmqTransport

__all__ = ["ENTRIES", "receive_batches", "receive_messages", "send_many", "send_nowait"]

TURN = 1_000
"Messages published in one turn of the event loop."
QUEUE_BYTES = 1 << 30

Feed = Callable[[Publisher, Any, int], Awaitable[None]]
Drain = Callable[[Subscription, int, Reception], Awaitable[int]]


def send_many(run: Run, link: Link) -> Mapping[str, Any]:
    """Send with publish_many."""
    return asyncio.run(_send(run, link, _publish_many))


def send_nowait(run: Run, link: Link) -> Mapping[str, Any]:
    """Send with publish_nowait."""
    return asyncio.run(_send(run, link, _publish_nowait))


def send_reliably(run: Run, link: Link) -> Mapping[str, Any]:
    """Send with publish_many, acknowledged; done when every subscriber has everything."""
    return asyncio.run(_send(run, link, _publish_many, Delivery.AT_LEAST_ONCE))


def receive_with_loss(run: Run, link: Link) -> Mapping[str, Any]:
    """Receive lists of messages, while one batch in a hundred is lost on the way."""
    return asyncio.run(_receive(run, link, _drain_batches, LossyMachine(loss=0.01)))


def receive_batches(run: Run, link: Link) -> Mapping[str, Any]:
    """Receive lists of messages and look at every value."""
    return asyncio.run(_receive(run, link, _drain_batches))


def receive_messages(run: Run, link: Link) -> Mapping[str, Any]:
    """Receive message by message."""
    return asyncio.run(_receive(run, link, _drain_messages))


def _node(name: str, run: Run, machine: Machine | None = None) -> Node:
    config = Config(mdns=False, ipc=run.transport == "ipc", outlet_queue_bytes=QUEUE_BYTES, buffer_bytes=QUEUE_BYTES)
    node = Node(name, fabric="benchmark", config=config)
    if machine is not None:
        node._environment = machine  # noqa: SLF001 - there is no public way to lose batches
    return node


class LossyMachine(Machine):
    """This computer, with a network that loses some batches; which ones is the same in every run."""

    def __init__(self, loss: float) -> None:
        self._loss = loss

    def transport(self, node_id: bytes, scope: Scope, config: Config, credentials: Credentials | None) -> Transport:
        """ZeroMQ, whose feed drops batches."""
        return LossyTransport(config, scope.addresses, runtime_dir() / node_id.hex()[:16], credentials, self._loss)


class LossyTransport(ZmqTransport):
    """Drops batches between the feed and the node."""

    def __init__(
        self,
        config: Config,
        addresses: tuple[str, ...],
        ipc_stem: Path,
        credentials: Credentials | None,
        loss: float,
    ) -> None:
        super().__init__(config, addresses, ipc_stem, credentials=credentials)
        self._loss = loss
        self._random = random.Random(0)

    def open(self, receiver: Receiver) -> None:
        """Bind, and put the loss in front of the receiver."""
        super().open(receiver)
        take = receiver.on_batch
        receiver.on_batch = lambda frames: None if self._random.random() < self._loss else take(frames)  # type: ignore[method-assign]


def _topic(run: Run) -> Topic[Any] | str:
    return Topic("benchmark.data", payloads.Reading) if run.payload == "struct" else "benchmark.data"


async def _send(run: Run, link: Link, feed: Feed, delivery: Delivery = Delivery.AT_MOST_ONCE) -> Mapping[str, Any]:
    """Send the warm-up, then the measured messages."""
    value = payloads.make(run.payload, run.size)
    async with _node("sender", run) as node:
        publisher = node.publisher(_topic(run), delivery=delivery)
        await publisher.wait_for(subscribers=run.receivers, timeout=10)
        for count in (run.warmup, run.messages):
            await link.meet_async()
            clock = Transmission()
            await feed(publisher, value, count)
            await publisher.flush()
            await link.meet_async()
        return clock.result()


async def _publish_many(publisher: Publisher, value: Any, count: int) -> None:
    await publisher.publish_many(itertools.repeat(value, count))


async def _publish_nowait(publisher: Publisher, value: Any, count: int) -> None:
    publish = publisher.publish_nowait
    for start in range(0, count, TURN):
        for _ in range(min(TURN, count - start)):
            publish(value)
        await asyncio.sleep(0)


async def _receive(run: Run, link: Link, drain: Drain, machine: Machine | None = None) -> Mapping[str, Any]:
    """Receive both; silence ends a phase."""
    async with _node(link.name, run, machine) as node, node.subscribe(_topic(run)) as subscription:
        await subscription.wait_for(publishers=1, timeout=10)
        for expected in (run.warmup, run.messages):
            await link.meet_async()
            clock = Reception()
            count, quiet_s = await _until_quiet(node, drain(subscription, expected, clock), run.quiet_s)
            result = clock.result(count, expected, quiet_s)
            await link.meet_async()
        return result


async def _drain_batches(subscription: Subscription, expected: int, clock: Reception) -> int:
    count = 0
    try:
        async for batch in subscription.batches():
            if not count:
                clock.first(len(batch))
            for message in batch:
                message.value  # noqa: B018 - every value reaches the program, as with the raw sockets
            count += len(batch)
            if count >= expected:
                break
    except asyncio.CancelledError:
        pass
    return count


async def _drain_messages(subscription: Subscription, expected: int, clock: Reception) -> int:
    count = 0
    try:
        async for message in subscription:
            if not count:
                clock.first(1)
            message.value  # noqa: B018 - as above
            count += 1
            if count >= expected:
                break
    except asyncio.CancelledError:
        pass
    return count


async def _until_quiet(node: Node, drain: Awaitable[int], quiet_s: float) -> tuple[int, float]:
    """Wait for the drain, or stop it when nothing came for `quiet_s`; returns its count and how long it was quiet."""
    task = asyncio.ensure_future(drain)
    received, changed = -1, time.perf_counter()
    while not (await asyncio.wait({task}, timeout=0.1))[0]:
        if (now := node.statistics().total("received")) != received:
            received, changed = now, time.perf_counter()
        elif time.perf_counter() - changed > quiet_s:
            task.cancel()
            return await task, time.perf_counter() - changed
    return await task, 0.0


def _entry(name: str, sender: Any, receiver: Any, payload: str = "bytes") -> Entry:
    roles = {"sender": sender, "receiver": receiver}
    return Entry(workload="throughput", peer=f"zfabric {name}", roles=roles, payload=payload)


_RELIABLE = "publish_many -> batches, at-least-once"

ENTRIES = [
    _entry("publish_many -> batches", send_many, receive_batches),
    _entry(_RELIABLE, send_reliably, receive_batches),
    _entry(f"{_RELIABLE}, 1 % lost", send_reliably, receive_with_loss),
    _entry("publish_nowait -> batches", send_nowait, receive_batches),
    _entry("publish_nowait -> async for", send_nowait, receive_messages),
    _entry("publish_many -> batches", send_many, receive_batches, "dict"),
    _entry("publish_nowait -> async for", send_nowait, receive_messages, "dict"),
    _entry("publish_many -> batches", send_many, receive_batches, "struct"),
    _entry("publish_nowait -> async for", send_nowait, receive_messages, "struct"),
]
ENTRIES += [
    Entry(workload="fanout", peer=f"zfabric {name}", roles={"sender": sender, "receiver": receive_batches})
    for name, sender in (("at-most-once", send_many), ("at-least-once", send_reliably))
]
