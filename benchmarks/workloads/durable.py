"""How many messages a second are confirmed as stored."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.model import Cell, Entry, Run, Sample
from benchmarks.workloads.rates import Rates

__all__ = ["WORKLOAD"]


class Durable(Rates):
    """Roles: `sender`, whose `flush` returns when everything is confirmed; and `store`, where the peer has one in a
    process of its own that the harness does not start as a server.
    """

    name = "durable"
    summary = "messages per second that were confirmed as stored on disk"
    messages: Mapping[str, int] = {"full": 500_000, "quick": 300_000, "tiny": 1_000}
    baselines: Mapping[str, str] = {"x JetStream": "NATS JetStream, file"}

    def processes(self, run: Run, entry: Entry) -> tuple[str, ...]:
        """A store if the peer has one."""
        return tuple(role for role in ("store", "sender") if role in entry.roles)

    def figure(self, cell: Cell, sample: Sample) -> float | None:
        """The time of the sender, until the last confirmation."""
        return None if sample.failure else cell.run.messages / float(sample.outcomes["sender"]["seconds"]) / 1000

    def details(self, cell: Cell, samples: list[Sample]) -> dict[str, float]:  # type: ignore[override]
        """Nothing is received here."""
        return {name: value for name, value in super().details(cell, samples).items() if name.startswith("sender")}


WORKLOAD = Durable()
