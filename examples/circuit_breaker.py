"""A client that leaves a failing service alone for a while, and comes back to it."""

from __future__ import annotations

import asyncio
import sys

from zfabric.patterns.circuit_breaker import CircuitBreaker, CircuitOpen

import zfabric


async def main(fabric: str = "circuit-breaker") -> None:
    """Ask until the circuit opens, then until it is closed again."""
    broken = True
    async with zfabric.Node("shop", fabric=fabric) as shop, zfabric.Node("client", fabric=fabric) as client:

        @shop.service("shop.total")
        async def total(count: int) -> int:
            if broken:
                await asyncio.sleep(60)
            return count * 3

        await client.wait_for_service("shop.total", timeout=5)
        breaker = CircuitBreaker(failures=3, cooldown_s=0.2)
        for _ in range(10):
            try:
                with breaker.attempt():
                    print("total:", await client.request("shop.total", 14, timeout=0.5))
                    break
            except CircuitOpen as refused:
                print("left alone")
                broken = False
                await asyncio.sleep(refused.retry_after)
            except zfabric.RequestTimeout:
                print("failed")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
