"""How long a request takes, and how many a second pass when many are on the way at once."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence

from benchmarks.model import Cell, Entry, Row, Run, Sample
from benchmarks.options import number, numbers, words
from benchmarks.workloads import ratio, summarise
from benchmarks.workloads.percentiles import percentiles_us

__all__ = ["WORKLOAD"]

MESSAGES = {"full": 40_000, "quick": 10_000, "tiny": 200}
ALONE = 4
"Requests that wait for each other are slower: one in flight gets that much fewer of them."
BASELINES = {"x ROUTER/DEALER": "pyzmq ROUTER/DEALER", "x NATS": "NATS request", "x Zenoh": "Zenoh get"}


class Requests:
    """Roles: `client` and `server`; the server echoes. See `ask.py`."""

    name = "requests"
    summary = "time of a request, and requests per second, with 1 to 1,000 in flight"
    repetitions: Mapping[str, int] = {"full": 5, "quick": 3, "tiny": 1}

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Request count, size, and how many wait at one time."""
        parser.add_argument("--messages", type=number, help="measured requests of one run")
        parser.add_argument("--size", type=number, default=100, help="bytes of a request and reply (default: 100)")
        parser.add_argument(
            "--transport", type=words("tcp", "ipc"), default="tcp", help="comma-separated: tcp, ipc (default: tcp)"
        )
        counts = "comma-separated numbers (default: %(default)s)"
        parser.add_argument("--in-flight", type=numbers, default="1,10,100,1000", help=counts)

    def cells(self, options: argparse.Namespace, entries: Sequence[Entry]) -> list[Cell]:
        """Every peer with every number in flight."""
        cells = []
        for transport in options.transport:
            for in_flight in options.in_flight:
                for entry in entries:
                    if transport in entry.transports and in_flight <= entry.in_flight_max:
                        messages = options.messages or MESSAGES[options.scale] // (ALONE if in_flight == 1 else 1)
                        messages = max(in_flight, min(messages, entry.messages_max))
                        run = Run(
                            transport=transport,
                            size=options.size,
                            in_flight=in_flight,
                            warmup=max(in_flight, messages // 10),
                            messages=messages,
                        )
                        case = f"{in_flight:,} in flight"
                        processes = ("server", "client")
                        cells.append(
                            Cell(entry=entry, run=run, processes=processes, case=case, axis="in flight", at=in_flight)
                        )
        return cells

    def rows(self, cells: Sequence[Cell], samples: Sequence[Sequence[Sample]]) -> list[Row]:
        """Three rows a cell: requests per second, median and 99th percentile of their times."""
        rows = []
        for cell, of_cell in zip(cells, samples, strict=True):
            clients = [None if sample.failure else sample.outcomes["client"] for sample in of_cell]
            times = [percentiles_us(each["latencies"], (50, 99)) if each else None for each in clients]
            rates = [cell.run.messages / float(each["seconds"]) / 1000 if each else None for each in clients]
            rows += [
                _row(cell, of_cell, "rate", "k req/s", rates),
                _row(cell, of_cell, "p50", "us", [each[0] if each else None for each in times]),
                _row(cell, of_cell, "p99", "us", [each[1] if each else None for each in times]),
            ]
        for row in rows:
            for name, peer in BASELINES.items():
                for other in rows:
                    same = (other.case, other.transport) == (row.case, row.transport)
                    found = ratio(row.samples, other.samples) if same and other.peer == peer else None
                    if found is not None:
                        row.ratios[name] = found
        return rows


def _row(cell: Cell, samples: Sequence[Sample], what: str, unit: str, values: Sequence[float | None]) -> Row:
    return Row(
        workload="requests",
        case=f"{cell.case}, {what}",
        peer=cell.entry.peer,
        transport=cell.run.transport,
        payload="bytes",
        size=cell.run.size,
        messages=cell.run.messages,
        unit=unit,
        axis=cell.axis,
        at=cell.at,
        **summarise(values),
        ratios={},
        failures=[sample.failure for sample in samples if sample.failure],
    )


WORKLOAD = Requests()
