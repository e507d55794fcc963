"""What a pipeline consists of, for all who take part in it."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Any, Literal

__all__ = ["Kind", "Plan", "Stage", "StageStatistics"]

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

    def executor(self) -> Executor | None:
        """Where a plain function runs; None for `async def`."""
        if self.processes:
            return ProcessPoolExecutor(self.workers, mp_context=get_context("forkserver"))
        if inspect.iscoroutinefunction(self.function):
            return None
        return ThreadPoolExecutor(self.workers, f"{self.name}-worker")

    async def call(self, executor: Executor | None, values: list[Any]) -> list[Any]:
        """What comes of these values."""
        outcome: list[Any] = []
        loop = asyncio.get_running_loop()
        for value in values:
            begun = time.perf_counter()
            try:
                if executor is None:
                    result = await self.function(value)
                else:
                    result = await loop.run_in_executor(executor, self.function, value)
            finally:
                self.statistics.busy_s += time.perf_counter() - begun
            if self.kind == "map":
                outcome.append(result)
            elif self.kind == "flat_map":
                outcome.extend(result)
            elif result:
                outcome.append(value)
        return outcome


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
        """The queue behind the last stage; each run has its own."""
        return f"{self.name}.results.{run}"
