"""What a million messages cost in CPU time and memory, with the limits that each peer has when nobody sets any."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from benchmarks.model import Cell, Sample
from benchmarks.workloads.rates import Rates, Variant, cpu_seconds, receivers_of

__all__ = ["WORKLOAD"]


class Cost(Rates):
    """Roles: `sender` and `receiver`, with their queues bounded as the peer ships (`Run.bounded`)."""

    name = "cost"
    summary = "peak memory of publisher and subscriber at full speed, and CPU time"
    messages: Mapping[str, int] = {"full": 2_000_000, "quick": 1_000_000, "tiny": 3_000}
    unit = "MB peak"

    def variants(self, options: Any) -> Iterator[Variant]:
        """Queues as they ship."""
        yield Variant(changes={"bounded": True})

    def figure(self, cell: Cell, sample: Sample) -> float | None:
        """The larger of the two processes."""
        return None if sample.failure else max(float(outcome["memory_mb"]) for outcome in sample.outcomes.values())

    def details(self, cell: Cell, samples: Sequence[Sample]) -> dict[str, float]:
        """Each process by itself, and what a million messages cost."""
        if not samples:
            return {}
        millions = cell.run.messages / 1e6

        def median(of: Callable[[Sample], float]) -> float:
            return statistics.median(of(sample) for sample in samples)

        return {
            "sender MB": median(lambda sample: sample.outcomes["sender"]["memory_mb"]),
            "receiver MB": median(lambda sample: sample.outcomes["receiver"]["memory_mb"]),
            "sender CPU s/M": median(lambda sample: cpu_seconds(sample, "sender")) / millions,
            "receiver CPU s/M": median(lambda sample: cpu_seconds(sample, "receiver")) / millions,
            "grown bytes/msg": median(lambda sample: _total(sample.outcomes.values(), "grown_mb")) / millions,
            "dropped %": median(lambda sample: 100 * _total(receivers_of(sample), "lost") / cell.run.messages),
        }


def _total(outcomes: Iterable[Mapping[str, Any]], name: str) -> float:
    return sum(float(outcome[name]) for outcome in outcomes)


WORKLOAD = Cost()
