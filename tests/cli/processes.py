"""Running `python -m zfabric` and looking at what it does."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

import zfabric

__all__ = ["Commands", "Outcome", "Running", "environment"]

TIMEOUT_S = 30.0
ROOT = Path(zfabric.__file__).parents[1]


def environment(**changes: str) -> dict[str, str]:
    """The environment of a command: this zfabric, no mDNS, nothing of the developer's own settings."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("ZFABRIC_") and key != "NO_COLOR"}
    kept["ZFABRIC_RUNTIME_DIR"] = os.environ["ZFABRIC_RUNTIME_DIR"]
    kept["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**kept, "ZFABRIC_MDNS": "0", "TERM": "xterm-256color", "COLUMNS": "100", **changes}


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def records(self) -> list[dict[str, Any]]:
        """The JSON objects on stdout: one a line, and nothing else."""
        return [msgspec.json.decode(line, type=dict[str, Any]) for line in self.out.splitlines()]


class Running:
    """A command that runs."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def line(self) -> str:
        """The next line of stdout."""
        assert self.process.stdout is not None
        return (await asyncio.wait_for(self.process.stdout.readline(), TIMEOUT_S)).decode()

    async def note(self, part: str) -> str:
        """The next line of stderr that holds `part`."""
        assert self.process.stderr is not None
        while line := await asyncio.wait_for(self.process.stderr.readline(), TIMEOUT_S):
            if part in line.decode():
                return line.decode()
        raise AssertionError(f"stderr ended without {part!r}")

    async def end(self, stdin: bytes | None = None) -> Outcome:
        """Wait for its end."""
        out, err = await asyncio.wait_for(self.process.communicate(stdin), TIMEOUT_S)
        assert self.process.returncode is not None
        outcome = Outcome(self.process.returncode, (out or b"").decode(), (err or b"").decode())
        assert "never retrieved" not in outcome.err, outcome.err
        return outcome

    async def stop(self, number: int = signal.SIGINT) -> tuple[Outcome, float]:
        """Send a signal; returns how it ended and after how many seconds."""
        began = time.monotonic()
        self.process.send_signal(number)
        outcome = await self.end()
        return outcome, time.monotonic() - began


class Commands:
    """Starts `zfabric` processes."""

    def __init__(self) -> None:
        self._started: list[asyncio.subprocess.Process] = []

    async def start(self, *arguments: str, **changes: str) -> Running:
        """Start a command; `changes` go into its environment."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-W", "error", "-m", "zfabric", *arguments),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=environment(**changes),
        )
        self._started.append(process)
        return Running(process)

    async def run(self, *arguments: str, stdin: bytes | None = None, **changes: str) -> Outcome:
        """Run a command to its end."""
        return await (await self.start(*arguments, **changes)).end(stdin)

    async def kill_all(self) -> None:
        """End what still runs."""
        for process in self._started:
            if process.returncode is None:
                process.kill()
            await process.communicate()
