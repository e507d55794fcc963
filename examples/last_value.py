"""Who comes late gets the newest value of each topic at once, from a cache that only listens."""

from __future__ import annotations

import asyncio
import sys
from contextlib import aclosing

from zfabric.patterns.last_value import LastValueCache, last_values
from zfabric.patterns.rate_limit import RateLimit

import zfabric


async def main(fabric: str = "last-value") -> None:
    """A sensor that speaks, a cache that listens, a panel that is opened afterwards."""
    async with (
        zfabric.Node("sensor", fabric=fabric) as sensor,
        zfabric.Node("cache", fabric=fabric) as middle,
        LastValueCache(middle, "plant.#"),
    ):
        temp = sensor.publisher("plant.temp", delivery="at-least-once", confirm="received")
        await temp.wait_for(subscribers=1)
        limit = RateLimit(100, burst=5)
        for step in range(10):
            await limit.wait()
            await temp.publish(20 + step / 2, key="line1")

        async with (
            zfabric.Node("panel", fabric=fabric) as panel,
            aclosing(last_values(panel, "plant.#", publishers=1, required=True)) as messages,
        ):
            message = await anext(messages)
            print(f"{message.topic} of {message.key} was {message.value} (#{message.seq})")
            await temp.publish(99.5, key="line1")
            message = await anext(messages)
            print(f"{message.topic} of {message.key} is {message.value} (#{message.seq})")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
