"""How fast nodes find each other, and what an idle node costs."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace

from benchmarks.model import Cell, Entry, Row, Run, Sample
from benchmarks.options import number, numbers, words
from benchmarks.workloads import summarise

__all__ = ["WORKLOAD"]

SIZES = {"full": (50, 5, 10.0), "quick": (20, 4, 3.0), "tiny": (4, 2, 0.2)}
"Nodes and processes of the mesh, and seconds of idling."


class Discovery:
    """Roles: `pair` (two processes), `mesh` (several), `idle` (one).

    `pair` and `mesh` return `start` and `done` on the system-wide monotonic clock; `idle` returns `cpu_percent` and
    `memory_bytes`. Each of them meets the others once, before it starts, and `pair` and `mesh` once more when done.
    """

    name = "discovery"
    summary = "time until nodes are matched, and the cost of an idle node"
    repetitions: Mapping[str, int] = {"full": 10, "quick": 3, "tiny": 1}

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Node counts and durations."""
        parser.add_argument("--nodes", type=numbers, help="comma-separated numbers of nodes of the mesh (default: 50)")
        parser.add_argument("--processes", type=number, help="processes of the mesh, at most (default: 5)")
        parser.add_argument("--seconds", type=float, help="seconds of idling (default: 10)")
        parser.add_argument("--secure", action="store_true", help="plain and encrypted")
        cases = words("pair", "mesh", "idle")
        parser.add_argument(
            "--case", type=cases, default="pair,mesh,idle", help="comma-separated: pair, mesh, idle (default: all)"
        )

    def cells(self, options: argparse.Namespace, entries: Sequence[Entry]) -> list[Cell]:
        """Every case for every peer that plays it."""
        nodes, processes, seconds = SIZES[options.scale]
        plans: dict[str, list[tuple[Run, tuple[str, ...], str]]] = {
            "pair": [(Run(), ("pair",) * 2, "pair")],
            "mesh": [_mesh(count, options.processes or processes) for count in options.nodes or [nodes]],
            "idle": [(Run(nodes_total=1, seconds=options.seconds or seconds), ("idle",), "idle node")],
        }
        return [
            Cell(
                entry=entry,
                run=replace(run, secure=secure),
                processes=roles,
                case=f"{case}{', encrypted' * secure}",
                axis="nodes" if "mesh" in roles and not secure else "",
                at=run.nodes_total,
            )
            for wanted in options.case
            for run, roles, case in plans[wanted]
            for entry in entries
            for secure in ((False, True) if options.secure else (False,))
            if set(roles) <= set(entry.roles)
        ]

    def rows(self, cells: Sequence[Cell], samples: Sequence[Sequence[Sample]]) -> list[Row]:
        """One row a cell; two for the idle node."""
        rows = []
        for cell, of_cell in zip(cells, samples, strict=True):
            if "idle" in cell.processes:
                idle = [None if sample.failure else sample.outcomes["idle"] for sample in of_cell]
                cpu = [float(each["cpu_percent"]) if each else None for each in idle]
                memory = [each["memory_bytes"] / 1e6 if each else None for each in idle]
                rows.append(_row(replace(cell, case=f"{cell.case}, CPU"), of_cell, cpu, "% of a core"))
                rows.append(_row(replace(cell, case=f"{cell.case}, memory"), of_cell, memory, "MB"))
            elif "pair" in cell.processes:
                rows.append(_row(cell, of_cell, [each and each * 1e3 for each in _times(of_cell)], "ms"))
            else:
                rows.append(_row(cell, of_cell, _times(of_cell), "s"))
        return rows


def _mesh(nodes: int, processes_max: int) -> tuple[Run, tuple[str, ...], str]:
    """The nodes, shared out evenly among as many processes as may be."""
    processes = max(count for count in range(1, min(processes_max, nodes) + 1) if nodes % count == 0)
    run = Run(nodes=nodes // processes, nodes_total=nodes, timeout_s=60.0 + nodes)
    return run, ("mesh",) * processes, f"mesh of {nodes} nodes"


def _times(samples: Sequence[Sample]) -> list[float | None]:
    """From the start of the process that started last until the last one was done."""
    return [
        None
        if sample.failure
        else max(outcome["done"] for outcome in sample.outcomes.values())
        - max(outcome["start"] for outcome in sample.outcomes.values())
        for sample in samples
    ]


def _row(cell: Cell, samples: Sequence[Sample], values: Sequence[float | None], unit: str) -> Row:
    return Row(
        workload="discovery",
        case=cell.case,
        peer=cell.entry.peer,
        transport="loopback",
        payload="",
        size=None,
        messages=0,
        unit=unit,
        axis=cell.axis,
        at=cell.at,
        **summarise(values),
        failures=[sample.failure for sample in samples if sample.failure],
    )


WORKLOAD = Discovery()
