"""Prints rows: JSON lines for programs, an aligned table with the ratios first for people."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import msgspec

from benchmarks.growth import Growth, growths
from benchmarks.model import Machine, Missing, Part, Results, Row
from benchmarks.targets import Verdict

__all__ = ["read_json", "write_json", "write_table", "write_verdicts"]


Line = Machine | Missing | Row | Part


def write_json(out: TextIO, results: Results) -> None:
    """One line for the machine, one for each missing peer, one for each row and each part; `type` tells which."""
    for line in (results.machine, *results.missing, *results.rows, *results.parts):
        out.write(msgspec.json.encode(line).decode() + "\n")


def read_json(*paths: Path) -> Results:
    """What `write_json` wrote; of several files, the machine of the first. Raises ValueError for anything else."""
    found: dict[type, list[Any]] = {Machine: [], Missing: [], Row: [], Part: []}
    for path in paths:
        for number, text in enumerate(path.read_bytes().splitlines(), start=1):
            try:
                line = msgspec.json.decode(text, type=Line)
            except msgspec.MsgspecError as error:
                raise ValueError(f"{path}, line {number} is none of a report: {error}") from None
            found[type(line)].append(line)
    if not found[Machine]:
        raise ValueError(f"{paths[0]} has no line of type `machine`: it is no report")
    missing = list(dict.fromkeys(found[Missing]))
    return Results(machine=found[Machine][0], missing=missing, rows=found[Row], parts=found[Part])


def write_verdicts(out: TextIO, verdicts: Sequence[Verdict]) -> None:
    """The targets, what was wanted and what was measured."""
    if not verdicts:
        return
    words = {True: "met", False: "MISSED", None: "not measured"}
    lines = [["target", "compared with", "wanted", "measured", "min", "max", ""]]
    for verdict in verdicts:
        lost = f", LOST {verdict.lost}" if verdict.lost else ""
        figures = [_number(value) for value in (verdict.measured, verdict.low, verdict.high)]
        target = verdict.target
        lines.append([target.title, target.compared, target.limit, *figures, words[verdict.met] + lost])
    out.write("\ntargets\n")
    _write_aligned(out, lines)


def write_table(out: TextIO, results: Results) -> None:
    """The same for people, in one table for each group of comparable rows."""
    machine, rows = results.machine, results.rows
    versions = ", ".join(f"{package} {version}" for package, version in machine.versions.items())
    out.write(f"{machine.time}  {machine.processor}, {machine.cores} cores, load {machine.load_before}\n")
    out.write(f"{machine.system}, {machine.python}, {machine.event_loop}\n{versions}\n{machine.command}\n")
    for group in _groups(rows):
        out.write(f"\n{_title(group[0])}\n")
        _write_aligned(out, _lines(group))
    _write_growths(out, growths(rows))
    for each in results.missing:
        out.write(f"\nnot measured: {each.peer} ({each.why})\n")
    for part in results.parts:
        if part.failure:
            out.write(f"\nFAILED {part.command}: {part.failure}\n")
    for row in rows:
        for failure in row.failures:
            out.write(f"\nFAILED {row.peer} {row.case} {row.transport}: {failure}\n")


def _write_growths(out: TextIO, found: Sequence[Growth]) -> None:
    """How the cost of one unit grows, for each peer and axis."""
    if not found:
        return
    lines = [["slope", "cost of one, where there are so many", "axis", "workload", "peer", ""]]
    for growth in found:
        points = ", ".join(f"{_number(cost)} {growth.unit} at {at:,g}" for at, cost in growth.points)
        lines.append([f"{growth.slope:+.2f}", points, growth.axis, growth.workload, growth.peer, growth.what])
    out.write("\nhow costs grow: 0 not at all, 1 in proportion\n")
    _write_aligned(out, lines)


def _groups(rows: Sequence[Row]) -> list[list[Row]]:
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.workload, row.transport, row.payload, row.size, row.unit), []).append(row)
    return list(groups.values())


def _title(row: Row) -> str:
    payload = f", {row.payload} of {row.size} bytes" if row.size is not None else ""
    return f"{row.workload}, {row.transport}{payload}, {len(row.samples)} repetitions"


def _lines(group: Sequence[Row]) -> list[list[str]]:
    """Header and lines of one table: ratios, then the figure with its spread, then the rest."""
    ratios = list(dict.fromkeys(name for row in group for name in row.ratios))
    details = list(dict.fromkeys(name for row in group for name in row.details))
    header = [*ratios, "median", "min", "max", "unit", *details, "messages", "peer", "case", ""]
    return [header, *(_line(row, ratios, details) for row in group)]


def _line(row: Row, ratios: Sequence[str], details: Sequence[str]) -> list[str]:
    return [
        *(_number(row.ratios.get(name)) for name in ratios),
        *(_number(value) for value in (row.median, row.low, row.high)),
        row.unit,
        *(_number(row.details.get(name)) for name in details),
        f"{row.messages:,}",
        row.peer,
        row.case,
        row.flags,
    ]


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.2f}"


def _write_aligned(out: TextIO, lines: Sequence[Sequence[str]]) -> None:
    """Numbers to the right, words to the left."""
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    numeric = [all(cell == "-" or cell[:1].isdigit() for cell in column) for column in zip(*lines[1:], strict=True)]
    for line in lines:
        cells = zip(line, widths, numeric, strict=True)
        out.write("  " + "  ".join(c.rjust(w) if n else c.ljust(w) for c, w, n in cells).rstrip() + "\n")
