"""How many messages a second reach all subscribers together, when every one of them gets everything."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence

from benchmarks import payloads
from benchmarks.model import Cell, Entry, Row, Run, Sample
from benchmarks.workloads import summarise

__all__ = ["WORKLOAD"]

BASELINE = "pyzmq PUB/SUB"
MESSAGES = {"full": 200_000, "quick": 50_000, "tiny": 2_000}


class Fanout:
    """Roles: `sender` and `receiver`, as in the throughput workload; there are `Run.receivers` of the latter."""

    name = "fanout"
    summary = "messages per second delivered by one publisher to several subscribers, in total"
    repetitions: Mapping[str, int] = {"full": 5, "quick": 3, "tiny": 1}

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Message count, payload size, transports and numbers of subscribers."""
        parser.add_argument("--messages", type=int, help="measured messages of one run")
        parser.add_argument("--size", type=int, default=100, help="bytes of a message (default: 100)")
        parser.add_argument("--transport", default="tcp", help="comma-separated: tcp, ipc (default: tcp)")
        parser.add_argument("--subscribers", default="1,8", help="comma-separated numbers (default: 1,8)")

    def cells(self, options: argparse.Namespace, entries: Sequence[Entry]) -> list[Cell]:
        """Every peer with every number of subscribers on every transport."""
        messages = options.messages or MESSAGES[options.scale]
        return [
            Cell(
                entry=entry,
                run=Run(
                    transport=transport,
                    size=options.size,
                    warmup=max(1, messages // 10),
                    messages=messages,
                    receivers=int(subscribers),
                ),
                processes=("receiver",) * int(subscribers) + ("sender",),
                case=f"to {subscribers}",
            )
            for transport in options.transport.split(",")
            for subscribers in options.subscribers.split(",")
            for entry in entries
            if transport in entry.transports
        ]

    def rows(self, cells: Sequence[Cell], samples: Sequence[Sequence[Sample]]) -> list[Row]:
        """One row a cell, with its ratios to raw sockets and to one subscriber."""
        totals = {
            id(cell): [_total(sample) for sample in of_cell] for cell, of_cell in zip(cells, samples, strict=True)
        }
        return [
            Row(
                workload=self.name,
                case=cell.case,
                peer=cell.entry.peer,
                transport=cell.run.transport,
                payload=cell.run.payload,
                size=payloads.encoded_size(cell.run.payload, cell.run.size),
                messages=cell.run.messages,
                unit="k msg/s",
                **summarise([total for total in totals[id(cell)] if total is not None]),
                lost=sum(_lost(sample) for sample in of_cell),
                ratios=_ratios(cell, cells, totals),
                failures=[sample.failure for sample in of_cell if sample.failure],
            )
            for cell, of_cell in zip(cells, samples, strict=True)
        ]


def _receivers(sample: Sample) -> list[Mapping[str, float]]:
    return [outcome for name, outcome in sample.outcomes.items() if name.startswith("receiver")]


def _total(sample: Sample) -> float | None:
    """All that arrived anywhere, over the time from the first arrival anywhere to the last."""
    receivers = _receivers(sample)
    if sample.failure:
        return None
    seconds = max(outcome["stop"] for outcome in receivers) - min(outcome["start"] for outcome in receivers)
    return sum(outcome["counted"] for outcome in receivers) / seconds / 1000


def _lost(sample: Sample) -> int:
    return sum(int(outcome["lost"]) for outcome in _receivers(sample))


def _ratios(cell: Cell, cells: Sequence[Cell], totals: Mapping[int, Sequence[float | None]]) -> dict[str, float]:
    """Medians over the rounds, so that the machine's drift cancels out."""
    ratios = {}
    for other in cells:
        if other.run.transport != cell.run.transport:
            continue
        pairs = zip(totals[id(cell)], totals[id(other)], strict=True)
        of_rounds = [ours / theirs for ours, theirs in pairs if ours and theirs]
        if not of_rounds:
            continue
        if other.entry.peer == BASELINE and other.case == cell.case:
            ratios["x PUB/SUB"] = statistics.median(of_rounds)
        if other.entry.peer == cell.entry.peer and other.run.receivers == 1:
            ratios["x to 1"] = statistics.median(of_rounds)
    return ratios


WORKLOAD = Fanout()
