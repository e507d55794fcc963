"""Print every temperature of the plant until Ctrl-C. Run `hello_publisher.py` in another terminal."""

from __future__ import annotations

import asyncio
import contextlib
import sys

import zfabric


async def main(fabric: str = "hello") -> None:
    """Subscribe to all lines: `*` stands for one word of a topic."""
    async with zfabric.Node("viewer", fabric=fabric) as node, node.subscribe("plant.*.temp") as temps:
        async for message in temps:
            print(f"{message.topic} #{message.seq} from {message.source}: {message.value['c']} °C", flush=True)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main(*sys.argv[1:]))
