"""Not run, but checked by mypy: what type checkers see of the public API."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import assert_type

import zfabric
import zfabric.sync
from zfabric.events import Event


@dataclass
class Reading:
    """The values of one topic."""

    celsius: float


TEMPERATURES = zfabric.Topic("plant.line1.temp", Reading)
assert_type(TEMPERATURES, zfabric.Topic[Reading])
assert_type(TEMPERATURES.name, str)


async def publish(node: zfabric.Node) -> None:
    """A publisher takes topics by name or typed; sequence numbers are integers."""
    publisher = node.publisher(TEMPERATURES, delivery=zfabric.Delivery.AT_MOST_ONCE, mandatory=True)
    await publisher.wait_for(subscribers=1, timeout=5)
    assert_type(publisher.publish_nowait(Reading(21.5), key="a", headers={"unit": "C"}, ttl=1.5), int)
    assert_type(await publisher.publish(Reading(21.5)), int)
    await publisher.publish_many([Reading(21.5), Reading(22.0)])
    await publisher.flush()
    assert_type(publisher.subscribers, int)
    node.publisher("plant.line2.temp", delivery="at-most-once").publish_nowait({"celsius": 21.5})


async def subscribe(node: zfabric.Node) -> None:
    """A subscription is an asynchronous iterator of messages, or of lists of them."""
    async with node.subscribe("plant.*.temp", start="latest", overflow="drop-oldest") as subscription:
        async for message in subscription:
            assert_type(message, zfabric.Message)
            assert_type(message.source.name, str)
        async for batch in subscription.batches():
            assert_type(batch, list[zfabric.Message])
        assert_type(await subscription.receive(timeout=1.5), zfabric.Message)


async def handle(node: zfabric.Node) -> None:
    """A decorated handler keeps its own type."""

    @node.on("plant.#")
    async def handler(message: zfabric.Message) -> None:
        print(message.value)

    @node.on(TEMPERATURES)
    def threaded(message: zfabric.Message) -> None:
        print(message.value)

    await handler(await node.subscribe("plant.#").receive())
    assert_type(threaded(await node.subscribe("plant.#").receive()), None)


async def observe(node: zfabric.Node) -> None:
    """What a node tells about itself is typed."""
    assert_type(node.id, str)
    assert_type(node.endpoints, tuple[str, ...])
    assert_type(node.peers, tuple[zfabric.Peer, ...])
    assert_type(node.statistics(), zfabric.Statistics)
    await node.wait_for_peers(1, timeout=5)
    async for event in node.events():
        assert_type(event, Event)


async def operate(node: zfabric.Node) -> None:
    """Groups are plain values, and moving one tells how it is then."""
    assert_type(await node.groups.list(), tuple[zfabric.GroupState, ...])
    assert_type(await node.groups.lag("billing"), int)
    await node.groups.forget("trial")
    state = await node.groups.seek("billing", timedelta(hours=1), topics=["orders"])
    assert_type(state, zfabric.GroupState)
    assert_type(state.topics["orders"].lag, int)
    assert_type(await node.stores.purge("orders", before=5), tuple[zfabric.StoredTopic, ...])
    assert_type(state.members, tuple[zfabric.GroupMember, ...])


def operate_from_threads(node: zfabric.sync.Node) -> None:
    """The blocking twin has the same types."""
    assert_type(node.groups.pause("billing"), zfabric.GroupState)
