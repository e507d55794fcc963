"""The services that a node provides: runs handlers and says what came of them."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import logging
import traceback
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any, Generic, TypeVar

import msgspec

from zfabric.config import Config
from zfabric.errors import EncodeFailed, LimitExceeded, LocalProtocolError
from zfabric.events import HandlerError
from zfabric.model import Source
from zfabric.node.driver import Driver
from zfabric.node.eager import EagerTasks
from zfabric.node.handlers import UNSTOPPABLE, Threads, ends_the_task, message_of
from zfabric.node.options import said
from zfabric.node.signature import INLINE, Signature, Unfit, unwrapped
from zfabric.protocol.calls import RECORD_BYTES
from zfabric.protocol.serving import Execution
from zfabric.wire.codec import Codec
from zfabric.wire.service_records import End, Failure, Item, Offer, Reply

__all__ = ["CurrentRequest", "Service", "Services", "current_request"]

log = logging.getLogger("zfabric")

Handler = TypeVar("Handler", bound=Callable[..., Any])

FRAME_MARGIN_BYTES = 2 * 1024 * 1024
"What else may stand in the frame of a long argument or result."
LONG_BYTES = 1024 * 1024
"Requests and results from this length on are compared with the longest frame."
MESSAGE_MAX = 100_000
"Characters of an error that travel."

_current: contextvars.ContextVar[tuple[Execution, asyncio.AbstractEventLoop]] = contextvars.ContextVar(
    "zfabric_request"
)


class CurrentRequest:
    """What a handler may want to know of the request that it answers; see `current_request()`."""

    __slots__ = ("_execution", "_loop")

    def __init__(self, execution: Execution, loop: asyncio.AbstractEventLoop) -> None:
        self._execution = execution
        self._loop = loop

    def __repr__(self) -> str:
        return f"<CurrentRequest {self.service} from {self.source.name}, {self.remaining:.3g} s left>"

    @property
    def service(self) -> str:
        """The service's name."""
        return self._execution.request.service

    @property
    def version(self) -> int:
        """The service's version."""
        return self._execution.request.version

    @property
    def source(self) -> Source:
        """Who asks."""
        return self._execution.source

    @property
    def id(self) -> str:
        """Names the request in the whole fabric; the same when an idempotent one is tried again."""
        node_id, number = self._execution.key
        return f"{node_id.hex()}-{number}"

    @property
    def idempotent(self) -> bool:
        """Whether the client may ask again; the reply is kept for that."""
        return self._execution.request.idempotent

    @property
    def remaining(self) -> float:
        """Seconds until nobody waits for the reply any more; infinity without a deadline."""
        return self._execution.deadline - self._loop.time()

    @property
    def cancelled(self) -> bool:
        """Whether nobody waits for the reply any more. A `def` handler looks here, an `async def` is cancelled."""
        return self._execution.cancelled


def current_request() -> CurrentRequest:
    """The request that the running handler answers. Raises LocalProtocolError outside of a service's handler."""
    try:
        return CurrentRequest(*_current.get())
    except LookupError:
        raise LocalProtocolError("no request: current_request() is for handlers of services") from None


class Service(Generic[Handler]):
    """A service that a node provides; `@node.service(name)` makes it. Calling it calls the function itself."""

    def __init__(
        self, host: Services, handler: Handler, name: str, version: int, concurrency: int | None, *, traces: bool
    ) -> None:
        self.name = name
        self.version = version
        self.handler = handler
        self._host = host
        self._driver = host.driver
        self._serving = host.serving
        self._traces = traces
        function = unwrapped(handler)
        asynchronous = inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)
        generates = inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function)
        self._work = self._stream if generates else self._reply
        self._threaded = not asynchronous
        config = host.config
        default = config.service_threads_max if self._threaded else config.service_concurrency
        self.concurrency = default if concurrency is None else concurrency
        self._signature = Signature(handler, streams=generates)
        self._codec = Codec(self._signature.result, inline_bytes=INLINE)
        self._tasks: dict[Execution, asyncio.Task[None]] = {}
        offer = Offer(name, version, self.concurrency)
        self.state = host.driver.core.serving.offer(offer, self, host.driver.loop.time(), streams=generates)
        functools.update_wrapper(self, handler, updated=())

    def __repr__(self) -> str:
        state = (
            "stopping" if self.state.stopping else f"{self.state.running} running, {len(self.state.waiting)} waiting"
        )
        return f"<Service {self.name} version {self.version} [{state}]>"

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Call the function itself, here and now."""
        return self.handler(*arguments, **options)

    @property
    def running(self) -> int:
        """Requests that are worked on."""
        return self.state.running

    @property
    def waiting(self) -> int:
        """Requests that wait for their turn."""
        return len(self.state.waiting)

    def works_for_others(self, task: asyncio.Task[Any] | None) -> bool:
        """Whether a request is worked on by another task than this one, or waits."""
        return self.state.running > (task in self._tasks.values()) or bool(self.state.waiting)

    async def stop(self, timeout: float | None = None) -> None:
        """Take no more requests, and return when those that were taken are done.

        Clients are told first; what still comes is sent to other providers by its clients. After `timeout` seconds
        (default Config.close_timeout_s), what waits is sent elsewhere as well, and what runs is cancelled. A handler
        that calls this is not waited for: its client is told that it stopped.
        """
        await self._host.stop([self], self._host.config.close_timeout_s if timeout is None else timeout)

    # -- what the core calls -------------------------------------------------------------------

    def run(self, execution: Execution) -> bool:
        """Call the handler now; it goes on in a task if it has to wait. Returns whether it does."""
        wanted = not execution.cancelled
        if not wanted:
            self._give_up(execution)
            return False
        work = self._work
        task = self._host.eager.start(work(execution))
        if task is None:
            return False
        self._tasks[execution] = task
        if execution.cancelled:
            self.cancel(execution)
        return True

    def cancel(self, execution: Execution) -> None:
        """Nobody wants the result. A thread cannot be stopped: its handler may look at `cancelled`."""
        task = self._tasks.get(execution)
        if self._threaded:
            self.resume(execution)
        elif task is not None and task is not asyncio.current_task():  # which ends the service
            task.cancel()

    def resume(self, execution: Execution) -> None:
        """A stream may go on."""
        if execution.state is not None and not execution.state.done():
            execution.state.set_result(None)

    # -- running -------------------------------------------------------------------------------

    async def _reply(self, execution: Execution) -> None:
        _current.set((execution, self._driver.loop))
        try:
            request = execution.request
            arguments, options = self._signature.bind(request.arguments, request.options)
            if self._threaded:
                context = contextvars.copy_context()
                result = await self._host.threads.run(
                    _call, functools.partial(context.run, self.handler, *arguments, **options)
                )
            else:
                result = await self.handler(*arguments, **options)
            body = self._encode(result)
        except UNSTOPPABLE:
            raise
        except BaseException as error:  # noqa: BLE001 - the client is told
            self._failed(execution, error)
        else:
            self._finish(execution, Reply(request.number, msgspec.Raw(body)), len(body))

    async def _stream(self, execution: Execution) -> None:
        _current.set((execution, self._driver.loop))
        try:
            arguments, options = self._signature.bind(execution.request.arguments, execution.request.options)
            values = self.handler(*arguments, **options)
            if self._threaded:
                values = _threaded(values, self._host.threads)
            try:
                async for value in values:
                    await self._send(execution, self._encode(value))
                    if execution.cancelled:
                        break
            finally:
                await values.aclose()
        except UNSTOPPABLE:
            raise
        except BaseException as error:  # noqa: BLE001 - the client is told
            self._failed(execution, error)
        else:
            self._finish(execution, End(execution.request.number), 0)

    async def _send(self, execution: Execution, body: bytes) -> None:
        """Send one value of a stream; returns when the next may be sent."""
        driver = self._driver
        item = Item(execution.request.number, msgspec.Raw(body))
        if not driver.core.serving.add_item(execution, item, RECORD_BYTES + len(body), driver.loop.time()):
            execution.state = driver.loop.create_future()
        driver.schedule_pump()
        if execution.state is not None:
            try:
                await execution.state
            finally:
                execution.state = None

    def _encode(self, value: Any) -> bytes:
        try:
            body = self._codec.encode(value)
        except EncodeFailed as error:
            raise EncodeFailed(self.name, error.reason) from error.__cause__
        if len(body) > LONG_BYTES:
            check_size(len(body), self._host.config)
        return body

    def _finish(self, execution: Execution, outcome: Reply | Failure | End, nbytes: int) -> None:
        if self._tasks:
            self._tasks.pop(execution, None)
        driver, serving = self._driver, self._serving
        serving.finish(execution, outcome, RECORD_BYTES + nbytes, driver.loop.time())
        if not serving.executions:
            driver.pump()  # nothing more will come to share the frame
        else:
            driver.schedule_pump()

    def _give_up(self, execution: Execution) -> None:
        self._tasks.pop(execution, None)
        driver = self._driver
        driver.core.serving.give_up(execution, driver.loop.time())
        driver.schedule_pump()

    def _failed(self, execution: Execution, error: BaseException) -> None:
        if ends_the_task(error) or (execution.cancelled and isinstance(error, asyncio.CancelledError)):
            self._give_up(execution)
            return
        number, kind, trace = execution.request.number, type(error).__name__, None
        message = message_of(error)
        if isinstance(error, Unfit):
            code, kind = "arguments", "TypeError"
        else:
            code = "error"
            self._host.errors += 1
            log.error("service %s failed", self.name, exc_info=error)
            self._driver.events.put(
                HandlerError(self.name, getattr(self, "__qualname__", self.name), f"{kind}: {message}")
            )
            if self._traces:
                trace = said("".join(traceback.format_exception(error)))
        failure = Failure(number, code, kind[:255], message[:MESSAGE_MAX], trace and trace[-MESSAGE_MAX:])
        self._finish(execution, failure, len(failure.message) + len(trace or ""))


class Services:
    """All services of one node."""

    def __init__(self, driver: Driver, config: Config) -> None:
        self.driver = driver
        self.serving = driver.core.serving
        self.config = config
        self.threads = Threads(config.service_threads_max)
        self.eager = EagerTasks(driver.loop)
        self.serving.start = driver.deferred.kind(self._run)
        self.errors = 0
        self._services: list[Service[Any]] = []

    def _run(self, executions: Iterable[Execution]) -> None:
        self.serving.run(executions, self.driver.loop.time())

    def add(
        self, handler: Handler, name: str, version: int, concurrency: int | None, *, traces: bool
    ) -> Service[Handler]:
        """Provide a service from now on."""
        service = Service(self, handler, name, version, concurrency, traces=traces)
        self._services.append(service)
        self.driver.schedule_pump()
        return service

    async def stop(self, services: list[Service[Any]], timeout: float) -> None:
        """Drain services, and end them."""
        driver, core = self.driver, self.driver.core
        for service in services:
            core.serving.drain(service.state, driver.loop.time())
        driver.pump()
        caller = asyncio.current_task()
        try:
            with suppress(TimeoutError):
                # What clients sent before they heard of it has arrived once they have acknowledged it.
                await driver.wait_until(
                    lambda: core.channels.quiet and not any(s.works_for_others(caller) for s in services), timeout
                )
        finally:  # also for a caller that is cancelled: its time is over, and so are they
            for service in services:
                core.serving.withdraw(service.state, driver.loop.time())
                if service in self._services:
                    self._services.remove(service)
            driver.pump()

    async def close(self, timeout: float) -> None:
        """End all services."""
        began = self.driver.loop.time()
        if self._services:
            await self.stop(list(self._services), timeout * 0.8)
            with suppress(TimeoutError):
                left = timeout - (self.driver.loop.time() - began)
                await self.driver.wait_until(lambda: self.driver.core.channels.quiet, left)
        self.threads.close()
        self.eager.close()


def check_size(nbytes: int, config: Config) -> None:
    """Raise LimitExceeded for what does not fit into a frame."""
    if nbytes + FRAME_MARGIN_BYTES > config.frame_bytes_max:
        raise LimitExceeded("frame_bytes_max", nbytes + FRAME_MARGIN_BYTES, config.frame_bytes_max)


def _call(function: Callable[[], Any]) -> Any:
    return function()


async def _threaded(generator: Iterator[Any], threads: Threads) -> AsyncIterator[Any]:
    """The values of a plain generator, each made in a thread, all of them in one context."""
    context = contextvars.copy_context()
    try:
        while (value := await threads.run(_call, functools.partial(context.run, next, generator, _END))) is not _END:
            yield value
    finally:
        close = getattr(generator, "close", None)
        if close is not None:
            await threads.run(_call, close)


_END = object()
