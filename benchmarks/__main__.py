"""`python -m benchmarks WORKLOAD` measures one thing, `python -m benchmarks report` everything that the targets need.

Figures go to stdout, progress to stderr.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import machine, page, peers, plan, readme, report, workloads
from benchmarks.charts import write_png
from benchmarks.harness import measure
from benchmarks.model import Entry, Machine, Missing, Row
from benchmarks.targets import judge

__all__ = ["main"]

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
RESULTS = HERE / "results"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns 1 when a run failed, 2 when nothing was left to run."""
    known = workloads.load()
    options = _parser(known).parse_args(arguments)
    if options.command == "readme":
        said, rows, _ = report.read_json(options.results)
        README.write_text(readme.replaced(README.read_text(encoding="utf-8"), said, rows), encoding="utf-8")
        return 0
    if options.command == "report":
        return _report(options, known)
    before = machine.describe()
    entries, missing = peers.load()
    rows = _run(options, known, entries)
    if not rows:
        print("nothing to measure: no peer fits these options", file=sys.stderr)
        return 2
    write = report.write_json if options.json else report.write_table
    write(sys.stdout, before, rows, missing)
    return 1 if any(row.failures for row in rows) else 0


def _run(options: argparse.Namespace, known: Sequence[workloads.Workload], entries: Sequence[Entry]) -> list[Row]:
    """The rows of one workload; none if no peer fits."""
    workload = next(workload for workload in known if workload.name == options.command)
    wanted = [word for word in options.peers.split(",") if word]
    chosen = [
        entry
        for entry in entries
        if workload.name in entry.workloads and (not wanted or any(word in entry.peer for word in wanted))
    ]
    cells = workload.cells(options, chosen)
    if not cells:
        return []
    return workload.rows(cells, measure(cells, options.repeat or workload.repetitions[options.scale]))


def _report(options: argparse.Namespace, known: Sequence[workloads.Workload]) -> int:
    """Run the plan, or read what an earlier run wrote; then write everything that can be made of it."""
    if options.results:
        read = [report.read_json(path) for path in options.results]
        before, missing = read[0][0], read[0][2]
        rows = [row for _, of_file, _ in read for row in of_file]
    else:
        before, rows, missing = _run_plan(options, known)
    folder: Path = options.out
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "report.jsonl").open("w", encoding="utf-8") as out:
        report.write_json(out, before, rows, missing)
    (folder / "report.html").write_text(page.render(before, rows, missing), encoding="utf-8")
    try:
        write_png(folder / "report.png", rows)
    except ModuleNotFoundError as error:
        print(f"no report.png: package {error.name} is not installed", file=sys.stderr)
    report.write_table(sys.stdout, before, rows, missing)
    report.write_verdicts(sys.stdout, judge(rows))
    print(f"written to {folder}", file=sys.stderr)
    return 1 if any(row.failures for row in rows) else 0


def _run_plan(
    options: argparse.Namespace, known: Sequence[workloads.Workload]
) -> tuple[Machine, list[Row], list[Missing]]:
    before, start = machine.describe(), time.monotonic()
    entries, missing = peers.load()
    parser, rows = _parser(known), []
    runs = plan.PLANS[options.scale]
    for number, arguments in enumerate(runs, start=1):
        print(f"== {number} of {len(runs)}, {time.monotonic() - start:.0f} s: {' '.join(arguments)}", file=sys.stderr)
        scale = [] if options.scale == "full" else [f"--{options.scale}"]
        rows += _run(parser.parse_args([*arguments, *scale]), known, entries)
    print(f"== all in {time.monotonic() - start:.0f} s", file=sys.stderr)
    return before, rows, missing


def _parser(known: Sequence[workloads.Workload]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for workload in known:
        told = workload.summary.replace("%", "%%")
        command = commands.add_parser(workload.name, help=told, description=told)
        _add_scale(command)
        command.add_argument("--repeat", type=int, help="repetitions of everything")
        command.add_argument("--peers", default="", help="comma-separated words: only peers whose name has one")
        command.add_argument("--json", action="store_true", help="JSON lines instead of tables")
        workload.add_arguments(command)
    summary = "run what the targets need; write report.jsonl, report.html and report.png, and say what is met"
    command = commands.add_parser("report", help=summary, description=summary)
    _add_scale(command)
    command.add_argument("--out", type=Path, default=RESULTS, help="folder to write to (default: %(default)s)")
    command.add_argument("--from", dest="results", type=Path, nargs="+", help="read what earlier runs wrote")
    summary = "write the table of the README from a report.jsonl"
    command = commands.add_parser("readme", help=summary, description=summary)
    command.add_argument("results", type=Path, nargs="?", default=RESULTS / "report.jsonl")
    return parser


def _add_scale(command: argparse.ArgumentParser) -> None:
    scale = command.add_mutually_exclusive_group()
    scale.add_argument("--quick", dest="scale", action="store_const", const="quick", help="a few minutes at most")
    scale.add_argument("--tiny", dest="scale", action="store_const", const="tiny", help="seconds: does it run?")
    command.set_defaults(scale="full")


if __name__ == "__main__":
    sys.exit(main())
