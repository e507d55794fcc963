"""Camera frames as numpy arrays, without a copy: 2 MB each, inside ordinary messages."""

from __future__ import annotations

import asyncio
import sys
import time

import numpy as np

import zfabric

FRAMES = 200


def take_picture(number: int) -> np.ndarray:
    """A grey picture, full HD."""
    picture = np.full((1080, 1920), number % 256, dtype=np.uint8)
    picture.setflags(write=False)  # nobody can change it now, so it is sent as it is; else it would be copied
    return picture


async def watch(frames: zfabric.Subscription) -> None:
    """Receive all frames; the arrays are views of what ZeroMQ received, and read-only."""
    started = time.perf_counter()
    bytes_received = 0
    for _ in range(FRAMES):
        message = await frames.receive(timeout=10)
        picture = message.value["picture"]
        assert picture[0, 0] == message.value["number"] % 256
        bytes_received += picture.nbytes
    rate = bytes_received / (time.perf_counter() - started) / 1e6
    print(f"{FRAMES} frames of {picture.shape} {picture.dtype}: {rate:,.0f} MB/s")


async def main(fabric: str = "frames") -> None:
    """Two nodes in one script; in real life they are two programs."""
    async with zfabric.Node("camera", fabric=fabric) as camera, zfabric.Node("viewer", fabric=fabric) as viewer:
        frames = viewer.subscribe("camera.front")
        pictures = camera.publisher("camera.front")
        await pictures.wait_for(subscribers=1, timeout=10)
        watching = asyncio.create_task(watch(frames))
        for number in range(FRAMES):
            await pictures.publish({"number": number, "picture": take_picture(number)})
        await watching


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
