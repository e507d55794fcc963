"""Hot standby: never two active, and one again after any single loss."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from zfabric.patterns.standby import Arbiter, Fence, Fenced, Standby

from zfabric import Config, Node
from zfabric.testing import MemoryFabric, run

QUICK = Config(heartbeat_interval_s=0.2, peer_timeout_s=1.0, rejoin_s=1000)
LEASE_S = 2.0


class Pair:
    """An arbiter and two members, and somebody who watches them all the time."""

    def __init__(self, fabric: MemoryFabric) -> None:
        self.fabric = fabric
        self.members: dict[str, Standby] = {}
        self.epochs: list[int] = []
        self.twice = 0

    async def open(self) -> None:
        """Start everything."""
        self.arbiter = await self.fabric.open("arbiter", config=QUICK)
        Arbiter(self.arbiter, "db", lease_s=LEASE_S)
        for name in ("left", "right"):
            node: Node = await self.fabric.open(name, config=QUICK)
            self.members[name] = await Standby(node, "db", lease_s=LEASE_S).__aenter__()
        self._watching = asyncio.create_task(self._watch())

    async def close(self) -> None:
        """End everything."""
        self._watching.cancel()
        for member in self.members.values():
            await member.__aexit__(None, None, None)

    async def _watch(self) -> None:
        pause = 0.01
        while True:
            active = [member.epoch for member in self.members.values() if member.epoch is not None]
            self.twice += len(active) > 1
            self.epochs += [epoch for epoch in active if epoch not in self.epochs]
            await asyncio.sleep(pause)

    def active(self) -> str | None:
        """Who is active."""
        return next((name for name, member in self.members.items() if member.epoch is not None), None)

    async def wait_active(self, *others_than: str) -> str:
        """Return once somebody is active."""
        name: str | None = None
        for _ in range(600):
            name = self.active()
            if name is not None and name not in others_than:
                return name
            await self.fabric.clock.advance(0.05)
        raise AssertionError(f"{name} is active")


def test_another_takes_over() -> None:
    """When the active member is cut off; when it comes back it is passive."""

    async def scenario() -> None:
        async with MemoryFabric() as fabric:
            pair = Pair(fabric)
            await pair.open()
            first = await pair.wait_active()
            fabric.partition({first}, {"arbiter", *(pair.members.keys() - {first})})
            began = fabric.clock.time()
            second = await pair.wait_active(first)
            took = fabric.clock.time() - began
            fabric.heal()
            await fabric.clock.advance(5)

            assert pair.active() == second
            assert took < LEASE_S * 1.5
            assert pair.epochs == sorted(pair.epochs)
            assert (len(pair.epochs), pair.twice) == (2, 0)
            await pair.close()

    run(scenario())


def test_leaving_in_order_hands_over_at_once() -> None:
    """The lease is given back."""

    async def scenario() -> None:
        async with MemoryFabric() as fabric:
            pair = Pair(fabric)
            await pair.open()
            first = await pair.wait_active()
            leaving = pair.members.pop(first)
            await leaving.__aexit__(None, None, None)
            began = fabric.clock.time()
            await pair.wait_active()

            assert fabric.clock.time() - began < LEASE_S / 2
            await leaving.wait_passive(0.1)
            await pair.close()

    run(scenario())


def test_without_the_arbiter_nobody_is_active() -> None:
    """And a new one lends nothing before every old lease has ended."""

    async def scenario() -> None:
        async with MemoryFabric() as fabric:
            pair = Pair(fabric)
            await pair.open()
            first = await pair.wait_active()
            await pair.arbiter.close()
            await pair.members[first].wait_passive(LEASE_S + 0.1)
            with pytest.raises(TimeoutError):
                await pair.members[first].wait_active(timeout=10)
            fresh = await fabric.open("arbiter-2", config=QUICK)
            Arbiter(fresh, "db", lease_s=LEASE_S)
            began = fabric.clock.time()
            await pair.wait_active()

            assert fabric.clock.time() - began >= LEASE_S - 0.1
            assert pair.epochs == sorted(pair.epochs)
            assert pair.twice == 0
            await pair.close()

    run(scenario())


@pytest.mark.parametrize("seed", range(5))
def test_never_two_whatever_is_cut(seed: int) -> None:
    """Cuts at random, also between the members; then one is active again."""

    async def scenario() -> None:
        rng = random.Random(seed)
        async with MemoryFabric(seed) as fabric:
            pair = Pair(fabric)
            await pair.open()
            for _ in range(30):
                names = ["arbiter", *pair.members]
                rng.shuffle(names)
                fabric.partition(set(names[:1]), set(names[1:])) if rng.random() < 0.6 else fabric.heal()
                await fabric.clock.advance(rng.choice((0.1, 1.0, 3.0)))
            fabric.heal()
            await pair.wait_active()

            assert pair.twice == 0
            assert pair.epochs == sorted(pair.epochs)
            await pair.close()

    run(scenario())


def test_a_fence_refuses_terms_that_are_over() -> None:
    """Equal is the same term."""
    fence = Fence()
    for epoch in (3, 3, 7):
        fence.check(epoch)

    with pytest.raises(Fenced, match="epoch 3 is over, 7 has begun"):
        fence.check(3)
    nonsense: list[Any] = [None, float("nan"), "8"]
    for epoch in nonsense:
        with pytest.raises(TypeError, match="an epoch is a whole number"):
            fence.check(epoch)
    assert fence.newest == 7


async def test_a_lease_lasts_for_a_time() -> None:
    """A term of no length, or asking without a pause, is refused."""
    async with MemoryFabric(seed=1) as fabric:
        node = await fabric.open("a")
        for lease_s in (0, -1, float("nan")):
            for make in (Arbiter, Standby):
                with pytest.raises(ValueError, match="lease_s"):
                    make(node, "n", lease_s=lease_s)
