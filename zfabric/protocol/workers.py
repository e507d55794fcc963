"""Who works on a queue, with how much credit, and how jobs are shared among them.

A worker is one puller of one node. It never has more than the credit it granted. Jobs go to whoever has the fewest;
an idle worker lets those be asked back that a busy one has not begun with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import inf

from zfabric.protocol.jobs import Lease
from zfabric.protocol.lines import Line

__all__ = ["Worker", "WorkerKey", "Workers"]

RECALL_DOUBLINGS_MAX = 7

WorkerKey = tuple[bytes, int]
"""A node's id and the number of a puller there."""


class Worker:
    """One puller, as the dispatcher sees it."""

    # fmt: off
    __slots__ = (
        "bytes_max", "credit", "ending", "held", "held_bytes", "keep", "key", "lease_s", "leases", "line",
        "recalled_at", "recalls", "renewed_at", "suspects", "told_backlog",
    )
    # fmt: on

    def __init__(self, key: WorkerKey, line: Line, lease_s: float, bytes_max: int, now: float) -> None:
        self.key = key
        self.line = line
        self.lease_s = lease_s
        self.renewed_at = now
        self.bytes_max = bytes_max
        self.credit = self.keep = 0
        self.leases: dict[int, Lease] = {}
        self.held = 0
        "Jobs."
        self.held_bytes = 0
        "Of leases that are not settled."
        self.suspects = 0
        "Of those, such as travel alone."
        self.told_backlog = False
        self.ending = False
        "It takes no more, and settles what it has."
        self.recalled_at = -inf
        self.recalls = 0
        "Without any answer."

    def __repr__(self) -> str:
        return f"<Worker {self.key[0].hex()[:8]}/{self.key[1]} held={self.held} credit={self.credit}>"

    @property
    def has_credit(self) -> bool:
        """Whether it wants more."""
        return self.credit > 0 and self.held_bytes < self.bytes_max and not self.ending

    def has_for(self, line: Line) -> bool:
        """Whether it has jobs that the workers of a line would take."""
        return any(line.matches_lease(lease) for lease in self.leases.values())

    def deadline(self) -> float:
        """When its leases end."""
        return self.renewed_at + self.lease_s if self.leases else inf


class Workers:
    """All workers of one queue."""

    def __init__(self, recall_s: float) -> None:
        self._recall_s = recall_s
        self.all: dict[WorkerKey, Worker] = {}

    def shares(self, ready: int, may_get: Callable[[Worker], bool]) -> Iterator[tuple[Worker, int]]:
        """Who gets how many of the jobs that are ready: those who have few are filled up first."""
        wanting = [worker for worker in self.all.values() if worker.has_credit and may_get(worker)]
        wanting.sort(key=_held)
        even = max(1, ready // len(wanting)) if wanting else 0
        for index, worker in enumerate(wanting):
            gap = wanting[index + 1].held - worker.held if index + 1 < len(wanting) else 0
            yield worker, min(worker.credit, max(even, gap))

    def deadline(self) -> float:
        """When the next worker must have renewed its leases."""
        return min((worker.deadline() for worker in self.all.values()), default=inf)

    # -- idle workers --------------------------------------------------------------------------

    def to_recall(self, now: float) -> tuple[float, Worker | None, int]:
        """While somebody is idle: when jobs may be asked back; from whom and how many, if that is now."""
        idle = [worker for worker in self.all.values() if worker.has_credit and not worker.held]
        if not idle:
            return inf, None, 0
        busy = [worker for worker in self.all.values() if not worker.ending and worker.has_for(idle[0].line)]
        if not busy:
            return inf, None, 0
        due = min(map(self._recall_due, busy))
        if due > now:
            return due, None, 0
        busiest = max((worker for worker in busy if self._recall_due(worker) <= now), key=_held)
        busiest.recalled_at = now
        busiest.recalls = min(busiest.recalls + 1, RECALL_DOUBLINGS_MAX)
        fair = busiest.held * len(idle) // (len(idle) + 1)
        return min(map(self._recall_due, busy)), busiest, min(max(1, fair), sum(worker.credit for worker in idle))

    def _recall_due(self, worker: Worker) -> float:
        """When jobs may be asked back: those who had none to give are asked less and less often."""
        oldest = next(iter(worker.leases.values())).since
        return max(oldest, worker.recalled_at) + self._recall_s * 2.0**worker.recalls


def _held(worker: Worker) -> int:
    return worker.held
