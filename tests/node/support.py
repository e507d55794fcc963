"""What the tests of real nodes share."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from zfabric import Config, Node, Publisher, Subscription
from zfabric.node.driver import Driver
from zfabric.node.eventhub import EventStream
from zfabric.testing import RealFabric

ROOT = Path(__file__).parents[2]
TIMEOUT = 30.0
QUICK = Config(mdns=False, handshake_timeout_s=0.5, reconnect_interval_s=0.02)
MakeNode = Callable[..., Awaitable[Node]]
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
async def make_node() -> AsyncIterator[MakeNode]:
    """Opens real nodes; fields of Config are options, too."""
    fabric = RealFabric(QUICK)

    async def make(name: str, **options: Any) -> Node:
        limits = {key: options.pop(key) for key in list(options) if hasattr(QUICK, key)}
        return await fabric.open(name, config=replace(QUICK, **limits), **options)

    yield make
    await fabric.close()


PRELUDE = """
import asyncio, os, signal, sys, threading, time, warnings
import zfabric
from zfabric import Config, Node
CONFIG = Config(mdns=False, handshake_timeout_s=0.5, reconnect_interval_s=0.02)
def say(*words):
    print(*words, flush=True)
"""


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts Python programs; those that still run at the end are killed."""
    started: list[subprocess.Popen[str]] = []

    def run(program: str, *arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", PRELUDE + textwrap.dedent(program), *arguments],
            cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


async def line_of(process: subprocess.Popen[str]) -> str:
    """The next line that a program prints; the event loop runs on meanwhile."""
    assert process.stdout is not None
    return (await asyncio.to_thread(process.stdout.readline)).strip()


def driver_of(node: Node) -> Driver:
    """A node's engine room."""
    assert node._driver is not None
    return node._driver


async def connect(
    publishing: Node, subscribing: Node, topic: str, *, publisher: dict[str, Any] | None = None, **options: Any
) -> tuple[Publisher, Subscription]:
    """A publisher and a subscription that are in place for each other."""
    out, inward = publishing.publisher(topic, **(publisher or {})), subscribing.subscribe(topic, **options)
    await out.wait_for(subscribers=1, timeout=TIMEOUT)
    await inward.wait_for(publishers=1, timeout=TIMEOUT)
    return out, inward


async def next_event(events: EventStream, kind: type[Any]) -> Any:
    """The next event of one kind."""
    async with asyncio.timeout(TIMEOUT):
        async for event in events:
            if isinstance(event, kind):
                return event
    raise AssertionError(f"the events ended without {kind.__name__}")
