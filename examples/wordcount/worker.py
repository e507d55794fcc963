"""A worker: serves both stages until it is told to stop."""

from __future__ import annotations

import asyncio
import signal
import sys

from zfabric.examples.wordcount.pipeline import pipeline

from zfabric import Node

__all__ = ["main"]


async def main(fabric: str) -> None:
    """Work until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with Node(fabric=fabric) as node, pipeline.serve(node):
        print("ready", flush=True)
        await stop.wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
