"""How long it takes from the start of Python until the first message has passed through."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence

from benchmarks.model import Cell, Entry, Row, Run, Sample
from benchmarks.workloads import ratio, summarise

__all__ = ["WORKLOAD"]


class Startup:
    """Role: `start`, made by `started.starting(program)`: runs a short program in a fresh interpreter."""

    name = "startup"
    summary = "milliseconds from the start of Python to the first message received, in one process"
    repetitions: Mapping[str, int] = {"full": 10, "quick": 5, "tiny": 1}

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """None."""

    def cells(self, options: argparse.Namespace, entries: Sequence[Entry]) -> list[Cell]:
        """Every peer."""
        return [Cell(entry=entry, run=Run(), processes=("start",)) for entry in entries]

    def rows(self, cells: Sequence[Cell], samples: Sequence[Sequence[Sample]]) -> list[Row]:
        """One row a peer, with its ratio to Python doing nothing."""
        values = [
            [None if sample.failure else float(sample.outcomes["start"]["seconds"]) * 1e3 for sample in of_cell]
            for of_cell in samples
        ]
        nothing = next((own for cell, own in zip(cells, values, strict=True) if cell.entry.peer == "Python alone"), [])
        rows = []
        for cell, of_cell, own in zip(cells, samples, values, strict=True):
            found = ratio(own, nothing)
            rows.append(
                Row(
                    workload=self.name,
                    case="first message",
                    peer=cell.entry.peer,
                    transport="tcp",
                    payload="",
                    size=None,
                    messages=1,
                    unit="ms",
                    **summarise(own),
                    ratios={} if found is None else {"x Python alone": found},
                    failures=[sample.failure for sample in of_cell if sample.failure],
                )
            )
        return rows


WORKLOAD = Startup()
