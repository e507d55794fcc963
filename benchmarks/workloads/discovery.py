"""How fast nodes find each other, and what an idle node costs."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace

from benchmarks.model import Cell, Entry, Row, Run, Sample
from benchmarks.workloads import summarise
from benchmarks.workloads.rates import numbers

__all__ = ["WORKLOAD"]

PAIR_TARGET_MS = 300.0
MESH_TARGET_S = 10.0
SECURE_MESH_TARGET_S = 15.0
IDLE_CPU_TARGET_PERCENT = 0.5
IDLE_MEMORY_TARGET_MB = 60.0

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
        parser.add_argument("--nodes", help="comma-separated numbers of nodes of the mesh (default: 50)")
        parser.add_argument("--processes", type=int, help="processes of the mesh, at most (default: 5)")
        parser.add_argument("--seconds", type=float, help="seconds of idling (default: 10)")
        parser.add_argument("--secure", action="store_true", help="plain and encrypted")
        parser.add_argument("--case", default="pair,mesh,idle", help="comma-separated: pair, mesh, idle (default: all)")

    def cells(self, options: argparse.Namespace, entries: Sequence[Entry]) -> list[Cell]:
        """Every case for every peer that plays it."""
        nodes, processes, seconds = SIZES[options.scale]
        plans: dict[str, list[tuple[Run, tuple[str, ...], str]]] = {
            "pair": [(Run(), ("pair",) * 2, "pair")],
            "mesh": [_mesh(count, options.processes or processes) for count in numbers(options.nodes or str(nodes))],
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
            for wanted in options.case.split(",")
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
                cpu = [float(sample.outcomes["idle"]["cpu_percent"]) for sample in of_cell if not sample.failure]
                memory = [float(sample.outcomes["idle"]["memory_bytes"]) for sample in of_cell if not sample.failure]
                rows.append(_row(cell, of_cell, cpu, "% of a core", IDLE_CPU_TARGET_PERCENT))
                rows.append(_row(cell, of_cell, [size / 1e6 for size in memory], "MB", IDLE_MEMORY_TARGET_MB))
            elif "pair" in cell.processes:
                rows.append(_row(cell, of_cell, [seconds * 1e3 for seconds in _times(of_cell)], "ms", PAIR_TARGET_MS))
            else:
                target = SECURE_MESH_TARGET_S if cell.run.secure else MESH_TARGET_S
                rows.append(_row(cell, of_cell, _times(of_cell), "s", target))
        return rows


def _mesh(nodes: int, processes_max: int) -> tuple[Run, tuple[str, ...], str]:
    """The nodes, shared out evenly among as many processes as may be."""
    processes = max(count for count in range(1, min(processes_max, nodes) + 1) if nodes % count == 0)
    run = Run(nodes=nodes // processes, nodes_total=nodes)
    return run, ("mesh",) * processes, f"mesh of {nodes} nodes in {processes} processes"


def _times(samples: Sequence[Sample]) -> list[float]:
    """From the start of the process that started last until the last one was done."""
    return [
        max(outcome["done"] for outcome in sample.outcomes.values())
        - max(outcome["start"] for outcome in sample.outcomes.values())
        for sample in samples
        if not sample.failure
    ]


def _row(cell: Cell, samples: Sequence[Sample], values: Sequence[float], unit: str, target: float) -> Row:
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
        target=target,
        failures=[sample.failure for sample in samples if sample.failure],
    )


WORKLOAD = Discovery()
