"""The vocabulary that all parts share: one type and one topic per kind of reading.

A typed topic is all that two programs need to agree on: the publisher cannot send anything else,
and the subscriber gets `Cpu` or `Memory` objects instead of dictionaries.
"""

from __future__ import annotations

import re
import socket
from typing import Literal

import msgspec

import zfabric

__all__ = [
    "ALARM",
    "READINGS",
    "Alarm",
    "Cpu",
    "Disk",
    "Memory",
    "Network",
    "Process",
    "Processes",
    "Reading",
    "Traffic",
    "everything",
    "host_word",
    "topic_of",
]


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """Base of everything that the demo sends."""

    sent_ns: int
    "`time.monotonic_ns()` just before it was published; one clock for all processes of a machine."


class Cpu(Reading, frozen=True, kw_only=True):
    """How busy each core is."""

    cores: tuple[float, ...]
    "Busy percent of each core over the last half second."
    load: float
    "The machine's load average over one minute."


class Memory(Reading, frozen=True, kw_only=True):
    """Main memory and swap."""

    total_bytes: int
    available_bytes: int
    used_percent: float
    swap_percent: float


class Traffic(msgspec.Struct, frozen=True):
    """What passes one network interface."""

    received_bytes_per_s: float
    sent_bytes_per_s: float


class Network(Reading, frozen=True, kw_only=True):
    """Traffic of each interface, over the last half second."""

    interfaces: dict[str, Traffic]


class Disk(Reading, frozen=True, kw_only=True):
    """Transfer rates of all disks over the last second, and how full the root file system is."""

    read_bytes_per_s: float
    written_bytes_per_s: float
    used_percent: float


class Process(msgspec.Struct, frozen=True):
    """One running process."""

    pid: int
    name: str
    cpu_percent: float
    memory_bytes: int


class Processes(Reading, frozen=True, kw_only=True):
    """How many processes run, and the busiest of them."""

    count: int
    busiest: tuple[Process, ...]


class Alarm(Reading, frozen=True, kw_only=True):
    """A metric crossed its threshold, or came back."""

    metric: str
    state: Literal["raised", "cleared"]
    value: float
    threshold: float


READINGS: dict[str, type[Reading]] = {
    "cpu": Cpu,
    "memory": Memory,
    "network": Network,
    "disk": Disk,
    "processes": Processes,
}
"The sources by name; the name is also the topic's last word."

ALARM = "alarm"


def topic_of(kind: str, host: str = "*") -> zfabric.Topic[Reading]:
    """The typed topic of a kind of reading on one host, or (`*`) the pattern for all hosts."""
    return zfabric.Topic(f"telemetry.{host}.{kind}", Alarm if kind == ALARM else READINGS[kind])


def everything() -> str:
    """The pattern that matches all readings and alarms."""
    return "telemetry.#"


def host_word(hostname: str | None = None) -> str:
    """The host's short name as one legal word of a topic."""
    short = (socket.gethostname() if hostname is None else hostname).split(".")[0]
    return re.sub(r"[^A-Za-z0-9_-]+", "-", short).strip("-") or "host"
