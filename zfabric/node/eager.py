"""Runs coroutines at once, up to where they have to wait. One that need not wait costs no task and no turn of the loop.
And lets tasks that waited go on at once, which saves a turn of the loop for each.

Python 3.12 has eager tasks; these work the same on 3.11, and cost a task only where one is needed. A task stands by,
and is the current one while coroutines begin: the first of them that waits takes it over, and another stands by. So
`asyncio.timeout`, cancellation and context variables work as in any task; coroutines that never wait share one.
"""

from __future__ import annotations

import asyncio
from asyncio.tasks import _enter_task, _leave_task
from collections.abc import Coroutine, Generator, Iterable
from contextlib import suppress
from contextvars import Context, copy_context
from types import coroutine
from typing import Any, TypeVar

__all__ = ["EagerTasks", "resume"]

T = TypeVar("T")


def resume(results: Iterable[tuple[asyncio.Future[T], T]]) -> None:
    """Give futures their results, unless they are done, and let the one task that waits for each go on at once.

    Where that cannot be (a task cannot run inside of another), it goes on in the next turn of the loop, as ever.
    """
    kind = asyncio.Future
    is_done, set_result, remove = kind.done, kind.set_result, kind.remove_done_callback  # found once for all
    busy = asyncio.current_task() is not None
    for future, result in results:
        if is_done(future):
            continue
        waiting = future._callbacks  # noqa: SLF001 - there is no other way to call them at once
        if busy or not waiting or len(waiting) > 1:
            set_result(future, result)
            continue
        ((step, context),) = waiting
        remove(future, step)
        set_result(future, result)
        context.run(step, future)


class EagerTasks:
    """Begins coroutines in one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._standby: _Standby | None = None

    def start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None] | None:
        """Run a coroutine in a context of its own: the task that goes on with it, or None if it is done.

        Raises what the coroutine raises before it waits.
        """
        loop = self._loop
        standby = self._standby
        if standby is None or standby.handed_over.done() or standby.task.cancelling():  # by one that is done
            standby = self._standby = _Standby(loop)
        context = copy_context()
        caller = asyncio.current_task(loop)
        if caller is not None:
            _leave_task(loop, caller)
        _enter_task(loop, standby.task)
        try:
            waits_for = context.run(work.send, None)
        except StopIteration:
            return None
        finally:
            _leave_task(loop, standby.task)
            if caller is not None:
                _enter_task(loop, caller)
        self._standby = None
        standby.take_over(work, context, waits_for)
        return standby.task

    def close(self) -> None:
        """Nothing is started any more."""
        if self._standby is not None:
            self._standby.task.cancel()
            self._standby = None


class _Standby:
    """A task that waits for a coroutine to go on with."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.handed_over: asyncio.Future[None] = loop.create_future()
        self._begun: tuple[Coroutine[Any, Any, None], Context, Any] | None = None
        running = self._run()
        running.send(None)  # to within its `try`: else a cancellation before its first turn would end it there
        self.task: asyncio.Task[None] = loop.create_task(running, name="zfabric-standby")

    def take_over(self, work: Coroutine[Any, Any, None], context: Context, waits_for: Any) -> None:
        """Go on with a coroutine that waits for a future, or for its next turn (None)."""
        self._begun = work, context, waits_for
        if not self.handed_over.done():
            self.handed_over.set_result(None)

    async def _run(self) -> None:
        await self._go_on()

    @coroutine
    def _go_on(self) -> Generator[Any, Any, None]:
        try:
            yield
            yield from self.handed_over
        except asyncio.CancelledError as cancelled:
            if self._begun is None:
                raise
            work, context, waits_for = self._begun
            error: BaseException | None = None if waits_for is not None and waits_for.cancel() else cancelled
        else:
            assert self._begun is not None
            work, context, waits_for = self._begun
            error = None
        result = None
        with suppress(StopIteration):
            while True:
                if error is not None:
                    waits_for = context.run(work.throw, error)
                try:
                    result, error = (yield waits_for), None
                except BaseException as raised:  # noqa: BLE001 - it is for the coroutine
                    error = raised
                else:
                    waits_for = context.run(work.send, result)
