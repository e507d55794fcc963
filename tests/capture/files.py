"""Making small captures without a fabric."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from zfabric import Message, Source
from zfabric.capture import CapturedBatch, CaptureReader, CaptureWriter
from zfabric.capture.format import pack_values

__all__ = ["BEGAN", "SENSOR", "batch", "content", "write"]

BEGAN = 1_700_000_000.0
SENSOR = Source("ab" * 16, "sensor")


def batch(
    *values: Any,
    topic: str = "plant.temp",
    base: int = 0,
    at: float = 0.0,
    source: Source = SENSOR,
    keys: dict[int, Any] | None = None,
    headers: dict[int, dict[str, Any]] | None = None,
) -> CapturedBatch:
    """A batch that came `at` seconds after BEGAN."""
    encoded = pack_values([msgspec.Raw(msgspec.msgpack.encode(value)) for value in values])
    moment = BEGAN + at
    return CapturedBatch(topic, source, base, len(values), moment - 0.001, moment, encoded, keys or {}, headers or {})


def write(path: Path, *batches: CapturedBatch, each: bool = True, closed: bool = True, **options: Any) -> Path:
    """A capture of these batches, with a chunk for each, or as the writer likes."""
    writer = CaptureWriter(path, started=BEGAN, **options)
    for one in batches:
        writer.add(one)
        if each:
            writer.flush()
    writer.close()
    if not closed:
        data = path.read_bytes()
        path.write_bytes(data[: int.from_bytes(data[-8:], "big")])
    return path


def content(reader: CaptureReader) -> list[tuple[str, int, Any]]:
    """Topic, number and value of every message."""

    def brief(message: Message) -> tuple[str, int, Any]:
        return message.topic, message.seq, message.value

    return [brief(message) for message in reader.messages()]
