"""A map that three nodes share: what one sets, the others read, also the one that comes late."""

from __future__ import annotations

import asyncio
import sys
from contextlib import AsyncExitStack, aclosing

from zfabric.patterns.shared_map import MapOwner, SharedMap

import zfabric


async def main(fabric: str = "shared-map") -> None:
    """One node owns the map, two follow it."""
    async with AsyncExitStack() as stack:
        nodes = [await stack.enter_async_context(zfabric.Node(name, fabric=fabric)) for name in ("hub", "desk", "wall")]
        await stack.enter_async_context(MapOwner(nodes[0], "lamps", initial={"hall": "off"}))
        desk = await stack.enter_async_context(SharedMap(nodes[1], "lamps"))
        await desk.set("kitchen", "on")
        await desk.set("porch", "on", ttl=0.5)

        wall = await stack.enter_async_context(SharedMap(nodes[2], "lamps"))
        print("late, but complete:", dict(sorted(wall.items())))
        async with aclosing(wall.watch("porch")) as changes:
            async for change in changes:
                print(f"{change.key} is {'gone' if change.deleted else change.value}")
                break


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
