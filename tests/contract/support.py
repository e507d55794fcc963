"""What the contract tests share."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, Protocol, TypeVar

from zfabric import Event, Message, Node, Publisher, Subscription, Topic
from zfabric.node.eventhub import EventStream

E = TypeVar("E", bound=Event)

TIMEOUT = 30.0
"Longest wait for something that must happen."


class MakeNode(Protocol):
    """`await make_node("a", fabric="x", batch_bytes=100)`: an open node; fields of `Config` are options too."""

    async def __call__(self, name: str, **options: Any) -> Node:
        """Open a node."""


async def connect(
    publishing: Node,
    subscribing: Node,
    topic: str | Topic[Any],
    pattern: str | Topic[Any] | None = None,
    **options: Any,
) -> tuple[Publisher, Subscription]:
    """A publisher and a subscription that are in place for each other."""
    publisher = publishing.publisher(topic)
    subscription = subscribing.subscribe(topic if pattern is None else pattern, **options)
    await publisher.wait_for(subscribers=1, timeout=TIMEOUT)
    await subscription.wait_for(publishers=1, timeout=TIMEOUT)
    return publisher, subscription


async def take(subscription: Subscription, count: int) -> list[Message]:
    """The next `count` messages."""
    return [await subscription.receive(timeout=TIMEOUT) for _ in range(count)]


async def values(subscription: Subscription, count: int) -> list[Any]:
    """The values of the next `count` messages."""
    return [message.value for message in await take(subscription, count)]


async def publish_each(publisher: Publisher, items: Iterable[Any]) -> None:
    """Publish values in a batch of its own each."""
    for item in items:
        await publisher.publish(item)
        await publisher.flush()


async def next_event(events: EventStream, kind: type[E]) -> E:
    """The next event of one kind."""
    async with asyncio.timeout(TIMEOUT):
        async for event in events:
            if isinstance(event, kind):
                return event
    raise AssertionError(f"the events ended without {kind.__name__}")
