"""The feeding and collecting side of a pipeline."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable, Iterator
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from typing import Any
from weakref import WeakKeyDictionary

from zfabric.patterns._plan import Plan
from zfabric.patterns._workers import HELD_S

from zfabric import FabricError, Job, Node, NodeClosed, Puller, Pusher

__all__ = ["ItemFailed", "PipelineStatistics", "Run", "Source", "collected"]

Source = Iterable[Any] | AsyncIterable[Any]
SETTLE_S = 5.0
"When all results are there, workers may take so long to acknowledge the last items."
_END = object()
_runs = count()
_places: WeakKeyDictionary[Node, set[int]] = WeakKeyDictionary()


class ItemFailed(FabricError):
    """A stage's function raised for one item of the source, as often as it was tried.

    `index` is the item's number, from 0.
    """

    def __init__(self, pipeline: str, index: int, stage: str, reason: str) -> None:
        super().__init__(f"item {index} of pipeline {pipeline!r} failed in stage {stage!r}: {reason}")
        self.pipeline = pipeline
        self.index = index
        self.stage = stage
        self.reason = reason


@dataclass
class PipelineStatistics:
    """How far a run has come."""

    pushed: int = 0
    "Items taken from the source."
    done: int = 0
    "Of those, items whose results were handled."
    failed: int = 0
    results: int = 0


class Run:
    """One pass of a source through a pipeline."""

    def __init__(
        self,
        plan: Plan,
        node: Node,
        source: Source,
        statistics: PipelineStatistics,
        ordered: bool,
        in_flight: int,
        on_error: str,
    ) -> None:
        self._plan = plan
        self._node = node
        self._source = source
        self._statistics = statistics
        self._ordered = ordered
        self._on_error = on_error
        self._id = ""
        self._first = next(_runs) << 40
        "Numbers of items tell runs apart."
        self._free = asyncio.Semaphore(in_flight)
        self._total: int | None = None
        self._next = 0
        "All items before it are done."
        self._beyond: set[int] = set()
        self._early: dict[int, Job] = {}

    async def results(self) -> AsyncGenerator[Any, None]:
        """The results of item after item; an item is done when the one after it is asked for."""
        with _place(self._node) as self._id:
            async with aclosing(self._run()) as results:
                async for result in results:
                    yield result

    async def _run(self) -> AsyncGenerator[Any, None]:
        queue = self._plan.results(self._id)
        async with (
            self._node.puller(queue, ack="manual", handler_timeout_s=HELD_S) as puller,
            self._node.pusher(self._plan.queue(0), max_attempts=0) as pusher,
        ):
            feeding = asyncio.create_task(self._feed(pusher, puller))
            try:
                while self._total is None or self._next < self._total:
                    try:
                        job = await anext(puller)
                    except StopAsyncIteration:
                        break
                    async with aclosing(self._taken(job)) as values:
                        async for value in values:
                            self._statistics.results += 1
                            yield value
            finally:
                feeding.cancel()
                await asyncio.wait([feeding])
            if not feeding.cancelled():
                feeding.result()
            if self._total is None or self._next < self._total:
                raise NodeClosed("the node was closed during the run")
            with suppress(TimeoutError):
                async with asyncio.timeout(SETTLE_S):
                    await pusher.flush()

    async def _feed(self, pusher: Pusher, puller: Puller) -> None:
        """Push the source, as fast as results allow."""
        index = 0
        try:
            async for item in _iterate(self._source):
                await self._free.acquire()
                await pusher.push([self._id, self._first + index, [item]])
                index = self._statistics.pushed = index + 1
        except BaseException:
            await puller.close()
            raise
        self._total = index
        if self._next == index:
            await puller.close()

    async def _taken(self, job: Job) -> AsyncGenerator[Any, None]:
        """What can be yielded now that this job is here."""
        await job.ack()  # from here on it is safe: this process holds the source as well
        index = job.value[1] - self._first
        if index < self._next or index in self._beyond or index in self._early:
            return  # a worker died, and another did the same again; or it is of a run before, which was left
        if not self._ordered:
            async with aclosing(self._values(job)) as values:
                async for value in values:
                    yield value
            self._beyond.add(index)
            while self._next in self._beyond:
                self._beyond.remove(self._next)
                self._next += 1
            return
        self._early[index] = job
        while self._next in self._early:
            job = self._early[self._next]
            async with aclosing(self._values(job)) as values:
                async for value in values:
                    yield value
            del self._early[self._next]
            self._next += 1

    async def _values(self, job: Job) -> AsyncGenerator[Any, None]:
        _, index, values, failed = job.value
        if not failed:
            for value in values:
                yield value
        else:
            self._statistics.failed += 1
            if self._on_error == "raise":
                raise ItemFailed(self._plan.name, index - self._first, *values)
        self._statistics.done += not failed
        self._free.release()


@contextmanager
def _place(node: Node) -> Iterator[str]:
    """Where the results of a run come: one place for each that goes on at a node, so that queues do not add up."""
    taken = _places.setdefault(node, set())
    number = next(number for number in count() if number not in taken)
    taken.add(number)
    try:
        yield f"{node.id}-{number}"
    finally:
        taken.remove(number)


async def _iterate(source: Source) -> AsyncGenerator[Any, None]:
    if isinstance(source, AsyncIterable):
        async for item in source:
            yield item
    else:
        for item in source:
            yield item


async def collected(results: AsyncIterator[Any], how: list[tuple[str, float]]) -> AsyncGenerator[Any, None]:
    """Results in the batches and windows that were asked for."""
    for kind, amount in how:
        results = _batches(results, int(amount)) if kind == "batch" else _windows(results, amount)
    async for result in results:
        yield result


async def _batches(results: AsyncIterator[Any], count: int) -> AsyncGenerator[list[Any], None]:
    some: list[Any] = []
    async for result in results:
        some.append(result)
        if len(some) == count:
            yield some
            some = []
    if some:
        yield some


async def _windows(results: AsyncIterator[Any], seconds: float) -> AsyncGenerator[list[Any], None]:
    some: list[Any] = []
    loop = asyncio.get_running_loop()
    closes_at = 0.0
    pending: asyncio.Future[Any] | None = None
    try:
        while True:
            pending = pending or asyncio.ensure_future(anext(results, _END))
            timeout = max(0.0, closes_at - loop.time()) if some else None
            await asyncio.wait({pending}, timeout=timeout)
            if pending.done():
                result, pending = pending.result(), None
                if result is _END:
                    break
                if not some:
                    closes_at = loop.time() + seconds
                some.append(result)
            if some and loop.time() >= closes_at:
                yield some
                some = []
        if some:
            yield some
    finally:
        if pending is not None:
            pending.cancel()
            await asyncio.wait([pending])
