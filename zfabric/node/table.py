"""A topic as a table: the last value of each key, kept up to date."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any
from weakref import WeakSet

import msgspec

from zfabric.errors import LocalProtocolError, NodeClosed
from zfabric.model import Message, Position
from zfabric.node.driver import Driver
from zfabric.node.subscription import Subscription

__all__ = ["Change", "Snapshot", "Table", "Watch"]

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
        self._watches: WeakSet[Watch] = WeakSet()
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
        self._end_watches()

    def _end_watches(self) -> None:
        for watch in list(self._watches):
            watch.end()

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

    def watch(self) -> Watch:
        """Every change from now on."""
        watch = Watch()
        self._watches.add(watch)
        return watch

    # -- following -----------------------------------------------------------------------------

    async def _follow(self, subscription: Subscription) -> None:
        async with subscription:
            with suppress(NodeClosed):
                async for batch in subscription.batches():
                    for message in batch:
                        self._apply(message)
        self._end_watches()

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
        if self._watches:
            change = Change(key, value)
            for watch in list(self._watches):
                watch.put(change)


class Watch:
    """An async iterator of changes, from the moment it was made; `table.watch()` makes it.

    It ends when it or its table is closed.
    """

    def __init__(self) -> None:
        self._waiting: deque[Change] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._ended = False

    def __aiter__(self) -> Watch:
        return self

    async def __anext__(self) -> Change:
        while not self._waiting:
            if self._ended:
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        return self._waiting.popleft()

    async def aclose(self) -> None:
        """No more changes; those that wait can still be read."""
        self.end()

    def put(self, change: Change) -> None:
        """Add a change; of a key that has many only the newest stays if nobody reads them."""
        self._waiting.append(change)
        if len(self._waiting) > 2 * WATCHED_MAX:
            self._waiting = deque({change.key: change for change in self._waiting}.values())
        self._wake()

    def end(self) -> None:
        """End the iteration after what is waiting."""
        self._ended = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
