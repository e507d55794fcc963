"""Publish ten temperatures. Run `hello_subscriber.py` in another terminal, before or after."""

from __future__ import annotations

import asyncio
import sys

import zfabric


async def main(fabric: str = "hello") -> None:
    """Wait for a subscriber, then publish."""
    async with zfabric.Node("sensor-1", fabric=fabric) as node:
        temps = node.publisher("plant.line1.temp")
        await temps.wait_for(subscribers=1)  # from here on every message arrives
        for step in range(10):
            await temps.publish({"c": 20 + step / 2})
            await asyncio.sleep(0.1)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
