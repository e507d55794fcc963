"""A good pair of nodes that must go on exchanging messages while others attack them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.hostile.attackers import Impostor, MakeImpostor
from tests.waiting import wait_until_async
from zfabric import Config, Event, Node, ProtocolError, Statistics, new_key
from zfabric.node.driver import Driver
from zfabric.node.eventhub import EventStream
from zfabric.security.keys import FabricKey
from zfabric.testing import RealFabric

QUICK = Config(mdns=False, handshake_timeout_s=0.4, reconnect_interval_s=0.02, gap_settle_s=0.1)
RSS_MAX = 200 * 1024 * 1024
"How much an attack may make this process grow, attackers included: far below what unbounded ones would cost."
ATTACKER_DESCRIPTORS = 30
"What one impostor, who lives in this very process, may need itself."


class Arena:
    """The victim, its good friend, and the messages that run between them all the time."""

    def __init__(self, fabric: RealFabric, victim: Node, friend: Node, key: FabricKey | None) -> None:
        self.fabric = fabric
        self.key = key
        self.victim = victim
        self.friend = friend
        self.events = victim.events()
        self.counts = [0, 0]
        self._published = [0, 0]
        self.attackers = 0
        self._process = psutil.Process()

    async def start(self) -> None:
        """Let messages run in both directions."""
        pair = (self.victim, self.friend)
        self._subscriptions = [
            node.subscribe(topic, delivery="at-least-once")
            for node, topic in zip(pair, ("good.b", "good.a"), strict=True)
        ]
        self._publishers = [
            node.publisher(topic, delivery="at-least-once")
            for node, topic in zip(pair, ("good.a", "good.b"), strict=True)
        ]
        for publisher in self._publishers:
            await publisher.wait_for(subscribers=1, timeout=30)
        for subscription in self._subscriptions:
            await subscription.wait_for(publishers=1, timeout=30)
        self._tasks = [
            asyncio.ensure_future(work(index)) for index in range(2) for work in (self._publish, self._receive)
        ]
        await self.lives()
        self.rss = self._process.memory_info().rss
        self.descriptors = self._process.num_fds()

    async def _publish(self, index: int) -> None:
        while True:
            await self._publishers[index].publish(self._published[index])
            self._published[index] += 1
            await asyncio.wait([self._tasks[0]], timeout=0.002)

    async def _receive(self, index: int) -> None:
        async for message in self._subscriptions[index]:
            assert message.value == self.counts[index] == message.seq
            self.counts[index] += 1

    async def lives(self) -> None:
        """Messages that are published from now on arrive in both directions, in order and without a hole."""
        targets = [self._published[1] + 5, self._published[0] + 5]
        await wait_until_async(
            lambda: (
                any(task.done() for task in self._tasks)
                or all(count >= target for count, target in zip(self.counts, targets, strict=True))
            )
        )
        for task in self._tasks:
            assert not task.done(), task.exception()

    async def stays_small(self) -> None:
        """Neither memory nor descriptors have grown beyond what an attack may cost; all of its connections are gone."""
        assert self._process.memory_info().rss - self.rss < RSS_MAX
        allowed = self.descriptors + 8 + ATTACKER_DESCRIPTORS * self.attackers
        await wait_until_async(lambda: self._process.num_fds() <= allowed)

    @property
    def statistics(self) -> Statistics:
        """What the victim counted."""
        return self.victim.statistics()

    async def complaint(self, *words: str) -> ProtocolError:
        """The victim's next ProtocolError, whose reason holds these words."""
        event: ProtocolError = await next_event(
            self.events, ProtocolError, lambda event: all(word in event.reason for word in words)
        )
        return event

    async def stop(self) -> None:
        """End the exchange; what was published until then has arrived."""
        await self.lives()
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with suppress(asyncio.CancelledError):
                await task


async def next_event(events: EventStream, kind: type[Any], accept: Callable[[Any], bool] = lambda _: True) -> Any:
    """The next event of a kind that is acceptable."""
    seen: list[Event] = []
    try:
        async with asyncio.timeout(30):
            async for event in events:
                if isinstance(event, kind) and accept(event):
                    return event
                seen.append(event)
    except TimeoutError:
        pass
    raise AssertionError(f"no such {kind.__name__}, only {seen}")


def driver_of(arena: Arena) -> Driver:
    """The victim's engine room."""
    driver = arena.victim._driver
    assert driver is not None
    return driver


def count_dials(arena: Arena) -> list[str]:
    """The addresses that the victim dials from now on."""
    transport, dialled = driver_of(arena)._transport, []
    dial = transport.dial

    def counting(route: int, endpoint: str) -> bool:
        dialled.append(endpoint)
        return dial(route, endpoint)

    transport.dial = counting  # type: ignore[method-assign]
    return dialled


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Whatever an impostor does it does as a stranger in a plain fabric, and as a member of an encrypted one."""
    if "impostor" in metafunc.fixturenames:
        metafunc.parametrize("keyed", [False, True], ids=["plain", "encrypted"])


@pytest.fixture
def limits() -> dict[str, Any]:
    """Fields of the victim's Config; tests override it with `@pytest.mark.parametrize("limits", ...)`."""
    return {}


@pytest.fixture
def keyed() -> bool:
    """Whether the arena's fabric has a key."""
    return False


@pytest.fixture
async def arena(limits: dict[str, Any], keyed: bool) -> AsyncIterator[Arena]:
    """Two good nodes with messages between them; the first, with `limits`, is the victim."""
    fabric = RealFabric(QUICK)
    key = FabricKey.parse(new_key(fabric.name)) if keyed else None
    text = None if key is None else key.text
    victim = await fabric.open("victim", config=replace(QUICK, **limits), key=text)
    friend = await fabric.open("friend", key=text)
    await victim.wait_for_peers(1, timeout=30)
    await friend.wait_for_peers(1, timeout=30)
    arena = Arena(fabric, victim, friend, key)
    try:
        await arena.start()
        yield arena
        await arena.stop()
    finally:
        for task in getattr(arena, "_tasks", ()):
            task.cancel()
        await fabric.close()


@pytest.fixture
def impostor(arena: Arena, runtime_dir: Path) -> Iterator[MakeImpostor]:
    """Makes impostors of the arena's fabric, with an ipc outlet of their own if asked for."""
    made: list[Impostor] = []

    def make(*, outlet: bool = False, **options: Any) -> Impostor:
        path = runtime_dir / f"evil{len(made)}.{os.getpid()}" if outlet else None
        arena.attackers += 1
        options = {"key": arena.key, **options}
        made.append(Impostor(options.pop("fabric", arena.fabric.name), outlet=path, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()
