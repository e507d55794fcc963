"""This node's own subscriptions, as the protocol sees them."""

from __future__ import annotations

from typing import Protocol

from zfabric.events import Gap
from zfabric.model import Source
from zfabric.protocol.inbox import ReliableInbox
from zfabric.wire.batch import Batch
from zfabric.wire.bundle import Bundle
from zfabric.wire.records import PatternRequest
from zfabric.wire.topics import Pattern

__all__ = ["Joined", "Lane", "Sink"]


class Sink(Protocol):
    """Where a subscription's batches go."""

    full: bool
    "Reliable streams wait while it is true; call `Core.has_room` when it no longer is."

    def deliver(self, batch: Batch, source: Source) -> None:
        """Take a batch."""

    def deliver_bundle(self, bundle: Bundle, source: Source) -> None:
        """Take batches of several streams."""


class Joined(Protocol):
    """What stands between a lane and its sink when history comes first."""

    @property
    def full(self) -> bool:
        """Whether live streams must wait."""

    def take(self, batch: Batch, source: Source, now: float) -> None:
        """A batch that came live."""

    def missed(self, epoch: int, gap: Gap, now: float) -> bool:
        """A hole that will not be repaired. Returns whether it may be filled all the same."""


class Lane:
    """One subscription: its number, what it asks for, and its position in every reliable stream."""

    __slots__ = ("attached", "history", "inboxes", "pattern", "request", "signed", "sink")

    def __init__(self, request: PatternRequest, pattern: Pattern, sink: Sink, *, signed: bool = False) -> None:
        """With `signed` it takes nothing else."""
        self.request = request
        self.pattern = pattern
        self.sink = sink
        self.signed = signed
        self.history: Joined | None = None
        self.inboxes: dict[tuple[bytes, str], ReliableInbox] = {}
        self.attached: set[tuple[bytes, str]] = set()

    def __repr__(self) -> str:
        return f"<Lane {self.request.lane} {self.pattern.text}>"

    @property
    def full(self) -> bool:
        """Whether reliable streams must wait."""
        return self.sink.full if self.history is None else self.history.full

    @property
    def best_effort(self) -> bool:
        """Whether it wants no acknowledgements even where they are offered."""
        return self.request.delivery == "at-most-once"
