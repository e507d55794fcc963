"""What a pipeline consists of, for all who take part in it."""

from __future__ import annotations

import asyncio
import inspect
import os
import time
from collections.abc import AsyncIterable, Callable, Iterable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context, parent_process
from threading import Thread
from typing import Any, Literal

__all__ = ["Caller", "Kind", "Plan", "Stage", "StageStatistics", "reason_of"]

Kind = Literal["map", "flat_map", "filter"]


@dataclass
class StageStatistics:
    """What the workers of one stage in this process have done."""

    name: str
    received: int = 0
    "Items of the source, or what came of them."
    sent: int = 0
    failed: int = 0
    "Calls that raised."
    busy_s: float = 0.0
    "Time in the function, summed over workers."


@dataclass(frozen=True)
class Stage:
    """One step that every item takes."""

    kind: Kind
    function: Callable[..., Any]
    workers: int
    processes: bool
    name: str
    statistics: StageStatistics = field(compare=False)

    async def call(self, caller: Caller, values: list[Any]) -> list[Any]:
        """What comes of these values."""
        outcome: list[Any] = []
        for value in values:
            begun = time.perf_counter()
            try:
                result = await caller.call(value)
            finally:
                self.statistics.busy_s += time.perf_counter() - begun
            if self.kind == "map":
                outcome.append(result)
            elif self.kind == "flat_map" and isinstance(result, AsyncIterable):
                outcome += [value async for value in result]
            elif self.kind == "flat_map":
                outcome += result
            elif result:
                outcome.append(value)
        return outcome


class Caller:
    """Calls a stage's function where it runs: in the event loop, in threads, or in processes."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._executor: Executor | None = None
        if stage.processes:
            self._executor = _pool(stage.workers)
        elif not inspect.iscoroutinefunction(stage.function):
            self._executor = ThreadPoolExecutor(stage.workers, f"{stage.name}-worker")

    async def call(self, value: Any) -> Any:
        """The function's result. Raises what it raises, and BrokenProcessPool for a value that kills its process."""
        if self._executor is None:
            return await self._stage.function(value)
        result = await self._run(self._executor, partial(_called, self._stage.function, self._stage.kind, value))
        return await result if inspect.iscoroutine(result) else result

    async def _run(self, executor: Executor, call: Callable[[], Any]) -> Any:
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(executor, call)
        except BrokenProcessPool:
            if self._executor is executor:
                self._executor = _pool(self._stage.workers)
        # One of several has killed its process, and the pool with it: which one shows when each is alone.
        alone = _pool(1)
        try:
            return await loop.run_in_executor(alone, call)
        finally:
            alone.shutdown(wait=False)

    def close(self) -> None:
        """Call nothing more."""
        if self._executor is not None:
            self._executor.shutdown(wait=False, cancel_futures=True)


def _called(function: Callable[[Any], Any], kind: Kind, value: Any) -> Any:
    """Call it where it shall run, and there make all values of a flat_map.

    What would end the event loop, or cannot be raised from a future, is an error like others.
    """
    try:
        result = function(value)
        return list(result) if kind == "flat_map" and isinstance(result, Iterable) else result
    except BaseException as error:
        if isinstance(error, Exception) and not isinstance(error, StopIteration):
            raise
        raise RuntimeError(f"it raised {type(error).__name__}: {error}") from error


def reason_of(error: BaseException) -> str:
    """An exception's type and message, as text that can travel: not every file's name is UTF-8."""
    try:
        message = str(error)
    except Exception as broken:  # noqa: BLE001 - whatever `__str__` raises
        message = f"its message cannot be shown: {type(broken).__name__}"
    return f"{type(error).__name__}: {message}".encode("utf-8", "backslashreplace").decode()


def _pool(processes: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(processes, mp_context=get_context("forkserver"), initializer=_end_with_parent)


def _end_with_parent() -> None:
    """A program that is killed takes the processes of its pool with it by no other way."""
    Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@dataclass
class Plan:
    """The stages of a pipeline, and the queues between them."""

    name: str
    attempts: int
    stages: list[Stage] = field(default_factory=list)

    def queue(self, number: int) -> str:
        """The queue in front of a stage."""
        return f"{self.name}.{self.stages[number].name}"

    def results(self, run: str) -> str:
        """The queue behind the last stage; runs of one node share it one after the other."""
        return f"{self.name}.results.{run}"
