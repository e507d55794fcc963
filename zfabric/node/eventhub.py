"""Hands events to every `node.events()` iterator, bounded."""

from __future__ import annotations

import asyncio
from collections import deque
from types import TracebackType

from zfabric.events import Event

__all__ = ["EventHub", "EventStream"]


class EventStream:
    """An async iterator of events, from the moment it was made until it or its node closes."""

    def __init__(self, hub: EventHub, events_max: int) -> None:
        self._hub = hub
        self._events: deque[Event] = deque(maxlen=events_max)
        self._waiter: asyncio.Future[None] | None = None
        self._closed = False
        self.dropped = 0

    def __aiter__(self) -> EventStream:
        return self

    async def __anext__(self) -> Event:
        while not self._events:
            if self._closed:
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        return self._events.popleft()

    async def __aenter__(self) -> EventStream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def put(self, event: Event) -> None:
        """Add an event; the oldest goes if there is no room."""
        self.dropped += len(self._events) == self._events.maxlen
        self._events.append(event)
        self._wake()

    def close(self) -> None:
        """End the iteration after what is waiting."""
        self._closed = True
        self._hub.remove(self)
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class EventHub:
    """Every event goes to every stream."""

    def __init__(self, events_max: int) -> None:
        self._events_max = events_max
        self._streams: list[EventStream] = []
        self._dropped = 0
        self._closed = False

    def stream(self) -> EventStream:
        """A new stream."""
        stream = EventStream(self, self._events_max)
        if self._closed:
            stream.close()
        else:
            self._streams.append(stream)
        return stream

    def put(self, event: Event) -> None:
        """Tell everybody."""
        for stream in self._streams:
            stream.put(event)

    def remove(self, stream: EventStream) -> None:
        """Forget a closed stream."""
        if stream in self._streams:
            self._streams.remove(stream)
            self._dropped += stream.dropped

    @property
    def dropped(self) -> int:
        """Events that slow streams missed."""
        return self._dropped + sum(stream.dropped for stream in self._streams)

    def close(self) -> None:
        """End every stream."""
        self._closed = True
        for stream in list(self._streams):
            stream.close()
