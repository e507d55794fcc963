"""One private event loop in a daemon thread, and the ways into it and out of it.

    calling thread --post, run--> loop thread --SimpleQueue--> calling thread

Waiting is done in `SimpleQueue.get`, which is C: Ctrl-C interrupts it at once and leaves nothing half done.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import threading
import time
from asyncio import _get_running_loop
from collections.abc import Awaitable, Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Final, ParamSpec, TypeVar

from zfabric.errors import LocalProtocolError, NodeClosed, NodeForked
from zfabric.node.eager import EagerTasks

__all__ = ["LoopThread", "acquire_within", "get_within", "refuse_in_loop"]

log = logging.getLogger("zfabric")

P = ParamSpec("P")
T = TypeVar("T")

_SLICE_S: Final = 0.05 if os.name == "nt" else threading.TIMEOUT_MAX
"On Windows Ctrl-C does not interrupt a wait, so it waits in slices."


def refuse_in_loop() -> None:
    """Raise LocalProtocolError where blocking would stop an event loop."""
    if _get_running_loop() is not None:
        raise LocalProtocolError(
            "zfabric.sync blocks, and this thread runs an event loop: use zfabric.Node in coroutines, "
            "and plain `def` handlers with zfabric.sync.Node"
        )


def get_within(queue: SimpleQueue[T], timeout: float | None) -> T:
    """The next item. Raises queue.Empty after `timeout` seconds."""
    deadline = math.inf if timeout is None else time.monotonic() + timeout
    while True:
        try:
            return queue.get(timeout=min(max(deadline - time.monotonic(), 0), _SLICE_S))
        except Empty:
            if time.monotonic() >= deadline:
                raise


def acquire_within(lock: threading.Lock, timeout: float | None) -> bool:
    """Whether the lock was acquired in at most `timeout` seconds."""
    deadline = math.inf if timeout is None else time.monotonic() + timeout
    while not lock.acquire(timeout=min(max(deadline - time.monotonic(), 0), _SLICE_S)):
        if time.monotonic() >= deadline:
            return False
    return True


class LoopThread:
    """Runs coroutines for other threads, until `finish()`."""

    def __init__(self, name: str) -> None:
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)
        self._lock = threading.RLock()  # a signal handler may publish while its thread is in here
        self._accepting = True
        self._pid = os.getpid()
        # The selector loop on every system: ZeroMQ's descriptors need `add_reader`.
        self._loop = asyncio.SelectorEventLoop()
        self._stopped = self._loop.create_future()
        self._eager = EagerTasks(self._loop)
        self._tasks: list[asyncio.Task[None]] = []
        self._thread.start()

    def _main(self) -> None:
        async def until_stopped() -> None:
            await self._stopped

        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(until_stopped())

    @property
    def is_foreign(self) -> bool:
        """Whether this is a child of fork(), where the thread does not exist."""
        return os.getpid() != self._pid

    def check(self) -> None:
        """Raise NodeForked in a child of fork()."""
        if self.is_foreign:
            raise NodeForked("this node was opened before fork(): its thread runs in the parent; open a new node")

    def post(self, callback: Callable[[], object]) -> None:
        """Call a function in the loop's thread, soon. Raises NodeClosed or NodeForked."""
        self.check()
        with self._lock:  # what is accepted will be called: whoever stops the loop refuses first
            if not self._accepting:
                raise NodeClosed("the node is closed")
            self._loop.call_soon_threadsafe(callback)

    def run(self, function: Callable[P, Awaitable[T]], *arguments: P.args, **options: P.kwargs) -> T:
        """Run a coroutine function in the loop and return its result; an interrupt cancels it."""
        return self._run(lambda: function(*arguments, **options))

    def call(self, function: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
        """Call a plain function in the loop's thread and return its result."""

        async def call() -> T:
            return function(*arguments, **options)

        return self._run(call)

    def _run(self, call: Callable[[], Awaitable[T]]) -> T:
        refuse_in_loop()
        finished: SimpleQueue[tuple[list[T], BaseException | None]] = SimpleQueue()
        started: list[asyncio.Task[None] | None] = []

        async def work() -> None:
            result: list[T] = []
            error: BaseException | None = None
            try:
                result.append(await call())
            except asyncio.CancelledError:
                error = NodeClosed("the node was closed meanwhile")
            except BaseException as raised:  # noqa: BLE001 - it is raised in the other thread
                error = raised
            finished.put((result, error))

        def start() -> None:
            started.append(self._eager.start(work()))

        def cancel() -> None:
            if started[0] is not None:
                started[0].cancel()

        self.post(start)
        try:
            result, error = get_within(finished, None)
        except BaseException:
            with suppress(NodeClosed):
                self.post(cancel)
            raise
        if error is not None:
            raise error
        return result[0]

    def finish(self, last: Callable[[], Awaitable[None]], timeout: float) -> bool:
        """Run one more coroutine function, then end the thread, and let nothing new in.

        Returns whether that was done within `timeout` seconds; if not, it goes on by itself.
        """
        refuse_in_loop()

        async def work() -> None:
            try:
                await last()
            except Exception:
                log.exception("the node did not close in order")
            finally:
                self._refuse()
                self._stopped.set_result(None)

        self.post(lambda: self._tasks.append(self._loop.create_task(work())))
        self._thread.join(timeout)
        self._refuse()
        return not self._thread.is_alive()

    def _refuse(self) -> None:
        with self._lock:
            self._accepting = False
