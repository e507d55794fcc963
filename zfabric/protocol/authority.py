"""Who may do what, as far as the state machines ask."""

from __future__ import annotations

from typing import Protocol

from zfabric.wire.batch import Batch, Sign

__all__ = ["Authority", "Everybody", "Signer"]


class Signer(Protocol):
    """Makes and checks the signatures of batches."""

    name: str
    "Who signs here."

    def signs(self) -> Sign:
        """What signs for this node. Raises LocalProtocolError where that is not possible."""

    def signer_of(self, batch: Batch) -> str:
        """Who signed a batch; empty where nobody can tell. Raises BadSignature."""


class Authority(Protocol):
    """Answers for identities that the transport has verified, never for what a peer says of itself."""

    distinguishes: bool
    "False where all peers are alike, and nobody need be asked."
    name: str
    "This node's own identity."

    def trusts(self, user: str) -> bool:
        """Whether an identity may be a peer at all."""

    def owns(self, user: str, node_id: bytes) -> bool:
        """Whether a node id is one of an identity's own."""

    def may(self, user: str, action: str, name: str) -> bool:
        """Whether an identity may publish, subscribe to, push, pull, serve, request or store this name."""

    def may_all(self, user: str, action: str, pattern: str) -> bool:
        """Whether an identity may do this to every name that a pattern matches."""

    def filters(self, user: str, prefix: bytes) -> tuple[bytes, ...]:
        """What an identity that subscribed to a prefix may get; nothing if it may not."""


class Everybody:
    """All peers may do anything."""

    distinguishes = False
    name = ""

    def trusts(self, user: str) -> bool:
        """Yes."""
        return True

    def owns(self, user: str, node_id: bytes) -> bool:
        """Yes."""
        return True

    def may(self, user: str, action: str, name: str) -> bool:
        """Yes."""
        return True

    def may_all(self, user: str, action: str, pattern: str) -> bool:
        """Yes."""
        return True

    def filters(self, user: str, prefix: bytes) -> tuple[bytes, ...]:
        """All of it."""
        return (prefix,)
