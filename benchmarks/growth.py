"""How the cost of one unit grows with the amount: the slope of its logarithm over that of the amount.

0: a message costs the same, however many there are. 1: twice as many cost twice as much each. Below 0: the more, the
cheaper each (batching).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.model import Row

__all__ = ["Growth", "growths"]


@dataclass(frozen=True, kw_only=True)
class Growth:
    """The cost of one unit of one peer along one axis."""

    workload: str
    peer: str
    transport: str
    axis: str
    what: str
    "What is measured in each case beside the amount: `p50`."
    unit: str
    "Of a cost: `us` of one message, request or node; `MB` of all."
    points: tuple[tuple[float, float], ...]
    "Amount and cost."
    slope: float


def growths(rows: Sequence[Row]) -> list[Growth]:
    """Every peer with at least two amounts on an axis. Rows without one are told apart by the size of a message."""
    groups: dict[tuple[str, ...], dict[float, float]] = {}
    for row in rows:
        if not row.median:
            continue
        if row.axis:
            axis, at, what = row.axis, row.at, row.case.partition(", ")[2]
        elif row.size and row.unit in {"k msg/s", "GB/s"}:
            axis, at, what = "bytes", float(row.size), ", ".join(part for part in (row.payload, row.case) if part)
        else:
            continue
        unit = "MB" if row.unit.startswith("MB") else "us"
        groups.setdefault((row.workload, row.peer, row.transport, axis, what, unit), {})[at] = _cost(row)
    return [
        Growth(
            workload=workload,
            peer=peer,
            transport=transport,
            axis=axis,
            what=what,
            unit=unit,
            points=tuple(sorted(costs.items())),
            slope=_slope(sorted(costs.items())),
        )
        for (workload, peer, transport, axis, what, unit), costs in groups.items()
        if len(costs) > 1
    ]


def _cost(row: Row) -> float:
    """Microseconds of one unit, or the megabytes of all."""
    assert row.median
    if row.unit == "s":
        return row.median * 1e6 / row.at
    if row.unit == "GB/s":
        return (row.size or 0) / (row.median * 1000)
    return 1000 / row.median if row.unit.startswith("k ") else row.median


def _slope(points: Sequence[tuple[float, float]]) -> float:
    """Least squares through the logarithms."""
    logarithms = [(math.log(at), math.log(cost)) for at, cost in points]
    mean_at = sum(at for at, _ in logarithms) / len(logarithms)
    mean_cost = sum(cost for _, cost in logarithms) / len(logarithms)
    spread = sum((at - mean_at) ** 2 for at, _ in logarithms)
    return sum((at - mean_at) * (cost - mean_cost) for at, cost in logarithms) / spread
