"""Callbacks: a task for each handler, and daemon threads for those that are plain functions."""

from __future__ import annotations

import asyncio
import inspect
import logging
import queue
import threading
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from zfabric.events import HandlerError
from zfabric.model import Job, Message
from zfabric.node.driver import Driver
from zfabric.node.options import said
from zfabric.node.puller import Puller
from zfabric.node.signature import unwrapped
from zfabric.node.subscription import Subscription

__all__ = ["UNSTOPPABLE", "Handlers", "Threads", "ends_the_task", "message_of"]

log = logging.getLogger("zfabric")

_F = TypeVar("_F", bound=Callable[..., Any])

UNSTOPPABLE = (GeneratorExit, KeyboardInterrupt, SystemExit)
"No error of a handler: it is thrown away, or the program ends. All else that it raises is one."


class Threads:
    """A bounded pool of daemon threads: unlike an executor's, a hung one does not keep the process alive."""

    def __init__(self, threads_max: int) -> None:
        self._threads_max = threads_max
        self._jobs: queue.SimpleQueue[tuple[asyncio.Future[Any], Callable[..., Any], Any] | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._busy = 0

    async def run(self, function: Callable[..., Any], argument: Any) -> Any:
        """Call the function in a thread, and await what it returns if that is an `async def`'s."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if self._busy >= len(self._threads) < self._threads_max:
            thread = threading.Thread(target=self._work, name="zfabric-handler", daemon=True)
            self._threads.append(thread)
            thread.start()
        self._busy += 1
        self._jobs.put((future, function, argument))
        try:
            result = await future
        finally:
            self._busy -= 1
        return await result if inspect.iscoroutine(result) else result

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            future, function, argument = job
            try:
                result, error = function(argument), None
            except BaseException as caught:  # noqa: BLE001 - it is raised again in the loop
                result, error = None, _raisable(caught)
            with suppress(RuntimeError):  # the loop may be gone
                future.get_loop().call_soon_threadsafe(_finish, future, result, error)
            del job, future, function, argument, result, error

    def close(self) -> None:
        """Let the threads end after what they are doing."""
        for _ in self._threads:
            self._jobs.put(None)


def _raisable(error: BaseException) -> Exception:
    """What ends a call, but neither its thread nor the event loop, and can be raised from a future."""
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    raised = RuntimeError(f"it raised {type(error).__name__}: {error}")
    raised.__cause__ = error
    return raised


def ends_the_task(error: BaseException) -> bool:
    """Whether the task that runs is being cancelled. If only what it awaits was, that is an error like any other."""
    task = asyncio.current_task()
    return isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling() > 0


def message_of(error: BaseException) -> str:
    """What an exception says, as text that can travel."""
    try:
        return said(str(error))
    except Exception as broken:  # noqa: BLE001 - whatever `__str__` raises
        return f"its message cannot be shown: {type(broken).__name__}"


def _finish(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)


def _check_handler(handler: object) -> None:
    """Raise TypeError for what would take messages and do nothing with them."""
    function = unwrapped(handler)
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError(f"{_name(function)} yields, and nobody takes that: only a service's handler may")


def _name(handler: Callable[..., Any]) -> str:
    return getattr(handler, "__qualname__", repr(handler))


class Handlers:
    """Runs `@node.on` handlers, each in order, all of them beside each other."""

    def __init__(self, driver: Driver, threads_max: int) -> None:
        self._driver = driver
        self._threads = Threads(threads_max)
        self._tasks: set[asyncio.Task[None]] = set()
        self.errors = 0

    def decorator(self, what: object, begin: Callable[[Callable[..., Any]], None]) -> Callable[[_F], _F]:
        """A decorator that lets a function handle what comes from `what`. Raises TypeError where it stands alone."""
        if callable(what):
            raise TypeError("the decorator needs a name: `@node.on(topic)`, `@node.worker(queue)`")

        def register(handler: _F) -> _F:
            _check_handler(handler)
            begin(handler)
            return handler

        return register

    def start(self, subscription: Subscription, handler: Callable[[Message], Any]) -> None:
        """Call `handler` with every message of the subscription."""
        name = _name(handler)
        self._begin(self._run(subscription, self._async(handler), name), name)

    def work(self, puller: Puller, handler: Callable[[Job], Any], concurrency: int) -> None:
        """Call `handler` with every job of the puller, that many at a time."""
        name, call = _name(handler), self._async(handler)
        for _ in range(concurrency):
            self._begin(self._work(puller, call, name), name)

    def _async(self, handler: Callable[[Any], Any]) -> Callable[[Any], Awaitable[Any]]:
        """An `async def` as it is, a `def` in a thread."""
        if inspect.iscoroutinefunction(unwrapped(handler)):
            return handler

        async def call(message: Message) -> Any:
            return await self._threads.run(handler, message)

        return call

    def _begin(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = self._driver.loop.create_task(work, name=f"zfabric-handler-{name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, subscription: Subscription, call: Callable[[Message], Awaitable[Any]], name: str) -> None:
        async for message in subscription:
            try:
                await call(message)
            except UNSTOPPABLE:
                raise
            except BaseException as error:
                if ends_the_task(error):
                    raise
                self._report(message, error, name)

    async def _work(self, puller: Puller, call: Callable[[Job], Awaitable[Any]], name: str) -> None:
        while jobs := await puller.take(1):
            job = jobs[0]
            try:
                await call(job)
            except UNSTOPPABLE:
                raise
            except BaseException as error:
                if ends_the_task(error):
                    if not puller.at_most_once:
                        await job.nack(0, "its handler was cancelled")
                    raise
                self._report(job, error, name)
                if not puller.at_most_once:
                    await job.nack(reason=f"{type(error).__name__}: {message_of(error)}")
            else:
                job._settlement_of_job().ack(job, confirm=False)  # noqa: SLF001 - hidden from users, not from us

    def _report(self, message: Message, error: BaseException, name: str) -> None:
        self.errors += 1
        log.error("handler %s failed on %s", name, message.topic, exc_info=error)
        self._driver.events.put(HandlerError(message.topic, name, f"{type(error).__name__}: {message_of(error)}"))

    async def close(self, timeout: float) -> None:
        """Let handlers finish what has arrived for at most `timeout` seconds, then cancel them; but not the caller."""
        tasks = self._tasks - {asyncio.current_task()}
        if tasks:
            await asyncio.wait(tasks, timeout=timeout)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=0.1)
        self._threads.close()
