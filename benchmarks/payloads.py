"""The values that are sent: the same for every peer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgpack
import msgspec

__all__ = ["KINDS", "STAMP", "Reading", "codec", "encoded_size", "make"]

KINDS = ("bytes", "dict", "struct", "numpy")
STAMP = 8
"Bytes at the start of a `bytes` payload that hold the time when it was due, where latency is measured."


class Reading(msgspec.Struct, gc=False):
    """A small typed value, as a telemetry service would define it."""

    sensor: str
    celsius: float
    count: int
    valid: bool


def make(kind: str, size: int) -> Any:
    """The value of one message: `size` bytes, an array of as many, or a small dict or struct with four fields."""
    if kind == "numpy":
        import numpy as np

        return np.arange(size // 4, dtype=np.float32)
    if kind == "bytes":
        return bytes(index % 251 for index in range(min(size, 4096))).ljust(size, b"\x2a")
    fields: dict[str, Any] = {"sensor": "line1-temp", "celsius": 21.5, "count": 123_456, "valid": True}
    return Reading(**fields) if kind == "struct" else fields


def codec(kind: str) -> tuple[Callable[[Any], bytes], Callable[[bytes], Any]] | None:
    """How a peer that sends bytes encodes and decodes the value; None where the value is bytes already.

    A dict goes through msgpack with a kept `Packer`, as its documentation advises; a struct through msgspec, typed.
    """
    if kind == "dict":
        return msgpack.Packer().pack, msgpack.unpackb
    if kind == "struct":
        return msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder(Reading).decode
    return None


def encoded_size(kind: str, size: int) -> int:
    """Bytes of the value as a raw peer sends it: itself, or its MessagePack."""
    return len(msgspec.msgpack.encode(make(kind, size))) if kind in {"dict", "struct"} else size
