"""An event loop whose time passes only when nobody has anything to do: hours of waiting take no time at all."""

from __future__ import annotations

import asyncio
import random
import selectors
import threading
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar

__all__ = ["Deadlock", "VirtualClockLoop", "eventually", "run"]

T = TypeVar("T")

_SHOWN_MAX = 20
_THREADS_S = 5.0
"Real time that a thread's result may take when nothing else is left to do."


class Deadlock(RuntimeError):
    """Every task waits for another one: nothing is ready, and no timer is set that could change it."""


class _JumpingSelector(selectors.BaseSelector):
    """Looks at real descriptors without waiting; where it should wait, it moves the clock instead."""

    def __init__(self, jump: Callable[[float], None], deadlock: Callable[[], Deadlock]) -> None:
        self._real = selectors.DefaultSelector()
        self._jump = jump
        self._deadlock = deadlock
        self._threads = set(threading.enumerate())

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._real.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._real.unregister(fileobj)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._real.get_map()

    def close(self) -> None:
        self._real.close()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = self._real.select(0)
        if not ready and timeout is None:
            ready = self._wait_for_threads()
        elif not ready and timeout is not None and timeout > 0:
            self._jump(timeout)
        return ready

    def _wait_for_threads(self) -> list[tuple[selectors.SelectorKey, int]]:
        """Nothing can happen any more, unless a thread that this loop started reports its result."""
        # Even if there is none any more: one may have reported and ended since the last look.
        ready = self._real.select(_THREADS_S if set(threading.enumerate()) - self._threads else 0)
        if not ready:
            raise self._deadlock()
        return ready


class VirtualClockLoop(asyncio.SelectorEventLoop):
    """A deterministic asyncio event loop with virtual time.

    It never waits: when no callback is ready, it sets its clock to the next timer. When there is no timer either,
    it raises `Deadlock`, which lists the tasks and what they wait for. The clock starts at 0.

    Real sockets and threads take no virtual time, so a program that waits for one of them sees its timeouts
    expire at once: use `MemoryFabric` and `async def` handlers.
    """

    def __init__(self) -> None:
        self._virtual_now = 0.0
        super().__init__(_JumpingSelector(self._jump, self._deadlock))
        # The base class fires timers this much early: more than what rounding costs after a year.
        self._clock_resolution = 1e-6

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._virtual_now

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        """Wait for its threads, which take no virtual time: no virtual timeout bounds that (Python 3.12 sets one)."""
        await super().shutdown_default_executor()

    def _jump(self, seconds: float) -> None:
        self._virtual_now += seconds

    def _deadlock(self) -> Deadlock:
        return Deadlock(_describe(asyncio.all_tasks(self)))


def _describe(tasks: set[asyncio.Task[Any]]) -> str:
    lines = sorted(f"  {task.get_name()} in {_place(task)}" for task in tasks if not task.done())
    more = [f"  ... and {len(lines) - _SHOWN_MAX} more"] if len(lines) > _SHOWN_MAX else []
    return "\n".join(["nothing is ready and no timer is set; these tasks wait for ever:", *lines[:_SHOWN_MAX], *more])


def _place(task: asyncio.Task[Any]) -> str:
    stack = task.get_stack()
    if not stack:
        return repr(task.get_coro())
    code = stack[-1].f_code
    return f"{code.co_qualname} ({code.co_filename}:{stack[-1].f_lineno})"


def run(main: Coroutine[Any, Any, T], *, seed: int = 0) -> T:
    """Run a coroutine in virtual time, like `asyncio.run`, and return its result.

    The global `random` module is seeded with `seed` meanwhile, so that the same seed gives the same run. Raises
    `Deadlock` where a real event loop would hang for ever.
    """
    before = random.getstate()
    random.seed(seed)
    try:
        with asyncio.Runner(loop_factory=VirtualClockLoop) as runner:
            return runner.run(main)
    finally:
        random.setstate(before)


async def eventually(condition: Callable[[], T], timeout: float = 10.0, *, pause: float = 0.005) -> T:
    """Ask `condition` until it returns something true, and return that. Raises TimeoutError after `timeout` seconds.

    Time is the event loop's, so under a `VirtualClockLoop` waiting costs nothing.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    while not (value := condition()):
        if loop.time() >= deadline:
            raise TimeoutError(f"still {value!r} after {timeout} s")
        await asyncio.sleep(pause)
    return value
