"""The report as one HTML page that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from benchmarks.charts import bars, figure, lines
from benchmarks.growth import Growth, growths
from benchmarks.model import Results, Row
from benchmarks.targets import Verdict, judge

__all__ = ["render"]

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 900px; margin: 2em auto; padding: 0 1em; color: #1f2328 }
svg { width: 100%; font-size: 12px } h2 { margin-top: 2em; border-bottom: 1px solid #d0d7de }
table { border-collapse: collapse } td, th { padding: 2px 12px 2px 0; text-align: left; vertical-align: top }
td.n { text-align: right; font-variant-numeric: tabular-nums }
.met { color: #1a7f37 } .missed { color: #cf222e } .open { color: #9a6700 } small { color: #57606a }
"""


def render(results: Results) -> str:
    """The page."""
    rows = results.rows
    parts = [
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>zfabric: benchmarks</title>',
        f"<style>{STYLE}</style><h1>zfabric beside its peers</h1>",
        _about(results),
        "<h2>Targets</h2>",
        _targets(judge(rows)),
    ]
    for workload in dict.fromkeys(row.workload for row in rows):
        parts.append(f"<h2>{escape(workload)}</h2>")
        parts += [_group(group) for group in _groups([row for row in rows if row.workload == workload])]
    parts.append("<h2>How costs grow</h2><p>The slope says how the cost of one unit grows with their number: 0 not at")
    parts.append(" all, 1 in proportion, below 0 it falls.</p>")
    parts += [_growth(group) for group in _by_axis(growths(rows))]
    return "\n".join([*parts, "</html>\n"])


def _about(results: Results) -> str:
    machine = results.machine
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    lines_ = [
        f"{machine.time}: {machine.processor}, {machine.cores} cores, {machine.memory_bytes / 1e9:.0f} GB",
        f"{machine.system}, {machine.python}, load before {machine.load_before}",
        versions,
        machine.command,
        *(f"Not measured: {each.peer} ({each.why})" for each in results.missing),
        *(f"Failed: {part.command} ({part.failure})" for part in results.parts if part.failure),
    ]
    return "<p><small>" + "<br>".join(escape(line) for line in lines_) + "</small></p>"


def _targets(verdicts: Sequence[Verdict]) -> str:
    parts = ["<table><tr><th>target<th>compared with<th>wanted<th>measured<th>spread<th></tr>"]
    for verdict in verdicts:
        word = {True: "met", False: "missed", None: "open"}[verdict.met]
        spread = "" if verdict.low is None else f"{figure(verdict.low)} to {figure(verdict.high)}"
        said = {"met": "met", "missed": "missed", "open": "not measured"}[word]
        said += f", LOST {verdict.lost}" if verdict.lost else ""
        parts.append(
            f"<tr><td>{escape(verdict.target.title)}<td>{escape(verdict.target.compared)}"
            f"<td>{escape(verdict.target.limit)}"
            f'<td class="n">{figure(verdict.measured)}<td class="n">{spread}<td class="{word}">{said}</tr>'
        )
    return "".join([*parts, "</table>"])


def _groups(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows that one chart can compare."""
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.case, row.transport, row.payload, row.size, row.unit), []).append(row)
    return list(groups.values())


def _group(rows: Sequence[Row]) -> str:
    first = rows[0]
    size = "" if first.size is None else f"{first.size:,} bytes"
    title = ", ".join(part for part in (first.case, first.transport, first.payload, size, first.unit) if part)
    failures = "".join(
        f"<p><small>failed: {escape(row.peer)}: {escape(failure.strip().splitlines()[-1])}</small></p>"
        for row in rows
        for failure in row.failures
    )
    return f"<h4>{escape(title)}</h4>{bars(rows)}{failures}"


def _by_axis(found: Sequence[Growth]) -> list[list[Growth]]:
    groups: dict[tuple[str, ...], list[Growth]] = {}
    for growth in found:
        groups.setdefault((growth.workload, growth.axis, growth.what, growth.transport, growth.unit), []).append(growth)
    return list(groups.values())


def _growth(group: Sequence[Growth]) -> str:
    first = group[0]
    cost = "MB of all" if first.unit == "MB" else "microseconds of one"
    title = f"{first.workload}: {cost}, by {first.axis}" + (f", {first.what}" if first.what else "")
    return f"<h4>{escape(title)}</h4>{lines(group)}"
