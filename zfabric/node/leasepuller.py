"""The pulling end of a queue whose jobs are leased."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from itertools import count, repeat
from typing import Any

from zfabric.errors import DecodeFailed, NotStored
from zfabric.events import DecodeError
from zfabric.model import Job
from zfabric.node.driver import Driver
from zfabric.node.options import real, said
from zfabric.node.puller import Puller
from zfabric.protocol.deliveries import Delivery
from zfabric.protocol.jobs import PRIORITY_DEFAULT
from zfabric.protocol.pulls import TOO_LATE, Pull
from zfabric.wire.codec import Codec
from zfabric.wire.queue_records import JobMeta, Jobs, Undone

__all__ = ["LeasePuller"]


class LeasePuller(Puller):
    """Jobs stay with their pusher until they are settled here."""

    def __init__(
        self, driver: Driver, codec: Codec, queue: str, closed: Callable[[Puller], None], *, manual: bool
    ) -> None:
        super().__init__(driver, codec, queue, closed)
        self.pull: Pull
        self._manual = manual
        self._current: tuple[Delivery, int, int] | None = None
        self._unfit = 0

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

    async def __aiter__(self) -> AsyncIterator[Job]:
        """Job after job, until the puller or its node is closed."""
        pull = self.pull
        while True:
            for job in self._rest:
                yield job
                if pull.seen:  # the inlined beginning of `_moves_on`, which most jobs need not
                    self._moves_on()
            jobs = await self._next(1, follow=True)
            if jobs:
                yield jobs[0]
            elif self._closed:
                return

    def _moves_on(self) -> None:
        """If the node has seen how far the reader had come, let it look again after this turn."""
        if self.pull.seen:
            self.pull.seen, self.pull.changed = False, True
            self._driver.schedule_pump()

    @property
    def looked(self) -> bool:
        """As of every puller."""
        return self.pull.seen

    def look_soon(self) -> None:
        """As of every puller."""
        delivery = self.pull.followed
        if self.pull.seen and delivery is not None:
            self.pull.seen = False
            self._tell_soon(delivery)

    def _finish(self, reason: str | None) -> None:
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
        if jobs_max is None or follow or pull.head() is None:
            if pull.changed:
                driver.schedule_pump()
            await asyncio.sleep(0)  # a busy reader lets the node's own work go on
        while True:
            if self._closed:
                return []
            driver.check_open()
            delivery = pull.head()
            if delivery is not None:
                jobs = self._hand_out(delivery, jobs_max, follow=follow and not self._manual)
                if jobs or pull.followed is not None:
                    return jobs
                continue
            await self._wait()

    async def _wait(self) -> None:
        self.pull.readers += 1
        self.pull.changed = True  # it may need more credit
        self._driver.schedule_pump()
        try:
            await super()._wait()
        finally:
            self.pull.readers -= 1

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
                self._driver.events.put(DecodeError(source, self.queue, jobs[position].seq, reason))
                jobs[position] = None
            jobs.append(bad)
        return jobs

    def settle(self, delivery: Delivery, job: Job, why: Undone | None, delay: float | None, reason: str) -> bool:
        """A job's reader has told its fate. False if that changes nothing any more."""
        position = job._position  # noqa: SLF001 - hidden from users, not from us
        pull = self.pull
        pull.catch_up()
        hands = delivery.hands
        if position not in hands or hands[position][0] != position + 1:
            batch = next((start for start, (stop, _) in hands.items() if start <= position < stop), None)
            if batch is not None:
                pull.single_out(delivery, batch)
            elif delivery.alive and position not in delivery.late:
                return False  # settled before
        if why is not None:
            settled = pull.undone(delivery, position, position + 1, why, delay_s=delay, reason=reason)
            self._driver.schedule_pump()
        else:
            settled = pull.done(delivery, position, position + 1)
            self._tell_soon(delivery)
        return settled

    def _tell_soon(self, delivery: Delivery) -> None:
        """What is done is told now, or with more that will be."""
        now = self._driver.loop.time()
        due = self.pull.tell_by(delivery, now)
        if due <= now:
            self._driver.schedule_pump()
        else:
            self._driver.pump_by(due)

    def kept(self, delivery: Delivery, job: Job) -> asyncio.Future[None]:
        """Done once the store has noted that the job is."""
        future: asyncio.Future[None] = self._driver.loop.create_future()

        def told(reason: str) -> None:
            if future.done():
                return
            if reason:
                future.set_exception(NotStored(reason, self.queue))
            else:
                future.set_result(None)

        self.pull.unkept.wait(delivery, job._position, told)  # noqa: SLF001 - hidden from users, not from us
        return future

    def renew(self, delivery: Delivery, job: Job) -> None:
        """A job's handler lives."""
        self.pull.renew(delivery, job._position, self._driver.loop.time())  # noqa: SLF001 - hidden from users, not from us

    def end(self) -> None:
        """Iteration ends; what nobody has begun with goes back."""
        self.pull.close()
        super().end()


class _Settlement:
    """Where the jobs of one lease are settled."""

    __slots__ = ("_delivery", "_puller")

    def __init__(self, puller: LeasePuller, delivery: Delivery) -> None:
        self._puller = puller
        self._delivery = delivery

    def ack(self, job: Job, *, confirm: bool = True) -> asyncio.Future[None] | None:
        delivery = self._delivery
        settled = self._puller.settle(delivery, job, None, None, "")
        if not confirm or not delivery.jobs.durable:
            return None
        if not settled and delivery.is_late(job._position):  # noqa: SLF001 - hidden from users, not from us
            raise NotStored(TOO_LATE, self._puller.queue)
        return self._puller.kept(delivery, job) if settled else None

    def nack(self, job: Job, delay: float | None, reason: str) -> None:
        delay = None if delay is None else real("delay", delay)
        self._puller.settle(self._delivery, job, "nack", delay, said(str(reason)))

    def reject(self, job: Job, reason: str) -> None:
        self._puller.settle(self._delivery, job, "reject", None, said(str(reason)))

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
