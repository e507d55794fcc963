"""What a large log costs its store: `python -m tests.durable.large 50000000`.

So many messages of 100 bytes are published and stored; then four readers in processes of their own read a tenth each,
from different places. The store starts anew in between. Prints for each step what `tests.durable.backlog` prints, and
the rate.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import sys
import tempfile
import time
import uuid
from itertools import repeat

from tests.durable.backlog import CONFIG, beside_a_store
from zfabric import Node

TOPIC = "large"
READERS = 4


async def publish(fabric: str, count: int) -> None:
    """All of them, until they are stored."""
    async with Node("publisher", fabric=fabric, config=CONFIG) as node:
        publisher = node.publisher(TOPIC, durable=True)
        await publisher.wait_for(stores=1, timeout=20)
        await publisher.publish_many(repeat(bytes(100), count))
        await publisher.flush()


async def _read(fabric: str, start: int, count: int) -> None:
    async with Node("reader", fabric=fabric, config=CONFIG) as node:
        async for batch in node.subscribe(TOPIC, start=start).batches():
            count -= len(batch)
            if count <= 0:
                return


def read(fabric: str, start: int, count: int) -> None:
    """One reader."""
    asyncio.run(_read(fabric, start, count))


async def read_all(fabric: str, count: int) -> None:
    """All readers, side by side."""
    each = count // READERS
    context = multiprocessing.get_context("spawn")
    readers = [
        context.Process(target=read, args=(fabric, place * each * 10 // READERS, each)) for place in range(READERS)
    ]
    for reader in readers:
        reader.start()
    for reader in readers:
        await asyncio.to_thread(reader.join)
        assert reader.exitcode == 0


def main(count: int) -> None:
    """Publish a tenth, the rest but a tenth, the last tenth; read."""
    fabric, tenth = f"large-{uuid.uuid4().hex[:8]}", count // 10
    with tempfile.TemporaryDirectory() as folder:
        for name, work, size in (
            ("first tenth", publish, tenth),
            ("grows", publish, count - 2 * tenth),
            ("last tenth", publish, tenth),
            ("read", read_all, READERS * tenth),
        ):
            began = time.monotonic()
            memory, longest, cpu = beside_a_store(f"{folder}/data", fabric, work(fabric, size))
            rate = size / (time.monotonic() - began) / 1000
            figures = {"rss_MB": round(memory), "longest_turn_ms": round(longest * 1e3, 1), "k_msg_s": round(rate)}
            told = {name: size, **figures, "cpu_us_per_message": round(cpu / size * 1e6, 3)}
            print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
