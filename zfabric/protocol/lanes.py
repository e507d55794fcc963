"""This node's own subscriptions, as the protocol sees them."""

from __future__ import annotations

from typing import Protocol

from zfabric.model import Source
from zfabric.protocol.inbox import ReliableInbox
from zfabric.wire.batch import Batch
from zfabric.wire.records import PatternRequest
from zfabric.wire.topics import Pattern

__all__ = ["Lane", "Sink"]


class Sink(Protocol):
    """Where a subscription's batches go."""

    full: bool
    "Reliable streams wait while it is true; call `Core.has_room` when it no longer is."

    def deliver(self, batch: Batch, source: Source) -> None:
        """Take a batch."""


class Lane:
    """One subscription: its number, what it asks for, and its position in every reliable stream."""

    __slots__ = ("attached", "inboxes", "pattern", "request", "sink")

    def __init__(self, request: PatternRequest, pattern: Pattern, sink: Sink) -> None:
        self.request = request
        self.pattern = pattern
        self.sink = sink
        self.inboxes: dict[tuple[bytes, str], ReliableInbox] = {}
        self.attached: set[tuple[bytes, str]] = set()

    def __repr__(self) -> str:
        return f"<Lane {self.request.lane} {self.pattern.text}>"

    @property
    def best_effort(self) -> bool:
        """Whether it wants no acknowledgements even where they are offered."""
        return self.request.delivery == "at-most-once"
