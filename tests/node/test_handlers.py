"""Handlers that are plain functions: whatever they raise or return ends one call, not the thread and what waits."""

from __future__ import annotations

import asyncio
import functools
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.contract.support import TIMEOUT
from zfabric import Node, RemoteError
from zfabric.testing import MemoryFabric, eventually


def _interrupt() -> None:
    raise KeyboardInterrupt


ENDS = [lambda: sys.exit(3), lambda: next(iter(())), _interrupt]


async def _pair(fabric: MemoryFabric) -> tuple[Node, Node]:
    return await fabric.open("a"), await fabric.open("b")


@pytest.mark.parametrize("end", ENDS, ids=["exit", "stop-iteration", "interrupt"])
async def test_a_thread_outlives_what_its_function_raises(end: Any) -> None:
    """sys.exit() in a worker, a service and a message's handler."""
    async with MemoryFabric() as fabric:
        a, b = await _pair(fabric)
        heard: list[int] = []

        @b.worker("jobs")
        def work(job: Any) -> None:
            end()

        @b.service("service")
        def serve(ends: bool) -> int:
            if ends:
                end()
            return 1

        @b.on("topic", delivery="at-least-once")
        def hear(message: Any) -> None:
            heard.append(message.value)
            end()

        jobs = a.pusher("jobs", max_attempts=1)
        topic = a.publisher("topic", delivery="at-least-once", confirm="processed")
        await a.wait_for_service("service", timeout=TIMEOUT)
        await topic.wait_for(subscribers=1, timeout=TIMEOUT)
        async with asyncio.timeout(TIMEOUT):
            await jobs.push_many(range(3))
            await jobs.flush()
            await topic.publish_many(range(3))
            with pytest.raises(RemoteError, match="it raised"):
                await a.request("service", True)
            assert await a.request("service", False) == 1
        assert a.statistics().queues["jobs"].dead == 3
        assert heard == [0, 1, 2]


async def test_what_was_cancelled_within_a_handler_is_an_error_like_any_other() -> None:
    """A handler that awaits a task which was cancelled is not cancelled itself: it is told of, and goes on."""
    done: list[Any] = []

    async def handle(value: Any) -> None:
        done.append(getattr(value, "value", value))
        if len(done) % 2:
            task = asyncio.create_task(asyncio.Event().wait())
            task.cancel()
            await task

    async with MemoryFabric() as fabric:
        a, b = await _pair(fabric)
        for decorator in (b.on("topic"), b.worker("jobs"), b.service("service")):
            decorator(handle)
        await a.wait_for_service("service", timeout=TIMEOUT)
        with pytest.raises(RemoteError, match="CancelledError"):
            await a.request("service", 1)
        await a.request("service", 2)
        async with asyncio.timeout(TIMEOUT):
            topic, jobs = a.publisher("topic"), a.pusher("jobs", max_attempts=1)
            await topic.wait_for(subscribers=1)
            await topic.publish_many([3, 4])
            await eventually(lambda: done[-1] == 4)
            await jobs.push_many([5, 6])
            await jobs.flush()
        assert done == [1, 2, 3, 4, 5, 6]
        assert (b.statistics().handler_errors, a.statistics().queues["jobs"].dead) == (3, 1)


class Outcome(BaseException):
    """As pytest's `fail` and `skip` raise, and other libraries' time-outs."""


async def test_what_is_no_exception_is_an_error_like_any_other() -> None:
    """A handler that raises what derives from BaseException alone is told of, at once, and goes on."""
    handled: list[Any] = []

    async def handle(value: Any) -> None:
        handled.append(getattr(value, "value", value))
        if len(handled) % 2:
            raise Outcome("odd")

    async def values() -> AsyncIterator[int]:
        yield 1
        raise Outcome("odd")

    async with MemoryFabric() as fabric:
        a, b = await _pair(fabric)
        for decorator in (b.on("topic"), b.worker("jobs"), b.service("service")):
            decorator(handle)
        b.service("values")(values)
        await a.wait_for_service("values", timeout=TIMEOUT)
        for node in (a, b):
            with pytest.raises(RemoteError, match="Outcome: odd"):
                await node.request("service", 1)
            await node.request("service", 2)
            with pytest.raises(RemoteError, match="Outcome: odd"):
                assert [value async for value in node.stream("values")] == []
        async with asyncio.timeout(TIMEOUT):
            topic, jobs = a.publisher("topic"), a.pusher("jobs", max_attempts=1)
            await topic.wait_for(subscribers=1)
            await topic.publish_many([3, 4])
            await eventually(lambda: handled[-1] == 4)
            await jobs.push_many([5, 6])
            await jobs.flush()
        assert handled == [1, 2, 1, 2, 3, 4, 5, 6]
        assert (b.statistics().handler_errors, a.statistics().queues["jobs"].dead) == (6, 1)


async def test_an_async_function_is_awaited_however_it_is_wrapped() -> None:
    """A partial, a lambda, and an object with `__call__`: its job would count as done with nothing done."""
    done: list[str] = []

    async def work(tag: str, job: Any) -> str:
        done.append(tag)
        return tag

    class Works:
        async def __call__(self, job: Any) -> str:
            return await work("object", job)

    handlers: dict[str, Any] = {
        "partial": functools.partial(work, "partial"),
        "lambda": lambda job: work("lambda", job),
        "object": Works(),
    }
    async with MemoryFabric() as fabric:
        a, b = await _pair(fabric)
        for name, handler in handlers.items():
            b.worker(name)(handler)
            b.service(name)(handler)
            await a.wait_for_service(name, timeout=TIMEOUT)
            async with asyncio.timeout(TIMEOUT):
                jobs = a.pusher(name, max_attempts=1)
                await jobs.push(1)
                await jobs.flush()
                assert await a.request(name, 1) == name
    assert done == [tag for tag in handlers for _ in range(2)]


async def test_a_partial_s_arguments_are_checked_as_its_function_says() -> None:
    """Annotations are found behind it."""

    async def add(left: int, right: int) -> int:
        return left + right

    async with MemoryFabric() as fabric:
        a, b = await _pair(fabric)
        b.service("add")(functools.partial(add, 1))
        await a.wait_for_service("add", timeout=TIMEOUT)
        assert await a.request("add", 2) == 3
        with pytest.raises(RemoteError, match="Expected `int`"):
            await a.request("add", "2")
