"""Buffers lent in shared memory: what travels in place of their bytes.

A publisher on the same host writes large buffers into blocks of memory that its peers can map, and sends a *loan*:
which blocks they are in, and who may look at them. `docs/protocol.md` is the specification.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Annotated

import msgspec

from zfabric.errors import RemoteProtocolError
from zfabric.wire.fields import Count, Id

__all__ = ["Block", "Loan", "MemoryOffer", "block_name", "decode_loan", "encode_loan", "proof_of"]

BlockName = Annotated[str, msgspec.Meta(pattern=r"\Azfabric-[0-9a-f]{16}\Z")]


class MemoryOffer(msgspec.Struct, array_like=True, frozen=True):
    """Where a peer on the same host finds the secret that proves it can map this node's memory."""

    name: BlockName
    descriptor: Count
    "Of the file that holds the secret, in the process of the node."
    proof: Id
    "That the offer is the node's own: `proof_of` the secret and its id."


class Block(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """The place of one buffer."""

    serial: Count
    "Never used again by its node."
    descriptor: Count
    nbytes: Annotated[int, msgspec.Meta(ge=1, le=2**62)]


class Loan(msgspec.Struct, array_like=True, frozen=True):
    """The buffers of one batch."""

    number: Annotated[int, msgspec.Meta(ge=1, le=2**62)]
    "Greater than of any loan before by this node."
    holders: list[Id]
    "The nodes that the publisher waits for before it uses the blocks again. Nobody else may look."
    blocks: list[Block | None]
    "One for each buffer; those without travel as frames."


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Loan).decode


def block_name(offer_name: str, serial: int) -> str:
    """The name of the file of a block."""
    return f"{offer_name}-{serial}"


def proof_of(secret: bytes, node_id: bytes) -> bytes:
    """What only a node that read the secret can say, and only of itself."""
    return blake2b(node_id, digest_size=16, key=secret, person=b"zfabric-memory").digest()


def encode_loan(loan: Loan) -> bytes:
    """The third frame of a batch that has a loan; the second is empty."""
    return _encode(loan)


def decode_loan(frame: bytes | bytearray | memoryview) -> Loan:
    """Raises RemoteProtocolError."""
    try:
        return _decode(frame)
    except (msgspec.MsgspecError, ValueError, RecursionError, TypeError) as error:
        raise RemoteProtocolError(f"malformed loan: {error}") from None
