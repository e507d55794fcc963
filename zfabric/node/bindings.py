"""Bindings: what is published on topics becomes jobs of queues."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress

from zfabric.errors import FabricError, NodeClosed
from zfabric.model import Message, Source
from zfabric.node.closing import Closing
from zfabric.node.pusher import Pusher
from zfabric.node.subscription import Subscription
from zfabric.wire.selectors import Selector
from zfabric.wire.topics import Pattern

__all__ = ["Binding"]


class Binding(Closing):
    """Pushes every message that matches; `node.bind(pattern, queue)` makes it. It lives until it or its node closes.

    A message of a reliable topic counts as processed when its job has been pushed here. One that no binding of this
    node takes is reported here and to its publisher's node, as an `Unroutable` event.
    """

    def __init__(
        self,
        subscription: Subscription,
        queue: Pusher,
        selector: Selector | None,
        otherwise: Pusher | None,
        bindings: dict[Binding, None],
        unroutable: Callable[[Source, str, int], None],
        failed: Callable[[str, str, FabricError], None],
    ) -> None:
        """`bindings` are the node's; `unroutable(source, topic, count)` reports what none of them took, and
        `failed(topic, queue, error)` what cannot be a job.
        """
        self.routed = 0
        "Messages that became jobs of the queue."
        self.unrouted = 0
        "Messages that the selector did not let through."
        self._subscription = subscription
        self._queue = queue
        self._selector = selector
        self._otherwise = otherwise
        self._matches = Pattern(subscription.pattern).matches
        self._bindings = bindings
        self._unroutable = unroutable
        self._failed = failed
        bindings[self] = None
        name = f"zfabric-binding-{subscription.pattern}-{queue.queue}"
        self._task = asyncio.get_running_loop().create_task(self._run(), name=name)

    def __repr__(self) -> str:
        return f"<Binding {self.pattern} -> {self.queue} [{self.routed} routed, {self.unrouted} unrouted]>"

    @property
    def pattern(self) -> str:
        """The topics."""
        return self._subscription.pattern

    @property
    def queue(self) -> str:
        """The queue."""
        return self._queue.queue

    async def wait_for(self, publishers: int = 1, timeout: float | None = None) -> None:
        """Return once that many publishers have this binding in place: their next message is routed."""
        await self._subscription.wait_for(publishers, timeout)

    async def _run(self) -> None:
        with suppress(NodeClosed):
            async for batch in self._subscription.batches():
                lost: Counter[tuple[Source, str]] = Counter()
                for message in batch:
                    if not await self._route(message) and self._tells_of(message):
                        lost[message.source, message.topic] += 1
                for (source, topic), count in lost.items():
                    self._unroutable(source, topic, count)

    def _selects(self, message: Message) -> bool:
        selector = self._selector
        return selector is None or selector.matches(message.headers, key=message.key, topic=message.topic)

    def _tells_of(self, message: Message) -> bool:
        """Whether no binding takes a message, and this is the one of them that reports it."""
        asked = [each for each in self._bindings if each._matches(message.topic)]  # noqa: SLF001 - its own class
        taken = any(each._otherwise is not None or each._selects(message) for each in asked)  # noqa: SLF001
        return not taken and next(iter(asked), None) is self

    async def _route(self, message: Message) -> bool:
        """Push it as a job, if the selector or the alternative takes it."""
        pusher = self._queue
        if self._selects(message):
            self.routed += 1
        else:
            self.unrouted += 1
            if self._otherwise is None:
                return False
            pusher = self._otherwise
        headers = {**(message.headers or {}), "topic": message.topic}
        try:
            await pusher.push(message.value, key=message.key, headers=headers)
        except NodeClosed:
            raise
        except FabricError as error:
            self._failed(message.topic, pusher.queue, error)
        return True

    async def close(self) -> None:
        """Route what has arrived, and no more."""
        self._bindings.pop(self, None)
        async with AsyncExitStack() as stack:  # whoever closes may be cancelled meanwhile
            for pusher in (self._queue, self._otherwise):
                if pusher is not None:
                    stack.push_async_callback(pusher.close)
            await self._subscription.close()
            await asyncio.wait((self._task,))
