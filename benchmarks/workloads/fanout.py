"""How many messages a second reach all subscribers together, when every one of them gets everything."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence

from benchmarks.model import Cell, Row, Sample
from benchmarks.options import numbers
from benchmarks.workloads import ratio
from benchmarks.workloads.rates import Rates, Variant

__all__ = ["WORKLOAD"]


class Fanout(Rates):
    """Roles: `sender`, and `receiver` for each of `Run.receivers`."""

    name = "fanout"
    summary = "messages per second delivered by one publisher to several subscribers, in total"
    messages: Mapping[str, int] = {"full": 100_000, "quick": 50_000, "tiny": 2_000}

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """The numbers of subscribers."""
        super().add_arguments(parser)
        parser.add_argument(
            "--subscribers", type=numbers, default="1,8", help="comma-separated numbers (default: %(default)s)"
        )

    def variants(self, options: argparse.Namespace) -> Iterator[Variant]:
        """Numbers of subscribers."""
        for subscribers in options.subscribers:
            yield Variant.along("subscribers", subscribers, receivers=subscribers, timeout_s=60.0 + subscribers)

    def rows(self, cells: Sequence[Cell], samples: Sequence[Sequence[Sample]]) -> list[Row]:
        """Compare each peer with itself at one subscriber, too."""
        rows = super().rows(cells, samples)
        alone = {(row.peer, row.transport): row.samples for row in rows if row.at == 1}
        for row in rows:
            found = ratio(row.samples, alone.get((row.peer, row.transport), []))
            if found is not None:
                row.ratios["x to 1"] = found
        return rows


WORKLOAD = Fanout()
