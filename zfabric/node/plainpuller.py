"""The pulling end of a queue at-most-once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import islice
from operator import length_hint

from zfabric.errors import LocalProtocolError
from zfabric.events import DecodeError
from zfabric.model import Job, Message, Source
from zfabric.node.buffer import decode_batch
from zfabric.node.driver import Driver
from zfabric.node.puller import Puller
from zfabric.protocol.plainsink import PlainSink
from zfabric.wire.codec import Codec

__all__ = ["PlainPuller"]


class PlainPuller(Puller):
    """Jobs come by libzmq, a batch at a time; nobody keeps them for us."""

    at_most_once = True

    def __init__(
        self,
        driver: Driver,
        codec: Codec,
        queue: str,
        closed: Callable[[Puller], None],
        *,
        close_socket: Callable[[PlainSink], None],
    ) -> None:
        super().__init__(driver, codec, queue, closed)
        self.sink: PlainSink
        self._close_socket = close_socket
        self._taken = 0
        self._paused = False
        self._hands: dict[asyncio.Task[None] | None, int] = {}
        "Tasks that take job by job beside each other: the batch that each has one of in hand."

    @property
    def pushers(self) -> int:
        """Nodes that have this queue, this one included."""
        return len(self.sink.origins)

    @property
    def pending(self) -> int:
        """Jobs that are here and were not handed out."""
        return self.sink.waiting + length_hint(self._rest)

    @property
    def handed(self) -> int:
        """Jobs handed out."""
        return self._taken - length_hint(self._rest)

    def _finish(self, reason: str | None) -> None:
        """What is left of a batch that was iterated over is handed out later."""

    async def take(self, jobs_max: int | None, *, follow: bool = False) -> list[Job]:
        """Up to that many jobs of one batch; empty at the end. Several tasks may wait.

        A task that takes one job at a time is through with the one before.
        """
        handler = None if jobs_max is None or follow else asyncio.current_task()
        if handler is None:
            await asyncio.sleep(0)  # a busy reader lets the node's own work go on
        else:
            self._hands.pop(handler, None)
        while True:
            if self._closed:
                return []
            self._driver.check_open()
            jobs = list(islice(self._rest, jobs_max))
            if jobs:
                if handler is not None:
                    self._hands[handler] = self.sink.newest
                return jobs
            if not self._next_batch():
                await self._wait()
            elif follow:
                return []

    def _next_batch(self) -> bool:
        """Have the jobs of the next batch in `_rest`; those before it are dealt with, unless a handler is at one."""
        driver, sink = self._driver, self.sink
        now = driver.loop.time()
        sink.done(now, self._hands.values())
        driver.schedule_pump()
        taken = sink.take(now)
        if self._paused and not sink.full:
            self._paused = False
            driver.pause_pull(sink.number, paused=False)
        if taken is None:
            return False
        peer_id, batch = taken
        source = driver.core.queues.source(peer_id)
        jobs, expired = decode_batch(batch, source, self._codec, driver.utc(), self._bad, Job, _NOTHING)
        if expired:
            driver.expired[self.queue] += expired
        self._taken += len(jobs)
        self._rest = iter(jobs)
        return True

    def _bad(self, source: Source, topic: str, seq: int, reason: str) -> None:
        self._driver.undecodable[topic] += 1
        self._driver.events.put(DecodeError(source, topic, seq, reason))

    def arrived(self) -> None:
        """A batch came."""
        if self.sink.full and not self._paused:
            self._paused = True
            self._driver.pause_pull(self.sink.number, paused=True)
        self.wake()

    def end(self) -> None:
        """Iteration ends; what nobody has begun with is lost, and its pushers count it."""
        if not self._closed:
            self.sink.done(self._driver.loop.time(), [self.sink.newest] if length_hint(self._rest) else ())
            self._close_socket(self.sink)
        super().end()


class _Nothing:
    """What jobs at-most-once have to be settled with."""

    def ack(self, message: Message, *, confirm: bool = True) -> None:
        """There is nobody to tell."""

    def renew(self, job: Job) -> None:
        """There is nobody to tell."""

    def nack(self, message: Message, delay: float | None, reason: str = "") -> None:
        raise LocalProtocolError(
            f'jobs of {message.topic!r} come at most once and cannot be given back; use delivery="at-least-once"'
        )

    def reject(self, message: Message, reason: str = "") -> None:
        raise LocalProtocolError(
            f'jobs of {message.topic!r} come at most once and have no dead letters; use delivery="at-least-once"'
        )


_NOTHING = _Nothing()
