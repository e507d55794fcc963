"""A `concurrent.futures.Executor` whose workers are other processes, on any host of the fabric.

ZeroMQ Guide, chapter 3, "The Load Balancing Pattern": calls go to whoever is free. Workers export functions by name;
nothing is pickled, arguments and results are what MessagePack carries, and numpy arrays.

    async with exported(node, square, resize, processes=4):     # any number of processes
        await stop.wait()

    with FabricExecutor() as executor:                          # a plain program, no event loop needed
        future = executor.submit("square", 7)
        for image in executor.map(resize, images, progress=True):
            ...

Calls wait until there is a worker. Those of a worker that dies are made again by another, so functions should bear
that. `submit` blocks while `in_flight` calls are under way.

What can fail: a function that raises, that nobody exports, or that kills its process of `processes=`, fails its future
with CallFailed. A call that kills its worker's whole program every time is tried for ever; cancel its future, or shut
down with `cancel_futures=True`. Functions of one `name` must be the same everywhere: a call goes to any of its workers.
Callers that end leave their calls unfinished.
"""

from __future__ import annotations

import asyncio
import secrets
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

from zfabric.patterns._plan import Plan, Stage, StageStatistics
from zfabric.patterns._progress import Bar
from zfabric.patterns._workers import HELD_S, Workers

from zfabric import FabricError, Node, NodeClosed, Puller

__all__ = ["CallFailed", "FabricExecutor", "exported"]

Function = Callable[..., Any]


class CallFailed(FabricError):
    """A function raised in its worker, or no worker exports it; `reason` has the error's type and message."""

    def __init__(self, function: str, reason: str) -> None:
        super().__init__(f"{function}: {reason}")
        self.function = function
        self.reason = reason


def _call(functions: dict[str, Function], call: list[Any]) -> Any:
    name, arguments, options = call
    function = functions.get(name)
    if function is None:
        raise LookupError(f"no function {name!r} is exported here; there are: {', '.join(sorted(functions))}")
    return function(*arguments, **options)


def _plan(name: str, function: Function, workers: int = 1, *, processes: bool = False) -> Plan:
    stage = Stage("map", function, workers, processes, "calls", StageStatistics("calls"))
    return Plan(f"executor.{name}", 1, [stage])


@asynccontextmanager
async def exported(
    node: Node, *functions: Function, name: str = "default", workers: int = 1, processes: int = 0
) -> AsyncIterator[None]:
    """Let executors of that name call these functions, by their `__name__`, as long as the body runs.

    They run in `workers` threads, or in that many `processes`; then they must be importable, no lambdas or closures.
    """
    call = partial(_call, {function.__name__: function for function in functions})
    async with Workers(_plan(name, call, processes or workers, processes=processes > 0), 0, node):
        yield


class FabricExecutor(Executor):
    """Makes calls in workers that run `exported(...)` with the same `name`; a node in a thread of its own sends them.

    `in_flight`: calls that may be under way, beyond which `submit` blocks. Other arguments as of `zfabric.Node`.
    """

    def __init__(self, name: str = "default", *, in_flight: int = 1000, **options: Any) -> None:
        if in_flight < 1:
            raise ValueError(f"in_flight must be 1 or more, not {in_flight}")
        self._name = name
        self._options = {"name": f"executor-{name}", **options}
        self._free = threading.BoundedSemaphore(in_flight)
        self._lock = threading.Lock()
        self._futures: dict[int, tuple[Future[Any], str]] = {}
        self._next = 0
        self._id = secrets.token_hex(8)
        self._open = True
        self._started: Future[asyncio.AbstractEventLoop] = Future()
        self._thread = threading.Thread(target=self._run, name=f"zfabric-executor-{name}", daemon=True)
        self._thread.start()
        self._loop = self._started.result()

    # -- for callers ---------------------------------------------------------------------------

    def submit(self, fn: Function | str, /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Call a function by its name; a future for its result. Raises RuntimeError after `shutdown`."""
        function = fn if isinstance(fn, str) else fn.__name__
        self._free.acquire()
        future: Future[Any] = Future()
        with self._lock:
            if not self._open:
                self._free.release()
                raise RuntimeError("the executor was shut down")
            number, self._next = self._next, self._next + 1
            self._futures[number] = future, function
        future.add_done_callback(partial(self._finished, number))
        self._loop.call_soon_threadsafe(self._send, number, [function, list(args), kwargs])
        return future

    def map(
        self, fn: Function | str, *iterables: Iterable[Any], timeout: float | None = None, chunksize: int = 1,
        progress: bool = False,
    ) -> Iterator[Any]:  # fmt: skip
        """Results in the order of the arguments; TimeoutError for one that is not there `timeout` seconds from now.

        `progress` shows a bar on stderr; calls are always sent one by one.
        """
        until_s = None if timeout is None else time.monotonic() + timeout
        futures = [self.submit(fn, *arguments) for arguments in zip(*iterables, strict=False)]
        return self._results(futures, until_s, fn if isinstance(fn, str) else fn.__name__, progress)

    def _results(self, futures: list[Future[Any]], until_s: float | None, name: str, progress: bool) -> Iterator[Any]:
        try:
            with Bar(name, len(futures), shown=progress) as bar:
                for done, future in enumerate(futures):
                    yield future.result(None if until_s is None else until_s - time.monotonic())
                    bar.update(done + 1)
        finally:
            for future in futures:
                future.cancel()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls; wait for those under way, or cancel them."""
        with self._lock:
            self._open = False
            futures = [future for future, _ in self._futures.values()]
        if cancel_futures:
            for future in futures:
                future.cancel()
        if not futures:
            self._end()
        if wait:
            self._thread.join()

    # -- in the thread -------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except BaseException as error:  # noqa: BLE001 - the caller raises it
            if not self._started.done():
                self._started.set_exception(error)
        finally:
            for future, function in list(self._futures.values()):
                if not future.done():
                    future.set_exception(NodeClosed(f"the executor ended before {function} did"))

    async def _main(self) -> None:
        plan = _plan(self._name, _call)
        self._ended = asyncio.Event()
        async with Node(**self._options) as node:
            self._pusher = node.pusher(plan.queue(0), max_attempts=0)
            async with node.puller(plan.results(self._id), handler_timeout_s=HELD_S) as puller:
                self._started.set_result(asyncio.get_running_loop())
                reading = asyncio.create_task(self._read(puller))
                await self._ended.wait()
                reading.cancel()
                await asyncio.wait([reading])

    async def _read(self, puller: Puller) -> None:
        async for job in puller:
            _, number, outcome, failed = job.value
            future, function = self._futures.get(number, (None, ""))
            if future is None or not future.set_running_or_notify_cancel():
                continue  # a worker died, and another did the same again; or it is not wanted any more
            if failed:
                future.set_exception(CallFailed(function, outcome[1]))
            else:
                future.set_result(outcome[0])

    def _send(self, number: int, call: list[Any]) -> None:
        future, _ = self._futures.get(number, (None, ""))
        if future is None:
            return
        try:
            self._pusher.push_nowait([self._id, number, [call]])
        except Exception as error:  # noqa: BLE001 - the future raises it
            if future.set_running_or_notify_cancel():
                future.set_exception(error)

    def _finished(self, number: int, _: Future[Any]) -> None:
        with self._lock:
            self._futures.pop(number, None)
            last = not self._open and not self._futures
        self._free.release()
        if last:
            self._end()

    def _end(self) -> None:
        with suppress(RuntimeError):  # the loop may have ended
            self._loop.call_soon_threadsafe(self._ended.set)
