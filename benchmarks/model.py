"""Plain values of the benchmarks: what to run, what one run gave, what is reported."""

from __future__ import annotations

import shutil
import sysconfig
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

__all__ = [
    "SLOWER",
    "Cell",
    "Entry",
    "Link",
    "Machine",
    "Missing",
    "Part",
    "Results",
    "Role",
    "Row",
    "Run",
    "RunFailed",
    "Sample",
    "Server",
    "TimedOut",
    "Unavailable",
    "program",
    "work_of",
]


@dataclass(frozen=True, kw_only=True)
class Run:
    """Everything a role needs to know; the same object goes to every process of one run."""

    transport: str = "tcp"
    "`tcp` (loopback) or `ipc`."
    payload: str = "bytes"
    "Kind of value: `bytes`, `dict`, `struct` or `numpy`; see `payloads.py`."
    size: int = 100
    "Bytes of a `bytes` or `numpy` payload."
    warmup: int = 0
    "Messages that are sent first and not measured."
    messages: int = 100_000
    "Messages that are measured."
    receivers: int = 1
    "Processes that receive: each gets everything, or its share if `shared`."
    shared: bool = False
    "The receivers compete for the messages (queue): each stops when nothing more comes."
    topics: int = 1
    "The messages go to that many topics in turn."
    rate: float = 0.0
    "Messages per second, each with the time that it is due, for latencies; 0 is as fast as possible."
    work_s: float = 0.0
    "What a worker takes for a job; the first one takes ten times as long (fairness)."
    in_flight: int = 1
    "Requests that wait for their replies at one time."
    bounded: bool = False
    "Limits of the peer's queues as it ships; otherwise none, because nothing may be lost."
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
    secure: bool = False
    "Encrypted, for peers that can be."
    signed: bool = False
    "Each batch is signed by an identity, and nothing else is taken."
    directory: str = ""
    "A fresh private directory with a short name, for ipc sockets and registries; set by the harness."
    server: str = ""
    "Address of the peer's server, where it has one; set by the harness."

    @property
    def topic_names(self) -> list[str]:
        """Names of the topics, words joined by dots."""
        return [f"benchmark.topic{index}" for index in range(self.topics)]


SLOWER = 10
"How many times as long the first worker takes for a job (`Run.work_s`)."


def work_of(run: Run, link: Link) -> float:
    """Seconds that this worker takes for a job."""
    return run.work_s * (SLOWER if link.name == "receiver-0" else 1)


class Link(Protocol):
    """How a role talks to the harness and, through it, to the other roles of its run."""

    name: str
    "This process: the role's name, with a number when several processes have the same role."

    def meet(self, value: Any = None) -> dict[str, Any]:
        """Wait until every process of the run is here too; returns what each brought, by name."""

    async def meet_async(self, value: Any = None) -> dict[str, Any]:
        """The same without blocking the event loop."""


Role = Callable[[Run, Link], Mapping[str, Any]]
"""What one process does: a function on a module's top level, or a `partial` of such. Returns measurements."""

Server = Callable[[Run], AbstractContextManager[str]]
"""Starts a peer's server on loopback in the run's directory, gives its address, and ends it."""


class RunFailed(Exception):
    """A process raised, died or did not finish in time, or a server did not start."""


class TimedOut(RunFailed):
    """A process did not finish in time: it would not the next time either."""


class Unavailable(Exception):
    """Raised while a peer file is imported: something that is no Python package is missing here."""


def program(name: str) -> str:
    """The path of a program that a peer needs, also one that a package brought; raises Unavailable."""
    path = shutil.which(name) or shutil.which(name, path=sysconfig.get_path("scripts"))
    if path is None:
        raise Unavailable(f"program {name}")
    return path


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One peer in the workloads that it plays the same way: the functions that play its roles."""

    workloads: tuple[str, ...]
    peer: str
    "As shown in the table, with the variant: `pyzmq PUSH/PULL`."
    roles: Mapping[str, Role]
    "By the names of the workload's roles."
    payload: str = "bytes"
    transports: tuple[str, ...] = ("tcp",)
    can_encrypt: bool = False
    "Whether the roles heed `Run.secure`."
    server: Server | None = None
    messages_max: int = 1 << 30
    "A slow peer is measured with no more messages than this, shared among its receivers."
    in_flight_max: int = 1 << 30
    "Requests that its client can have on the way at one time."


class Missing(msgspec.Struct, frozen=True, kw_only=True, tag="missing", tag_field="type"):
    """A peer file that could not be loaded."""

    peer: str
    why: str
    "Such as `package nats is not installed`."


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One thing to measure: an entry, its parameters and the role of each process."""

    entry: Entry
    run: Run
    processes: tuple[str, ...]
    case: str = ""
    "What is measured, where a workload measures several things."
    axis: str = ""
    "What grows from case to case, where something does: `subscribers`."
    at: float = 0.0
    "How much of it there is."

    @property
    def title(self) -> str:
        """One line for progress messages."""
        return f"{self.entry.peer}, {self.case + ', ' if self.case else ''}{self.run.transport}, {self.run.payload}"


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What the processes of one run returned, by process name, or why there is nothing."""

    outcomes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    failure: str = ""
    hung: bool = False
    "It was ended because its time was over."


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
    axis: str = ""
    "What grows from case to case, and how much of it there is here."
    at: float = 0.0
    samples: list[float | None]
    "One value a repetition, in the order they ran; None where it failed."
    median: float | None
    low: float | None
    high: float | None
    lost: int = 0
    "Messages that did not arrive, over all repetitions."
    ratios: dict[str, float] = {}
    "Median over the rounds of this peer's value divided by the baseline's value of the same round."
    details: dict[str, float] = {}
    "Further medians, such as CPU time per message."
    failures: list[str] = []

    def __post_init__(self) -> None:
        """What is read from a file is the same as what was written there."""
        self.at = float(self.at)

    @property
    def flags(self) -> str:
        """What a reader must know before believing the figure."""
        flags = [f"LOST {self.lost}"] if self.lost else []
        if self.failures:
            flags.append(f"FAILED {len(self.failures)}")
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


class Part(msgspec.Struct, kw_only=True, tag="part", tag_field="type"):
    """One command of a report."""

    command: str
    seconds: float
    failure: str = ""
    "Why it gave no rows."


@dataclass(frozen=True, kw_only=True)
class Results:
    """Everything that was measured, and what was not."""

    machine: Machine
    missing: list[Missing] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        """Whether something did not run as it should."""
        return any(row.failures for row in self.rows) or any(part.failure for part in self.parts)
