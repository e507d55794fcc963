"""How many bytes a second pass as large numpy arrays."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.model import Cell, Sample
from benchmarks.workloads.rates import Rates

__all__ = ["WORKLOAD"]


class Frames(Rates):
    """Roles: `sender` and `receiver`; what is received is a numpy array."""

    name = "frames"
    summary = "gigabytes per second between two processes as large numpy arrays"
    messages: Mapping[str, int] = {"full": 2_000, "quick": 500, "tiny": 20}
    bytes_max = 2_000_000_000
    payloads = "numpy"
    size = "1000000,8000000"
    unit = "GB/s"
    baselines: Mapping[str, str] = {"x copy=False": "pyzmq PUB/SUB, copy=False"}

    def figure(self, cell: Cell, sample: Sample) -> float | None:
        """Thousand messages a second, in bytes."""
        rate = super().figure(cell, sample)
        return None if rate is None else rate * 1000 * cell.run.size / 1e9


WORKLOAD = Frames()
