"""Last value cache: who comes late gets the newest value of each topic at once, not with the next message.

ZeroMQ Guide, chapter 5, "Last Value Caching": a proxy remembers the last message of each topic and sends it to new
subscribers. Here the cache stands beside the stream instead of in it: live messages go straight to the subscribers, the
cache only listens, and a subscriber asks it once.

    async with LastValueCache(node, "plant.#"):           # one process
        ...
    async for message in last_values(node, "plant.*.temp"):  # any other: cached values first, then live ones
        ...

Where publishers stay and are reliable, `node.publisher(topic, delivery=..., history=1)` with `subscribe(start=-1)`
does the same without a cache.

What can fail: with no cache there, `last_values` goes on with live messages alone (or raises TimeoutError with
`required=True`). A cache that was restarted knows only what came since. Two caches may answer differently; any one is
asked. A value may come from the cache although its publisher has gone; its `ttl` is not kept. What is published before
the subscription is in place at its publisher, and after the cache was asked, is missed: `publishers=N` waits for N of
them first. Per topic and key nothing comes twice, and nothing older than what came before from the same publisher.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing
from types import TracebackType
from typing import Any, Self

from zfabric import Message, Node, NoResponders, Pattern, ProviderLost, RequestTimeout, Source

__all__ = ["LastValueCache", "last_values"]

_SERVICE = "last-value"


class LastValueCache:
    """Remembers the newest message of each topic and key that matches `pattern`, `entries_max` at most.

    Beyond that, what was updated longest ago is forgotten. `name` tells several caches apart.
    """

    def __init__(self, node: Node, pattern: str, *, name: str = "default", entries_max: int = 100_000) -> None:
        if entries_max < 1:
            raise ValueError(f"entries_max must be 1 or more, not {entries_max}")
        self._node = node
        self._pattern = pattern
        self._name = name
        self._entries_max = entries_max
        self._newest: dict[tuple[str, Any], Message] = {}
        self.updates = 0
        "Messages that it has taken."

    def __repr__(self) -> str:
        return f"<LastValueCache {self._name} of {self._pattern} [{len(self._newest)} values]>"

    def __len__(self) -> int:
        """How many values it remembers."""
        return len(self._newest)

    async def __aenter__(self) -> Self:
        Pattern(self._pattern)  # raises TopicError, while nothing is open

        @self._node.service(f"{_SERVICE}.{self._name}")
        async def tell(pattern: str) -> AsyncGenerator[list[Any], None]:
            wanted = Pattern(pattern)
            for message in list(self._newest.values()):
                if wanted.matches(message.topic):
                    source = message.source
                    # fmt: off
                    yield [
                        message.topic, message.value, message.seq, message.timestamp, source.id, source.name,
                        message.key, message.headers,
                    ]
                    # fmt: on

        self._service = tell
        self._subscription = self._node.subscribe(self._pattern, delivery="at-most-once")
        self._reading = asyncio.create_task(self._read())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reading.cancel()
        async with AsyncExitStack() as stack:  # whoever closes may be cancelled meanwhile
            stack.push_async_callback(self._subscription.close)
            stack.push_async_callback(self._service.stop)
        await asyncio.gather(self._reading, return_exceptions=True)

    async def _read(self) -> None:
        async for message in self._subscription:
            place = message.topic, _hashable(message.key)
            self._newest.pop(place, None)
            self._newest[place] = message
            self.updates += 1
            if len(self._newest) > self._entries_max:
                del self._newest[next(iter(self._newest))]


async def last_values(
    node: Node,
    pattern: str,
    *,
    cache: str = "default",
    publishers: int = 0,
    timeout: float = 5.0,
    required: bool = False,
) -> AsyncGenerator[Message, None]:
    """The newest message of each topic and key that matches `pattern`, then live ones; close it to stop.

    Waits up to `timeout` seconds for `publishers` of them, and if `required` for a cache. Raises TimeoutError if they
    do not come, and ProviderLost if a required cache is lost in the middle of its answer.
    """
    async with node.subscribe(pattern) as subscription:
        if publishers:
            await subscription.wait_for(publishers, timeout=timeout)
        told: dict[tuple[str, str, Any], int] = {}
        cached: deque[Message] = deque()
        try:  # to its end first: the time is the cache's, not the reader's
            entries = node.stream(f"{_SERVICE}.{cache}", pattern, timeout=timeout, wait=timeout if required else 0.0)
            async with aclosing(entries):
                async for topic, value, seq, timestamp, source_id, source, key, headers in entries:
                    told[topic, source_id, _hashable(key)] = seq
                    cached.append(Message(value, seq, topic, timestamp, Source(source_id, source), key, headers))
        except (NoResponders, ProviderLost, RequestTimeout):
            if required:
                raise
        while cached:
            yield cached.popleft()
        async for message in subscription:
            if message.seq > told.get((message.topic, message.source.id, _hashable(message.key)), -1):
                yield message


def _hashable(key: Any) -> Any:
    return key if key.__hash__ is not None else repr(key)
