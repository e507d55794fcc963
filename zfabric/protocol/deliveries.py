"""Jobs as a puller has them: by lease, by pusher, and by how far their reader has come."""

from __future__ import annotations

from collections.abc import Iterator
from operator import length_hint
from typing import Any

from zfabric.wire.queue_records import Jobs

__all__ = ["Delivery", "Followed", "PullSource"]


class Delivery:
    """The jobs of one lease."""

    # fmt: off
    __slots__ = (
        "alive", "hands", "jobs", "late", "left", "received_at", "source", "started", "stop",
        "unsaid", "values",
    )
    # fmt: on

    def __init__(self, source: PullSource, jobs: Jobs, now: float) -> None:
        self.source = source
        self.jobs = jobs
        self.received_at = now
        self.started = 0
        "Positions before this one are, or were, in somebody's hands."
        self.stop = jobs.count
        "Positions from here on were given back."
        self.left = jobs.count
        "Positions that are not settled."
        self.hands: dict[int, tuple[int, float]] = {}
        "Positions in hand: (start -> stop, since)."
        self.unsaid: list[tuple[int, int]] = []
        "Done, and the pusher does not know."
        self.late: set[int] = set()
        "Positions whose handler showed no sign of life for too long."
        self.alive = True
        "Whether the pusher still holds us for the lease's owner."
        self.values: Any = None
        "For whoever decodes them."

    def is_late(self, position: int) -> bool:
        """Whether nothing can be said of that job any more."""
        return not self.alive or position in self.late


class Followed:
    """Jobs of one lease that their reader takes out of a list one by one, and nobody counts until somebody asks."""

    __slots__ = ("base", "delivery", "jobs", "rest")

    def __init__(self, delivery: Delivery, jobs: list[Any]) -> None:
        self.delivery = delivery
        self.jobs = jobs
        self.rest: Iterator[Any] = iter(jobs)
        self.base = delivery.started
        "Position of the first of them."

    @property
    def begun(self) -> int:
        """Positions before this one were taken."""
        return self.base + len(self.jobs) - length_hint(self.rest)


class PullSource:
    """One pusher's node, as one puller sees it."""

    __slots__ = ("deliveries", "granted", "hungry", "keep", "peer_id", "renew_at")

    def __init__(self, peer_id: bytes, renew_at: float) -> None:
        self.peer_id = peer_id
        self.granted = 0
        "Credit that it has."
        self.keep = -1
        "How much of it it may keep without jobs."
        self.hungry = False
        "It has jobs for us and no credit."
        self.deliveries: dict[int, Delivery] = {}
        self.renew_at = renew_at
