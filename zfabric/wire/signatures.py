"""What a signature of a batch is about, and where it stands.

It is the end of the batch's first frame: a key id that tells who signed, and 64 bytes that are Ed25519's, or a keyed
hash where all share one key. Both are made over a digest of everything that the publisher sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import TypeAlias

__all__ = ["KEY_ID_BYTES", "SIGNATURE_BYTES", "BadSignature", "digest"]

Buffer: TypeAlias = bytes | bytearray | memoryview

KEY_ID_BYTES = 8
SIGNATURE_BYTES = KEY_ID_BYTES + 64


class BadSignature(Exception):
    """Why a signature counts for nothing."""


def digest(frames: Sequence[Buffer], key: bytes = b"") -> bytes:
    """64 bytes that stand for a batch: its frames, the first one up to the signature, each with its length."""
    state = blake2b(key=key, person=b"zfabric-batch-1")
    for frame in frames:
        state.update(len(frame).to_bytes(8))
        state.update(frame)
    return state.digest()
