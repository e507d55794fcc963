"""`python -m benchmarks WORKLOAD` measures one thing, `python -m benchmarks report` everything that the targets need.

Figures go to stdout, progress to stderr.
"""

from __future__ import annotations

import argparse
import math
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

try:
    from benchmarks import machine, page, peers, plan, report, tables, workloads
    from benchmarks.charts import write_png
    from benchmarks.harness import measure
    from benchmarks.model import Cell, Entry, Results, Row, RunFailed
    from benchmarks.options import number
    from benchmarks.targets import judge
except ModuleNotFoundError as error:
    sys.exit(f"package {error.name} is not installed: pip install -e '.[bench]'")

__all__ = ["cells_of", "chosen", "main", "parser_of"]

RESULTS = Path(__file__).parent / "results"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns 1 when a run failed, 2 when nothing was left to run."""
    known = workloads.load()
    options = parser_of(known).parse_args(arguments)
    try:
        if options.command == "report":
            return _report(options, known)
        if options.command == "tables":
            return _write_tables(report.read_json(options.results))
        return _measure(options, known)
    except (RunFailed, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        more = "; report --resume goes on with it" if options.command == "report" else ""
        print(f"interrupted{more}", file=sys.stderr)
        return 130


def _measure(options: argparse.Namespace, known: Sequence[workloads.Workload]) -> int:
    """Run one workload and print what it gave."""
    before = machine.describe()
    entries, missing = peers.load()
    results = Results(machine=before, missing=missing, rows=_run(options, known, entries))
    if not results.rows:
        print("nothing to measure: no peer fits these options", file=sys.stderr)
        return 2
    if options.json:
        report.write_json(sys.stdout, results)
    else:
        report.write_table(sys.stdout, results)
        report.write_verdicts(sys.stdout, [each for each in judge(results.rows) if each.measured is not None])
    return 1 if results.failed else 0


def _run(
    options: argparse.Namespace,
    known: Sequence[workloads.Workload],
    entries: Sequence[Entry],
    deadline: float = math.inf,
) -> list[Row]:
    """The rows of one workload; none if no peer fits."""
    workload, cells = cells_of(options, known, entries)
    if not cells:
        return []
    return workload.rows(cells, measure(cells, options.repeat or workload.repetitions[options.scale], deadline))


def cells_of(
    options: argparse.Namespace, known: Sequence[workloads.Workload], entries: Sequence[Entry]
) -> tuple[workloads.Workload, list[Cell]]:
    """The workload that is asked for, and what it runs."""
    workload = next(workload for workload in known if workload.name == options.command)
    playing = [entry for entry in entries if workload.name in entry.workloads]
    return workload, workload.cells(options, chosen(options.peers, playing))


def chosen(wanted: str, entries: Sequence[Entry]) -> list[Entry]:
    """The peers that are named in full, or whose names have one of the words; all of them if there is no word."""
    words = [word for word in wanted.split(",") if word]
    names = {entry.peer for entry in entries}
    return [
        entry
        for entry in entries
        if not words or any(word == entry.peer if word in names else word in entry.peer for word in words)
    ]


def _report(options: argparse.Namespace, known: Sequence[workloads.Workload]) -> int:
    """Run the plan, or read what earlier runs wrote; then write everything that can be made of it."""
    folder: Path = options.out
    folder.mkdir(parents=True, exist_ok=True)
    if options.results:
        results = report.read_json(*options.results)
    else:
        results = _start(options, folder)
        parser = parser_of(known)

        def run(arguments: Sequence[str], deadline: float) -> list[Row]:
            return _run(parser.parse_args(arguments), known, peers.load()[0], deadline)

        minutes = options.minutes or plan.MINUTES[options.scale]
        for _ in plan.run(plan.commands(options.scale), results, run, minutes * 60):
            _write_files(folder, results)
    _write_files(folder, results)
    try:
        write_png(folder / "report.png", results.rows)
    except ModuleNotFoundError as error:
        print(f"no report.png: package {error.name} is not installed", file=sys.stderr)
    report.write_table(sys.stdout, results)
    report.write_verdicts(sys.stdout, judge(results.rows))
    print(f"written to {folder}", file=sys.stderr)
    if options.tables:
        _write_tables(results)
    return 1 if results.failed else 0


def _start(options: argparse.Namespace, folder: Path) -> Results:
    """Nothing measured yet; or what the interrupted report in that folder had measured of the same software."""
    results = Results(machine=machine.describe(), missing=peers.load()[1])
    written = folder / "report.jsonl"
    if not options.resume or not written.exists():
        return results
    earlier = report.read_json(written)
    if earlier.machine.versions != results.machine.versions:
        raise ValueError(f"what stands in {folder} was measured with other versions: start anew, without --resume")
    return earlier


def _write_files(folder: Path, results: Results) -> None:
    """The lines and the page; a file is there as a whole or as it was before."""
    written = folder / "report.jsonl.new"
    with written.open("w", encoding="utf-8") as out:
        report.write_json(out, results)
    written.replace(folder / "report.jsonl")
    (folder / "report.html").write_text(page.render(results), encoding="utf-8")


def _write_tables(results: Results) -> int:
    """Write the tables of the documentation anew."""
    for document in tables.DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        document.write_text(tables.replaced(text, results), encoding="utf-8")
        print(f"tables written to {document}", file=sys.stderr)
    return 0


def parser_of(known: Sequence[workloads.Workload]) -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for workload in known:
        told = workload.summary.replace("%", "%%")
        command = commands.add_parser(workload.name, help=told, description=told)
        _add_scale(command)
        command.add_argument("--repeat", type=number, help="repetitions of everything")
        command.add_argument(
            "--peers", default="", help="comma-separated: only these peers; a part of a name means all that have it"
        )
        command.add_argument("--json", action="store_true", help="JSON lines instead of tables")
        workload.add_arguments(command)
    summary = "run what the targets need; write report.jsonl, report.html and report.png, and say what is met"
    command = commands.add_parser("report", help=summary, description=summary)
    _add_scale(command)
    command.add_argument("--out", type=Path, default=RESULTS, help="folder to write to (default: %(default)s)")
    minutes = "what is not measured by then is reported as not run (default: 25, quick 4)"
    command.add_argument("--minutes", type=number, help=minutes)
    command.add_argument("--tables", action="store_true", help="also write the tables of README.md and docs anew")
    source = command.add_mutually_exclusive_group()
    source.add_argument("--resume", action="store_true", help="go on with the report in the folder, if interrupted")
    source.add_argument("--from", dest="results", type=Path, nargs="+", help="read what earlier runs wrote")
    summary = "write the tables of README.md and docs/performance.md from a report.jsonl"
    command = commands.add_parser("tables", help=summary, description=summary)
    command.add_argument("results", type=Path, nargs="?", default=RESULTS / "report.jsonl")
    return parser


def _add_scale(command: argparse.ArgumentParser) -> None:
    scale = command.add_mutually_exclusive_group()
    scale.add_argument("--quick", dest="scale", action="store_const", const="quick", help="a few minutes at most")
    scale.add_argument("--tiny", dest="scale", action="store_const", const="tiny", help="seconds: does it run?")
    command.set_defaults(scale="full")


if __name__ == "__main__":
    # Servers have sessions of their own: they must be ended by us, whatever ends us.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
