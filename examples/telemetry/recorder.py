"""The recorder: writes every reading and alarm to a file, one JSON object a line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

import zfabric

from .control import Report
from .measure import Intake
from .part import Part, Settings
from .readings import everything

__all__ = ["Line", "RecorderPart", "encode_lines"]


class Line(msgspec.Struct, frozen=True):
    """One recorded message."""

    topic: str
    seq: int
    source: str
    timestamp: float
    value: Any


_encoder = msgspec.json.Encoder()


def encode_lines(messages: Sequence[zfabric.Message]) -> bytes:
    """The messages as JSON lines."""
    return _encoder.encode_lines([Line(m.topic, m.seq, m.source.name, m.timestamp, m.value) for m in messages])


class RecorderPart(Part):
    """Subscribes to everything by one pattern, and reads whole batches: the fast path."""

    subscription: zfabric.Subscription

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.intake = Intake(from_first=settings.attached)
        self._file: BinaryIO = Path(settings.record).open("wb")  # noqa: SIM115 - `run` closes it
        self._lines = 0
        self._bytes = 0

    def connect(self, node: zfabric.Node) -> None:
        """Subscribe. Untyped: kinds of readings that are invented tomorrow are recorded too."""
        self.subscription = node.subscribe(everything())

    async def run(self) -> None:
        """Write each batch when it comes."""
        with self._file:
            async for batch in self.subscription.batches():
                lines = encode_lines(batch)
                self._file.write(lines)
                self._lines += len(batch)
                self._bytes += len(lines)
                for message in batch:
                    self.intake.note(message, message.value["sent_ns"])

    async def finish(self, published: dict[str, int]) -> Report:
        """Write the last messages; the file is complete when the report is out."""
        await self.intake.drain(published)
        self._file.flush()
        return Report(
            received=self.intake.received,
            missing=self.intake.missing,
            repeated=self.intake.repeated,
            latency=self.intake.latency,
            recorded_lines=self._lines,
            recorded_bytes=self._bytes,
        )
