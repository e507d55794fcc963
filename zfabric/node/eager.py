"""Runs coroutines at once, up to where they have to wait. One that need not wait costs no task and no turn of the loop.
And lets tasks that waited go on at once, which saves a turn of the loop for each.

Python 3.12 has eager tasks; these work the same on 3.11, and cost a task only where one is needed. A task stands by,
and is the current one while coroutines begin: the first of them that waits takes it over, and another stands by. So
`asyncio.timeout`, cancellation and context variables work as in any task; coroutines that never wait share one.
"""

from __future__ import annotations

import asyncio
import contextvars
from asyncio.tasks import _enter_task, _leave_task
from collections.abc import Callable, Coroutine, Generator
from contextlib import suppress
from types import coroutine
from typing import Any, TypeVar

__all__ = ["EagerFuture", "EagerTasks"]

T = TypeVar("T")

Defer = Callable[[Callable[[], object]], None]
"Calls something soon, in this turn of the loop if that has room for it."


class EagerFuture(asyncio.Future[T]):
    """A future for one task, which `defer` lets go on with its result. Errors and cancellation take a turn, as ever."""

    __slots__ = ("_defer", "_waiter")

    def __init__(self, loop: asyncio.AbstractEventLoop, defer: Defer) -> None:
        super().__init__(loop=loop)
        self._defer = defer
        self._waiter: tuple[Callable[[EagerFuture[T]], object], contextvars.Context | None] | None = None

    def add_done_callback(
        self, fn: Callable[[EagerFuture[T]], object], /, *, context: contextvars.Context | None = None
    ) -> None:
        """Called by the task that waits."""
        self._waiter = fn, context
        super().add_done_callback(fn, context=context)

    def set_result(self, result: T, /) -> None:
        """Let the task go on."""
        waiter = self._waiter
        if waiter is not None:
            self.remove_done_callback(waiter[0])
            self._defer(self._go_on)
        super().set_result(result)

    def _go_on(self) -> None:
        assert self._waiter is not None
        step, context = self._waiter
        loop = self.get_loop()
        if context is None or asyncio.current_task(loop) is not None:  # a task cannot run inside of another
            loop.call_soon(step, self, context=context)
        else:
            context.run(step, self)


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
        if standby is None or standby.spoilt:
            standby = self._standby = _Standby(loop)
        context = contextvars.copy_context()
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
        self._handed_over: asyncio.Future[None] = loop.create_future()
        self._begun: tuple[Coroutine[Any, Any, None], contextvars.Context, Any] | None = None
        running = self._run()
        running.send(None)  # to within its `try`: else a cancellation before its first turn would end it there
        self.task: asyncio.Task[None] = loop.create_task(running, name="zfabric-standby")

    @property
    def spoilt(self) -> bool:
        """Whether a coroutine that began here, and is done, has cancelled it."""
        return self._handed_over.done() or self.task.cancelling() > 0

    def take_over(self, work: Coroutine[Any, Any, None], context: contextvars.Context, waits_for: Any) -> None:
        """Go on with a coroutine that waits for a future, or for its next turn (None)."""
        self._begun = work, context, waits_for
        if not self._handed_over.done():
            self._handed_over.set_result(None)

    async def _run(self) -> None:
        await self._go_on()

    @coroutine
    def _go_on(self) -> Generator[Any, Any, None]:
        try:
            yield
            yield from self._handed_over
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
