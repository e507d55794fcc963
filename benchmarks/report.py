"""Prints rows: JSON lines for programs, an aligned table with the ratios first for people."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

import msgspec

from benchmarks.model import Machine, Missing, Row
from benchmarks.targets import Verdict

__all__ = ["read_json", "write_json", "write_table", "write_verdicts"]


class Absent(msgspec.Struct, tag="missing", tag_field="type"):
    """A peer that was not measured, as a line."""

    peer: str
    what: str


def write_json(out: TextIO, machine: Machine, rows: Sequence[Row], missing: Sequence[Missing]) -> None:
    """One line for the machine, one for each missing peer, one for each row; `type` tells which."""
    lines = [machine, *(Absent(peer=each.peer, what=each.what) for each in missing), *rows]
    for line in lines:
        out.write(msgspec.json.encode(line).decode() + "\n")


def read_json(path: Path) -> tuple[Machine, list[Row], list[Missing]]:
    """What `write_json` wrote."""
    lines = [msgspec.json.decode(line, type=Machine | Row | Absent) for line in path.read_bytes().splitlines()]
    machine = next(line for line in lines if isinstance(line, Machine))
    missing = [Missing(peer=line.peer, what=line.what) for line in lines if isinstance(line, Absent)]
    return machine, [line for line in lines if isinstance(line, Row)], missing


def write_verdicts(out: TextIO, verdicts: Sequence[Verdict]) -> None:
    """The targets, what was wanted and what was measured."""
    words = {True: "met", False: "MISSED", None: "not measured"}
    lines = [["target", "wanted", "measured", "min", "max", ""]]
    for verdict in verdicts:
        lost = f", LOST {verdict.lost}" if verdict.lost else ""
        figures = [_number(value) for value in (verdict.measured, verdict.low, verdict.high)]
        lines.append([verdict.target.title, verdict.target.wanted, *figures, words[verdict.met] + lost])
    out.write("\ntargets\n")
    _write_aligned(out, lines)


def write_table(out: TextIO, machine: Machine, rows: Sequence[Row], missing: Sequence[Missing]) -> None:
    """The same for people, in one table for each group of comparable rows."""
    versions = ", ".join(f"{package} {version}" for package, version in machine.versions.items())
    out.write(f"{machine.time}  {machine.processor}, {machine.cores} cores, load {machine.load_before}\n")
    out.write(f"{machine.system}, {machine.python}, {machine.event_loop}\n{versions}\n{machine.command}\n")
    for group in _groups(rows):
        out.write(f"\n{_title(group[0])}\n")
        _write_aligned(out, _lines(group))
    for each in missing:
        out.write(f"\nnot measured: {each.peer} ({each.what} is not installed)\n")
    for row in rows:
        for failure in row.failures:
            out.write(f"\nFAILED {row.peer} {row.case} {row.transport}: {failure}\n")


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
    targets = ["target"] if any(row.target is not None for row in group) else []
    header = [*ratios, "median", "min", "max", "unit", *targets, *details, "messages", "peer", "case", ""]
    return [header, *(_line(row, ratios, details, with_target=bool(targets)) for row in group)]


def _line(row: Row, ratios: Sequence[str], details: Sequence[str], *, with_target: bool) -> list[str]:
    return [
        *(_number(row.ratios.get(name)) for name in ratios),
        *(_number(value) for value in (row.median, row.low, row.high)),
        row.unit,
        *([_number(row.target)] if with_target else []),
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
