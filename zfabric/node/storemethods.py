"""What a node asks of stores: schedules, which push jobs to a durable queue again and again, and their groups."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Literal

import msgspec

from zfabric.config import Config
from zfabric.errors import EncodeFailed, StoreLost
from zfabric.model import Schedule, Topic
from zfabric.node.declared import Declared
from zfabric.node.driver import Driver
from zfabric.node.groups import Groups
from zfabric.node.options import text
from zfabric.node.storeclient import TIMEOUT_S, StoreClient, ask_patiently, newest
from zfabric.node.stores import Stores
from zfabric.protocol.jobs import PRIORITIES, PRIORITY_DEFAULT
from zfabric.protocol.stores import KnownStore
from zfabric.protocol.stores import Stores as KnownStores
from zfabric.wire.batch import plain_metadata
from zfabric.wire.codec import Codec
from zfabric.wire.durable_records import SCHEDULES, Declaration, ScheduleState
from zfabric.wire.store_records import NamedPosition
from zfabric.wire.topics import check_topic

__all__ = ["StoreMethods"]

NAME_MAX = 200
VALUE_BYTES_MAX = 2**30
"All values are encoded as a whole; the store says how long they may be."

_encode = msgspec.msgpack.Encoder().encode
_decode_state = msgspec.msgpack.Decoder(ScheduleState).decode


class StoreMethods:
    """The methods of a node that are about stores."""

    _config: Config
    _declared: Declared | None = None

    def _opened(self) -> Driver:
        raise NotImplementedError

    @property
    def groups(self) -> Groups:
        """The groups of the stores in sight: how far they are behind, seek, reset, pause and resume."""
        return Groups(self._opened())

    @property
    def stores(self) -> Stores:
        """The stores in sight: which topics they hold, how large, how long; purge."""
        return Stores(self._opened())

    async def schedule(
        self,
        name: str,
        *,
        queue: str | Topic[Any],
        value: Any = None,
        cron: str | None = None,
        every: int | None = None,
        timezone: str = "UTC",
        missed: Literal["one", "none"] = "one",
        key: Any = None,
        headers: dict[str, Any] | None = None,
        ttl: float | None = None,
        priority: int = PRIORITY_DEFAULT,
        timeout: float | None = TIMEOUT_S,
    ) -> None:
        """Have a store push a job to the durable `queue` at each tick; returns once the store has that on its disk.

        Each tick makes one job, however many nodes declare the schedule and whatever crashes. The job has the headers
        `schedule` (its name) and `tick` (seconds since 1970, UTC). Declaring it again changes nothing, and replaces it
        when something differs.
        `cron`: minute, hour, day of month, month and day of week, e.g. `"0 3 * * *"`; six fields begin with seconds.
        `every`: instead, a whole number of seconds; ticks are its multiples since 1970, UTC.
        `timezone`: that `cron` is about.
        `missed`: what becomes of ticks during which the store did not run: `"one"` job for all of them at once, whose
        tick is that of the last, or `"none"`.
        `key`, `headers`, `ttl` and `priority` are those of each job, see `Pusher.push`.
        `timeout`: how long to wait for the store.
        Raises ValueError for what makes no sense, EncodeFailed, NotAuthorized, and NotStored when no store takes it.
        """
        queue, kind = (queue.name, queue.type) if isinstance(queue, Topic) else (queue, None)
        check_topic(queue, bytes_max=self._config.topic_bytes_max)
        _check(name, cron, every, missed, priority, headers)
        driver = self._opened()
        driver.rights.check("push", queue)
        try:
            encoded = Codec(kind, inline_bytes=VALUE_BYTES_MAX).encode(value)
            key, headers, ttl_ms, _ = plain_metadata(key, headers, ttl)
        except EncodeFailed as error:
            raise EncodeFailed(queue, error.reason) from error.__cause__
        declaration = Declaration(
            queue, encoded, cron or "", every or 0, timezone, missed, key, headers, ttl_ms, priority
        )
        position = NamedPosition(SCHEDULES + name, _encode(declaration))
        stores = driver.core.stores

        async def declare(client: StoreClient) -> None:
            await client.wait_for(lambda: stores.of_queue(queue))
            found = await _find(client, stores, name)
            store = found[0] if found else stores.of_queue(queue)
            if store is None:
                raise StoreLost(queue)
            await client.write(store, positions=[position])
            if self._declared is None:
                self._declared = Declared(driver, self._config)
            self._declared.put(name, queue, store.id)

        await ask_patiently(driver, declare, timeout, f"no store that keeps {queue!r}")

    async def unschedule(self, name: str, *, timeout: float | None = TIMEOUT_S) -> bool:
        """Make no more jobs of a schedule; those that are there stay. Returns whether there was one.

        Raises NotStored when no store takes it, or this node may not push to the queue.
        """
        driver = self._opened()
        stores = driver.core.stores
        if self._declared is not None:
            self._declared.remove(name)

        async def remove(client: StoreClient) -> bool:
            await client.wait_for(lambda: next(iter(stores.all()), None))
            found = await _find(client, stores, name)
            for store in found:
                await client.write(store, positions=[NamedPosition(SCHEDULES + name, None)])
            return bool(found)

        return await ask_patiently(driver, remove, timeout, "no store")

    async def schedules(self, *, timeout: float | None = TIMEOUT_S) -> list[Schedule]:
        """All schedules of all stores in sight, by name: those to whose queues this node may push. Raises NotStored."""
        driver = self._opened()
        stores = driver.core.stores

        async def look(client: StoreClient) -> list[Schedule]:
            await client.wait_for(lambda: next(iter(stores.all()), None))
            found: list[Schedule] = []
            for store in newest(stores):
                for position in (await client.positions(store, SCHEDULES)).values():
                    if position.value is not None:
                        state = _decode_state(position.value)
                        found.append(_schedule(position.name.removeprefix(SCHEDULES), state))
            return sorted(found, key=lambda schedule: schedule.name)

        return await ask_patiently(driver, look, timeout, "no store")


def _check(
    name: str, cron: str | None, every: int | None, missed: str, priority: int, headers: dict[str, Any] | None
) -> None:
    if not 0 < len(text("name", name)) <= NAME_MAX:
        raise ValueError(f"the name of a schedule has 1 to {NAME_MAX} characters, not {len(name)}")
    if (cron is None) == (every is None):
        raise ValueError("a schedule has either cron= or every=")
    if every is not None and (every.__class__ is not int or not 0 < every < 2**32):
        raise ValueError(f"every must be a whole number of seconds from 1 on, not {every!r}")
    if missed not in {"one", "none"}:
        raise ValueError(f'missed must be "one" or "none", not {missed!r}')
    if priority.__class__ is not int or not 0 <= priority < PRIORITIES:
        raise ValueError(f"priority must be 0 to {PRIORITIES - 1}, not {priority!r}")
    for header in headers or ():
        if header in {"schedule", "tick"} or header.startswith("$"):
            raise ValueError(
                f"the header {header!r} is not yours: the store sets `schedule`, `tick` and those with `$`"
            )


async def _find(client: StoreClient, stores: KnownStores, name: str) -> list[KnownStore]:
    """The stores that have a schedule."""
    found: list[KnownStore] = []
    for store in newest(stores):
        known = (await client.positions(store, SCHEDULES + name)).get(SCHEDULES + name)
        if known is not None and known.value is not None:
            found.append(store)
    return found


def _schedule(name: str, state: ScheduleState) -> Schedule:
    told = state.declaration
    return Schedule(
        name=name,
        queue=told.queue,
        value=Codec(inline_bytes=VALUE_BYTES_MAX).decode(told.value),
        cron=told.cron or None,
        every=told.every_s or None,
        timezone=told.timezone,
        missed=told.missed,
        key=told.key,
        headers=told.headers,
        ttl=None if told.ttl_ms is None else told.ttl_ms / 1000,
        priority=told.priority,
        next=datetime.fromtimestamp(state.next, UTC),
        last=datetime.fromtimestamp(state.last, UTC) if state.last else None,
    )
