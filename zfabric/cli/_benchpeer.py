"""The other process of `zfabric bench`, `python -m zfabric.cli._benchpeer FABRIC BYTES`: reads, counts and answers."""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any

from zfabric.config import Config
from zfabric.model import Delivery
from zfabric.node.node import Node

__all__ = ["TOPICS", "open_bench_node"]

TOPICS = {
    "bench.batches": (Delivery.AT_MOST_ONCE, "at-most-once, read in batches"),
    "bench.messages": (Delivery.AT_MOST_ONCE, "at-most-once, read one by one"),
    "bench.reliable": (Delivery.AT_LEAST_ONCE, "at-least-once, read in batches"),
}
"What is published, how, and what that is called."
LOOK_EVERY = 256
"Messages that are read one by one between two looks at the clock."


def open_bench_node(name: str, fabric: str, nbytes: int) -> Node:
    """A node that looks for the other on this machine only, with room for all that is published."""
    return Node(name, fabric=fabric, config=Config(mdns=False, outlet_queue_bytes=nbytes, buffer_bytes=nbytes))


class _Tally:
    """What came on one topic, and when."""

    def __init__(self) -> None:
        self.messages, self.first, self.last = 0, 0.0, 0.0

    def look(self) -> None:
        """Note the time."""
        self.last = time.monotonic()
        self.first = self.first or self.last


async def _batches(subscription: Any, tally: _Tally) -> None:
    async for batch in subscription.batches():
        tally.messages += len(batch)
        tally.look()


async def _messages(subscription: Any, tally: _Tally) -> None:
    async for _ in subscription:
        if not tally.messages % LOOK_EVERY:
            tally.look()
        tally.messages += 1


async def main(fabric: str, nbytes: int) -> None:
    """Serve the process that measures, until it ends this one."""
    async with open_bench_node("bench-reader", fabric, nbytes) as node, asyncio.TaskGroup() as group:
        tallies = {topic: _Tally() for topic in TOPICS}
        for topic, (delivery, _) in TOPICS.items():
            read = _messages if topic == "bench.messages" else _batches
            group.create_task(read(node.subscribe(topic, delivery=delivery), tallies[topic]))

        @node.service("bench.tally")
        async def tell(topic: str) -> tuple[int, float]:
            return tallies[topic].messages, tallies[topic].last - tallies[topic].first

        @node.service("bench.echo")
        async def echo(value: bytes) -> bytes:
            return value


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
