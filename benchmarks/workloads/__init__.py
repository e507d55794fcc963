"""One small file per workload; a `Workload` says what to run and how to read the outcome."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from benchmarks.model import Cell, Entry, Row, Sample

__all__ = ["Workload", "load", "summarise"]


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
    """All workloads."""
    from benchmarks.workloads.discovery import WORKLOAD as DISCOVERY
    from benchmarks.workloads.fanout import WORKLOAD as FANOUT
    from benchmarks.workloads.throughput import WORKLOAD as THROUGHPUT

    return [THROUGHPUT, FANOUT, DISCOVERY]


def summarise(values: Sequence[float]) -> dict[str, Any]:
    """The fields of a Row that come from its values."""
    if not values:
        return {"samples": [], "median": None, "low": None, "high": None}
    return {
        "samples": list(values),
        "median": statistics.median(values),
        "low": min(values),
        "high": max(values),
    }
