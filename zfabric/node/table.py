"""A topic as a table: the last value of each key, kept up to date."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any

import msgspec

from zfabric.errors import LocalProtocolError, NodeClosed
from zfabric.model import Message, Position
from zfabric.node.driver import Driver
from zfabric.node.subscription import Subscription

__all__ = ["Change", "Snapshot", "Table"]

WATCHED_MAX = 10_000
"Changes that one `watch()` may have waiting; a reader that is further behind gets the newest value of each key."


class Change(msgspec.Struct, frozen=True, gc=False):
    """What became of one key."""

    key: Any
    value: Any
    "None when the key was deleted."


class Snapshot(msgspec.Struct, frozen=True):
    """A table as it was; `node.table(topic, snapshot=...)` goes on from there, also in another process."""

    values: dict[Any, Any]
    position: Position | None
    "All changes up to here are in it. Those that follow may be in it too: applying them again changes nothing."


class Table(Mapping[Any, Any]):
    """`async with node.table("config") as table:` has what the store has; it is a mapping, and follows the topic.

    Publish with `key=` to change it, and None to delete a key. Only for keys that can be hashed.
    """

    def __init__(
        self,
        driver: Driver,
        subscribe: Callable[[], Subscription],
        topic: str,
        snapshot: Snapshot | None,
        timeout: float | None,
    ) -> None:
        self._driver = driver
        self._subscribe = subscribe
        self._timeout = timeout
        self.topic = topic
        self._values: dict[Any, Any] = {} if snapshot is None else dict(snapshot.values)
        self._position = None if snapshot is None else snapshot.position
        self._watchers: dict[_Watcher, None] = {}
        self._task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Table {self.topic} [{len(self)} keys]>"

    async def __aenter__(self) -> Table:
        """Return once everything is there that the store had. Raises TimeoutError, NodeClosed."""
        if self._task is not None:
            raise LocalProtocolError("a table is opened once; make another one")
        stores = self._driver.core.stores
        await self._driver.wait_until(lambda: stores.keeping(self.topic) is not None, self._timeout)
        subscription = self._subscribe()
        self._task = self._driver.loop.create_task(self._follow(subscription), name=f"zfabric-table-{self.topic}")
        try:
            history = subscription.history
            if history is not None:
                await self._driver.wait_until(lambda: history.complete and not subscription.pending, self._timeout)
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Follow the topic no more; what is known stays."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        for watcher in self._watchers:
            watcher.end()

    # -- reading -------------------------------------------------------------------------------

    def __getitem__(self, key: Any) -> Any:
        return self._values[key]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def snapshot(self) -> Snapshot:
        """The table as of now, to be kept anywhere. One that is older than the topic's tombstones misses deletions."""
        return Snapshot(dict(self._values), self._position)

    async def watch(self) -> AsyncIterator[Change]:
        """Every change from now on."""
        watcher = _Watcher(self._driver.loop)
        self._watchers[watcher] = None
        try:
            while (changes := await watcher.take()) is not None:
                for change in changes:
                    yield change
        finally:
            del self._watchers[watcher]

    # -- following -----------------------------------------------------------------------------

    async def _follow(self, subscription: Subscription) -> None:
        async with subscription:
            with suppress(NodeClosed):
                async for batch in subscription.batches():
                    for message in batch:
                        self._apply(message)
        for watcher in self._watchers:
            watcher.end()

    def _apply(self, message: Message) -> None:
        if message.position is not None:
            self._position = message.position
        key, value = message.key, message.value
        if key is None or key.__class__.__hash__ is None:
            return
        if value is None:
            self._values.pop(key, None)
        else:
            self._values[key] = value
        if self._watchers:
            change = Change(key, value)
            for watcher in self._watchers:
                watcher.put(change)


class _Watcher:
    """Changes that wait for one reader."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: list[Change] = []
        self._waiter: asyncio.Future[None] | None = None
        self._ended = False

    def put(self, change: Change) -> None:
        self._waiting.append(change)
        if len(self._waiting) > 2 * WATCHED_MAX:
            self._waiting = list({change.key: change for change in self._waiting}.values())
        self._wake()

    def end(self) -> None:
        self._ended = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def take(self) -> list[Change] | None:
        """What waits; None at the end."""
        while not self._waiting:
            if self._ended:
                return None
            self._waiter = self._loop.create_future()
            await self._waiter
        changes, self._waiting = self._waiting, []
        return changes
