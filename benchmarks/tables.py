"""The tables of the documentation, written from results so that they cannot say anything else."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.charts import figure
from benchmarks.growth import growths
from benchmarks.model import Results, Row
from benchmarks.targets import Pick, Target, judge

__all__ = ["DOCUMENTS", "TABLES", "replaced"]

ROOT = Path(__file__).parent.parent
DOCUMENTS = (ROOT / "README.md", ROOT / "docs" / "performance.md")
BLOCK = re.compile(r"<!-- benchmarks: begin (\w+) -->\n.*?<!-- benchmarks: end -->\n", re.DOTALL)


def replaced(text: str, results: Results) -> str:
    """The document with its marked blocks written anew. Raises ValueError if it has none."""
    if not BLOCK.search(text):
        raise ValueError("no <!-- benchmarks: begin ... --> block to write to")
    return BLOCK.sub(lambda found: _block(found[1], results), text)


def _block(name: str, results: Results) -> str:
    lines = [f"<!-- benchmarks: begin {name} -->", *TABLES[name](results), "<!-- benchmarks: end -->\n"]
    return "\n".join(lines)


def _targets(results: Results) -> Iterator[str]:
    """Every target, met, missed or not measured."""
    yield "| what, in one run | compared with | wanted | measured (lowest to highest round) |"
    yield "|---|---|---|---|"
    for verdict in judge(results.rows):
        target = verdict.target
        limit = target.limit.replace(">=", "≥").replace("<=", "≤")
        if verdict.measured is None:
            measured = "not measured"
        else:
            unit = "x" if target.theirs else f" {target.unit}"
            measured = f"{figure(verdict.measured)}{unit} ({figure(verdict.low)} to {figure(verdict.high)})"
            measured = f"**{measured}**" if verdict.met else f"{measured}, missed"
        yield f"| {target.title} | {target.compared} | {limit} | {measured} |"
    yield ""
    yield _origin(results)


def _origin(results: Results) -> str:
    machine = results.machine
    commit = machine.versions.get("commit", "unknown")
    computer = f"{machine.processor}, {machine.cores} cores, {machine.python}"
    return f"{computer}, load {machine.load_before} before the run, {machine.time[:10]}, commit {commit}."


_PUBSUB = Pick(workload="throughput", peer="")
_DURABLE = Pick(workload="durable", peer="")
_FRAMES = Pick(workload="frames", peer="", payload="numpy", transport="ipc", size=1_000_000)
_MANY, _NOWAIT = "zfabric publish_many -> ", "zfabric publish_nowait -> "

EXPECTATIONS: Sequence[tuple[str, Pick, str, Sequence[str]]] = (
    (
        "`publish_many` to `batches()`",
        replace(_PUBSUB, size=100),
        f"{_MANY}batches",
        ("libzmq in C, PUB/SUB", "pyzmq PUB/SUB", "Zenoh", "NATS", "Redis streams", "Kafka, mock broker"),
    ),
    ("`publish_many` to `async for`", replace(_PUBSUB, size=100), f"{_MANY}async for", ("pynng Push0/Pull0",)),
    (
        "`publish_nowait` to `async for`",
        replace(_PUBSUB, size=100),
        f"{_NOWAIT}async for",
        ("pyzmq asyncio PUSH/PULL", "Cyclone DDS, reliable"),
    ),
    (
        "small dict, `async for`",
        replace(_PUBSUB, payload="dict"),
        f"{_MANY}async for",
        ("pyzmq PUB/SUB + msgpack", "Zenoh + msgpack"),
    ),
    (
        "small `Struct`, `async for`",
        replace(_PUBSUB, payload="struct"),
        f"{_MANY}async for",
        ("pyzmq PUB/SUB + msgspec",),
    ),
    *(
        (
            f"fan-out to {count}, all deliveries",
            Pick(workload="fanout", peer="", case=f"{count} subscribers"),
            "zfabric at-most-once",
            ("pyzmq PUB/SUB", "Zenoh", "NATS"),
        )
        for count in (8, 100)
    ),
    (
        "10,000 topics, one message on each in turn",
        Pick(workload="topics", peer="", case="10,000 topics"),
        "zfabric batches",
        ("pyzmq PUB/SUB, topic in a frame",),
    ),
    *(
        (
            f"latency at half of pyzmq's highest rate, {what}",
            Pick(workload="latency", peer="", case=f"50 % load, {what}"),
            "zfabric async for",
            ("pyzmq PUB/SUB",),
        )
        for what in ("p50", "p99")
    ),
    (
        "request, one at a time, p50",
        Pick(workload="requests", peer="", case="1 in flight, p50"),
        "zfabric request",
        ("pyzmq ROUTER/DEALER", "NATS request", "Zenoh get", "zerorpc"),
    ),
    (
        "requests, 1,000 in flight",
        Pick(workload="requests", peer="", case="1,000 in flight, rate"),
        "zfabric request",
        ("pyzmq ROUTER/DEALER", "NATS request", "Zenoh get"),
    ),
    *(
        (
            f"jobs to {workers}, `batches()`",
            Pick(workload="queue", peer="", case=workers),
            "zfabric queue, batches",
            ("pyzmq PUSH/PULL", "Redis streams, group", "NATS queue group", "RabbitMQ, pika"),
        )
        for workers in ("1 worker", "16 workers")
    ),
    (
        "durable, confirmed",
        _DURABLE,
        "zfabric store",
        (
            "NATS JetStream, file",
            "NATS JetStream, file, sync always",
            "Redis streams, always",
            "RabbitMQ, pika, confirmed",
        ),
    ),
    (
        "durable, one at a time",
        replace(_DURABLE, workload="confirm"),
        "zfabric store",
        ("the disk's own flush", "NATS JetStream, file, sync always", "Redis streams, always"),
    ),
    *(
        (
            f"{size // 1_000_000} MB arrays over ipc",
            replace(_FRAMES, size=size),
            f"{_MANY}batches",
            ("pyzmq PUB/SUB, copy=False", "Zenoh", "Zenoh, shared memory"),
        )
        for size in (1_000_000, 8_000_000)
    ),
    (
        "most memory at full speed",
        Pick(workload="cost", peer=""),
        "zfabric at-most-once",
        ("pyzmq PUB/SUB", "Zenoh", "NATS"),
    ),
    (
        "from the start of Python to the first message",
        Pick(workload="startup", peer="", case="first message", payload=""),
        "zfabric, one node",
        ("Zenoh, one session", "Python alone"),
    ),
)
"""What, where, which of ours, and which of the others."""


def _expectations(results: Results) -> Iterator[str]:
    """Medians of ours beside those of others."""
    yield "| what | zfabric | for comparison |"
    yield "|---|---|---|"
    for title, pick, ours, others in EXPECTATIONS:
        own, *rest = (replace(pick, peer=peer).find(results.rows) for peer in (ours, *others))
        compared = ", ".join(f"{row.peer} {_amount(row)}" for row in rest if row)
        yield f"| {title} | {_amount(own) if own else 'not measured'} | {compared} |"
    yield ""
    yield _origin(results)


def _amount(row: Row) -> str:
    """The median in a unit that reads well, and how much was lost."""
    value, unit = row.median or 0.0, row.unit
    if unit.startswith("k ") and value >= 1000:
        value, unit = value / 1000, "M " + unit[2:]
    elif unit == "us" and value >= 1000:
        value, unit = value / 1000, "ms"
    return f"{figure(value)} {unit}" + (f" ({row.flags})" if row.flags else "")


_BATCHES = replace(_PUBSUB, peer=f"{_MANY}batches", size=100)
_RELIABLY = replace(_BATCHES, peer=f"{_MANY}batches, at-least-once")

GUARANTEES = (
    ("at-least-once", _RELIABLY, _BATCHES, "each batch is kept until it is acknowledged; acks come in groups"),
    (
        "the same, with 1 % of all batches lost",
        replace(_RELIABLY, peer=f"{_RELIABLY.peer}, 1 % lost"),
        _BATCHES,
        "repairs travel beside the stream, and readers wait for them",
    ),
    (
        "stored (`durable=True`)",
        replace(_DURABLE, peer="zfabric store"),
        _BATCHES,
        "every batch is written and flushed to disk before it is confirmed",
    ),
    (
        "jobs with leases (`batches()`)",
        Pick(workload="queue", peer="zfabric queue, batches", case="1 worker"),
        _BATCHES,
        "each job is leased, acknowledged, and may return",
    ),
    (
        "jobs with leases (`async for`)",
        Pick(workload="queue", peer="zfabric queue, async for", case="1 worker"),
        _BATCHES,
        "and each is acknowledged by itself",
    ),
    (
        "encryption",
        replace(_BATCHES, case="encrypted"),
        replace(_BATCHES, case="plain"),
        "libzmq's threads encrypt each frame",
    ),
)
"""What, measured where, beside what, and why."""


def _guarantees(results: Results) -> Iterator[str]:
    """What is left of the rate without them."""
    yield "| guarantee | what remains of the rate at most once | why |"
    yield "|---|---|---|"
    for title, ours, theirs, why in GUARANTEES:
        (verdict,) = judge(results.rows, [Target(title=title, ours=ours, theirs=theirs, at_least=0)])
        remains = "not measured"
        if verdict.measured is not None and verdict.low is not None and verdict.high is not None:
            remains = f"{100 * verdict.measured:.0f} % ({100 * verdict.low:.0f} to {100 * verdict.high:.0f})"
        yield f"| {title} | {remains} | {why} |"


def _growths(results: Results) -> Iterator[str]:
    """How our costs grow."""
    yield "| workload | what grows | cost of one, from the least to the most | slope |"
    yield "|---|---|---|---|"
    for growth in growths(results.rows):
        if growth.peer.startswith("zfabric"):
            what = ", ".join(part for part in (growth.workload, growth.peer, growth.what, growth.transport) if part)
            (first, low), (last, high) = growth.points[0], growth.points[-1]
            cost = f"{figure(low)} to {figure(high)} {growth.unit}"
            yield f"| {what} | {growth.axis}, {first:,g} to {last:,g} | {cost} | {growth.slope:+.2f} |"


TABLES: dict[str, Callable[[Results], Iterator[str]]] = {
    "targets": _targets,
    "expectations": _expectations,
    "guarantees": _guarantees,
    "growths": _growths,
}
