"""Two counters, one active; when it leaves, the other goes on where the fence lets it."""

from __future__ import annotations

import asyncio
import sys

from zfabric.patterns.standby import Arbiter, Fence, Standby

import zfabric


async def main(fabric: str = "standby") -> None:
    """Let each of two members be active once."""
    fence = Fence()
    async with (
        zfabric.Node("arbiter", fabric=fabric) as third,
        zfabric.Node("left", fabric=fabric) as left,
        zfabric.Node("right", fabric=fabric) as right,
    ):
        Arbiter(third, "counter", lease_s=0.5)
        for node in (left, right):
            await node.wait_for_service("standby.counter", timeout=10)
        async with Standby(right, "counter", lease_s=0.5) as second:
            async with Standby(left, "counter", lease_s=0.5) as first:
                tasks = [asyncio.create_task(member.wait_active(10)) for member in (first, second)]
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                fence.check(done.pop().result())
                print(f"{sum(member.epoch is not None for member in (first, second))} of two is active")
            fence.check(await tasks[1])
            print("and when one has left, the other is")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
