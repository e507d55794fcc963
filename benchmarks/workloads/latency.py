"""How long a message takes at a given load: each message has a time when it is due, whether or not the sender keeps up.

The loads are shares of the highest rate that raw pyzmq reaches here. Nothing is left out when a program is late: a
message that could not be sent in time is measured from when it was due (no coordinated omission).
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence

from benchmarks.harness import run_cell
from benchmarks.model import Cell, Entry, Row, Run, RunFailed, Sample
from benchmarks.options import number, numbers
from benchmarks.workloads import ratio, summarise
from benchmarks.workloads.percentiles import percentiles_us
from benchmarks.workloads.rates import receivers_of

__all__ = ["WORKLOAD"]

BASELINE = "pyzmq PUB/SUB"
SECONDS = {"full": 3.0, "quick": 1.5, "tiny": 0.1}
CALIBRATION = {"full": (300_000, 5), "quick": (200_000, 3), "tiny": (2_000, 1)}
"Messages and repetitions that find raw pyzmq's highest rate."
AT_ONCE = 1e9
"A rate at which everything is due from the start."
TINY_RATE = 10_000
POINTS = (50, 90, 99, 99.9, 100)
TITLES = ("p50", "p90", "p99", "p99.9", "longest")


class Latency:
    """Roles: `sender` and `receiver`, with `Run.rate`; the receiver returns `latencies`."""

    name = "latency"
    summary = "time from when a message is due until the program has it, at 10, 50 and 90 % of raw pyzmq's rate"
    repetitions: Mapping[str, int] = {"full": 5, "quick": 3, "tiny": 1}

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Loads, duration, size."""
        percents = "comma-separated percents (default: %(default)s)"
        parser.add_argument("--load", type=numbers, default="10,50,90", help=percents)
        highest = "messages a second that are 100 %% (default: raw pyzmq's highest)"
        parser.add_argument("--rate", type=number, help=highest)
        parser.add_argument("--seconds", type=float, help="of each run")
        parser.add_argument("--size", type=number, default=100, help="bytes of a message (default: 100)")
        parser.add_argument("--transport", choices=("tcp", "ipc"), default="tcp", help="tcp or ipc (default: tcp)")

    def cells(self, options: argparse.Namespace, entries: Sequence[Entry]) -> list[Cell]:
        """Every peer at every load."""
        highest = options.rate or _highest_rate(options, entries)
        seconds = options.seconds or SECONDS[options.scale]
        return [
            Cell(
                entry=entry,
                run=Run(
                    transport=options.transport,
                    size=options.size,
                    rate=rate,
                    warmup=max(1, round(rate * seconds / 10)),
                    messages=max(1, round(rate * seconds)),
                ),
                processes=("receiver", "sender"),
                case=f"{load} % load",
                axis="% load",
                at=load,
            )
            for load in options.load
            for rate in [highest * load / 100]
            for entry in entries
            if options.transport in entry.transports and rate <= entry.messages_max
        ]

    def rows(self, cells: Sequence[Cell], samples: Sequence[Sequence[Sample]]) -> list[Row]:
        """Two rows a cell, the median and the 99th percentile, with the whole curve in the details."""
        rows = []
        for cell, of_cell in zip(cells, samples, strict=True):
            curves = [None if sample.failure else _curve(sample) for sample in of_cell]
            good = [curve for curve in curves if curve]
            details = {
                title: statistics.median(curve[index] for curve in good) for index, title in enumerate(TITLES) if good
            }
            details["k msg/s due"] = cell.run.rate / 1000
            for title in ("p50", "p99"):
                values = [curve[TITLES.index(title)] if curve else None for curve in curves]
                rows.append(_row(cell, of_cell, title, values, details))
        for row in rows:
            for other in rows:
                if other.peer == BASELINE and other.case == row.case:
                    found = ratio(row.samples, other.samples)
                    row.ratios = {} if found is None else {"x PUB/SUB": found}
        return rows


def _highest_rate(options: argparse.Namespace, entries: Sequence[Entry]) -> float:
    """What raw pyzmq passes at full speed in this very loop: each message with its time, and looked at."""
    if options.scale == "tiny":
        return TINY_RATE
    messages, repetitions = CALIBRATION[options.scale]
    entry = next((entry for entry in entries if entry.peer == BASELINE), None)
    if entry is None:
        raise RunFailed(f"without {BASELINE} among the peers, --rate must be given")
    run = Run(transport=options.transport, size=options.size, rate=AT_ONCE, warmup=messages // 10, messages=messages)
    cell = Cell(entry=entry, run=run, processes=("receiver", "sender"))
    samples = [run_cell(cell) for _ in range(repetitions)]
    rates = [float(sample.outcomes["receiver"]["rate"]) for sample in samples if not sample.failure]
    if not rates:
        raise RunFailed(f"{BASELINE} failed: {samples[0].failure}")
    print(f"100 % load is {statistics.median(rates):,.0f} messages a second", file=sys.stderr)
    return statistics.median(rates)


def _curve(sample: Sample) -> list[float] | None:
    """Microseconds at each of the points."""
    (receiver,) = receivers_of(sample)
    return percentiles_us(receiver["latencies"], POINTS) if receiver["latencies"] else None


def _row(
    cell: Cell, samples: Sequence[Sample], title: str, values: Sequence[float | None], details: dict[str, float]
) -> Row:
    return Row(
        workload="latency",
        case=f"{cell.case}, {title}",
        peer=cell.entry.peer,
        transport=cell.run.transport,
        payload="bytes",
        size=cell.run.size,
        messages=cell.run.messages,
        unit="us",
        axis=cell.axis,
        at=cell.at,
        **summarise(values),
        lost=sum(int(each["lost"]) for sample in samples for each in receivers_of(sample)),
        details=details,
        failures=[sample.failure for sample in samples if sample.failure],
    )


WORKLOAD = Latency()
