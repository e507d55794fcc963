"""The pulling end of a queue: what it is to its reader, however jobs come here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from types import TracebackType

from zfabric.errors import LocalProtocolError, NodeClosed
from zfabric.model import Job
from zfabric.node.driver import Driver
from zfabric.wire.codec import Codec

__all__ = ["Puller"]


class Puller:
    """An async iterator of jobs; `node.puller(queue)` makes it.

    A job that is handed out is done when its loop body ends, and the next one is asked for: with `ack="auto"`, that
    is, unless the body said otherwise by `job.nack()` or `job.reject()`. If the body raises, leaving `async with` gives
    the job back. Cancelling a read loses nothing. With `delivery="at-most-once"` a job that is here comes back never.
    """

    at_most_once = False
    "Whether jobs cannot be given back."

    def __init__(self, driver: Driver, codec: Codec, queue: str, closed: Callable[[Puller], None]) -> None:
        self.queue = queue
        "The queue's name."
        self._driver = driver
        self._codec = codec
        self._on_close = closed
        self._rest: Iterator[Job] = iter(())
        self._waiters: set[asyncio.Future[None]] = set()
        self._reading = False
        self._closed = False

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{self.pushers} pushers, {self.pending} jobs here"
        return f"<Puller {self.queue} [{state}]>"

    async def __aenter__(self) -> Puller:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._finish(f"{type(error).__name__}: {error}")
        await self.close()

    @property
    def pushers(self) -> int:
        """Nodes that have this queue, this one included."""
        raise NotImplementedError

    @property
    def pending(self) -> int:
        """Jobs that are here: in hand, or waiting for their turn."""
        raise NotImplementedError

    @property
    def handed(self) -> int:
        """Jobs handed out."""
        raise NotImplementedError

    async def wait_for(self, pushers: int = 1, timeout: float | None = None) -> None:
        """Return once that many nodes have this queue.

        Raises TimeoutError after `timeout` seconds, NodeClosed if the node closes meanwhile.
        """
        await self._driver.wait_until(lambda: self.pushers >= pushers, timeout)

    # -- reading -------------------------------------------------------------------------------

    async def __aiter__(self) -> AsyncIterator[Job]:
        """Job after job, until the puller or its node is closed."""
        while True:
            for job in self._rest:
                yield job
                self._moves_on()
            jobs = await self._next(1, follow=True)
            if jobs:
                yield jobs[0]
            elif self._closed:
                return

    async def __anext__(self) -> Job:
        while True:
            self._moves_on()
            for job in self._rest:
                return job
            jobs = await self._next(1, follow=True)
            if jobs:
                return jobs[0]
            if self._closed:
                raise StopAsyncIteration

    async def receive(self, timeout: float | None = None) -> Job:
        """The next job. Raises TimeoutError after `timeout` seconds, NodeClosed at the end."""
        try:
            async with asyncio.timeout(timeout):
                return await self.__anext__()
        except StopAsyncIteration:
            raise NodeClosed(f"the puller of {self.queue!r} is closed") from None

    async def batches(self) -> AsyncIterator[list[Job]]:
        """The fast path: lists of jobs, one for each lease; with `ack="auto"` all of one are done together."""
        while jobs := await self.next_batch():
            yield jobs

    async def next_batch(self) -> list[Job]:
        """The next list of jobs, as `batches` gives them; empty at the end."""
        return await self._next(None)

    async def _next(self, jobs_max: int | None, *, follow: bool = False) -> list[Job]:
        if self._reading:
            raise LocalProtocolError(f"another task reads the puller of {self.queue!r} already")
        self._reading = True
        try:
            self._finish(None)
            return await self.take(jobs_max, follow=follow)
        finally:
            self._reading = False

    def _moves_on(self) -> None:
        """The reader takes another one of `_rest`."""

    # -- reading in another thread -------------------------------------------------------------

    def take_here(self) -> Job | None:
        """The next job, if there is one that the node need not be asked for. For the one thread that reads."""
        return next(self._rest, None)

    @property
    def looked(self) -> bool:
        """Whether the node has looked how far the reader had come, and `look_soon` shall have it look again."""
        return False

    def look_soon(self) -> None:
        """The reader has moved on: call it in the loop."""

    def _finish(self, reason: str | None) -> None:
        """What was handed out before is done, now that its reader asks for more; with a reason, it has failed."""
        raise NotImplementedError

    async def take(self, jobs_max: int | None, *, follow: bool = False) -> list[Job]:
        """Up to that many jobs of one lease, for the caller to settle; empty at the end. Several tasks may wait.

        With `follow`, and where jobs need no look of ours, they are in `_rest` instead.
        """
        raise NotImplementedError

    async def _wait(self) -> None:
        waiter: asyncio.Future[None] = self._driver.loop.create_future()
        self._waiters.add(waiter)
        try:
            await waiter
        finally:
            self._waiters.discard(waiter)

    def wake(self) -> None:
        """There are jobs, or the end."""
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    # -- the end -------------------------------------------------------------------------------

    async def close(self) -> None:
        """Take no more. What nobody has begun with goes back; what is in hand counts as done with `ack="auto"`."""
        if not self._closed:
            self._finish(None)
            self.end()
            self._on_close(self)

    def end(self) -> None:
        """Iteration ends; what nobody has begun with goes back."""
        self._closed = True
        if self._driver.open_state == "open":
            self._driver.schedule_pump()
        self.wake()
