"""Pipelines over real sockets: order, failures, back-pressure, and workers that die."""

from __future__ import annotations

import asyncio
import operator
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest
from zfabric.patterns.pipeline import ItemFailed, Pipeline, PipelineStatistics

from tests.waiting import wait_until_async
from zfabric import Node
from zfabric.testing.real import RealFabric

TIMEOUT = 30.0


@pytest.fixture
async def nodes(real_fabric: RealFabric) -> list[Node]:
    """One that feeds, two that work."""
    return [await real_fabric.open(name) for name in ("feeder", "one", "two")]


async def collect(pipeline: Pipeline, node: Node, source: Any, **options: Any) -> list[Any]:
    """All results of one run."""
    async with asyncio.timeout(TIMEOUT), aclosing(pipeline.run(node, source, **options)) as results:
        return [result async for result in results]


def double(value: int) -> int:
    """A plain function, which a thread or a process calls."""
    return 2 * value


def worker_of(value: int) -> int:
    """Where it runs."""
    return os.getpid()


def lethal(value: int) -> int:
    """Kills the process that calls it with 5."""
    if value == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return value


async def test_results_are_those_of_one_loop_in_order(nodes: list[Node]) -> None:
    """Functions of every kind, on two nodes, give what a plain loop gives."""

    async def digits(value: int) -> list[int]:
        for _ in range(5 * (value % 3)):  # the later ones overtake
            await asyncio.sleep(0)
        return [int(digit) for digit in str(value)]

    pipeline = Pipeline("p").map(double, workers=2).flat_map(digits, workers=4).filter(lambda digit: digit != 4)
    async with pipeline.serve(nodes[1]), pipeline.serve(nodes[2]):
        got = await collect(pipeline, nodes[0], range(300))
        again = await collect(pipeline, nodes[0], range(300), ordered=False)

    expected = [int(digit) for value in range(300) for digit in str(2 * value) if digit != "4"]
    assert got == expected
    assert sorted(again) == sorted(expected)
    first = pipeline.statistics[0]
    assert (first.received, first.sent, first.failed) == (600, 600, 0)


async def test_an_empty_source_and_an_asynchronous_one(nodes: list[Node]) -> None:
    """Both end."""

    async def source() -> AsyncIterator[int]:
        for value in range(3):
            yield value

    pipeline = Pipeline("p").map(double)
    async with pipeline.serve(nodes[1]):
        assert await collect(pipeline, nodes[0], []) == []
        assert await collect(pipeline, nodes[0], source()) == [0, 2, 4]


async def test_batches_and_windows(nodes: list[Node]) -> None:
    """Lists of a length, or of a time; nothing is left over."""
    pipeline = Pipeline("p").map(double).batch(4)
    windows = Pipeline("p").map(double).window(0.2)

    async def slow() -> AsyncIterator[int]:
        yield 1
        yield 2
        begun = time.monotonic()
        await wait_until_async(lambda: time.monotonic() - begun > 0.5)
        yield 3

    async with pipeline.serve(nodes[1]):
        assert await collect(pipeline, nodes[0], range(10)) == [[0, 2, 4, 6], [8, 10, 12, 14], [16, 18]]
        assert await collect(windows, nodes[0], slow()) == [[2, 4], [6]]
    with pytest.raises(ValueError, match="come last"):
        pipeline.map(double)


async def test_numpy_arrays_travel_through_all_stages(nodes: list[Node]) -> None:
    """They are values like all others."""
    np = pytest.importorskip("numpy")
    pipeline = Pipeline("p").map(np.negative).map(operator.itemgetter(slice(0, 10)))
    async with pipeline.serve(nodes[1], [0]), pipeline.serve(nodes[2], [1]):
        results = await collect(pipeline, nodes[0], [np.arange(50_000.0), np.ones(3)])

    assert np.array_equal(results[0], -np.arange(10.0))
    assert np.array_equal(results[1], -np.ones(3))


async def test_processes_run_beside_this_one(nodes: list[Node]) -> None:
    """Work for the processor leaves this process."""
    pipeline = Pipeline("p").map(worker_of, processes=1)
    async with pipeline.serve(nodes[1]):
        pids = set(await collect(pipeline, nodes[0], range(5)))

    assert len(pids) == 1
    assert os.getpid() not in pids


async def test_a_process_that_is_killed_harms_no_other_item(nodes: list[Node]) -> None:
    """One item kills its process: it counts as failed, and all others get through, now and later."""
    pipeline = Pipeline("p", attempts=1).map(lethal, processes=2)
    statistics = PipelineStatistics()
    async with pipeline.serve(nodes[1]):
        got = await collect(pipeline, nodes[0], range(12), on_error="skip", statistics=statistics)
        again = await collect(pipeline, nodes[0], range(4))

    assert got == [value for value in range(12) if value != 5]
    assert again == [0, 1, 2, 3]
    assert statistics.failed == 1


async def test_failures_are_tried_again_and_then_told(nodes: list[Node]) -> None:
    """One that fails once is not lost; one that always fails raises, or is left out and counted."""
    attempts: dict[int, int] = {}

    def sometimes(value: int) -> int:
        attempts[value] = attempts.get(value, 0) + 1
        if value == 3 or (value == 5 and attempts[value] == 1):
            raise ValueError(f"not {value}")
        return value

    pipeline = Pipeline("p", attempts=2).map(sometimes).map(double)
    statistics = PipelineStatistics()
    async with pipeline.serve(nodes[1]):
        got = await collect(pipeline, nodes[0], range(8), on_error="skip", statistics=statistics)
        with pytest.raises(ItemFailed, match="item 3 of pipeline 'p' failed in stage '0-sometimes': ValueError: not 3"):
            await collect(pipeline, nodes[0], range(8))

    assert got == [0, 2, 4, 8, 10, 12, 14]
    assert (statistics.pushed, statistics.done, statistics.failed, statistics.results) == (8, 7, 1, 7)
    assert (attempts[3], attempts[5]) == (4, 3)


async def test_what_was_cancelled_within_a_function_is_a_failure(nodes: list[Node]) -> None:
    """It would hold its item for a day."""

    async def awaits(value: int) -> int:
        task = asyncio.create_task(asyncio.Event().wait())
        task.cancel()
        await task
        return value

    pipeline = Pipeline("p", attempts=1).map(awaits)
    async with pipeline.serve(nodes[1]):
        with pytest.raises(ItemFailed, match="CancelledError"):
            await collect(pipeline, nodes[0], [1])


async def test_a_source_that_raises_ends_the_run(nodes: list[Node]) -> None:
    """With its own error."""

    async def source() -> AsyncIterator[int]:
        yield 1
        raise RuntimeError("no more")

    pipeline = Pipeline("p").map(double)
    async with pipeline.serve(nodes[1]):
        with pytest.raises(RuntimeError, match="no more"):
            await collect(pipeline, nodes[0], source())


async def test_a_slow_sink_slows_the_source(nodes: list[Node]) -> None:
    """No more than `in_flight` items are taken before results are."""
    taken: list[int] = []

    def source() -> Any:
        for value in range(100):
            taken.append(value)
            yield value

    pipeline = Pipeline("p").map(double)
    async with pipeline.serve(nodes[1]), aclosing(pipeline.run(nodes[0], source(), in_flight=10)) as results:
        assert await anext(results) == 0
        await wait_until_async(lambda: len(taken) >= 10)
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(taken) <= 11
        assert await anext(results) == 2


async def test_a_worker_that_dies_loses_nothing(nodes: list[Node], real_fabric: RealFabric) -> None:
    """Its items, and what it had pushed to the next stage, are done again by others; no result comes twice."""
    feeder, one, two = nodes

    def slow(value: int) -> int:
        return sum(range(20_000)) * 0 + value

    pipeline = Pipeline("p").map(slow, workers=4).map(slow, workers=4)
    got: list[int] = []
    serving = pipeline.serve(one)
    await serving.__aenter__()
    async with pipeline.serve(two), asyncio.timeout(TIMEOUT), aclosing(pipeline.run(feeder, range(300))) as results:
        async for result in results:
            got.append(result)
            if len(got) == 50:
                await one.close(timeout=0)
    await serving.__aexit__(None, None, None)

    assert got == list(range(300))


@pytest.mark.parametrize("ordered", [True, False])
async def test_results_that_come_twice_are_given_once(nodes: list[Node], ordered: bool) -> None:
    """As from a worker that died after it had pushed them, and another that did the same again."""
    feeder, worker, _ = nodes
    pipeline = Pipeline("p").map(double)

    async def work_twice() -> None:
        async for job in worker.puller("p.0-double", ack="manual"):
            run, index, values = job.value
            results = worker.pusher(f"p.results.{run}", max_attempts=0)
            for _ in range(2):
                await results.push([run, index, [double(value) for value in values], False])
            await job.ack()

    working = asyncio.create_task(work_twice())
    try:
        got = await collect(pipeline, feeder, range(50), ordered=ordered)
    finally:
        working.cancel()
        await asyncio.wait([working])

    assert sorted(got) == [2 * value for value in range(50)]


async def test_a_sink_is_called_with_every_result(nodes: list[Node], capsys: pytest.CaptureFixture[str]) -> None:
    """A function or a coroutine; with a bar on stderr, if wanted."""
    pipeline = Pipeline("p").map(double)
    got: list[int] = []

    async def sink(value: int) -> None:
        got.append(value)

    async with pipeline.serve(nodes[1]):
        statistics = await pipeline.into(nodes[0], range(10), got.append)
        await pipeline.into(nodes[0], range(10), sink, progress=True)

    assert got == [*range(0, 20, 2)] * 2
    assert (statistics.done, statistics.results) == (10, 10)
    assert "100%" in capsys.readouterr().err


async def test_mistakes_are_told_at_once(nodes: list[Node]) -> None:
    """No stages, stages that are not there, numbers that make no sense."""
    with pytest.raises(ValueError, match="no stages"):
        await collect(Pipeline("p"), nodes[0], [])
    with pytest.raises(ValueError, match="asked to serve"):
        await Pipeline("p").map(double).serve(nodes[0], [1]).__aenter__()
    with pytest.raises(ValueError, match="workers must be 1"):
        Pipeline("p").map(double, workers=0)
    with pytest.raises(ValueError, match="1 value or more"):
        Pipeline("p").batch(0)
    with pytest.raises(ValueError, match="lasts longer"):
        Pipeline("p").window(0)


def test_pictures() -> None:
    """The same stages in both languages."""
    pipeline = Pipeline("p").map(double, workers=3).batch(10)

    assert pipeline.picture() == (
        'flowchart LR\n  s0["source"]\n  s1["0-double x3"]\n  s2["batch 10"]\n  s3["sink"]\n  s0 --> s1 --> s2 --> s3\n'
    )
    assert pipeline.picture("dot").startswith('digraph "p" {\n  rankdir=LR;\n  "source" -> "0-double x3";\n')
