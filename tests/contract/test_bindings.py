"""Bindings: topics become queues."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from tests.contract.support import TIMEOUT, MakeNode, next_event
from tests.waiting import wait_until_async
from zfabric import HandlerError, Node, NoSubscribers, SelectorError, TopicError, Unroutable

Pair = tuple[Node, Node]


async def jobs(node: Node, queue: str, count: int) -> list[Any]:
    """The next jobs of a queue."""
    async with node.puller(queue) as puller:
        return [await puller.receive(TIMEOUT) for _ in range(count)]


async def test_topics_are_bound_to_queues(pair: Pair) -> None:
    """Direct, by pattern, and one topic to several queues; values as they are, with key, headers and topic."""
    a, b = pair
    publisher = a.publisher("shop.order.new", delivery="at-least-once")
    direct, pattern = b.bind("shop.order.new", "packing"), b.bind("shop.#", "audit")
    for binding in (direct, pattern):
        await binding.wait_for(1, TIMEOUT)
    await publisher.publish({"item": 1}, key="k", headers={"urgent": True})
    await publisher.publish(b"x" * 100_000)
    await publisher.publish(np.arange(5))

    for queue in ("packing", "audit"):
        first, second, third = await jobs(a, queue, 3)
        assert (first.value, first.key) == ({"item": 1}, "k")
        assert first.headers == {"urgent": True, "topic": "shop.order.new"}
        assert second.value == b"x" * 100_000
        assert third.value.tolist() == [0, 1, 2, 3, 4]
    assert (direct.routed, direct.pattern, direct.queue) == (3, "shop.order.new", "packing")
    assert "shop.#" in {text for peer in a.peers for text in peer.patterns}, "peers see it"


async def test_headers_choose_and_the_rest_goes_elsewhere(pair: Pair) -> None:
    """By a selector; without an alternative it is counted."""
    a, b = pair
    publisher = a.publisher("jobs.all", delivery="at-least-once")
    red = b.bind("jobs.*", "red", selector="colour = 'red'", otherwise="rest")
    blue = b.bind("jobs.*", "blue", selector="colour = 'blue'")
    for binding in (red, blue):
        await binding.wait_for(1, TIMEOUT)
    for number, colour in enumerate(["red", "blue", "green"]):
        await publisher.publish(number, headers={"colour": colour})

    assert [job.value for job in await jobs(a, "red", 1)] == [0]
    assert [job.value for job in await jobs(a, "blue", 1)] == [1]
    assert sorted(job.value for job in await jobs(a, "rest", 2)) == [1, 2]
    assert (red.routed, red.unrouted, blue.unrouted) == (1, 2, 2)


async def test_a_message_that_nobody_routes_is_told_to_its_sender(pair: Pair) -> None:
    """`mandatory` sees bindings as it sees subscriptions, from their beginning to their end."""
    a, b = pair
    publisher = a.publisher("lonely", mandatory=True)
    with pytest.raises(NoSubscribers):
        await publisher.publish(1)
    async with b.bind("lonely", "jobs"):
        await publisher.wait_for(1, timeout=TIMEOUT)
        await publisher.publish(2)
        assert [job.value for job in await jobs(a, "jobs", 1)] == [2]
    await wait_until_async(lambda: not publisher.subscribers, TIMEOUT)
    with pytest.raises(NoSubscribers):
        await publisher.publish(3)


async def test_bad_names_and_selectors_are_errors_at_once(pair: Pair) -> None:
    """Nothing is left behind."""
    with pytest.raises(TopicError):
        pair[1].bind("a..b", "jobs")
    with pytest.raises(TopicError):
        pair[1].bind("a", "jobs.#")
    with pytest.raises(SelectorError):
        pair[1].bind("a", "jobs", selector="colour =")


async def test_who_published_what_no_binding_takes_is_told(pair: Pair) -> None:
    """Once for each message, however many bindings refuse it; none where one of them takes it."""
    a, b = pair
    here, there = b.events(), a.events()
    publisher = a.publisher("jobs.all", delivery="at-least-once")
    bindings = [b.bind("jobs.*", colour, selector=f"colour = '{colour}'") for colour in ("red", "blue")]
    for binding in bindings:
        await binding.wait_for(1, TIMEOUT)
    for colour in ("red", "green", "blue", "white"):
        publisher.publish_nowait(colour, headers={"colour": colour})
    for events, peer, at_bindings in ((here, "a", True), (there, "b", False)):
        event = await next_event(events, Unroutable)
        assert (event.topic, event.peer.name, event.count, event.here) == ("jobs.all", peer, 2, at_bindings)
    assert [(binding.routed, binding.unrouted) for binding in bindings] == [(1, 3), (1, 3)]

    await bindings[0].close()
    rest = b.bind("jobs.#", "rest", selector="colour = 'white'", otherwise="others")
    await rest.wait_for(1, TIMEOUT)
    await publisher.publish("red", headers={"colour": "red"})
    assert [job.value for job in await jobs(a, "others", 1)] == ["red"]
    await bindings[1].close()
    await rest.close()
    lonely = b.bind("jobs.#", "rest", selector="colour = 'white'")
    await lonely.wait_for(1, TIMEOUT)
    await publisher.publish("blue", headers={"colour": "blue"})
    assert (await next_event(there, Unroutable)).count == 1, "the next one: nothing was told of what went elsewhere"


async def test_what_is_too_large_for_a_job_is_told(make_node: MakeNode) -> None:
    """A message may be twice as large; those after it are routed."""
    a, b = await make_node("a"), await make_node("b", frame_bytes_max=300_000)
    events = b.events()
    publisher = a.publisher("shop.picture", delivery="at-least-once")
    await b.bind("shop.#", "pictures").wait_for(1, TIMEOUT)
    await publisher.publish(b"x" * 200_000)
    await publisher.publish("small")

    error = await next_event(events, HandlerError)
    assert (error.topic, error.handler) == ("shop.picture", "binding to pictures")
    assert "frame_bytes_max" in error.error
    (job,) = await jobs(a, "pictures", 1)
    assert job.value == "small"


async def test_a_binding_whose_closing_is_cancelled_has_closed(pair: Pair) -> None:
    """Its queue may be pushed to with other options then."""
    a, _ = pair
    closing = asyncio.create_task(a.bind("shop.#", "audit", selector="big", otherwise="rest").close())
    await asyncio.sleep(0)
    closing.cancel()
    await asyncio.wait([closing])
    assert closing.cancelled()
    for queue in ("audit", "rest"):
        a.pusher(queue, max_attempts=1)
