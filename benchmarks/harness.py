"""Runs cells in processes of their own, peers interleaved, so that drift of the machine hits all alike."""

from __future__ import annotations

import math
import multiprocessing
import pickle
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

from benchmarks.child import run_role
from benchmarks.model import Cell, Role, Run, RunFailed, Sample, TimedOut

__all__ = ["TIME_IS_OVER", "measure", "run_cell"]

TIME_IS_OVER = "not run: the time of the report was over"
END_S = 2.0
"How long the processes of a run may take to end, once it is over."


def measure(cells: Sequence[Cell], repetitions: int, deadline: float = math.inf) -> list[list[Sample]]:
    """Run every cell `repetitions` times, A B C A B C, until the deadline (monotonic); returns the samples of each cell
    in order. What hung once is not run again.
    """
    samples: list[list[Sample]] = [[] for _ in cells]
    for repetition in range(repetitions):
        for cell, collected in zip(cells, samples, strict=True):
            if collected and collected[-1].hung:
                collected.append(Sample(failure="not run again, because it hung", hung=True))
                continue
            if time.monotonic() > deadline:
                collected.append(Sample(failure=TIME_IS_OVER))
                continue
            print(f"[{repetition + 1}/{repetitions}] {cell.title}", file=sys.stderr, flush=True)
            start = time.monotonic()
            sample = run_cell(cell)
            print(f"  {time.monotonic() - start:.1f} s", file=sys.stderr, flush=True)
            if sample.failure:
                print(f"  failed: {sample.failure.strip().splitlines()[-1]}", file=sys.stderr, flush=True)
            collected.append(sample)
    return samples


def run_cell(cell: Cell) -> Sample:
    """Run one cell once: start its processes, let them meet, collect what they return. Whatever goes wrong is in the
    sample.
    """
    with _private_directory() as directory, _Processes() as processes:
        run = replace(cell.run, directory=directory)
        server = cell.entry.server
        try:
            with server(run) if server else nullcontext("") as address:
                run = replace(run, server=address)
                for name, role in _named(cell.processes):
                    processes.start(name, cell.entry.roles[role], run)
                return Sample(outcomes=processes.collect(time.monotonic() + run.timeout_s))
        except TimedOut as error:
            return Sample(failure=str(error), hung=True)
        except RunFailed as error:
            return Sample(failure=str(error))
        except Exception:  # noqa: BLE001 - a peer's own way to start its server, whatever that raises
            return Sample(failure=traceback.format_exc())


def _named(roles: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Each process's name and role; roles that several processes play are numbered."""
    totals, used = Counter(roles), Counter[str]()
    for role in roles:
        yield (role if totals[role] == 1 else f"{role}-{used[role]}"), role
        used[role] += 1


@contextmanager
def _private_directory() -> Iterator[str]:
    """A fresh directory with a short name: ipc paths are limited to about 100 bytes."""
    directory = tempfile.mkdtemp(prefix="zb")
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


class _Processes:
    """The processes of one run; ends those that are left when the run is over."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._processes: list[SpawnProcess] = []
        self._connections: dict[Any, str] = {}
        "Pipes to the processes that have not returned yet, with their names."

    def __enter__(self) -> _Processes:
        return self

    def __exit__(self, *_: object) -> None:
        for connection in self._connections:
            connection.close()
        deadline = time.monotonic() + END_S
        for process in self._processes:
            process.join(max(0.0, deadline - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()

    def start(self, name: str, role: Role, run: Run) -> None:
        """Start one role in a fresh interpreter."""
        ours, theirs = self._context.Pipe()
        arguments = (pickle.dumps(role), run, name, theirs)
        process = self._context.Process(target=run_role, args=arguments, name=name, daemon=True)
        process.start()
        theirs.close()
        self._connections[ours] = name
        self._processes.append(process)

    def collect(self, deadline: float) -> dict[str, dict[str, Any]]:
        """Serve meetings until every process has returned; raises RunFailed."""
        outcomes: dict[str, dict[str, Any]] = {}
        brought: dict[str, Any] = {}
        while self._connections:
            for connection in self._ready(deadline):
                kind, value = self._receive(connection)
                name = self._connections[connection]
                if kind == "meet":
                    brought[name] = value
                else:
                    outcomes[name] = value
                    del self._connections[connection]
                    connection.close()
            if brought and outcomes:
                raise RunFailed(f"{', '.join(brought)} waits for {', '.join(outcomes)}, which has returned")
            if brought and len(brought) == len(self._connections):
                for connection in self._connections:
                    connection.send(brought)
                brought = {}
        return outcomes

    def _ready(self, deadline: float) -> list[Connection]:
        """Pipes with something to read, waiting for the first one."""
        ready = wait(list(self._connections), max(0.0, deadline - time.monotonic()))
        if not ready:
            raise TimedOut(f"{', '.join(self._connections.values())} did not finish in time")
        return ready  # type: ignore[return-value]

    def _receive(self, connection: Connection) -> tuple[str, Any]:
        """One thing that a process said: `meet` or `done`; raises RunFailed for the rest."""
        name = self._connections[connection]
        try:
            kind, value = connection.recv()
        except (EOFError, OSError):
            raise RunFailed(f"{name} died") from None
        if kind == "failed":
            raise RunFailed(f"{name} raised\n{value}")
        return kind, value
