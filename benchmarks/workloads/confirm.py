"""How long one message takes until it is confirmed as stored, one at a time."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.model import Cell, Sample
from benchmarks.workloads.durable import Durable

__all__ = ["WORKLOAD"]


class Confirm(Durable):
    """Roles: as in `durable`, but each send returns when its message is confirmed."""

    name = "confirm"
    summary = "time of one message until it is confirmed as stored on disk, one at a time"
    messages: Mapping[str, int] = {"full": 1_000, "quick": 500, "tiny": 20}
    unit = "us"
    baselines: Mapping[str, str] = {"x disk": "the disk's own flush"}

    def figure(self, cell: Cell, sample: Sample) -> float | None:
        """The mean: a disk's flushes are not all alike."""
        rate = super().figure(cell, sample)
        return None if rate is None else 1000 / rate


WORKLOAD = Confirm()
