"""The working side of a pipeline: takes items from one queue, calls a function, pushes to the next."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from zfabric.patterns._plan import Caller, Plan, reason_of

from zfabric import DeliveryFailed, EncodeFailed, Job, LimitExceeded, Node, NodeClosed, Puller, Pusher

__all__ = ["Workers"]

HELD_S = 24 * 3600.0
"A worker holds an item until the following stages are done with it, however long they take."
SETTLE_S = 1.0
IDLE_S = 60.0
"The way to the results of a run that sent nothing for so long is given up, and opened again if need be."


class Outlet:
    """A pusher that settles the jobs of the stage before when what came of them is done."""

    def __init__(self, pusher: Pusher) -> None:
        self._pusher = pusher
        self._waiting: list[Job] = []
        self._pushed = asyncio.Event()
        self._pushing = 0
        self._closing = False
        self.task = asyncio.create_task(self._settle())

    async def push(self, value: list[Any], job: Job) -> None:
        """Push what came of a job."""
        self._pushing += 1
        try:
            await self._pusher.push(value)
        finally:
            self._pushing -= 1
        self._waiting.append(job)
        self._pushed.set()

    async def close(self) -> None:
        """Give the next stage a moment; what is not settled then is done again by others."""
        self._closing = True
        self._pushed.set()
        await asyncio.wait([self.task], timeout=SETTLE_S)
        self.task.cancel()
        await asyncio.wait([self.task])

    async def _settle(self) -> None:
        """Until nothing was pushed for a while."""
        with suppress(NodeClosed, DeliveryFailed):
            while await self._active():
                self._pushed.clear()
                jobs, self._waiting = self._waiting, []
                await self._pusher.flush()
                for job in jobs:
                    await job.ack()
        await self._pusher.close()

    async def _active(self) -> bool:
        while True:
            try:
                async with asyncio.timeout(IDLE_S):
                    await self._pushed.wait()
            except TimeoutError:
                if self._pushing:
                    continue
                return False
            return bool(self._waiting) or not self._closing


class Workers:
    """The workers of one stage in this process."""

    def __init__(self, plan: Plan, number: int, node: Node) -> None:
        self._plan = plan
        self._number = number
        self._stage = plan.stages[number]
        self._node = node
        self._outlets: dict[str, Outlet] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._free = asyncio.Semaphore(self._stage.workers)

    async def __aenter__(self) -> Self:
        self._caller = Caller(self._stage)
        queue = self._plan.queue(self._number)
        self._puller: Puller = self._node.puller(queue, ack="manual", handler_timeout_s=HELD_S)
        self._reading = asyncio.create_task(self._read())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reading.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.wait([self._reading, *self._tasks])
        await asyncio.gather(*(outlet.close() for outlet in self._outlets.values()))
        await self._puller.close()
        self._caller.close()

    async def _read(self) -> None:
        async for job in self._puller:
            await self._free.acquire()
            task = asyncio.create_task(self._work(job))
            self._tasks.add(task)
            task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._free.release()
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None and not isinstance(task.exception(), NodeClosed):
            asyncio.get_running_loop().call_exception_handler(
                {"message": f"a worker of {self._stage.name} failed", "exception": task.exception(), "task": task}
            )

    async def _work(self, job: Job) -> None:
        stage, plan = self._stage, self._plan
        run, index, values = job.value
        stage.statistics.received += len(values)
        try:
            outcome = await stage.call(self._caller, values)
        except (GeneratorExit, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                raise  # else only what the function awaited was cancelled
            await self._failed(job, error)
            return
        try:
            if self._number + 1 < len(plan.stages):
                await self._outlet(plan.queue(self._number + 1)).push([run, index, outcome], job)
            else:
                await self._outlet(plan.results(run)).push([run, index, outcome, False], job)
        except (EncodeFailed, LimitExceeded) as error:
            await self._failed(job, error)
        else:
            stage.statistics.sent += len(outcome)

    async def _failed(self, job: Job, error: BaseException) -> None:
        """Nothing came of a job that can travel: try it again, or tell the run."""
        stage, (run, index, _) = self._stage, job.value
        stage.statistics.failed += 1
        if job.attempt < self._plan.attempts:
            await job.nack()
        else:
            failure = [stage.name, reason_of(error)]
            await self._outlet(self._plan.results(run)).push([run, index, failure, True], job)

    def _outlet(self, queue: str) -> Outlet:
        outlet = self._outlets.get(queue)
        if outlet is None:
            outlet = self._outlets[queue] = Outlet(self._node.pusher(queue, max_attempts=0))
            outlet.task.add_done_callback(lambda _: self._outlets.pop(queue, None))
        return outlet
