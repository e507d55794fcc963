"""Machines that run out of file descriptors or memory."""

from __future__ import annotations

import resource
import socket
import subprocess
import sys
from contextlib import ExitStack
from functools import partial

import pytest

from tests.faults.children import Child, Crew, open_files
from tests.waiting import wait_until

pytestmark = pytest.mark.slow


def test_too_few_descriptors_to_open_are_a_clean_error(team: Crew) -> None:
    """Whatever the limit: a node opens, or raises one of our errors or OSError; the process never aborts."""
    outcomes = {}
    children = [team.start("idle", f"n{limit}", files_max=limit) for limit in range(8, 72, 8)]
    for child in children:
        wait_until(partial(_opened_or_ended, child))
        outcomes[child.options.files_max] = child.close() if child.process.poll() is None else child.wait()
        text = child.errors.read_text()
        assert outcomes[child.options.files_max] in (0, 1, 3), f"{child.options.files_max}: {text[-2000:]}"
        assert outcomes[child.options.files_max] != 1 or "Too many open files" in text
    assert 3 in outcomes.values(), outcomes
    assert outcomes[64] == 0, outcomes


def test_a_node_that_runs_out_of_descriptors_serves_on(team: Crew) -> None:
    """A crowd of connections takes every descriptor: streams that flow go on, and so does the rest afterwards.

    Meanwhile it dials an address again and again, which takes a descriptor each time. The limit is set when it runs:
    it sheds strangers before they are as many as it could have at its start.
    """
    publisher = team.publisher(
        count=10_000_000, rate=12_000, seeds=["tcp://127.0.0.1:1"], config={"handshake_timeout_s": 3.0}
    )
    subscriber = team.subscriber(seeds=publisher.endpoints[:1])
    subscriber.until_position(500)
    resource.prlimit(publisher.pid, resource.RLIMIT_NOFILE, (80, 80))
    host, _, port = publisher.endpoints[0].removeprefix("tcp://").rpartition(":")
    with ExitStack() as stack:
        for _ in range(100):
            stack.enter_context(socket.create_connection((host, int(port))))
        wait_until(lambda: open_files(publisher.pid) >= 78)
        reached = subscriber.position()
        wait_until(lambda: subscriber.position() > reached + 500)
    wait_until(lambda: open_files(publisher.pid) < 60)
    late = team.subscriber("late", seeds=publisher.endpoints[:1])
    wait_until(lambda: late.position() >= 0)
    publisher.command("stop")
    subscriber.until_settled(publisher.until("done"))
    team.finish()

    team.verdict(from_start=False, excused=["late"]).check()
    assert not publisher.silences()


SHORT_OF_MEMORY = """
import asyncio, resource
from pathlib import Path
from zfabric import Config, Node

async def main():
    async with Node("poor", fabric="poor", config=Config(mdns=False, registry=False)) as node:
        publisher = node.publisher("t", delivery="at-least-once")
        subscription = node.subscribe("t")
        await publisher.publish("before")
        print((await subscription.receive(timeout=30)).value)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + (20 << 20)
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
        try:
            publisher.publish_nowait([b"x" * 1_000_000] * 60)
        except MemoryError:
            print("MemoryError")
        await publisher.publish("after")
        message = await subscription.receive(timeout=30)
        print(message.value, message.seq)
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

asyncio.run(main())
"""


def test_a_value_that_memory_does_not_suffice_for_is_a_clean_error() -> None:
    """RLIMIT_AS: MemoryError where it is published, and the stream goes on as if nothing had been said."""
    done = subprocess.run(
        [sys.executable, "-c", SHORT_OF_MEMORY], capture_output=True, text=True, timeout=50, check=False
    )

    assert (done.returncode, done.stdout.splitlines()) == (0, ["before", "MemoryError", "after 1"]), done.stderr


def _opened_or_ended(child: Child) -> bool:
    return child.process.poll() is not None or bool(child.last("opened"))
