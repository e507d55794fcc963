"""The values that are sent: the same for every peer."""

from __future__ import annotations

from typing import Any

import msgspec

__all__ = ["Reading", "encoded_size", "make"]


class Reading(msgspec.Struct, gc=False):
    """A small typed value, as a telemetry service would define it."""

    sensor: str
    celsius: float
    count: int
    valid: bool


def make(kind: str, size: int) -> Any:
    """The value of one message: `size` bytes, or a small dict or struct with four fields."""
    if kind == "bytes":
        return bytes(index % 251 for index in range(size))
    fields: dict[str, Any] = {"sensor": "line1-temp", "celsius": 21.5, "count": 123_456, "valid": True}
    return Reading(**fields) if kind == "struct" else fields


def encoded_size(kind: str, size: int) -> int:
    """Bytes of the value as a raw peer sends it: itself, or its MessagePack."""
    return size if kind == "bytes" else len(msgspec.msgpack.encode(make(kind, size)))
