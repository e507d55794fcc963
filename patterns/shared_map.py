"""Shared map: the same key-value map in every process; one owner decides, all others follow.

ZeroMQ Guide, chapter 5, "Reliable Pub-Sub (Clone Pattern)", models one to five: a snapshot and then updates by number,
changes through the owner, keys that live for a time, subtrees.

    async with MapOwner(node, "config"):                        # one process
        ...
    async with SharedMap(node, "config") as config:             # any number of others, also the owner's
        await config.set("lamps.kitchen", "on", ttl=60)
        config["lamps.kitchen"]                                 # read here, at once
        async for change in config.watch("lamps"):
            print(change.key, change.value, change.deleted)

Every change has a number. A replica takes a snapshot, then each next number; where one is missing, or the owner is
another one, it takes a snapshot again. The owner repeats its newest number every `beat_s`, so that a replica which
lost the last update, or an owner which began anew, is noticed without a further change.

What can fail: without the owner nothing can be changed (NoResponders), while everything can still be read; `age` says
how old it may be. An owner that is started again begins empty, unless it is given `initial`. Two owners of one name
fight: start one. `set` that raises ProviderLost or RequestTimeout may have been done or not. Replicas agree in order,
not in time: another one may be a moment behind; your own `set` is visible to you when it returns. A slow watcher gets
the newest change of each key, not all of them. Keys that end by `ttl` end by the owner's clock.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import AsyncExitStack, aclosing, suppress
from dataclasses import dataclass
from math import inf
from types import TracebackType
from typing import Any, Self
from weakref import WeakSet

from zfabric import FabricError, LocalProtocolError, Node, WindowFull

__all__ = ["Change", "MapOwner", "SharedMap", "Watch"]

_CHUNK = 256
"Entries of a snapshot that travel together."


@dataclass(frozen=True, slots=True)
class Change:
    """What became of a key."""

    key: str
    value: Any
    "None if it was deleted, or its time was over."
    deleted: bool
    number: int
    "Counts the owner's changes."


def _below(key: str, subtree: str) -> bool:
    return not subtree or key == subtree or key.startswith(subtree + ".")


class MapOwner:
    """Owns a map: takes changes in order, numbers them, tells everybody."""

    def __init__(
        self,
        node: Node,
        name: str,
        *,
        initial: Mapping[str, Any] | None = None,
        entries_max: int = 100_000,
        beat_s: float = 1.0,
    ) -> None:
        self._node = node
        self._name = f"map.{name}"
        if entries_max < 1 or not beat_s > 0:
            raise ValueError(f"entries_max must be 1 or more and beat_s above 0, not {entries_max} and {beat_s}")
        self._entries_max = entries_max
        self._beat_s = beat_s
        self._owner = uuid.uuid4().hex
        self._entries: dict[str, Any] = dict(initial or {})
        self._expiry: dict[str, asyncio.TimerHandle] = {}
        self._number = 0
        self._changing = asyncio.Lock()
        self._ending: set[asyncio.Task[int]] = set()

    def __repr__(self) -> str:
        return f"<MapOwner {self._name} [{len(self._entries)} entries, change {self._number}]>"

    def __len__(self) -> int:
        """Entries."""
        return len(self._entries)

    async def __aenter__(self) -> Self:
        self._publisher = self._node.publisher(self._name, delivery="at-least-once")

        async def change(key: str, value: Any, ttl: float | None, deleted: bool) -> tuple[str, int]:
            return self._owner, await self._change(key, value, ttl, deleted=deleted)

        async def snapshot(subtree: str) -> AsyncGenerator[Any, None]:
            entries = [(key, value) for key, value in self._entries.items() if _below(key, subtree)]
            yield self._owner, self._number
            for begin in range(0, len(entries), _CHUNK):
                yield entries[begin : begin + _CHUNK]

        self._services: list[Any] = [
            self._node.service(f"{self._name}.change", concurrency=1)(change),
            self._node.service(f"{self._name}.snapshot")(snapshot),
        ]
        self._beating = asyncio.create_task(self._beat())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._expiry.values():
            handle.cancel()
        tasks = self._beating, *self._ending
        for task in tasks:
            task.cancel()
        async with AsyncExitStack() as stack:  # whoever closes may be cancelled meanwhile
            stack.push_async_callback(self._publisher.close)
            for service in self._services:
                stack.push_async_callback(service.stop)
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _change(
        self, key: str, value: Any, ttl: float | None, *, deleted: bool, expiry: asyncio.TimerHandle | None = None
    ) -> int:
        """Apply a change and tell everybody. Snapshots taken meanwhile have it, and its number."""
        async with self._changing:
            if expiry is not None and self._expiry.get(key) is not expiry:
                return self._number  # it was set again, while its end waited for its turn
            if not deleted and key not in self._entries and len(self._entries) >= self._entries_max:
                raise ValueError(f"the map is full: {self._entries_max} entries")
            if (handle := self._expiry.pop(key, None)) is not None:
                handle.cancel()
            if deleted:
                self._entries.pop(key, None)
            else:
                self._entries[key] = value
                if ttl is not None:
                    self._expiry[key] = asyncio.get_running_loop().call_later(ttl, self._expire, key)
            self._number += 1
            number = self._number
            await self._publisher.publish([self._owner, number, key, value, deleted])
            return number

    def _expire(self, key: str) -> None:
        task = asyncio.create_task(self._change(key, None, None, deleted=True, expiry=self._expiry[key]))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def _beat(self) -> None:
        while True:
            with suppress(WindowFull):  # then there is news enough on its way
                self._publisher.publish_nowait([self._owner, self._number])
            await asyncio.sleep(self._beat_s)


class SharedMap(Mapping[str, Any]):
    """A replica of a map, or of the part of it below `subtree`. `timeout` bounds opening and each change."""

    def __init__(self, node: Node, name: str, *, subtree: str = "", timeout: float = 5.0) -> None:
        self._node = node
        self._name = f"map.{name}"
        self._subtree = subtree
        self._timeout = timeout
        self._entries: dict[str, Any] = {}
        self._owner = ""
        self._former: set[str] = set()
        self._number = -1
        self._heard_s = 0.0
        self._moved = asyncio.Event()
        self._open = False
        self._watches: WeakSet[Watch] = WeakSet()

    def __repr__(self) -> str:
        return f"<SharedMap {self._name} [{len(self._entries)} entries, change {self._number}]>"

    async def __aenter__(self) -> Self:
        """Raises TimeoutError or NoResponders where there is no owner."""
        self._subscription = self._node.subscribe(self._name)
        try:
            await self._subscription.wait_for(publishers=1, timeout=self._timeout)
            await self._take_snapshot()
        except BaseException:
            await self._subscription.close()
            raise
        self._following = asyncio.create_task(self._follow())
        self._open = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open = False
        self._following.cancel()
        for watch in list(self._watches):
            await watch.aclose()
        await self._subscription.close()
        await asyncio.gather(self._following, return_exceptions=True)

    # -- reading ---------------------------------------------------------------------------------

    def __getitem__(self, key: str) -> Any:
        return self._entries[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def age(self) -> float:
        """Seconds since the owner was heard: what is read here may be as old."""
        return asyncio.get_running_loop().time() - self._heard_s

    def watch(self, subtree: str = "") -> Watch:
        """Changes below `subtree` from now on; where they come faster than they are read, the newest of each key.

        Raises LocalProtocolError if this replica is not open.
        """
        self._check_open()
        watch = Watch(subtree)
        self._watches.add(watch)
        return watch

    # -- changing --------------------------------------------------------------------------------

    async def set(self, key: str, value: Any, *, ttl: float | None = None) -> None:
        """Set a key, for `ttl` seconds if given; when it returns, it can be read here.

        Raises NoResponders without an owner, RequestTimeout or TimeoutError, ProviderLost if the owner is lost
        meanwhile, RemoteError if the owner refuses, LocalProtocolError if this replica is not open, and ValueError.
        """
        if ttl is not None and not 0 < ttl < inf:
            raise ValueError(f"ttl must be a number of seconds above 0, not {ttl!r}")
        await self._request(key, value, ttl, deleted=False)

    async def delete(self, key: str) -> None:
        """Delete a key; it may be absent. Raises what `set` raises."""
        await self._request(key, None, None, deleted=True)

    def _check_open(self) -> None:
        if not self._open:
            raise LocalProtocolError("use the map while it is open: `async with SharedMap(...)`")

    async def _request(self, key: str, value: Any, ttl: float | None, *, deleted: bool) -> None:
        self._check_open()
        async with asyncio.timeout(self._timeout):
            owner, number = await self._node.request(
                f"{self._name}.change", key, value, ttl, deleted, timeout=self._timeout
            )
            while self._owner != owner or self._number < number:
                await self._moved.wait()

    # -- following -------------------------------------------------------------------------------

    async def _follow(self) -> None:
        async for message in self._subscription:
            owner, number, *change = message.value
            if owner in self._former:
                continue
            self._heard_s = asyncio.get_running_loop().time()
            if owner != self._owner or number > self._number + len(change[:1]):
                with suppress(FabricError, TimeoutError):  # the next beat tries again
                    await self._take_snapshot()
            elif change and number == self._number + 1:
                key, value, deleted = change
                self._number = number
                self._apply(Change(key, value, deleted, number))
                self._tell_moved()

    async def _take_snapshot(self) -> None:
        """Replace everything; watchers are told of the difference."""
        entries: dict[str, Any] = {}
        stream = self._node.stream(f"{self._name}.snapshot", self._subtree, timeout=self._timeout, wait=self._timeout)
        async with aclosing(stream):
            owner, number = await anext(stream)
            async for chunk in stream:
                entries.update(chunk)
        if owner != self._owner:
            self._former.add(self._owner)
            self._former.discard(owner)
        self._owner, self._number = owner, number
        self._heard_s = asyncio.get_running_loop().time()
        for key in self._entries.keys() - entries.keys():
            self._apply(Change(key, None, True, number))
        for key, value in entries.items():
            if key not in self._entries or not _same(self._entries[key], value):
                self._apply(Change(key, value, False, number))
        self._tell_moved()

    def _apply(self, change: Change) -> None:
        if not _below(change.key, self._subtree):
            return
        if change.deleted:
            self._entries.pop(change.key, None)
        else:
            self._entries[change.key] = change.value
        for watch in list(self._watches):
            watch.add(change)

    def _tell_moved(self) -> None:
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()


class Watch:
    """An async iterator of changes; `replica.watch()` makes it. It ends when it or its map is closed."""

    def __init__(self, subtree: str) -> None:
        self._subtree = subtree
        self._pending: dict[str, Change] = {}
        self._news = asyncio.Event()
        self._ended = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Change:
        while not self._pending:
            if self._ended:
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        return self._pending.pop(next(iter(self._pending)))

    def add(self, change: Change) -> None:
        """Keep it, in place of an older one of the same key."""
        if _below(change.key, self._subtree):
            self._pending.pop(change.key, None)
            self._pending[change.key] = change
            self._news.set()

    async def aclose(self) -> None:
        """No more changes; those that wait can still be read."""
        self._ended = True
        self._news.set()


def _same(left: Any, right: Any) -> bool:
    """Equality of values, some of which (arrays) do not answer with a bool."""
    try:
        return bool(left == right)
    except ValueError:
        return False
