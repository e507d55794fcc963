"""Queues, for threads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import islice
from threading import Lock
from types import TracebackType
from typing import Any

from zfabric.errors import NodeClosed, NodeForked
from zfabric.model import Job
from zfabric.node import bindings, puller, pusher
from zfabric.sync.closing import Closing
from zfabric.sync.loop import LoopThread, acquire_within

__all__ = ["Binding", "Puller", "Pusher"]

CHUNK = 10_000
"Values handed to the loop at a time."


class Pusher(Closing):
    """Pushes jobs to one queue; `node.pusher(queue)` makes it. Any number of threads may share it."""

    def __init__(self, thread: LoopThread, source: pusher.Pusher) -> None:
        self._thread = thread
        self._pusher = source

    def __repr__(self) -> str:
        return f"<sync.{repr(self._pusher)[1:]}"

    @property
    def queue(self) -> str:
        """The queue's name."""
        return self._pusher.queue

    @property
    def depth(self) -> int:
        """Jobs of this node that are not done, with those that workers have."""
        return self._pusher.depth

    @property
    def in_flight(self) -> int:
        """Jobs of this node that workers have."""
        return self._thread.call(lambda: self._pusher.in_flight)

    @property
    def workers(self) -> int:
        """Pullers that take jobs from this node."""
        return self._pusher.workers

    def wait_for(self, workers: int | None = None, timeout: float | None = None, *, stores: int | None = None) -> None:
        """Return once that many pullers take jobs, or a store does. As `await zfabric.Pusher.wait_for(...)`."""
        wanted = {"workers": workers, "stores": stores}
        given = {name: number for name, number in wanted.items() if number is not None}
        self._thread.run(lambda: self._pusher.wait_for(timeout=timeout, **given))

    def push(self, value: Any, **options: Any) -> int:
        """Push one job and return its number; blocks while the queue is full. Options as of zfabric.Pusher.push."""
        return self._thread.run(self._pusher.push, value, **options)

    def push_nowait(self, value: Any, **options: Any) -> int:
        """Push one job, or raise WindowFull."""
        return self._thread.call(lambda: self._pusher.push_nowait(value, **options))

    def push_many(self, values: Iterable[Any]) -> int:
        """Push many jobs, faster than one by one, and return the last one's number (-1 if none)."""
        number, rest = -1, iter(values)
        while chunk := list(islice(rest, CHUNK)):  # the iterable may block: it runs here, not in the loop
            number = self._thread.run(self._pusher.push_many, chunk)
        return number

    def finished(self, number: int) -> bool:
        """Whether the job of that number is done, dead, expired or lost."""
        return self._thread.call(lambda: self._pusher.finished(number))

    def flush(self) -> None:
        """Return once every job pushed so far is done, dead or expired. Raises DeliveryFailed if the node closes."""
        self._thread.run(self._pusher.flush)

    def close(self) -> None:
        """Push no more. The jobs stay with the node until they are done."""
        with suppress(NodeClosed, NodeForked):
            self._thread.run(self._pusher.close)


class Puller:
    """A blocking iterator of jobs; `node.puller(queue)` makes it.

    A job is done when its loop body ends, or as `ack`, `nack` and `reject` say. Threads may not share one: each makes
    its own, or use `@node.worker`.
    """

    def __init__(self, thread: LoopThread, source: puller.Puller) -> None:
        self._thread = thread
        self._puller = source
        self._turn = Lock()

    def __repr__(self) -> str:
        return f"<sync.{repr(self._puller)[1:]}"

    def __enter__(self) -> Puller:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(NodeClosed, NodeForked):
            self._thread.run(self._puller.__aexit__, kind, error, trace)

    @property
    def queue(self) -> str:
        """The queue's name."""
        return self._puller.queue

    @property
    def pushers(self) -> int:
        """Nodes that have this queue, this one included."""
        return self._puller.pushers

    @property
    def pending(self) -> int:
        """Jobs that are here: in hand, or waiting for their turn."""
        return self._puller.pending

    def wait_for(self, pushers: int = 1, timeout: float | None = None) -> None:
        """Return once that many nodes have this queue. Raises TimeoutError, or NodeClosed if the node closes."""
        self._thread.run(self._puller.wait_for, pushers, timeout)

    def __iter__(self) -> Iterator[Job]:
        """Job after job, until this or its node is closed."""
        return self

    def __next__(self) -> Job:
        try:
            return self.receive()
        except NodeClosed:
            raise StopIteration from None

    def receive(self, timeout: float | None = None) -> Job:
        """The next job. Raises TimeoutError after `timeout` seconds, NodeClosed at the end."""
        if not acquire_within(self._turn, timeout):
            raise TimeoutError(f"another thread waits for jobs of {self.queue!r}")
        try:
            self._thread.check()
            job = self._puller.take_here()
            if job is None:
                return self._thread.run(self._puller.receive, timeout)
            if self._puller.looked:
                with suppress(NodeClosed):
                    self._thread.post(self._puller.look_soon)
            return job
        finally:
            self._turn.release()

    def batches(self) -> Iterator[list[Job]]:
        """The fast path: lists of jobs, one for each lease; all of one are done together."""
        with suppress(NodeClosed):
            while batch := self._thread.run(self._puller.next_batch):
                yield batch

    def ack(self, job: Job) -> None:
        """As `await job.ack()`: done."""
        self._thread.run(job.ack)

    def nack(self, job: Job, delay: float | None = None, reason: str = "") -> None:
        """As `await job.nack(...)`: not done, again later."""
        self._thread.run(job.nack, delay, reason)

    def reject(self, job: Job, reason: str = "rejected") -> None:
        """As `await job.reject(...)`: it becomes a dead letter."""
        self._thread.run(job.reject, reason)

    def renew(self, job: Job) -> None:
        """As `await job.renew()`: its handler makes progress."""
        self._thread.run(job.renew)

    def close(self) -> None:
        """Take no more. What nobody has begun with goes back."""
        with suppress(NodeClosed, NodeForked):
            self._thread.run(self._puller.close)


class Binding(Closing):
    """Makes jobs of what is published; `node.bind(pattern, queue)` makes it. It lives until it or its node closes."""

    def __init__(self, thread: LoopThread, source: bindings.Binding) -> None:
        self._thread = thread
        self._binding = source

    def __repr__(self) -> str:
        return f"<sync.{repr(self._binding)[1:]}"

    @property
    def pattern(self) -> str:
        """The topics."""
        return self._binding.pattern

    @property
    def queue(self) -> str:
        """The queue."""
        return self._binding.queue

    @property
    def routed(self) -> int:
        """Messages that became jobs of the queue."""
        return self._binding.routed

    @property
    def unrouted(self) -> int:
        """Messages that the selector did not let through."""
        return self._binding.unrouted

    def wait_for(self, publishers: int = 1, timeout: float | None = None) -> None:
        """Return once that many publishers have this binding in place: their next message is routed."""
        self._thread.run(self._binding.wait_for, publishers, timeout)

    def close(self) -> None:
        """Route what has arrived, and no more."""
        with suppress(NodeClosed, NodeForked):
            self._thread.run(self._binding.close)
