"""The interface between what reads the logs of stores and the rest of the node."""

from __future__ import annotations

from typing import Protocol

from zfabric.events import Event, Gap
from zfabric.model import Source
from zfabric.wire.batch import Batch

__all__ = ["Reports"]


class Reports(Protocol):
    """Who hears what becomes of batches."""

    def delivered(self, batch: Batch) -> None:
        """The subscription has it."""

    def processed(self, batch: Batch, now: float) -> None:
        """A live batch needs no delivery."""

    def count_lost(self, gap: Gap) -> None:
        """Messages will not come."""

    def emit(self, event: Event) -> None:
        """Tell the user."""

    def source(self, producer: bytes) -> Source:
        """A producer, as users see it."""
