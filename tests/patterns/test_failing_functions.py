"""Pipelines and executors tell of all that can go wrong in a function: an item that nobody settles hangs the run."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from typing import Any

import pytest
from zfabric.patterns.executor import CallFailed, FabricExecutor, exported
from zfabric.patterns.pipeline import ItemFailed, Pipeline

from zfabric import Config, Node
from zfabric.testing import MemoryFabric
from zfabric.testing.real import RealFabric

TIMEOUT = 30.0


def leaves(value: int) -> int:
    """Wants to end the program."""
    sys.exit(3)


def runs_dry(value: int) -> int:
    """Raises StopIteration, which no future takes."""
    return next(iter([]))


def names_a_file(value: int) -> int:
    """Raises what is no UTF-8."""
    raise FileNotFoundError(2, "no file", "caf\udce9")


def counts(value: int) -> Iterator[int]:
    """A generator: fine for flat_map, and no value for map."""
    yield from range(value)


async def counts_too(value: int) -> AsyncIterator[int]:
    """The same as an `async def`."""
    for number in range(value):
        yield number


def anything(value: int) -> object:
    """Gives what cannot travel."""
    return object()


async def collect(pipeline: Pipeline, source: Any, **options: Any) -> list[Any]:
    """All results of one run, fed by one node and served by another."""
    async with MemoryFabric() as fabric, asyncio.timeout(TIMEOUT):
        feeder, worker = await fabric.open("feeder"), await fabric.open("worker")
        async with pipeline.serve(worker), aclosing(pipeline.run(feeder, source, **options)) as results:
            return [result async for result in results]


WRONG = {
    leaves: "SystemExit",
    runs_dry: "StopIteration",
    names_a_file: r"caf\\udce9",
    counts: "cannot",
    anything: "cannot",
}


@pytest.mark.parametrize("function", WRONG)
async def test_an_item_fails_whatever_its_function_raises_or_gives(function: Any) -> None:
    """And the others go on, with the same threads."""
    pipeline = Pipeline("p", attempts=1).map(lambda value: function(value) if value == 1 else value)
    with pytest.raises(ItemFailed, match=WRONG[function]):
        await collect(pipeline, range(3))
    assert await collect(pipeline, range(4), on_error="skip") == [0, 2, 3]


async def test_a_process_outlives_a_function_that_leaves() -> None:
    """As its threads do."""
    with pytest.raises(ItemFailed, match="SystemExit"):
        await collect(Pipeline("p", attempts=1).map(leaves, processes=1), [1])


async def test_runs_share_their_queues_one_after_the_other() -> None:
    """A queue for each adds up at workers until they refuse; what a run that was left had asked for is nobody's."""
    pipeline = Pipeline("p").map(abs)
    async with MemoryFabric() as fabric, asyncio.timeout(TIMEOUT):
        feeder, worker = await fabric.open("feeder"), await fabric.open("worker")
        async with pipeline.serve(worker):
            for number in range(5):
                async with aclosing(pipeline.run(feeder, range(100))) as left:
                    assert await anext(left) == 0
                async with aclosing(pipeline.run(feeder, range(number))) as whole:
                    assert [result async for result in whole] == list(range(number))
            async with (
                aclosing(pipeline.run(feeder, range(3))) as one,
                aclosing(pipeline.run(feeder, range(3))) as other,
            ):
                pairs = [(await anext(one), await anext(other)) for _ in range(3)]
            assert pairs == [(0, 0), (1, 1), (2, 2)]
        assert len([queue for queue in worker.statistics().queues if ".results." in queue]) == 2


async def test_flat_map_takes_generators_of_every_kind() -> None:
    """Plain ones are read where they are to run, in a process, too."""
    for pipeline in (
        Pipeline("p").flat_map(counts),
        Pipeline("p").flat_map(counts_too),
        Pipeline("p").flat_map(counts, processes=1),
    ):
        assert await collect(pipeline, range(4)) == [0, 0, 1, 0, 1, 2]


async def test_what_makes_no_sense_is_refused_before_anything_runs() -> None:
    """It had hung, or meant something else."""
    stages = Pipeline("p")
    with pytest.raises(TypeError, match="callable"):
        stages.map(5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="processes="):
        stages.flat_map(counts_too, processes=1)
    with pytest.raises(ValueError, match="attempts"):
        Pipeline("p", attempts=0)
    with pytest.raises(ValueError, match="format"):
        stages.map(abs).picture("svg")  # type: ignore[arg-type]
    options: list[dict[str, Any]] = [{"in_flight": 0}, {"on_error": "ignore"}]
    for wrong in options:
        with pytest.raises(ValueError, match=next(iter(wrong))):
            await collect(stages, range(3), **wrong)
    with pytest.raises(ValueError, match="in_flight"):
        FabricExecutor(in_flight=0)


async def test_a_call_fails_whatever_its_function_raises_or_gives(real_fabric: RealFabric) -> None:
    """And the executor's workers go on; an `async def` is awaited."""

    async def double(value: int) -> int:
        return 2 * value

    node: Node = await real_fabric.open("worker")

    def use() -> None:
        with FabricExecutor(fabric=node.fabric, config=Config(mdns=False)) as executor:
            for function, reason in WRONG.items():
                with pytest.raises(CallFailed, match=reason):
                    executor.submit(function, 1).result(TIMEOUT)
            assert list(executor.map(double, range(3), timeout=TIMEOUT)) == [0, 2, 4]

    async with exported(node, *WRONG, double):
        await asyncio.to_thread(use)
