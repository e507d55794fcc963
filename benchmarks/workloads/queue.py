"""How many jobs a second the workers of one queue get together."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping

from benchmarks.options import numbers
from benchmarks.workloads.rates import Rates, Variant

__all__ = ["WORKLOAD"]


class Queue(Rates):
    """Roles: `sender`, which pushes jobs, and `receiver` for each of `Run.receivers` workers; each job goes to one."""

    name = "queue"
    summary = "jobs per second from one process to several workers, each job to one of them"
    messages: Mapping[str, int] = {"full": 200_000, "quick": 100_000, "tiny": 2_000}
    baselines: Mapping[str, str] = {"x PUSH/PULL": "pyzmq PUSH/PULL"}

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """The numbers of workers."""
        super().add_arguments(parser)
        parser.add_argument(
            "--workers", type=numbers, default="1,4,16", help="comma-separated numbers (default: %(default)s)"
        )

    def variants(self, options: argparse.Namespace) -> Iterator[Variant]:
        """Numbers of workers; each of them ends when nothing more comes."""
        for workers in options.workers:
            yield Variant.along("workers", workers, receivers=workers, shared=True, quiet_s=0.5)


WORKLOAD = Queue()
