"""The doctor's other process: nodes that send back what they hear, until stdin ends.

`python -m zfabric.cli._echo INTERFACE INSECURE WAY...`; prints the time when its nodes are open.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack

from zfabric import Config, Node

__all__ = ["PING", "PONG", "configuration", "fabric_of", "main"]

PING, PONG = "doctor.ping", "doctor.pong"


def fabric_of(token: str, way: str) -> str:
    """The fabric in which one way of finding peers is tried: nobody else is on it."""
    return f"doctor-{token}-{way}"


def configuration(way: str) -> Config:
    """A configuration that finds peers in one way only."""
    return Config(mdns=way == "mdns", registry=way == "registry")


async def echo(token: str, interface: str, insecure: bool, ways: Sequence[str]) -> None:
    """Answer on one node for each way."""
    async with AsyncExitStack() as stack:
        for way in ways:
            fabric = fabric_of(token, way)
            node = await stack.enter_async_context(
                Node("doctor-echo", fabric=fabric, interface=interface, insecure=insecure, config=configuration(way))
            )
            pong = node.publisher(PONG)

            @node.on(PING)
            async def answer(message: object, pong: object = pong) -> None:
                pong.publish_nowait(message.value)  # type: ignore[attr-defined]

        print(time.time(), flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


def main() -> None:
    """Run until the doctor closes our stdin."""
    token, interface, insecure, *ways = sys.argv[1:]
    asyncio.run(echo(token, interface, insecure == "insecure", ways))


if __name__ == "__main__":
    main()
