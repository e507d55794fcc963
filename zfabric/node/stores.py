"""Looking at what stores hold, and removing from it, for coroutines."""

from __future__ import annotations

import msgspec

from zfabric.errors import NotStored
from zfabric.model import Retention, StoredTopic
from zfabric.node.driver import Driver
from zfabric.node.options import whole
from zfabric.node.storeclient import TIMEOUT_S, StoreClient, ask_patiently, newest
from zfabric.protocol.stores import KnownStore
from zfabric.wire.store_records import TOPICS_MAX, TopicTold
from zfabric.wire.topics import Pattern, check_topic

__all__ = ["Stores"]


class Stores:
    """What stores hold; `node.stores` is one. Its methods raise NotStored when none answered in `timeout` seconds."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    async def topics(self, pattern: str = "#", *, timeout: float | None = TIMEOUT_S) -> tuple[StoredTopic, ...]:
        """The topics that stores hold and this node may read, by name; once for each store that has it.

        Durable queues are none: see `node.queues()`. Raises TopicError.
        """
        _ = Pattern(pattern)

        async def look(client: StoreClient) -> tuple[StoredTopic, ...]:
            await client.wait_for(self._any)
            found = [each for store in self._all() for each in await _topics(client, store, pattern)]
            return tuple(sorted(found, key=lambda each: each.topic))

        return await ask_patiently(self._driver, look, timeout, "no store")

    async def purge(
        self, topic: str, *, before: int | None = None, store: str | None = None, timeout: float | None = TIMEOUT_S
    ) -> tuple[StoredTopic, ...]:
        """Remove the messages of a topic, or those before an offset; returns how it is then, once that is safe.

        Whole batches go, as with retention: one that `before` lies in stays. Readers get a Gap (`expired`) in their
        place. `store`: in that one alone (`StoredTopic.store`); offsets are of one store's log. Needs the right to be a
        store of the topic. Raises TopicError, ValueError, and NotStored where no store has the topic or one refuses.
        """
        check_topic(topic)
        before = None if before is None else whole("before", before)
        if before is not None and before < 0:
            raise ValueError(f"before must be 0 or more, not {before}")

        async def remove(client: StoreClient) -> tuple[StoredTopic, ...]:
            await client.wait_for(self._any)
            known = [each for each in self._all() if store in (None, each.id.hex())]
            holding = [each for each in known if await _topics(client, each, topic)]
            if not holding:
                raise NotStored("no store in sight has that topic", topic)
            if before is not None and len(holding) > 1:
                stores = ", ".join(each.id.hex() for each in holding)
                raise ValueError(f"an offset is of one store's log: give store=, one of {stores}")
            return tuple([_topic(each, await client.purge(each, topic, before)) for each in holding])

        return await ask_patiently(self._driver, remove, timeout, "no store")

    def _any(self) -> KnownStore | None:
        return next(iter(self._all()), None)

    def _all(self) -> list[KnownStore]:
        return newest(self._driver.core.stores)


async def _topics(client: StoreClient, store: KnownStore, pattern: str) -> list[StoredTopic]:
    found: list[StoredTopic] = []
    while True:
        told = await client.topics(store, pattern, found[-1].topic if found else "")
        found += [_topic(store, each) for each in told]
        if len(told) < TOPICS_MAX:
            return found


def _topic(store: KnownStore, told: TopicTold) -> StoredTopic:
    return StoredTopic(
        topic=told.topic,
        first=told.first,
        next=told.next,
        bytes=told.nbytes,
        retention=Retention(**msgspec.structs.asdict(told.keeps)),
        store=store.id.hex(),
    )
