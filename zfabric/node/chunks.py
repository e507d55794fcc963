"""How many values are encoded in one call."""

from __future__ import annotations

from typing import Any

from zfabric.wire.codec import Codec

__all__ = ["Chunks"]

FIRST = 64
VALUES_MAX = 4096
"Values encoded in one call, at most."


class Chunks:
    """Encodes many values in one call: as many as make half a batch, fewer after some that must go one by one."""

    __slots__ = ("_batch_bytes", "_codec", "size")

    def __init__(self, codec: Codec, batch_bytes: int) -> None:
        self._codec = codec
        self._batch_bytes = batch_bytes
        self.size = FIRST
        "Values that the next call takes best."

    def encode(self, values: list[Any], buffer: bytearray) -> bool:
        """Append values; False, with nothing appended, if they must go one by one."""
        count, before = len(values), len(buffer)
        if not self._codec.encode_many(values, buffer):
            self.size = max(1, count // 2)
            return False
        self.size = min(max(1, self._batch_bytes * count // (2 * (len(buffer) - before))), VALUES_MAX)
        return True
