"""Ask five shops for a price, and take the best of the first three answers."""

from __future__ import annotations

import asyncio
import sys
from contextlib import AsyncExitStack

from zfabric.patterns.scatter_gather import scatter_gather

import zfabric


async def main(fabric: str = "scatter-gather") -> None:
    """Open the shops, and a customer who does not wait for the slow ones."""
    async with AsyncExitStack() as stack:
        for number in range(5):
            shop = await stack.enter_async_context(zfabric.Node(f"shop-{number}", fabric=fabric))

            @shop.service("price")
            async def price(article: str, number: int = number) -> int:
                await asyncio.sleep(0 if number < 3 else 60)
                return 100 + number * len(article)

        customer = await stack.enter_async_context(zfabric.Node("customer", fabric=fabric))
        await customer.wait_for_service("price", 10, providers=5)
        found = await scatter_gather(customer, "price", "shoes", enough=3, timeout=5)
        best = min(found.replies, key=lambda reply: reply.value)
        print(f"{len(found.replies)} prices; the best is {best.value}, from {best.source.name}")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
