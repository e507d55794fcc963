"""Asking stores, for coroutines."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Literal, TypeAlias, TypeVar

from zfabric.errors import (
    GroupRefused,
    NotStored,
    OutOfSequence,
    PositionFenced,
    ProducerFenced,
    StoreDamaged,
    StoreFailed,
    StoreLost,
)
from zfabric.node.driver import Driver
from zfabric.protocol.stores import Answer, KnownStore, Stores
from zfabric.wire.fields import Start
from zfabric.wire.group_records import AskGroups, GroupTold, ToldGroups
from zfabric.wire.letters import LetterRecord
from zfabric.wire.store_records import (
    AskPositions,
    AskTopics,
    NamedPosition,
    Purge,
    ToldPositions,
    ToldTopics,
    TopicTold,
    Unwritten,
    Write,
    Written,
)

__all__ = ["TIMEOUT_S", "StoreClient", "ask_patiently", "newest"]

RECORD_BYTES = 256
LATEST = Start()
TIMEOUT_S = 5.0
"How long a store is looked for and asked, unless the caller says otherwise."
Verb: TypeAlias = Literal["list", "seek", "pause", "resume", "forget"]

R = TypeVar("R")


class StoreClient:
    """One node's requests to stores."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._stores = driver.core.stores

    async def wait_for(self, find: Callable[[], KnownStore | None], timeout: float | None = None) -> KnownStore:
        """The store that `find` finds, once it is there. Raises TimeoutError, NodeClosed."""
        await self._driver.wait_until(lambda: find() is not None, timeout)
        found = find()
        assert found is not None
        return found

    async def write(
        self,
        store: KnownStore,
        batches: Sequence[list[bytes]] = (),
        positions: Sequence[NamedPosition] = (),
        *,
        gone: int | None = None,
    ) -> list[int | None]:
        """Store all of it or nothing; returns the batches' offsets (None for what had been there) when it is safe.

        Raises NotStored and its kinds, StoreLost when the store left first, StoreFailed when its disk failed: both
        mean that it is unknown whether it was stored. Asking again does no harm. ValueError for what makes no sense.
        `gone`: what the first batch's producer numbered from here up to it is with another log.
        """
        nbytes = RECORD_BYTES * (1 + len(positions)) + sum(len(frame) for frames in batches for frame in frames)
        answer = await self._ask(store, lambda number: Write(number, list(batches), list(positions), gone), nbytes)
        if isinstance(answer, Unwritten):
            raise _error(answer)
        assert isinstance(answer, Written)
        return answer.offsets

    async def positions(self, store: KnownStore, prefix: str) -> dict[str, NamedPosition]:
        """The named values that begin with `prefix`. Raises StoreLost, StoreDamaged."""
        answer = await self._ask(store, lambda number: AskPositions(number, prefix), RECORD_BYTES)
        assert isinstance(answer, ToldPositions)
        if answer.error:
            raise StoreDamaged(store.peer.source.name, answer.error)
        return {position.name: position for position in answer.positions}

    async def groups(
        self,
        store: KnownStore,
        verb: Verb = "list",
        group: str = "",
        start: Start = LATEST,
        streams: Sequence[str] = (),
    ) -> list[GroupTold]:
        """The groups of a store, or the one that the verb was about. Raises StoreLost, GroupRefused."""
        answer = await self._ask(
            store,
            lambda number: AskGroups(number, verb, group, start, list(streams)),
            RECORD_BYTES * (1 + len(streams)),
        )
        assert isinstance(answer, ToldGroups)
        if answer.error:
            raise GroupRefused(group, answer.error)
        return answer.groups

    async def topics(self, store: KnownStore, pattern: str, after: str) -> list[TopicTold]:
        """The first TOPICS_MAX topics of a store after that name. Raises StoreLost, StoreDamaged."""
        answer = await self._ask(store, lambda number: AskTopics(number, pattern, after), RECORD_BYTES)
        assert isinstance(answer, ToldTopics)
        if answer.error:
            raise StoreDamaged(store.peer.source.name, answer.error)
        return answer.topics

    async def purge(self, store: KnownStore, topic: str, before: int | None) -> TopicTold:
        """Remove messages. Raises StoreLost, NotStored."""
        answer = await self._ask(store, lambda number: Purge(number, topic, before), RECORD_BYTES)
        assert isinstance(answer, ToldTopics)
        if answer.error:
            raise NotStored(answer.error, topic)
        return answer.topics[0]

    async def _ask(self, store: KnownStore, make: Callable[[int], LetterRecord], nbytes: int) -> Answer:
        self._driver.check_open()
        future: asyncio.Future[Answer | None] = self._driver.loop.create_future()

        def answered(answer: Answer | None) -> None:
            if not future.done():
                future.set_result(answer)

        self._stores.ask(store, make, answered, nbytes)
        self._driver.schedule_pump()
        answer = await future
        if answer is None:
            raise StoreLost(store.peer.source.name)
        return answer


async def ask_patiently(
    driver: Driver, work: Callable[[StoreClient], Awaitable[R]], timeout: float | None, missing: str
) -> R:
    """Do what can be done again when the store is lost meanwhile. Raises NotStored after `timeout` seconds."""
    client = StoreClient(driver)
    try:
        async with asyncio.timeout(timeout):
            while True:
                try:
                    return await work(client)
                except StoreLost:
                    continue  # it is forgotten, so the next one is waited for
    except TimeoutError:
        raise NotStored(f"{missing} answered within {timeout:g} s: zfabric store run DIR") from None


def newest(stores: Stores) -> list[KnownStore]:
    """Each store once: one that restarted may be there twice."""
    return list({store.id: store for store in stores.all()}.values())


def _error(answer: Unwritten) -> Exception:
    name, producer, epoch, current = answer.name, answer.producer, answer.epoch, answer.current
    if answer.kind == "fenced":
        return ProducerFenced(name, producer, epoch, current)
    if answer.kind == "sequence":
        return OutOfSequence(name, producer, epoch, answer.base, current)
    if answer.kind == "position":
        return PositionFenced(name, epoch, current)
    if answer.kind == "invalid":
        return ValueError(answer.reason)
    if answer.kind == "unknown":
        return StoreFailed(answer.reason)
    return NotStored(answer.reason, name or None)
