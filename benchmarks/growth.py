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
    points: tuple[tuple[float, float], ...]
    "Amount and cost: seconds per message or request, in millionths; or the measured time itself."
    slope: float


def growths(rows: Sequence[Row]) -> list[Growth]:
    """Every peer with at least two amounts on an axis."""
    groups: dict[tuple[str, ...], dict[float, float]] = {}
    for row in rows:
        cost = _cost_us(row)
        if row.axis and cost is not None:
            what = row.case.partition(", ")[2]
            key = (row.workload, row.peer, row.transport, row.axis, what)
            groups.setdefault(key, {})[row.at] = cost
    return [
        Growth(
            workload=workload,
            peer=peer,
            transport=transport,
            axis=axis,
            what=what,
            points=tuple(sorted(costs.items())),
            slope=_slope(sorted(costs.items())),
        )
        for (workload, peer, transport, axis, what), costs in groups.items()
        if len(costs) > 1
    ]


def _cost_us(row: Row) -> float | None:
    """Microseconds of one unit."""
    if not row.median:
        return None
    if row.unit == "s":
        return row.median * 1e6 / row.at
    return 1000 / row.median if row.unit.startswith("k ") else row.median


def _slope(points: Sequence[tuple[float, float]]) -> float:
    """Least squares through the logarithms."""
    logarithms = [(math.log(at), math.log(cost)) for at, cost in points]
    mean_at = sum(at for at, _ in logarithms) / len(logarithms)
    mean_cost = sum(cost for _, cost in logarithms) / len(logarithms)
    spread = sum((at - mean_at) ** 2 for at, _ in logarithms)
    return sum((at - mean_at) * (cost - mean_cost) for at, cost in logarithms) / spread
