"""Charts of rows: bars and lines as SVG text for the report, and one picture for the README."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path

from benchmarks.growth import Growth
from benchmarks.model import Row

__all__ = ["bars", "colour_of", "lines", "write_png"]

OURS, THEIRS = "#1f6feb", "#9aa4b2"
PALETTE = ("#1f6feb", "#d1495b", "#2e8b57", "#e09f3e", "#7b5ea7", "#4f9da6", "#8d6e63", "#c06c84")
WIDTH, LABEL, BAR = 900, 370, 20


def colour_of(peer: str) -> str:
    """zfabric stands out; all others look alike."""
    return OURS if peer.startswith("zfabric") else THEIRS


def bars(rows: Sequence[Row]) -> str:
    """Horizontal bars of medians, the best first, each with a line from its lowest to its highest sample."""
    measured = [row for row in rows if row.median is not None]
    if not measured:
        return ""
    faster_is_more = measured[0].unit.startswith("k ") or measured[0].unit == "GB/s"
    measured.sort(key=lambda row: row.median or 0.0, reverse=faster_is_more)
    longest = max(row.high or 0.0 for row in measured) or 1.0
    scale = (WIDTH - LABEL - 90) / longest
    parts = [f'<svg viewBox="0 0 {WIDTH} {len(measured) * (BAR + 6) + 4}" role="img">']
    for index, row in enumerate(measured):
        top, median = index * (BAR + 6) + 3, (row.median or 0.0) * scale
        low, high = (row.low or 0.0) * scale, (row.high or 0.0) * scale
        middle = top + BAR / 2
        flags = f" ({row.flags})" if row.flags else ""
        parts.append(
            f'<text x="{LABEL - 8}" y="{middle + 4}" text-anchor="end">{escape(row.peer + flags)}</text>'
            f'<rect x="{LABEL}" y="{top}" width="{max(median, 1):.1f}" height="{BAR}" fill="{colour_of(row.peer)}"/>'
            f'<line x1="{LABEL + low:.1f}" x2="{LABEL + high:.1f}" y1="{middle}" y2="{middle}" stroke="#30363d"/>'
            f'<text x="{LABEL + high + 6:.1f}" y="{middle + 4}">{figure(row.median)}</text>'
        )
    return "".join([*parts, "</svg>"])


def lines(growths: Sequence[Growth]) -> str:
    """Costs along an axis, both logarithmic, with the slope of each line beside its name."""
    height, left, bottom, right = max(260, 18 * len(growths) + 40), 60, 30, 440
    points = [point for growth in growths for point in growth.points]
    low_x, high_x = math.log(min(at for at, _ in points)), math.log(max(at for at, _ in points))
    low_y, high_y = math.log(min(cost for _, cost in points)), math.log(max(cost for _, cost in points))

    def place(at: float, cost: float) -> tuple[float, float]:
        share_x = (math.log(at) - low_x) / ((high_x - low_x) or 1.0)
        share_y = (math.log(cost) - low_y) / ((high_y - low_y) or 1.0)
        return left + share_x * (WIDTH - left - right), height - bottom - share_y * (height - bottom - 10)

    parts = [f'<svg viewBox="0 0 {WIDTH} {height}" role="img">']
    for at in sorted({at for at, _ in points}):
        x, _ = place(at, math.exp(low_y))
        parts.append(f'<text x="{x:.1f}" y="{height - 8}" text-anchor="middle">{at:,g}</text>')
    for cost in (math.exp(low_y), math.exp(high_y)):
        _, y = place(points[0][0], cost)
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{figure(cost)} {growths[0].unit}</text>')
    for index, growth in enumerate(growths):
        colour = PALETTE[index % len(PALETTE)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in growth.points))
        x, y = WIDTH - right + 20, 20 + index * 18
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>'
            f'<text x="{x}" y="{y}" fill="{colour}">{escape(growth.peer)} (slope {growth.slope:+.2f})</text>'
        )
    return "".join([*parts, "</svg>"])


def figure(value: float | None) -> str:
    """Three significant digits or so."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def write_png(path: Path, rows: Sequence[Row]) -> None:
    """The throughput of 100-byte messages of every peer, as a picture for the README. Needs matplotlib."""
    from matplotlib.figure import Figure

    chosen = [
        row
        for row in rows
        if (row.workload, row.case, row.payload, row.size, row.transport) == ("throughput", "", "bytes", 100, "tcp")
        and row.median is not None
    ]
    chosen.sort(key=lambda row: row.median or 0.0)
    chart = Figure(figsize=(9, 0.6 + 0.32 * len(chosen)), layout="constrained")
    axes = chart.subplots()
    medians = [row.median or 0.0 for row in chosen]
    spread = [
        [median - (row.low or 0.0) for median, row in zip(medians, chosen, strict=True)],
        [(row.high or 0.0) - median for median, row in zip(medians, chosen, strict=True)],
    ]
    colours = [colour_of(row.peer) for row in chosen]
    axes.barh([row.peer for row in chosen], medians, xerr=spread, color=colours, ecolor="#30363d", height=0.7)
    axes.set_xlabel("thousand messages of 100 bytes a second, TCP loopback")
    axes.spines[["top", "right"]].set_visible(False)
    chart.savefig(path, dpi=110, metadata={"Software": None})
