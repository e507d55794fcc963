"""The doctor's other process: nodes that send back what they hear, until stdin ends.

`python -m zfabric.cli._echo INTERFACE INSECURE WAY...`, with a token in the environment that makes their fabrics and
keys; prints the time when its nodes are open.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack

import zmq

from zfabric import Config, Node
from zfabric.security.keys import FabricKey

__all__ = ["PING", "PONG", "TOKEN", "configuration", "fabric_of", "key_of", "main"]

TOKEN = "ZFABRIC_DOCTOR_TOKEN"  # noqa: S105 - the name of a variable

PING, PONG = "doctor.ping", "doctor.pong"


def fabric_of(token: str, way: str) -> str:
    """The fabric in which one way of finding peers is tried: nobody else is on it."""
    return f"doctor-{hashlib.sha256(token.encode()).hexdigest()[:8]}-{way}"


def key_of(token: str, way: str) -> str | None:
    """The key of that fabric, where libzmq can encrypt."""
    secret = hashlib.sha256(f"{token} {way}".encode()).digest()
    return FabricKey(fabric_of(token, way), secret).text if zmq.has("curve") else None


def configuration(way: str) -> Config:
    """A configuration that finds peers in one way only."""
    return Config(mdns=way == "mdns", registry=way == "registry")


async def echo(token: str, interface: str, insecure: bool, ways: Sequence[str]) -> None:
    """Answer on one node for each way."""
    async with AsyncExitStack() as stack:
        for way in ways:
            fabric = fabric_of(token, way)
            node = await stack.enter_async_context(
                Node(
                    "doctor-echo",
                    fabric=fabric,
                    interface=interface,
                    key=key_of(token, way),
                    insecure=insecure,
                    config=configuration(way),
                )
            )
            pong = node.publisher(PONG)

            @node.on(PING)
            async def answer(message: object, pong: object = pong) -> None:
                pong.publish_nowait(message.value)  # type: ignore[attr-defined]

        print(time.time(), flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


def main() -> None:
    """Run until the doctor closes our stdin."""
    interface, insecure, *ways = sys.argv[1:]
    asyncio.run(echo(os.environ[TOKEN], interface, insecure == "insecure", ways))


if __name__ == "__main__":
    main()
