"""How many messages a second go from one process to another, one way."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.workloads.rates import Rates

__all__ = ["WORKLOAD"]


class Throughput(Rates):
    """Roles: `sender` and `receiver`."""

    name = "throughput"
    summary = "messages per second between two processes, one way"
    messages: Mapping[str, int] = {"full": 500_000, "quick": 300_000, "tiny": 3_000}
    payloads = "bytes,dict,struct,numpy"
    baselines: Mapping[str, str] = {"x PUSH/PULL": "pyzmq PUSH/PULL", "x PUB/SUB": "pyzmq PUB/SUB"}


WORKLOAD = Throughput()
