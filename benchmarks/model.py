"""Plain values of the benchmarks: what to run, what one run gave, what is reported."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

__all__ = ["Cell", "Entry", "Link", "Machine", "Missing", "Role", "Row", "Run", "Sample"]


@dataclass(frozen=True, kw_only=True)
class Run:
    """Everything a role needs to know; the same object goes to every process of one run."""

    transport: str = "tcp"
    "`tcp` (loopback) or `ipc`."
    payload: str = "bytes"
    "Kind of value: `bytes`, `dict` or `struct`; see `payloads.py`."
    size: int = 100
    "Bytes of a `bytes` payload."
    warmup: int = 0
    "Messages that are sent first and not measured."
    messages: int = 100_000
    "Messages that are measured."
    receivers: int = 1
    "Processes that receive everything (fan-out)."
    nodes: int = 1
    "Nodes in this process (discovery)."
    nodes_total: int = 2
    "Nodes in all processes (discovery)."
    seconds: float = 5.0
    "How long to watch (idle)."
    quiet_s: float = 2.0
    "A receiver that got nothing for this long counts the rest as lost."
    timeout_s: float = 60.0
    "The harness ends the processes after this long, and reports a failure."
    directory: str = ""
    "A fresh private directory with a short name, for ipc sockets and registries; set by the harness."

    def bind_address(self, name: str) -> str:
        """Where a peer that speaks ZeroMQ binds for this run's transport."""
        return f"ipc://{self.directory}/{name}" if self.transport == "ipc" else "tcp://127.0.0.1:*"


class Link(Protocol):
    """How a role talks to the harness and, through it, to the other roles of its run."""

    name: str
    "This process: the role's name, with a number when several processes have the same role."

    def meet(self, value: Any = None) -> dict[str, Any]:
        """Wait until every process of the run is here too; returns what each brought, by name."""

    async def meet_async(self, value: Any = None) -> dict[str, Any]:
        """The same without blocking the event loop."""


Role = Callable[[Run, Link], Mapping[str, Any]]
"""What one process does: a plain function in a peer file. Returns measurements."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One peer in one workload: the functions that play its roles."""

    workload: str
    peer: str
    "As shown in the table, with the variant: `pyzmq PUSH/PULL`."
    roles: Mapping[str, Role]
    "Functions on a module's top level, by the names of the workload's roles."
    payload: str = "bytes"
    transports: tuple[str, ...] = ("tcp", "ipc")


@dataclass(frozen=True, kw_only=True)
class Missing:
    """A peer file that could not be loaded because a package is not installed."""

    peer: str
    package: str


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One thing to measure: an entry, its parameters and the role of each process."""

    entry: Entry
    run: Run
    processes: tuple[str, ...]
    case: str = ""
    "What is measured, where a workload measures several things."

    @property
    def title(self) -> str:
        """One line for progress messages."""
        return f"{self.entry.peer} {self.case or self.run.transport}"


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What the processes of one run returned, by process name, or why there is nothing."""

    outcomes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    failure: str = ""


class Row(msgspec.Struct, kw_only=True, tag="row", tag_field="type"):
    """One line of the result: a metric of a peer over all repetitions."""

    workload: str
    case: str
    peer: str
    transport: str
    payload: str
    size: int | None
    "Bytes of one payload as msgspec packs it; None where nothing is sent."
    messages: int
    unit: str
    samples: list[float]
    "One value a repetition, in the order they ran."
    median: float | None
    low: float | None
    high: float | None
    target: float | None = None
    "What design says it must stay under."
    lost: int = 0
    "Messages that did not arrive, over all repetitions."
    ratios: dict[str, float] = {}
    "Median over the rounds of this peer's value divided by the baseline's value of the same round."
    details: dict[str, float] = {}
    "Further medians, such as CPU time per message."
    failures: list[str] = []

    @property
    def flags(self) -> str:
        """What a reader must know before believing the figure."""
        flags = [f"LOST {self.lost}"] if self.lost else []
        if self.failures:
            flags.append(f"FAILED {len(self.failures)}")
        if self.target is not None and self.median is not None and self.median > self.target:
            flags.append("OVER TARGET")
        return ", ".join(flags)


class Machine(msgspec.Struct, kw_only=True, tag="machine", tag_field="type"):
    """Where and with what the figures were measured."""

    time: str
    system: str
    processor: str
    cores: int
    memory_bytes: int
    python: str
    event_loop: str
    load_before: float
    "Load average of the last minute before the first run: above 0.5 means noise."
    versions: dict[str, str]
    command: str
