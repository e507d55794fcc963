"""How many small messages a second go from one process to another, one way."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence

from benchmarks import payloads
from benchmarks.model import Cell, Entry, Row, Run, Sample
from benchmarks.workloads import summarise

__all__ = ["WORKLOAD"]

BASELINES = ("PUSH/PULL", "PUB/SUB")
"Ratios are to pyzmq's blocking sockets of these patterns, with the same payload on the same transport."

MESSAGES = {"full": 500_000, "quick": 200_000, "tiny": 3_000}


class Throughput:
    """Roles: `sender` and `receiver`. A receiver returns `Reception.result`, a sender `Transmission.result`."""

    name = "throughput"
    summary = "messages per second between two processes, one way"
    repetitions: Mapping[str, int] = {"full": 5, "quick": 3, "tiny": 1}

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Message count, payload size, payload kinds and transports."""
        parser.add_argument("--messages", type=int, help="measured messages of one run")
        parser.add_argument("--size", type=int, default=100, help="bytes of a `bytes` payload (default: 100)")
        parser.add_argument("--transport", default="tcp,ipc", help="comma-separated: tcp, ipc (default: both)")
        parser.add_argument("--payload", default="bytes,dict,struct", help="comma-separated kinds (default: all)")

    def cells(self, options: argparse.Namespace, entries: Sequence[Entry]) -> list[Cell]:
        """Every peer on every transport that it and the user want."""
        messages = options.messages or MESSAGES[options.scale]
        return [
            Cell(
                entry=entry,
                run=Run(
                    transport=transport,
                    payload=entry.payload,
                    size=options.size,
                    warmup=max(1, messages // 10),
                    messages=messages,
                ),
                processes=("receiver", "sender"),
            )
            for payload in options.payload.split(",")
            for transport in options.transport.split(",")
            for entry in entries
            if transport in entry.transports and entry.payload == payload
        ]

    def rows(self, cells: Sequence[Cell], samples: Sequence[Sequence[Sample]]) -> list[Row]:
        """One row a cell, with ratios to the baselines of the same payload and transport."""
        rates = {id(cell): [_rate(sample) for sample in of_cell] for cell, of_cell in zip(cells, samples, strict=True)}
        return [
            Row(
                workload=self.name,
                case="one way",
                peer=cell.entry.peer,
                transport=cell.run.transport,
                payload=cell.run.payload,
                size=payloads.encoded_size(cell.run.payload, cell.run.size),
                messages=cell.run.messages,
                unit="k msg/s",
                **summarise([rate for rate in rates[id(cell)] if rate is not None]),
                lost=sum(int(sample.outcomes["receiver"]["lost"]) for sample in of_cell if not sample.failure),
                ratios=_ratios(cell, cells, rates),
                details=_details(of_cell, cell.run.messages),
                failures=[sample.failure for sample in of_cell if sample.failure],
            )
            for cell, of_cell in zip(cells, samples, strict=True)
        ]


def _rate(sample: Sample) -> float | None:
    return None if sample.failure else float(sample.outcomes["receiver"]["rate"]) / 1000


def _ratios(cell: Cell, cells: Sequence[Cell], rates: Mapping[int, Sequence[float | None]]) -> dict[str, float]:
    """Medians over the rounds: both runs of a round were seconds apart, so the machine's drift cancels out."""
    ratios = {}
    for other in cells:
        same = (other.run.payload, other.run.transport) == (cell.run.payload, cell.run.transport)
        pattern = other.entry.peer.removeprefix("pyzmq ").partition(" + ")[0]
        if same and other.entry.peer.startswith("pyzmq ") and pattern in BASELINES:
            pairs = zip(rates[id(cell)], rates[id(other)], strict=True)
            of_rounds = [ours / theirs for ours, theirs in pairs if ours and theirs]
            if of_rounds:
                ratios[f"x {pattern}"] = statistics.median(of_rounds)
    return ratios


def _details(samples: Sequence[Sample], messages: int) -> dict[str, float]:
    """Median CPU time per message of both processes: steadier than the rate on a busy machine."""
    good = [sample.outcomes for sample in samples if not sample.failure]
    if not good:
        return {}
    return {
        f"{role} us/msg": statistics.median(outcome[role]["cpu_s"] for outcome in good) * 1e6 / messages
        for role in ("sender", "receiver")
    }


WORKLOAD = Throughput()
