"""Capture files: what a fabric said, kept in a file, looked at and said again.

    async with Recorder(node, "run.zfr", ["plant.#"]) as recorder:
        await recorder.wait(timeout=60)

    for message in CaptureReader("run.zfr").messages():
        print(message)

    async with Player(node, CaptureReader("run.zfr"), rate=10) as player:
        await player.play()

`docs/capture.md` is the specification of the format. `zfabric record`, `play` and `inspect` are the same on the
command line.
"""

from zfabric.capture.format import CapturedBatch
from zfabric.capture.player import Player
from zfabric.capture.reader import CaptureReader, CaptureSummary, Problem, Signatures
from zfabric.capture.recorder import Recorder
from zfabric.capture.tally import StreamTotals
from zfabric.capture.writer import CaptureWriter

__all__ = [
    "CaptureReader",
    "CaptureSummary",
    "CaptureWriter",
    "CapturedBatch",
    "Player",
    "Problem",
    "Recorder",
    "Signatures",
    "StreamTotals",
]
