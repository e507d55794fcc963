"""Coroutines that begin at once, and tasks that go on at once: what they may rely on, as in any task."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator, Callable

import pytest

from zfabric.node.eager import EagerFuture, EagerTasks

VARIABLE = contextvars.ContextVar("VARIABLE", default="unset")


@pytest.fixture
async def eager() -> AsyncIterator[EagerTasks]:
    """In the test's loop."""
    tasks = EagerTasks(asyncio.get_running_loop())
    yield tasks
    tasks.close()


async def test_what_need_not_wait_is_done_at_once(eager: EagerTasks) -> None:
    """It takes no task, and its caller is the current task again."""
    done = []
    caller = asyncio.current_task()

    async def work() -> None:
        done.append(asyncio.current_task())

    started = [eager.start(work()), eager.start(work())]

    assert started == [None, None]
    assert caller is asyncio.current_task()
    assert caller not in done


async def test_what_waits_goes_on_in_the_task_in_which_it_began(eager: EagerTasks) -> None:
    """Before and after a wait, with a result, and after giving others a turn."""
    future = asyncio.get_running_loop().create_future()
    seen = []

    async def work() -> None:
        seen.append(asyncio.current_task())
        await asyncio.sleep(0)
        seen.append(asyncio.current_task())
        seen.append(await future)

    task = eager.start(work())
    assert task is not None
    future.set_result("result")
    await task

    assert seen == [task, task, "result"]


async def test_each_has_a_task_of_its_own_once_it_waits(eager: EagerTasks) -> None:
    """Two that wait at the same time are two tasks."""
    event = asyncio.Event()

    async def work() -> None:
        await event.wait()

    one, other = eager.start(work()), eager.start(work())
    event.set()
    assert one is not None
    assert other is not None
    await asyncio.gather(one, other)

    assert one is not other


async def test_context_variables_are_its_own(eager: EagerTasks) -> None:
    """What one sets no other sees; it sees it itself after a wait."""
    seen = []

    async def work(value: str) -> None:
        seen.append(VARIABLE.get())
        VARIABLE.set(value)
        await asyncio.sleep(0)
        seen.append(VARIABLE.get())

    async def at_once() -> None:
        seen.append(VARIABLE.get())
        VARIABLE.set("at once")

    tasks = [eager.start(at_once()), eager.start(at_once()), eager.start(work("one"))]
    assert tasks[2] is not None
    await tasks[2]

    assert seen == ["unset", "unset", "unset", "one"]
    assert VARIABLE.get() == "unset"


async def test_a_timeout_that_began_before_the_first_wait_ends_it(eager: EagerTasks) -> None:
    """asyncio.timeout finds its task, also if it is over before that had a turn."""
    outcomes = []

    async def work(delay: float) -> None:
        try:
            async with asyncio.timeout(delay):
                await asyncio.Event().wait()
        except TimeoutError:
            outcomes.append(delay)

    tasks = [eager.start(work(delay)) for delay in (0.0, 0.01)]
    await asyncio.wait_for(asyncio.gather(*filter(None, tasks)), 5)

    assert outcomes == [0.0, 0.01]


async def test_a_cancellation_before_the_first_turn_arrives_where_it_waits(eager: EagerTasks) -> None:
    """What it waits for is cancelled as well, and it may clean up."""
    future = asyncio.get_running_loop().create_future()
    cleaned = []

    async def work() -> None:
        try:
            await future
        finally:
            await asyncio.sleep(0)
            cleaned.append(True)

    task = eager.start(work())
    assert task is not None
    task.cancel()
    await asyncio.wait([task])

    assert task.cancelled()
    assert future.cancelled()
    assert cleaned == [True]


async def test_one_that_cancels_itself_and_is_done_harms_no_other(eager: EagerTasks) -> None:
    """The next one that waits is not cancelled."""
    done = []

    async def cancels_itself() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()

    async def work() -> None:
        await asyncio.sleep(0)
        done.append(True)

    eager.start(cancels_itself())
    task = eager.start(work())
    assert task is not None
    await task

    assert done == [True]


async def test_an_error_is_the_task_s(eager: EagerTasks) -> None:
    """As if the task had run it from the beginning."""

    async def work() -> None:
        await asyncio.sleep(0)
        raise ValueError("broken")

    task = eager.start(work())
    assert task is not None

    with pytest.raises(ValueError, match="broken"):
        await task


async def test_it_sees_its_caller_s_context_variables(eager: EagerTasks) -> None:
    """Those that were set when it began, at once and after a wait."""
    seen = []

    async def work() -> None:
        seen.append(VARIABLE.get())
        await asyncio.sleep(0)
        seen.append(VARIABLE.get())

    token = VARIABLE.set("the caller's")
    task = eager.start(work())
    VARIABLE.reset(token)
    assert task is not None
    await task

    assert seen == ["the caller's", "the caller's"]


class Deferred(list[Callable[[], object]]):
    """What is to be called soon, and calls it."""

    def run(self) -> None:
        """From the event loop, where no task runs."""
        while self:
            self.pop(0)()


@pytest.fixture
async def deferred() -> Deferred:
    """Takes what a future defers."""
    return Deferred()


async def wait_for(future: asyncio.Future[str], seen: list[object]) -> None:
    """Note what came of a future, and in which task and context."""
    VARIABLE.set("its own")
    try:
        seen.append(await future)
    except BaseException as error:
        seen.append(type(error))
        raise
    finally:
        seen += [asyncio.current_task(), VARIABLE.get()]


async def test_a_task_goes_on_with_a_result_as_soon_as_it_is_called(deferred: Deferred) -> None:
    """Within the very call from the event loop, in its own task and context."""
    loop = asyncio.get_running_loop()
    future: EagerFuture[str] = EagerFuture(loop, deferred.append)
    seen: list[object] = []
    task = asyncio.create_task(wait_for(future, seen))
    await asyncio.sleep(0)

    future.set_result("result")
    assert seen == []
    after: list[object] = []

    def look() -> None:
        deferred.run()
        after.extend(seen)

    loop.call_soon(look)
    await asyncio.wait_for(task, 5)

    assert after == ["result", task, "its own"]


async def test_a_task_does_not_go_on_inside_of_another(deferred: Deferred) -> None:
    """It waits for its turn of the loop then."""
    future: EagerFuture[str] = EagerFuture(asyncio.get_running_loop(), deferred.append)
    seen: list[object] = []
    task = asyncio.create_task(wait_for(future, seen))
    await asyncio.sleep(0)

    future.set_result("result")
    deferred.run()
    assert seen == []
    await asyncio.wait_for(task, 5)

    assert seen == ["result", task, "its own"]


async def test_a_result_that_comes_before_anybody_waits_is_not_lost(deferred: Deferred) -> None:
    """Neither where it is awaited later, nor where a task was about to wait for it."""
    eager = EagerTasks(asyncio.get_running_loop())
    futures: list[EagerFuture[str]] = [EagerFuture(asyncio.get_running_loop(), deferred.append) for _ in range(2)]
    seen: list[object] = []

    task = eager.start(wait_for(futures[1], seen))
    assert task is not None
    for future in futures:
        future.set_result("result")
    await task
    eager.close()

    assert await futures[0] == "result"
    assert seen == ["result", task, "its own"]


@pytest.mark.parametrize("end", ["error", "cancelled", "cancelled task"])
async def test_errors_and_cancellation_arrive_as_with_any_future(deferred: Deferred, end: str) -> None:
    """Without any call that was deferred."""
    future: EagerFuture[str] = EagerFuture(asyncio.get_running_loop(), deferred.append)
    seen: list[object] = []
    task = asyncio.create_task(wait_for(future, seen))
    await asyncio.sleep(0)

    if end == "error":
        future.set_exception(ValueError("broken"))
    else:
        (future if end == "cancelled" else task).cancel()
    await asyncio.gather(task, return_exceptions=True)

    assert seen == [ValueError if end == "error" else asyncio.CancelledError, task, "its own"]
    assert not deferred


async def test_a_task_that_is_cancelled_when_its_result_is_there_is_cancelled(deferred: Deferred) -> None:
    """As a task that waits for an ordinary future."""
    future: EagerFuture[str] = EagerFuture(asyncio.get_running_loop(), deferred.append)
    seen: list[object] = []
    task = asyncio.create_task(wait_for(future, seen))
    await asyncio.sleep(0)

    future.set_result("result")
    task.cancel()
    asyncio.get_running_loop().call_soon(deferred.run)
    await asyncio.wait([task], timeout=5)

    assert seen == [asyncio.CancelledError, task, "its own"]
