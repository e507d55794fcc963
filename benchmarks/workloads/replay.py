"""How many messages a second a new reader gets that were stored before it came."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.model import Entry, Run
from benchmarks.workloads.rates import Rates

__all__ = ["WORKLOAD"]


class Replay(Rates):
    """Roles: `store`, if the peer has one in a process of its own; `sender`, which has everything stored before the
    first meeting; and `receiver`, which starts to read then.
    """

    name = "replay"
    summary = "messages per second that a new reader gets from what is stored"
    messages: Mapping[str, int] = {"full": 1_000_000, "quick": 300_000, "tiny": 2_000}

    def processes(self, run: Run, entry: Entry) -> tuple[str, ...]:
        """A store if the peer has one."""
        return tuple(role for role in ("store", "sender", "receiver") if role in entry.roles)


WORKLOAD = Replay()
