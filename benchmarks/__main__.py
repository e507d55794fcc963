"""`python -m benchmarks throughput|fanout|discovery`: figures to stdout, progress to stderr."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from benchmarks import machine, peers, report, workloads
from benchmarks.harness import measure

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one workload; returns 1 when a run failed, 2 when nothing was left to run."""
    known = workloads.load()
    options = _parser(known).parse_args(arguments)
    workload = next(workload for workload in known if workload.name == options.workload)
    entries, missing = peers.load()
    wanted = [word for word in options.peers.split(",") if word]
    chosen = [
        entry
        for entry in entries
        if workload.name in entry.workloads and (not wanted or any(word in entry.peer for word in wanted))
    ]
    cells = workload.cells(options, chosen)
    if not cells:
        print("nothing to measure: no peer fits these options", file=sys.stderr)
        return 2
    before = machine.describe()
    samples = measure(cells, options.repeat or workload.repetitions[options.scale])
    rows = workload.rows(cells, samples)
    write = report.write_json if options.json else report.write_table
    write(sys.stdout, before, rows, missing)
    return 1 if any(row.failures for row in rows) else 0


def _parser(known: Sequence[workloads.Workload]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="workload", required=True)
    for workload in known:
        command = commands.add_parser(workload.name, help=workload.summary, description=workload.summary)
        scale = command.add_mutually_exclusive_group()
        scale.add_argument("--quick", dest="scale", action="store_const", const="quick", help="a minute or so")
        scale.add_argument("--tiny", dest="scale", action="store_const", const="tiny", help="seconds: does it run?")
        command.set_defaults(scale="full")
        command.add_argument("--repeat", type=int, help="repetitions of everything")
        command.add_argument("--peers", default="", help="comma-separated words: only peers whose name has one")
        command.add_argument("--json", action="store_true", help="JSON lines instead of tables")
        workload.add_arguments(command)
    return parser


if __name__ == "__main__":
    sys.exit(main())
