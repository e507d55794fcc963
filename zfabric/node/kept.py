"""The interface between the driver and a publisher's own file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from zfabric.transport.base import Buffer

__all__ = ["Kept"]


class Kept(Protocol):
    """A publisher's own file of what is not stored."""

    failure: str
    "Why it cannot be written any more."

    def keep(self, epoch: int, base: int, end: int, frames: Sequence[Buffer]) -> None:
        """A batch is about to be sent."""

    def forget(self, epoch: int, before: int) -> None:
        """A store has all messages before this one."""
