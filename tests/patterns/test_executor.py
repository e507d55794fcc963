"""The executor: its calls are made in other processes, in any of them, and again if one dies."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, wait
from pathlib import Path

import numpy as np
import pytest
from zfabric.patterns.executor import CallFailed, FabricExecutor

from tests.waiting import wait_until
from zfabric import Config

pytestmark = pytest.mark.slow

TIMEOUT = 30
WORKER = """
import asyncio, os, sys, time
from pathlib import Path
from zfabric import Config, Node
from zfabric.patterns.executor import exported

def square(value): return value * value
def where(value): return os.getpid()
def total(*values, scale=1): return sum(values) * scale
def negative(array): return -array
def wrong(): raise ValueError("not today")
def slowly(value, path):
    with open(path, "a") as file: file.write(f"{os.getpid()}\\n")
    deadline = time.monotonic() + 0.2
    while time.monotonic() < deadline: time.sleep(0.01)
    return value

async def main():
    async with Node("worker", fabric=sys.argv[1], config=Config(mdns=False)) as node:
        async with exported(node, square, where, total, negative, wrong, slowly, workers=2):
            print("ready", flush=True)
            await asyncio.Event().wait()

asyncio.run(main())
"""

StartWorker = Callable[[], subprocess.Popen[str]]


@pytest.fixture
def fabric() -> str:
    """A fabric of this test's own."""
    return f"test-{secrets.token_hex(4)}"


@pytest.fixture
def start_worker(fabric: str, tmp_path: Path) -> Iterator[StartWorker]:
    """Starts worker processes, which are ended with the test."""
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    processes: list[subprocess.Popen[str]] = []

    def start() -> subprocess.Popen[str]:
        process = subprocess.Popen([sys.executable, str(script), fabric], stdout=subprocess.PIPE, text=True)
        processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture
def executor(fabric: str) -> Iterator[FabricExecutor]:
    """One that is shut down with the test, whatever is under way."""
    config = Config(mdns=False, peer_timeout_s=1.0, heartbeat_interval_s=0.2, close_timeout_s=1.0)
    made = FabricExecutor(fabric=fabric, config=config)
    yield made
    made.shutdown(cancel_futures=True)


def test_calls_are_made_elsewhere(executor: FabricExecutor, start_worker: StartWorker) -> None:
    """By name or by function, with positional and named arguments, arrays in and out; errors come back."""
    early = executor.submit("square", 5)
    start_worker()

    def square(value: int) -> int:
        raise AssertionError("only its name is used")

    assert early.result(TIMEOUT) == 25
    assert list(executor.map(square, range(100), timeout=TIMEOUT)) == [value * value for value in range(100)]
    assert executor.submit("total", 1, 2, scale=10).result(TIMEOUT) == 30
    assert executor.submit("where", 0).result(TIMEOUT) != os.getpid()
    assert np.array_equal(executor.submit("negative", np.arange(20_000)).result(TIMEOUT), -np.arange(20_000))
    with pytest.raises(CallFailed, match="wrong: ValueError: not today"):
        executor.submit("wrong").result(TIMEOUT)
    with pytest.raises(CallFailed, match="no function 'missing' is exported here; there are: negative, slowly"):
        executor.submit("missing").result(TIMEOUT)


def test_a_worker_that_is_killed_loses_no_call(
    executor: FabricExecutor, start_worker: StartWorker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another one makes its calls again; all results come, in order, with a bar."""
    started = tmp_path / "started"
    workers = {process.pid: process for process in (start_worker(), start_worker())}
    numbers = range(40)
    results = executor.map("slowly", numbers, [str(started)] * len(numbers), timeout=TIMEOUT, progress=True)
    wait_until(lambda: started.exists() and set(map(int, started.read_text().split())) == set(workers))
    next(iter(workers.values())).send_signal(signal.SIGKILL)

    assert list(results) == list(numbers)
    assert len(started.read_text().split()) > len(numbers)
    assert "100%" in capsys.readouterr().err


def test_the_end(fabric: str, start_worker: StartWorker) -> None:
    """Leaving `with` waits for what is under way; nothing is taken afterwards; what nobody does can be cancelled."""
    lonely = FabricExecutor("nobody", fabric=fabric, config=Config(mdns=False, close_timeout_s=0.5))
    future = lonely.submit("square", 1)
    assert not wait([future], timeout=0.1).done
    lonely.shutdown(cancel_futures=True)
    with pytest.raises(CancelledError):
        future.result(TIMEOUT)

    start_worker()
    with FabricExecutor(fabric=fabric, config=Config(mdns=False)) as executor:
        futures = [executor.submit("square", value) for value in range(10)]
    assert [future.result(0) for future in futures] == [value * value for value in range(10)]
    with pytest.raises(RuntimeError, match="shut down"):
        executor.submit("square", 1)


def test_a_program_that_is_killed_takes_the_processes_of_its_pool_with_it(fabric: str, tmp_path: Path) -> None:
    """They would wait for work for ever."""
    script = tmp_path / "pool.py"
    body = WORKER.replace("workers=2", "processes=1").replace("asyncio.run(main())", "")
    script.write_text(f'{body}\nif __name__ == "__main__": asyncio.run(main())\n')
    program = subprocess.Popen([sys.executable, str(script), fabric], stdout=subprocess.DEVNULL)
    try:
        with FabricExecutor(fabric=fabric, config=Config(mdns=False)) as executor:
            pid = executor.submit("where", 0).result(TIMEOUT)
        assert pid != program.pid
    finally:
        program.kill()
        program.wait()
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), TIMEOUT)
