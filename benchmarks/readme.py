"""The table of the README, written from stored results so that it cannot say anything else."""

from __future__ import annotations

import re
from collections.abc import Sequence

from benchmarks.charts import figure
from benchmarks.model import Machine, Row
from benchmarks.targets import judge

__all__ = ["BLOCK", "block", "replaced"]

BLOCK = re.compile(r"<!-- benchmarks: begin -->\n.*?<!-- benchmarks: end -->\n", re.DOTALL)


def block(machine: Machine, rows: Sequence[Row]) -> str:
    """The marked block: every target that was measured, as a table."""
    lines = [
        "<!-- benchmarks: begin -->",
        "| what, in one run | compared with | wanted | measured (lowest to highest round) |",
        "|---|---|---|---|",
    ]
    for verdict in judge(rows):
        if verdict.measured is None or verdict.low is None:
            continue
        target = verdict.target
        limit = f"≥ {target.at_least:g}" if target.at_least is not None else f"≤ {target.at_most:g}"
        unit = "x" if target.theirs else " MB"
        measured = f"{figure(verdict.measured)}{unit} ({figure(verdict.low)} to {figure(verdict.high)})"
        measured = f"**{measured}**" if verdict.met else f"{measured}, missed"
        lines.append(f"| {target.title} | {target.theirs.peer if target.theirs else ''} | {limit} | {measured} |")
    commit = machine.versions.get("commit", "unknown")
    computer = f"{machine.processor}, {machine.cores} cores, {machine.python}"
    lines.append(f"\n{computer}, load {machine.load_before} before the run, {machine.time[:10]}, commit {commit}.")
    lines.append("<!-- benchmarks: end -->\n")
    return "\n".join(lines)


def replaced(text: str, machine: Machine, rows: Sequence[Row]) -> str:
    """The README with its block written anew. Raises ValueError if it has none."""
    if not BLOCK.search(text):
        raise ValueError("no <!-- benchmarks: begin --> block to write to")
    new = block(machine, rows)
    return BLOCK.sub(lambda _: new, text)
