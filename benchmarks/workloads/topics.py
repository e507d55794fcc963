"""How many messages a second pass when they go to many topics, one message each in turn: the worst case of batching."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping

from benchmarks.options import numbers
from benchmarks.workloads.rates import Rates, Variant

__all__ = ["WORKLOAD"]


class Topics(Rates):
    """Roles: `sender`, which sends to `Run.topic_names` in turn, and `receiver`, which takes all of them."""

    name = "topics"
    summary = "messages per second spread over many topics, one message on each in turn"
    messages: Mapping[str, int] = {"full": 100_000, "quick": 50_000, "tiny": 2_000}
    baselines: Mapping[str, str] = {
        "x envelope": "pyzmq PUB/SUB, topic in a frame",
        "x prefix": "pyzmq PUB/SUB, topic in the message",
    }

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """The numbers of topics."""
        super().add_arguments(parser)
        parser.add_argument(
            "--topics", type=numbers, default="1,100,10000", help="comma-separated numbers (default: %(default)s)"
        )

    def variants(self, options: argparse.Namespace) -> Iterator[Variant]:
        """Numbers of topics."""
        for topics in options.topics:
            yield Variant.along("topics", topics, topics=topics)


WORKLOAD = Topics()
