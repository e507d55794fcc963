"""Starts the servers of peers that need one: on loopback, in the run's own directory, ended by the handle that started
them.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.model import Run, RunFailed

__all__ = ["accepts", "free_port", "running"]

END_S = 10.0


def free_port() -> int:
    """A TCP port of loopback that nobody uses just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def accepts(port: int) -> bool:
    """Whether something listens there."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def running(
    command: Sequence[str],
    run: Run,
    ready: Callable[[], bool],
    environment: Mapping[str, str] | None = None,
    start_s: float = 30.0,
) -> Iterator[None]:
    """Run a server until the block ends; raises RunFailed with the end of its log if it does not become ready."""
    log = Path(run.directory, "server.log")
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=run.directory,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + start_s
        while not ready():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RunFailed(f"{command[0]} did not start\n{log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.02)
        yield
    finally:
        # The group of its own also holds what the server started itself.
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
