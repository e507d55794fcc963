"""What the log under a store does on this disk, without a fabric around it: append, one by one, replay, and grown."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence

from benchmarks.model import Cell, Entry, Row, Run, Sample
from benchmarks.options import number
from benchmarks.workloads import summarise

__all__ = ["BATCHES", "CASES", "WORKLOAD"]

BATCHES = (1, 10, 100, 600)
"Messages in a batch."

CASES = {
    **{f"append_{count}": (f"append, batches of {count}", "k msg/s") for count in BATCHES},
    "append_bytes": (f"append, batches of {BATCHES[-1]}", "MB/s"),
    "commit": ("one commit at a time", "us"),
    "flush": ("the disk's own flush", "us"),
    "replay": ("replay", "k msg/s"),
    "append_grown": ("append when grown", "k msg/s"),
    "readers_memory": ("memory with 4 readers", "MB"),
    "open": ("open when grown", "ms"),
    "retention": ("retention of half", "ms"),
}
"What the role returns, and how it is shown."

MESSAGES = {"full": 10_000_000, "quick": 1_000_000, "tiny": 20_000}
"How far the log grows."


class StoreLog:
    """Role: `log`, which returns a figure for each of `CASES`. It writes about 100 bytes a message, twice over."""

    name = "storelog"
    summary = "the log under a store: append, replay, and what growing costs"
    repetitions: Mapping[str, int] = {"full": 3, "quick": 1, "tiny": 1}

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """How far it grows."""
        parser.add_argument(
            "--messages", type=number, help="messages of 100 bytes in the grown log (default: 10 million)"
        )

    def cells(self, options: argparse.Namespace, entries: Sequence[Entry]) -> list[Cell]:
        """One cell for each engine."""
        messages = options.messages or MESSAGES[options.scale]
        run = Run(messages=messages, timeout_s=60 + messages / 100_000)
        return [Cell(entry=entry, run=run, processes=("log",)) for entry in entries]

    def rows(self, cells: Sequence[Cell], samples: Sequence[Sequence[Sample]]) -> list[Row]:
        """One row for each figure of each engine."""
        return [
            Row(
                workload=self.name,
                case=case,
                peer=cell.entry.peer,
                transport="disk",
                payload="bytes",
                size=cell.run.size,
                messages=cell.run.messages,
                unit=unit,
                **summarise([None if each.failure else float(each.outcomes["log"][key]) for each in of_cell]),
                failures=[each.failure for each in of_cell if each.failure],
            )
            for cell, of_cell in zip(cells, samples, strict=True)
            for key, (case, unit) in CASES.items()
        ]


WORKLOAD = StoreLog()
