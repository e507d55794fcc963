"""How the demo's parent and its parts talk: JSON lines on stdin and stdout, nothing of the fabric.

The parent only starts and stops parts and asks for their books; everything else that the parts know of
each other comes from the fabric. A part whose stdin ends closes its node and exits, so no part can
outlive its parent, however the parent ended.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading

import msgspec

from .measure import Histogram

__all__ = ["Control", "Failed", "Finish", "Go", "Matched", "Order", "Report", "decode_report"]


class Go(msgspec.Struct, tag="go"):
    """Everybody has found everybody: start publishing."""


class Finish(msgspec.Struct, tag="finish"):
    """Stop publishing, wait for the messages that were published, and report."""

    published: dict[str, int] = {}


class Matched(msgspec.Struct, tag="matched"):
    """The part sees all other parts, and every subscriber it expects is connected; or it gave up waiting."""

    opened_at: float
    "When it began to open its node: seconds since 1970, like the two below."
    matched_at: float
    peers: dict[str, float]
    "When each other part joined, by name."
    waits_for: str = ""
    "What it waited for in vain."


class Report(msgspec.Struct, tag="report"):
    """The books of a part at the end."""

    published: dict[str, int] = {}
    received: dict[str, int] = {}
    missing: int = 0
    repeated: int = 0
    gaps: int = 0
    "Messages that the node's own `Gap` events told about."
    skipped: int = 0
    "Readings that were not made because this machine was too busy."
    latency: Histogram = msgspec.field(default_factory=Histogram)
    recorded_lines: int = 0
    recorded_bytes: int = 0
    alarms: int = 0
    problems: list[str] = []


class Failed(msgspec.Struct, tag="failed"):
    """The part cannot go on."""

    reason: str


Order = Go | Finish

_encoder = msgspec.json.Encoder()
_order_decoder = msgspec.json.Decoder(Order)
_report_decoder = msgspec.json.Decoder(Matched | Report | Failed)


def decode_report(line: bytes) -> Matched | Report | Failed:
    """Parse one line that a part wrote."""
    message: Matched | Report | Failed = _report_decoder.decode(line)
    return message


class Control:
    """A part's end of the line. Without a parent (`attached=False`) it is told to go at once."""

    def __init__(self, *, attached: bool) -> None:
        self.attached = attached
        self._orders: asyncio.Queue[Order] = asyncio.Queue()
        if not attached:
            self._orders.put_nowait(Go())

    def listen(self, task: asyncio.Task[None]) -> None:
        """Read orders from now on; when the parent is gone, cancel `task`."""
        if self.attached:
            loop = asyncio.get_running_loop()
            threading.Thread(target=self._read, args=(loop, task), name="orders", daemon=True).start()

    async def order(self) -> Order:
        """The next order."""
        return await self._orders.get()

    def tell(self, message: Matched | Report | Failed) -> None:
        """Send a line to the parent, if there is one."""
        if self.attached:
            sys.stdout.buffer.write(_encoder.encode(message) + b"\n")
            sys.stdout.buffer.flush()

    def _read(self, loop: asyncio.AbstractEventLoop, task: asyncio.Task[None]) -> None:
        # A thread and os.read: works on every platform, and holds no lock of sys.stdin at exit.
        rest = b""
        try:
            while chunk := os.read(0, 65_536):
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    loop.call_soon_threadsafe(self._orders.put_nowait, _order_decoder.decode(line))
            loop.call_soon_threadsafe(task.cancel)
        except RuntimeError:
            pass  # The loop ended first.
