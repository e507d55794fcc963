"""The pulling end of a queue."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from itertools import count, repeat
from types import TracebackType
from typing import Any

from zfabric.errors import DecodeFailed, LocalProtocolError, NodeClosed
from zfabric.events import DecodeError
from zfabric.model import Job
from zfabric.node.driver import Driver
from zfabric.protocol.deliveries import Delivery
from zfabric.protocol.jobs import PRIORITY_DEFAULT
from zfabric.protocol.pulls import Pull
from zfabric.wire.codec import Codec
from zfabric.wire.queue_records import JobMeta, Jobs, Undone

__all__ = ["Puller"]


class Puller:
    """An async iterator of jobs; `node.puller(queue)` makes it.

    A job that is handed out is done when its loop body ends, and the next one is asked for: with `ack="auto"`, that
    is, unless the body said otherwise by `job.nack()` or `job.reject()`. If the body raises, leaving `async with` gives
    the job back. Cancelling a read loses nothing.
    """

    def __init__(self, driver: Driver, codec: Codec, closed: Callable[[Puller], None], *, manual: bool) -> None:
        self.pull: Pull
        self._driver = driver
        self._codec = codec
        self._on_close = closed
        self._manual = manual
        self._current: tuple[Delivery, int, int] | None = None
        self._rest: Iterator[Job] = iter(())
        self._unfit = 0
        self._waiters: set[asyncio.Future[None]] = set()
        self._reading = False
        self._closed = False

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{self.pushers} pushers, {self.pull.held} jobs here"
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
    def queue(self) -> str:
        """The queue's name."""
        return self.pull.queue

    @property
    def pushers(self) -> int:
        """Nodes that have this queue, this one included."""
        return len(self.pull.sources)

    @property
    def pending(self) -> int:
        """Jobs that are here: in hand, or waiting for their turn."""
        self.pull.catch_up()
        return self.pull.held

    @property
    def handed(self) -> int:
        """Jobs handed out."""
        self.pull.catch_up()
        return self.pull.begun - self._unfit

    async def wait_for(self, pushers: int = 1, timeout: float | None = None) -> None:
        """Return once that many nodes have this queue.

        Raises TimeoutError after `timeout` seconds, NodeClosed if the node closes meanwhile.
        """
        await self._driver.wait_until(lambda: self.pushers >= pushers, timeout)

    # -- reading -------------------------------------------------------------------------------

    async def __aiter__(self) -> AsyncIterator[Job]:
        """Job after job, until the puller or its node is closed."""
        pull = self.pull
        while True:
            for job in self._rest:
                yield job
                if pull.seen:
                    self._moves_on()
            jobs = await self._next(1, follow=True)
            if jobs:
                yield jobs[0]
            elif self._closed:
                return

    async def __anext__(self) -> Job:
        while True:
            if self.pull.seen:
                self._moves_on()
            for job in self._rest:
                return job
            jobs = await self._next(1, follow=True)
            if jobs:
                return jobs[0]
            if self._closed:
                raise StopAsyncIteration

    def _moves_on(self) -> None:
        """The node has seen how far the reader had come, and the reader goes on: look again after this turn."""
        self.pull.seen, self.pull.changed = False, True
        self._driver.schedule_pump()

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
        """As `take`; with `follow`, and where jobs need no look of ours, they are in `_rest` instead."""
        if self._reading:
            raise LocalProtocolError(f"another task reads the puller of {self.queue!r} already")
        self._reading = True
        try:
            self._finish()
            return await self.take(jobs_max, follow=follow and not self._manual)
        finally:
            self._reading = False

    def _finish(self, reason: str | None = None) -> None:
        """What was handed out before is done, now that its reader asks for more; with a reason, it has failed."""
        self._rest = iter(())
        self.pull.settle_followed(reason)
        if self._current is not None:
            delivery, start, stop = self._current
            self._current = None
            for first, last in _in_hand(delivery, start, stop):
                if reason is None:
                    self.pull.done(delivery, first, last)
                else:
                    self.pull.undone(delivery, first, last, "nack", reason=reason)

    async def take(self, jobs_max: int | None, *, follow: bool = False) -> list[Job]:
        """Up to that many jobs of one lease, for the caller to settle; empty at the end. Several tasks may wait."""
        pull, driver = self.pull, self._driver
        if pull.changed:
            driver.schedule_pump()
        if jobs_max is None or follow or pull.head() is None:
            await asyncio.sleep(0)  # a busy reader lets the node's own work go on
        while True:
            if self._closed:
                return []
            driver.check_open()
            delivery = pull.head()
            if delivery is not None:
                jobs = self._hand_out(delivery, jobs_max, follow=follow)
                if jobs or pull.followed:
                    return jobs
                continue
            if pull.changed:
                driver.schedule_pump()
            await self._wait()

    async def _wait(self) -> None:
        waiter: asyncio.Future[None] = self._driver.loop.create_future()
        self._waiters.add(waiter)
        self.pull.readers += 1
        try:
            await waiter
        finally:
            self.pull.readers -= 1
            self._waiters.discard(waiter)

    def wake(self) -> None:
        """There are jobs, or the end."""
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    # -- jobs ----------------------------------------------------------------------------------

    def _hand_out(self, delivery: Delivery, jobs_max: int | None, *, follow: bool) -> list[Job]:
        """What is next of a lease, decoded; without what is too late or does not decode."""
        now, meta = self._driver.loop.time(), delivery.jobs.meta
        if delivery.values is None:
            delivery.values = self._decode(delivery)
        special = (meta is not None and bool(meta.ttl_ms)) or len(delivery.values) > delivery.jobs.count
        if follow and not special:
            self._rest = self.pull.follow(delivery, delivery.values[delivery.started : delivery.stop], now)
            self._driver.schedule_pump()
            return []
        taken = self.pull.take(jobs_max, now)
        assert taken is not None
        _, start, stop = taken
        jobs: list[Job] = delivery.values[start:stop]
        if special:
            jobs = self._sort_out(delivery, jobs, start)
        elif self._manual:
            self.pull.single_out(delivery, start)
        else:
            self._current = delivery, start, stop
        return jobs

    def _sort_out(self, delivery: Delivery, jobs: list[Job], start: int) -> list[Job]:
        """Settle jobs that are nobody's business any more."""
        pull = self.pull
        pull.single_out(delivery, start)
        ttl_ms = delivery.jobs.meta.ttl_ms if delivery.jobs.meta is not None else {}
        age_ms = (self._driver.loop.time() - delivery.received_at) * 1000
        good: list[Job] = []
        for position, job in enumerate[Job | None](jobs, start):
            if job is None:
                reason = f"it does not decode: {delivery.values[-1].get(position, '')}"
                pull.undone(delivery, position, position + 1, "reject", reason=reason)
            elif age_ms >= ttl_ms.get(position, age_ms + 1):
                pull.undone(delivery, position, position + 1, "expired")
            else:
                good.append(job)
        if not self._manual:
            self._current = delivery, start, start + len(jobs)
        self._unfit += len(jobs) - len(good)
        return good

    def _decode(self, delivery: Delivery) -> list[Any]:
        """The jobs of a lease; None for each that does not decode, and then the reasons at the end."""
        record, codec = delivery.jobs, self._codec
        settlement = _Settlement(self, delivery)
        try:
            values = codec.decode_many(record.body, record.buffers)
            if len(values) != record.count:
                raise DecodeFailed(f"lease of {len(values)} values says that it has {record.count}")
            bad: dict[int, str] = {}
        except DecodeFailed:
            values, bad = _salvage(codec, record)
        source = self._driver.core.queues.source(delivery.source.peer_id)
        columns: dict[str, Iterable[Any]] = {
            "value": values,
            "seq": record.ids or count(record.first),
            "topic": repeat(self.queue),
            "timestamp": repeat(record.pushed_ns / 1e9),
            "source": repeat(source),
            "_settlement": repeat(settlement),
            "attempt": repeat(1),
            "priority": repeat(PRIORITY_DEFAULT),
            "_position": count(),
        }
        jobs: list[Any] = list(map(Job, *(columns.get(name, repeat(None)) for name in Job.__struct_fields__)))
        if record.meta is not None:
            _annotate(jobs, record.meta)
        if bad:
            for position, reason in bad.items():
                self._driver.undecodable[self.queue] += 1
                self._driver.emit(DecodeError(source, self.queue, jobs[position].seq, reason))
                jobs[position] = None
            jobs.append(bad)
        return jobs

    def settle(self, delivery: Delivery, job: Job, why: Undone | None, delay: float | None, reason: str) -> None:
        """A job's reader has told its fate."""
        position = job._position  # noqa: SLF001 - hidden from users, not from us
        pull = self.pull
        pull.catch_up()
        hands = delivery.hands
        if position not in hands or hands[position][0] != position + 1:
            batch = next((start for start, (stop, _) in hands.items() if start <= position < stop), None)
            if batch is not None:
                pull.single_out(delivery, batch)
            elif delivery.alive and position not in delivery.late:
                return  # settled before
        if why is None:
            pull.done(delivery, position, position + 1)
        else:
            pull.undone(delivery, position, position + 1, why, delay_s=delay, reason=reason)
        self._driver.schedule_pump()

    def renew(self, delivery: Delivery, job: Job) -> None:
        """A job's handler lives."""
        self.pull.renew(delivery, job._position, self._driver.loop.time())  # noqa: SLF001 - hidden from users, not from us

    # -- the end -------------------------------------------------------------------------------

    async def close(self) -> None:
        """Take no more. What nobody has begun with goes back; what is in hand counts as done with `ack="auto"`."""
        if not self._closed:
            self._finish()
            self.end()
            self._on_close(self)

    def end(self) -> None:
        """Iteration ends; what nobody has begun with goes back."""
        self._closed = True
        self.pull.close()
        if self._driver.open_state == "open":
            self._driver.schedule_pump()
        self.wake()


class _Settlement:
    """Where the jobs of one lease are settled."""

    __slots__ = ("_delivery", "_puller")

    def __init__(self, puller: Puller, delivery: Delivery) -> None:
        self._puller = puller
        self._delivery = delivery

    def ack(self, job: Job) -> None:
        self._puller.settle(self._delivery, job, None, None, "")

    def nack(self, job: Job, delay: float | None, reason: str) -> None:
        self._puller.settle(self._delivery, job, "nack", delay, reason)

    def reject(self, job: Job, reason: str) -> None:
        self._puller.settle(self._delivery, job, "reject", None, reason)

    def renew(self, job: Job) -> None:
        self._puller.renew(self._delivery, job)


def _in_hand(delivery: Delivery, start: int, stop: int) -> list[tuple[int, int]]:
    """What of these positions is still in hand, as ranges."""
    hands = delivery.hands
    if start in hands and hands[start][0] == stop:
        return [(start, stop)]
    return [(position, position + 1) for position in range(start, stop) if position in hands]


def _annotate(jobs: list[Job], meta: JobMeta) -> None:
    columns: tuple[tuple[str, dict[int, Any]], ...] = (
        ("key", meta.keys),
        ("headers", meta.headers),
        ("priority", meta.priorities),
        ("attempt", meta.attempts),
    )
    for name, column in columns:
        for position, value in column.items():
            if 0 <= position < len(jobs):
                setattr(jobs[position], name, value)


def _salvage(codec: Codec, record: Jobs) -> tuple[list[Any], dict[int, str]]:
    """Value by value: the good ones, and why the others are bad."""
    try:
        each = list(codec.decode_each(record.body, record.buffers))
        if len(each) != record.count:
            raise DecodeFailed(f"lease of {len(each)} values says that it has {record.count}")
    except DecodeFailed as hopeless:
        return [None] * record.count, dict.fromkeys(range(record.count), hopeless.reason)
    values = [value for _, value in each]
    return values, {position: value.reason for position, value in enumerate(values) if isinstance(value, DecodeFailed)}
