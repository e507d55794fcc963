"""What zfabric wants to reach beside its peers, and whether a set of results reaches it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from benchmarks.model import Row

__all__ = ["TARGETS", "Pick", "Target", "Verdict", "judge"]


@dataclass(frozen=True, kw_only=True)
class Pick:
    """One row of the results."""

    workload: str
    peer: str
    case: str = ""
    payload: str = "bytes"
    transport: str = "tcp"
    size: int | None = None
    "None takes any."

    def find(self, rows: Sequence[Row]) -> Row | None:
        """The first such row that has a figure."""
        for row in rows:
            names = (row.workload, row.peer, row.case, row.payload, row.transport)
            same = names == (self.workload, self.peer, self.case, self.payload, self.transport)
            if same and self.size in (None, row.size) and row.median is not None:
                return row
        return None


@dataclass(frozen=True, kw_only=True)
class Target:
    """A ratio of two rows of the same run, or a figure, that must not fall below or rise above a limit."""

    title: str
    ours: Pick
    theirs: Pick | None = None
    at_least: float | None = None
    at_most: float | None = None
    unit: str = ""
    "Of a figure that is compared with nothing."

    @property
    def limit(self) -> str:
        """As a table shows it."""
        limit = f">= {self.at_least:,g}" if self.at_least is not None else f"<= {self.at_most:,g}"
        return limit if self.theirs else f"{limit} {self.unit}"

    @property
    def compared(self) -> str:
        """With whom, and with what of theirs where that is not the same as ours."""
        if self.theirs is None:
            return ""
        other = self.theirs.workload if self.theirs.workload != self.ours.workload else ""
        return ", ".join(part for part in (self.theirs.peer, other) if part)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A target and what the results say."""

    target: Target
    measured: float | None
    "Median over the rounds; None where a side was not measured."
    low: float | None
    high: float | None
    lost: int
    "Messages that did not arrive on either side: the figure is worth less then."

    @property
    def met(self) -> bool | None:
        """Whether the median is within the limit; None if it was not measured."""
        if self.measured is None:
            return None
        if self.target.at_least is not None:
            return self.measured >= self.target.at_least
        return self.target.at_most is not None and self.measured <= self.target.at_most


def judge(rows: Sequence[Row], targets: Sequence[Target] | None = None) -> list[Verdict]:
    """Hold every target against the rows of one run."""
    return [_judge(target, rows) for target in (TARGETS if targets is None else targets)]


def _judge(target: Target, rows: Sequence[Row]) -> Verdict:
    ours = target.ours.find(rows)
    theirs = target.theirs.find(rows) if target.theirs else None
    lost = sum(row.lost for row in (ours, theirs) if row)
    values: list[float] = []
    if ours and target.theirs is None:
        values = [value for value in ours.samples if value is not None]
    elif ours and theirs:
        values = [one / other for one, other in zip(ours.samples, theirs.samples, strict=False) if one and other]
    if not values:
        return Verdict(target=target, measured=None, low=None, high=None, lost=lost)
    return Verdict(target=target, measured=statistics.median(values), low=min(values), high=max(values), lost=lost)


_BATCHES = Pick(workload="throughput", peer="zfabric publish_many -> batches", size=100)
_FOR = Pick(workload="throughput", peer="zfabric publish_many -> async for", size=100)
_FANOUT = Pick(workload="fanout", peer="zfabric at-most-once", case="8 subscribers")


def _bytes(peer: str) -> Pick:
    return Pick(workload="throughput", peer=peer, size=100)


def _value(peer: str, payload: str) -> Pick:
    return Pick(workload="throughput", peer=peer, payload=payload)


def _fanout(peer: str) -> Pick:
    return Pick(workload="fanout", peer=peer, case="8 subscribers")


def _topics(peer: str) -> Pick:
    return Pick(workload="topics", peer=peer, case="10,000 topics")


def _latency(peer: str, what: str) -> Pick:
    return Pick(workload="latency", peer=peer, case=f"50 % load, {what}")


def _requests(peer: str, case: str) -> Pick:
    return Pick(workload="requests", peer=peer, case=case)


def _frames(peer: str) -> Pick:
    return Pick(workload="frames", peer=peer, payload="numpy", transport="ipc", size=1_000_000)


def _queue(peer: str) -> Pick:
    return Pick(workload="queue", peer=peer, case="1 worker")


def _discovery(case: str, peer: str = "zfabric") -> Pick:
    return Pick(workload="discovery", peer=peer, case=case, payload="", transport="loopback")


def _log(case: str) -> Pick:
    return Pick(workload="storelog", peer="zfabric log", case=case, transport="disk")


_STORE = Pick(workload="durable", peer="zfabric store")
_RELIABLY = _bytes("zfabric publish_many -> batches, at-least-once")

TARGETS = [
    *(
        Target(title="100 B bytes, batches, at-most-once", ours=_BATCHES, theirs=_bytes(peer), at_least=limit)
        for peer, limit in (("pyzmq PUB/SUB", 4), ("Zenoh", 4), ("NATS", 20), ("libzmq in C, PUB/SUB", 1.5))
    ),
    *(
        Target(title="100 B bytes, async for", ours=_FOR, theirs=_bytes(peer), at_least=2)
        for peer in ("pyzmq PUB/SUB", "Zenoh")
    ),
    *(
        Target(
            title=f"small {payload}, async for",
            ours=_value("zfabric publish_many -> async for", payload),
            theirs=_value("pyzmq PUB/SUB + msgpack", "dict"),
            at_least=2.5,
        )
        for payload in ("dict", "struct")
    ),
    Target(title="at-least-once", ours=_RELIABLY, theirs=_BATCHES, at_least=0.9),
    Target(
        title="encrypted",
        ours=replace(_BATCHES, case="encrypted"),
        theirs=replace(_BATCHES, case="plain"),
        at_least=0.67,
    ),
    *(
        Target(title="fan-out to 8, all deliveries", ours=_FANOUT, theirs=_fanout(peer), at_least=limit)
        for peer, limit in (("Zenoh", 3), ("NATS", 10))
    ),
    Target(
        title="10,000 topics in turn",
        ours=_topics("zfabric batches"),
        theirs=_topics("pyzmq PUB/SUB, topic in a frame"),
        at_least=1,
    ),
    *(
        Target(
            title=f"latency {what} at half of pyzmq's highest rate",
            ours=_latency("zfabric async for", what),
            theirs=_latency("pyzmq PUB/SUB", what),
            at_most=limit,
        )
        for what, limit in (("p50", 1.5), ("p99", 2))
    ),
    Target(
        title="request p50, one at a time",
        ours=_requests("zfabric request", "1 in flight, p50"),
        theirs=_requests("pyzmq ROUTER/DEALER", "1 in flight, p50"),
        at_most=1.3,
    ),
    *(
        Target(
            title=f"requests per second, {count} in flight",
            ours=_requests("zfabric request", f"{count} in flight, rate"),
            theirs=_requests(peer, f"{count} in flight, rate"),
            at_least=limit,
        )
        for count, peer, limit in (
            ("128", "NATS request", 3),
            ("128", "Zenoh get", 10),
            ("1,000", "NATS request", 5),
            ("1,000", "Zenoh get", 10),
        )
    ),
    Target(
        title="jobs, acknowledged",
        ours=_queue("zfabric queue, batches"),
        theirs=_queue("pyzmq PUSH/PULL"),
        at_least=0.7,
    ),
    Target(
        title="one of four workers ten times slower, time beside the ideal schedule",
        ours=Pick(workload="fairness", peer="zfabric queue, async for"),
        at_most=1.15,
        unit="x ideal",
    ),
    *(
        Target(title=title, ours=_frames(ours), theirs=_frames(peer), at_least=2)
        for title, ours in (
            ("1 MB numpy frames, same host", "zfabric publish_many -> batches"),
            ("1 MB numpy frames on loan, same host", "zfabric loan -> batches"),
        )
        for peer in ("pyzmq PUB/SUB, copy=False", "Zenoh", "Zenoh, shared memory")
    ),
    *(
        Target(title="durable, confirmed", ours=_STORE, theirs=theirs, at_least=limit)
        for theirs, limit in ((replace(_STORE, peer="NATS JetStream, file"), 25), (_RELIABLY, 0.5))
    ),
    Target(
        title="one message at a time, confirmed as stored",
        ours=Pick(workload="confirm", peer="zfabric store"),
        theirs=Pick(workload="confirm", peer="the disk's own flush"),
        at_most=2,
    ),
    Target(
        title="replay into batches", ours=Pick(workload="replay", peer="zfabric store"), at_least=1000, unit="k msg/s"
    ),
    Target(title="the log opens when grown", ours=_log("open when grown"), at_most=1000, unit="ms"),
    Target(title="the log drops half of it", ours=_log("retention of half"), at_most=1000, unit="ms"),
    Target(title="the log with 4 readers", ours=_log("memory with 4 readers"), at_most=200, unit="MB"),
    *(
        Target(
            title=f"memory at full speed, {delivery}",
            ours=Pick(workload="cost", peer=f"zfabric {delivery}"),
            at_most=100,
            unit="MB",
        )
        for delivery in ("at-most-once", "at-least-once")
    ),
    Target(title="two nodes find each other", ours=_discovery("pair"), at_most=300, unit="ms"),
    Target(title="50 nodes find each other", ours=_discovery("mesh of 50 nodes"), at_most=10, unit="s"),
    Target(
        title="50 nodes find each other, encrypted",
        ours=_discovery("mesh of 50 nodes, encrypted"),
        at_most=15,
        unit="s",
    ),
    Target(title="CPU time of an idle node", ours=_discovery("idle node, CPU"), at_most=0.5, unit="% of a core"),
    Target(title="memory of an idle node", ours=_discovery("idle node, memory"), at_most=60, unit="MB"),
]
