"""Jobs as a puller has them: by lease, by pusher, and by how far their reader has come."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from zfabric.wire.queue_records import Jobs

__all__ = ["Delivery", "Followed", "PullSource", "Unkept"]


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
    """Jobs of one lease that their reader takes one by one, and nobody counts until somebody asks.

    The reader takes them at one end, and what is given back goes at the other: each of both in one step, so that a
    reader may be another thread.
    """

    __slots__ = ("base", "delivery", "end", "jobs", "rest")

    def __init__(self, delivery: Delivery, jobs: list[Any]) -> None:
        self.delivery = delivery
        self.jobs = deque(jobs)
        self.rest = _each(self.jobs)
        self.base = delivery.started
        "Position of the first of them."
        self.end = self.base + len(jobs)
        "The one after the last that the reader may get."

    @property
    def begun(self) -> int:
        """Positions before this one were taken."""
        return self.end - len(self.jobs)

    def cut(self, start: int) -> int:
        """The reader shall get none from there on; returns where that is, if it was faster."""
        with suppress(IndexError):
            while self.end > start:
                self.jobs.pop()
                self.end -= 1
        return self.end


def _each(jobs: deque[Any]) -> Iterator[Any]:
    with suppress(IndexError):
        while True:
            yield jobs.popleft()


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


class Unkept:
    """Who waits until a store has noted that a durable job is done: told `""` then, or the reason why not."""

    def __init__(self) -> None:
        self._waiting: dict[tuple[bytes, int, int], Callable[[str], None]] = {}
        "By (store, lease, position)."

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def wait(self, delivery: Delivery, position: int, told: Callable[[str], None]) -> None:
        """Call `told` in the end."""
        self._waiting[delivery.source.peer_id, delivery.jobs.lease, position] = told

    def end(self, peer_id: bytes, ranges: list[tuple[int, int, int]], reason: str = "") -> None:
        """A store has noted that these are done; with a reason, it has not."""
        for lease, start, stop in ranges if self._waiting else ():
            if stop - start == 1:
                keys = [(peer_id, lease, start)]
            else:
                keys = [key for key in self._waiting if key[:2] == (peer_id, lease) and start <= key[2] < stop]
            for key in keys:
                told = self._waiting.pop(key, None)
                if told is not None:
                    told(reason)

    def give_up(self, reason: str, peer_id: bytes | None = None) -> None:
        """Acks that wait for this store, or for any, get no answer."""
        for key in [key for key in self._waiting if peer_id in (None, key[0])]:
            self._waiting.pop(key)(reason)
