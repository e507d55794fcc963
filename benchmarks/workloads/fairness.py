"""How near to the ideal schedule the workers of a queue come when one of them is slow."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping

from benchmarks.model import SLOWER, Cell, Sample
from benchmarks.workloads.rates import Rates, Variant

__all__ = ["WORKLOAD"]

WORKERS = 4
WORK_S = 0.005


class Fairness(Rates):
    """Roles: `sender`, which pushes jobs, and `receiver` for each worker, which takes `Run.work_s` for each
    job; the first one takes ten times as long.
    """

    name = "fairness"
    summary = "time of four workers, one of them ten times slower, as a multiple of the ideal schedule's"
    messages: Mapping[str, int] = {"full": 2_000, "quick": 1_000, "tiny": 60}
    unit = "x ideal"
    baselines: Mapping[str, str] = {}

    def variants(self, options: argparse.Namespace) -> Iterator[Variant]:
        """One case."""
        yield Variant(changes={"receivers": WORKERS, "shared": True, "work_s": WORK_S, "quiet_s": 0.5})

    def figure(self, cell: Cell, sample: Sample) -> float | None:
        """The time of all, divided by what it takes if nobody ever waits."""
        rate = super().figure(cell, sample)
        ideal = (WORKERS - 1 + 1 / SLOWER) / WORK_S / 1000
        return None if rate is None else ideal / rate


WORKLOAD = Fairness()
