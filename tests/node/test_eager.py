"""Coroutines that begin at once, and tasks that go on at once: what they may rely on, as in any task."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator

import pytest

from zfabric.node.eager import EagerTasks, resume

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


async def test_a_task_goes_on_with_a_result_as_soon_as_it_is_called() -> None:
    """Within the very call from the event loop, in its own task and context; so do others that have one, in order."""
    loop = asyncio.get_running_loop()
    futures = [loop.create_future() for _ in range(2)]
    seen: list[object] = []
    tasks = [asyncio.create_task(wait_for(future, seen)) for future in futures]
    await asyncio.sleep(0)
    after: list[object] = []

    def look() -> None:
        resume((future, "result") for future in futures)
        after.extend(seen)

    loop.call_soon(look)
    await asyncio.wait_for(asyncio.gather(*tasks), 5)

    assert after == ["result", tasks[0], "its own", "result", tasks[1], "its own"]


async def test_a_task_does_not_go_on_inside_of_another() -> None:
    """It waits for its turn of the loop then."""
    future = asyncio.get_running_loop().create_future()
    seen: list[object] = []
    task = asyncio.create_task(wait_for(future, seen))
    await asyncio.sleep(0)

    resume([(future, "result")])
    assert seen == []
    await asyncio.wait_for(task, 5)

    assert seen == ["result", task, "its own"]


async def test_a_result_that_comes_before_anybody_waits_is_not_lost() -> None:
    """Neither where it is awaited later, nor where a task was about to wait for it."""
    eager, loop = EagerTasks(asyncio.get_running_loop()), asyncio.get_running_loop()
    futures = [loop.create_future() for _ in range(2)]
    seen: list[object] = []

    task = eager.start(wait_for(futures[1], seen))
    assert task is not None
    loop.call_soon(resume, [(future, "result") for future in futures])
    await task
    eager.close()

    assert await futures[0] == "result"
    assert seen == ["result", task, "its own"]


@pytest.mark.parametrize("what", ["future", "task"])
async def test_what_is_done_already_is_given_nothing(what: str) -> None:
    """Who was cancelled, or told an error, before the result came stays with that; others get theirs."""
    loop = asyncio.get_running_loop()
    first, second = loop.create_future(), loop.create_future()
    seen: list[object] = []
    task = asyncio.create_task(wait_for(first, seen))
    await asyncio.sleep(0)

    (first if what == "future" else task).cancel()
    loop.call_soon(resume, [(first, "result"), (second, "result")])
    await asyncio.wait([task], timeout=5)

    assert seen == [asyncio.CancelledError, task, "its own"]
    assert await second == "result"


async def test_who_waits_beside_others_goes_on_with_them() -> None:
    """Several that wait for one future take their turns of the loop."""
    future = asyncio.get_running_loop().create_future()
    seen: list[object] = []
    tasks = [asyncio.create_task(wait_for(future, seen)) for _ in range(2)]
    await asyncio.sleep(0)

    asyncio.get_running_loop().call_soon(resume, [(future, "result")])
    await asyncio.wait_for(asyncio.gather(*tasks), 5)

    assert seen == ["result", tasks[0], "its own", "result", tasks[1], "its own"]
