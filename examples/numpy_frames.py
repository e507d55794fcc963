"""Camera frames as numpy arrays, without a copy: 2 MB each, a hundred per second, inside ordinary messages."""

from __future__ import annotations

import asyncio
import statistics
import sys
import time

import numpy as np
import numpy.typing as npt

import zfabric

FRAMES = 100


def take_picture(number: int) -> npt.NDArray[np.uint8]:
    """A grey picture, full HD."""
    picture = np.full((1080, 1920), number, dtype=np.uint8)
    picture.setflags(write=False)  # nobody can change it now, so it is sent as it is; else it would be copied
    return picture


async def watch(frames: zfabric.Subscription) -> None:
    """Receive all frames; the arrays are views of what ZeroMQ received, and read-only."""
    latencies_ms = []
    for _ in range(FRAMES):
        message = await frames.receive(timeout=10)
        picture = message.value["picture"]
        latencies_ms.append((time.time() - message.timestamp) * 1000)
        assert picture.mean() == message.value["number"] == message.seq
    median_ms = statistics.median(latencies_ms)
    print(f"{FRAMES} frames of {picture.shape} {picture.dtype}, none lost, {median_ms:.2f} ms each")


async def main(fabric: str = "frames") -> None:
    """Two nodes in one script; in real life they are two programs."""
    async with zfabric.Node("camera", fabric=fabric) as camera, zfabric.Node("viewer", fabric=fabric) as viewer:
        frames = viewer.subscribe("camera.front")
        pictures = camera.publisher("camera.front")
        await pictures.wait_for(subscribers=1, timeout=10)
        watching = asyncio.create_task(watch(frames))
        for number in range(FRAMES):
            await pictures.publish({"number": number, "picture": take_picture(number)})
            await asyncio.sleep(0.01)
        await watching


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
