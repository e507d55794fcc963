"""Frames of a camera through three stages: grey, blurred, edges found. One program here; each stage could be a host.

python -m zfabric.examples.images
"""

from __future__ import annotations

import asyncio
import secrets
import sys
import time
from collections.abc import Iterator
from contextlib import aclosing

import numpy as np
from numpy.typing import NDArray
from zfabric.patterns.pipeline import Pipeline

from zfabric import Node

Frame = NDArray[np.float32]


def grey(frame: NDArray[np.uint8]) -> Frame:
    """Colours become brightness."""
    weights = np.array([0.299, 0.587, 0.114], np.float32)
    brightness: Frame = np.einsum("ijk,k->ij", frame, weights, dtype=np.float32)
    return brightness


def blur(frame: Frame) -> Frame:
    """Each pixel becomes the mean of its row's and column's neighbours."""
    padded = np.pad(frame, 1, mode="edge")
    around = padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:]
    return ((frame + around) / 5).astype(np.float32)


def edges(frame: Frame) -> dict[str, float]:
    """How much there is to see."""
    rows, columns = np.gradient(frame)
    strength = np.hypot(rows, columns)
    return {"mean": float(strength.mean()), "max": float(strength.max())}


pipeline = Pipeline("images").map(grey).map(blur).map(edges)


def camera(count: int) -> Iterator[NDArray[np.uint8]]:
    """Frames with a square that moves."""
    for number in range(count):
        frame = np.zeros((240, 320, 3), np.uint8)
        frame[60:120, 2 * number % 260 : 2 * number % 260 + 60] = (255, 128, 0)
        yield frame


async def main(fabric: str, count: int = 100) -> None:
    """Four nodes: one for each stage, and one with the camera."""
    async with (
        Node("grey", fabric=fabric) as first,
        Node("blur", fabric=fabric) as second,
        Node("edges", fabric=fabric) as third,
        Node("camera", fabric=fabric) as eye,
        pipeline.serve(first, [0]),
        pipeline.serve(second, [1]),
        pipeline.serve(third, [2]),
    ):
        begun = time.perf_counter()
        async with aclosing(pipeline.run(eye, camera(count), in_flight=20)) as results:
            found = [result async for result in results]
        rate = count / (time.perf_counter() - begun)
        print(f"{len(found)} frames, {rate:.0f} a second; edges of the last: {found[-1]['max']:.1f}")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else f"images-{secrets.token_hex(4)}"))
