"""A pool of worker processes on this machine: started, kept alive, made larger and smaller, ended in peace.

ZeroMQ Guide, chapter 4, "Robust Reliable Queuing (Paranoid Pirate Pattern)": workers that die are noticed and replaced.
Heartbeats, and giving a dead worker's jobs to others, are the queue's own business; the pool looks after processes.

    pool = WorkerPool([sys.executable, "-m", "app.worker"], size=4)
    async with pool:                          # starts them
        await pool.resize(8)
        async with pool.scaled(node, "jobs", size_max=16):   # by the queue's depth, as this node sees it
            ...
                                              # SIGTERM, and SIGKILL for who has not ended after `grace_s`

What can fail: a worker that ends is started again, after a pause that doubles while it lives for less than
`healthy_s`; one that ends `attempts` times in a row without living that long breaks the pool: `failed` is set, and
the others go on. Workers must end on SIGTERM after the job in hand, or lose it to another worker. If the pool's
process is killed, its workers go on without it.
"""

from __future__ import annotations

import asyncio
import math
import os
import time
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from types import TracebackType
from typing import Self

from zfabric import FabricError, LocalProtocolError, Node

__all__ = ["WorkerPool", "WorkersFailed"]

PAUSE_S, PAUSE_S_MAX = 0.1, 10.0
SCALE_INTERVAL_S = 0.5
NO_PROGRAM = 127
"The code of a program that could not be started again, as shells have it."


class WorkersFailed(FabricError):
    """A worker's program ended again and again right after its start."""

    def __init__(self, command: Sequence[str], attempts: int, code: int) -> None:
        super().__init__(f"{' '.join(command)} ended {attempts} times in a row at once, the last time with {code}")
        self.command = tuple(command)
        self.attempts = attempts
        self.code = code


class WorkerPool:
    """Keeps `size` processes of one program running; use it as `async with`."""

    def __init__(
        self,
        command: Sequence[str | os.PathLike[str]],
        *,
        size: int,
        grace_s: float = 10.0,
        healthy_s: float = 5.0,
        attempts: int = 5,
    ) -> None:
        if isinstance(command, str) or not command:
            raise ValueError(f"the command is a list of the program and its arguments, not {command!r}")
        if not (grace_s >= 0 and healthy_s >= 0 and attempts >= 1):
            raise ValueError("grace_s and healthy_s must be 0 or more, attempts 1 or more")
        _check(size)
        self.command = tuple(os.fsdecode(part) for part in command)
        self.failed: WorkersFailed | None = None
        self.restarts = 0
        "Workers that ended by themselves and were replaced."
        self._size = size
        self._grace_s = grace_s
        self._healthy_s = healthy_s
        self._attempts = attempts
        self._open = False
        self._keepers: list[asyncio.Task[None]] = []
        self._processes: dict[int, Process] = {}

    def __repr__(self) -> str:
        return f"<WorkerPool {' '.join(self.command)} [{len(self.pids)} of {self._size}]>"

    @property
    def size(self) -> int:
        """How many workers there should be."""
        return self._size

    @property
    def pids(self) -> tuple[int, ...]:
        """The processes that run now."""
        return tuple(self._processes)

    async def __aenter__(self) -> Self:
        self._open = True
        try:
            await self._have(self._size)
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close()

    async def _close(self) -> None:
        self._open = False
        await self._have(0)

    async def resize(self, size: int) -> None:
        """Have this many workers; returns when new ones have started, and those that are too many have ended.

        Raises ValueError, OSError for a program that cannot be started, and LocalProtocolError while the pool is not
        open.
        """
        _check(size)
        if not self._open:
            raise LocalProtocolError("the pool is not open: `async with pool:` starts its workers, and ends them")
        await self._have(size)

    async def _have(self, size: int) -> None:
        self._size = size
        leaving, self._keepers = self._keepers[size:], self._keepers[:size]
        started = [self._keeper() for _ in range(size - len(self._keepers))]
        for keeper in leaving:
            keeper.cancel()
        if leaving or started:
            await asyncio.wait([*leaving, *started])
        for future in started:
            if not future.cancelled():
                future.result()

    def _keeper(self) -> asyncio.Future[None]:
        """Have one worker more; done when it has started."""
        started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        keeper = asyncio.create_task(self._keep(started))
        keeper.add_done_callback(lambda _: started.cancel())
        self._keepers.append(keeper)
        return started

    @asynccontextmanager
    async def scaled(
        self, node: Node, queue: str, *, size_max: int, size_min: int = 1, jobs_per_worker: int = 100
    ) -> AsyncIterator[None]:
        """As long as the body runs, have one worker for each `jobs_per_worker` jobs that `node` has in the queue."""
        if not 0 <= size_min <= size_max or jobs_per_worker < 1:
            raise ValueError("size_min must be 0 or more and not above size_max, jobs_per_worker 1 or more")
        scaling = asyncio.create_task(self._scale(node, queue, size_min, size_max, jobs_per_worker))
        try:
            yield
        finally:
            scaling.cancel()
            await asyncio.wait([scaling])

    async def _scale(self, node: Node, queue: str, size_min: int, size_max: int, jobs_per_worker: int) -> None:
        while True:
            statistics = node.statistics().queues.get(queue)
            depth = 0 if statistics is None else statistics.depth
            wanted = min(size_max, max(size_min, math.ceil(depth / jobs_per_worker)))
            # Shrink one by one: what looks idle now may be wanted again in a moment.
            try:
                await self.resize(wanted if wanted >= self._size else self._size - 1)
            except OSError:
                self.failed = WorkersFailed(self.command, 1, NO_PROGRAM)
            await asyncio.sleep(SCALE_INTERVAL_S)

    async def _keep(self, started: asyncio.Future[None]) -> None:
        """Have one worker until cancelled."""
        short = 0
        while True:
            begun = time.monotonic()
            try:
                process = await asyncio.create_subprocess_exec(*self.command)
            except (OSError, ValueError) as error:
                if not started.done():
                    self._keepers = [keeper for keeper in self._keepers if keeper is not asyncio.current_task()]
                    started.set_exception(error)
                    return
                code = NO_PROGRAM
            else:
                if not started.done():
                    started.set_result(None)
                code = await self._wait(process)
            short = short + 1 if time.monotonic() - begun < self._healthy_s else 1
            if short >= self._attempts:
                self.failed = WorkersFailed(self.command, short, code)
                return
            self.restarts += 1
            await asyncio.sleep(min(PAUSE_S * 2 ** (short - 1), PAUSE_S_MAX))

    async def _wait(self, process: Process) -> int:
        """The code that a worker ends with."""
        self._processes[process.pid] = process
        try:
            return await process.wait()
        except asyncio.CancelledError:
            await self._end(process)
            raise
        finally:
            self._processes.pop(process.pid, None)

    async def _end(self, process: Process) -> None:
        with suppress(ProcessLookupError):
            process.terminate()
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._grace_s):
                    await process.wait()
        finally:  # also when the program ends meanwhile
            with suppress(ProcessLookupError):
                process.kill()
        await process.wait()


def _check(size: object) -> None:
    if not isinstance(size, int) or size < 0:
        raise ValueError(f"a pool has 0 workers or more, not {size!r}")
