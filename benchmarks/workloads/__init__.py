"""One small file per workload; a `Workload` says what to run and how to read the outcome."""

from __future__ import annotations

import argparse
import importlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from benchmarks.model import Cell, Entry, Row, Sample

__all__ = ["Workload", "load", "ratio", "summarise"]

NAMES = (
    "throughput",
    "fanout",
    "topics",
    "latency",
    "requests",
    "queue",
    "fairness",
    "durable",
    "confirm",
    "replay",
    "storelog",
    "frames",
    "cost",
    "startup",
    "discovery",
)


class Workload(Protocol):
    """What every workload file offers as `WORKLOAD`."""

    name: str
    summary: str
    repetitions: Mapping[str, int]
    "Repetitions by scale: `full`, `quick`, `tiny`."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the options that only this workload has."""

    def cells(self, options: argparse.Namespace, entries: Sequence[Entry]) -> list[Cell]:
        """What to measure, in the order of one round."""

    def rows(self, cells: Sequence[Cell], samples: Sequence[Sequence[Sample]]) -> list[Row]:
        """What the samples say."""


def load() -> list[Workload]:
    """All workloads, in the order of the report."""
    return [importlib.import_module(f"{__name__}.{name}").WORKLOAD for name in NAMES]


def summarise(values: Sequence[float | None]) -> dict[str, Any]:
    """The fields of a Row that come from its values; None stands for a run that failed."""
    good = [value for value in values if value is not None]
    return {
        "samples": list(values),
        "median": statistics.median(good) if good else None,
        "low": min(good, default=None),
        "high": max(good, default=None),
    }


def ratio(ours: Sequence[float | None], theirs: Sequence[float | None]) -> float | None:
    """Median over the rounds: both runs of a round were seconds apart, so the machine's drift cancels out."""
    of_rounds = [one / other for one, other in zip(ours, theirs, strict=False) if one and other]
    return statistics.median(of_rounds) if of_rounds else None
