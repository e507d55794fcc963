"""The machine's addresses change while a node is open."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from tests.node.support import TIMEOUT, MakeNode, connect, driver_of, next_event
from tests.waiting import wait_until_async
from zfabric import DiscoveryFailed
from zfabric.discovery.base import Announcement
from zfabric.discovery.interfaces import AddressWatch


class Broken:
    """A way of finding peers that works once and then fails as a plugin might."""

    name = "broken"

    def __init__(self, error: Exception) -> None:
        self.error = error

    async def start(self, announcement: Announcement, found: Callable[[Announcement], None]) -> None:
        """Fail at once."""
        raise self.error

    async def update(self, announcement: Announcement) -> None:
        """Fail again."""
        raise self.error

    async def close(self) -> None:
        """Fail even here."""
        raise self.error


class Recording(Broken):
    """A way that remembers what was announced."""

    def __init__(self) -> None:
        self.announced: list[Announcement] = []

    async def start(self, announcement: Announcement, found: Callable[[Announcement], None]) -> None:
        """Remember."""
        self.announced.append(announcement)

    async def update(self, announcement: Announcement) -> None:
        """Remember."""
        self.announced.append(announcement)

    async def close(self) -> None:
        """Nothing to end."""


async def test_new_addresses_are_bound_and_told_to_everybody(make_node: MakeNode) -> None:
    """Peers learn the new endpoints, discovery announces them, and traffic goes on."""
    a, b = await make_node("a", ipc=False), await make_node("b", ipc=False)
    publisher, subscription = await connect(a, b, "t")
    driver, recording = driver_of(a), Recording()
    driver._ways = [*driver._ways, recording]
    known = driver_of(b).core.peers.known[bytes.fromhex(a.id)]

    await driver.readdress(("127.0.0.1", "127.0.0.9"))

    assert [endpoint.rpartition(":")[0] for endpoint in a.endpoints] == ["tcp://127.0.0.1", "tcp://127.0.0.9"]
    await wait_until_async(lambda: known.identity.inbox == a.endpoints)
    assert recording.announced[-1].endpoints == a.endpoints
    await publisher.publish(1)
    assert (await subscription.receive(timeout=TIMEOUT)).value == 1


async def test_peers_follow_to_the_only_new_address(make_node: MakeNode) -> None:
    """The address that everybody used is gone: what is published afterwards still arrives, at least by reconnecting."""
    a, b = await make_node("a", ipc=False), await make_node("b", ipc=False)
    publisher, subscription = await connect(a, b, "t", publisher={"delivery": "at-least-once"})

    await driver_of(a).readdress(("127.0.0.9",))
    await publisher.publish(1)

    assert (await subscription.receive(timeout=TIMEOUT)).value == 1
    late = await make_node("late", ipc=False, registry=False, seeds=a.endpoints)
    await late.wait_for_peers(2, timeout=TIMEOUT)


async def test_pullers_at_most_once_follow(make_node: MakeNode) -> None:
    """A puller's only address is gone: its pushers, its own node's too, go on at the new one."""
    a, b = await make_node("a", ipc=False), await make_node("b", ipc=False)
    pushers = [node.pusher("jobs", delivery="at-most-once") for node in (a, b)]
    puller = b.puller("jobs", delivery="at-most-once")
    for pusher in pushers:
        await pusher.wait_for(1, timeout=TIMEOUT)
        await pusher.push("before")
    assert {(await puller.receive(TIMEOUT)).value for _ in pushers} == {"before"}

    await driver_of(b).readdress(("127.0.0.9",))
    for node, pusher in zip((a, b), pushers, strict=True):
        (target,) = driver_of(node).core.queues.plain.queues["jobs"].targets.values()
        await wait_until_async(lambda target=target: target.endpoint.startswith("tcp://127.0.0.9:"))  # type: ignore[misc]
        await pusher.push("after")
    assert {(await puller.receive(TIMEOUT)).value for _ in pushers} == {"after"}

    reading = asyncio.ensure_future(puller.__anext__())
    for node, pusher in zip((a, b), pushers, strict=True):
        await asyncio.wait_for(pusher.flush(), TIMEOUT)
        figures = node.statistics().queues["jobs"]
        assert (figures.done, figures.lost) == (2, 0)
    reading.cancel()


async def test_a_way_that_fails_is_an_event_and_the_others_go_on(make_node: MakeNode) -> None:
    """OSError or anything else, at the start, at a change and at the end: the node lives, and says which way it was."""
    a, b = await make_node("a"), await make_node("b")
    await a.wait_for_peers(1, timeout=TIMEOUT)
    driver, recording, events = driver_of(a), Recording(), a.events()
    for error in (OSError("no network"), RuntimeError("a bug in a plugin")):
        broken = Broken(error)
        driver._ways = [broken, recording]

        await driver._start(broken)
        await driver.readdress(("127.0.0.1",))

        for _ in range(2):
            failed = await next_event(events, DiscoveryFailed)
            assert (failed.name, failed.reason) == ("broken", str(error))
    assert len(recording.announced) == 2
    publisher, subscription = await connect(a, b, "t")
    await publisher.publish(1)
    assert (await subscription.receive(timeout=TIMEOUT)).value == 1
    await a.close()


async def test_the_watch_leads_to_the_announcement(make_node: MakeNode) -> None:
    """What AddressWatch reports is bound and announced by the node itself."""
    node = await make_node("a", ipc=False)
    scope = node._environment.scope("loopback")
    changed = type(scope)(**{n: getattr(scope, n) for n in scope.__slots__} | {"addresses": ("127.0.0.7",)})
    reports = [changed]

    async def run(watch: AddressWatch) -> None:
        for report in reports:
            watch._changed(report)
        await asyncio.Event().wait()

    original, AddressWatch.run = AddressWatch.run, run  # type: ignore[method-assign, assignment]
    watching = asyncio.ensure_future(node._watch_addresses(scope))
    try:
        await wait_until_async(lambda: node.endpoints[0].startswith("tcp://127.0.0.7:"))
    finally:
        AddressWatch.run = original  # type: ignore[method-assign]
        watching.cancel()
        await asyncio.wait([watching])
