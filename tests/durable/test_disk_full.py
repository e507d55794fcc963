"""A store whose real disk fills up, as its publishers see it."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

import pytest

from tests.durable.conftest import MakeStore
from tests.store.test_full import small_disk  # noqa: F401 - a fixture
from tests.waiting import wait_until_async as until
from zfabric import Config, NotStored
from zfabric.store import Appended, Commit
from zfabric.testing import MemoryFabric

TIMEOUT = 30.0


async def test_a_full_disk_and_room_again(
    small_disk: Path,  # noqa: F811 - the fixture
    fabric: MemoryFabric,
    make_store: MakeStore,
) -> None:
    """NotStored with the reason, reading goes on, and all that was confirmed or waited is there in the end, once."""
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(1_500_000))
    config = Config(store_reserve_bytes=300_000, store_checkpoint_bytes=200_000)
    store = await make_store(str(small_disk / "data"), config=config)
    node = await fabric.open("shop")
    orders = node.publisher("orders", durable=True, confirm="stored")
    await orders.wait_for(stores=1, timeout=TIMEOUT)
    confirmed: list[int] = []

    async def fill() -> None:
        for number in range(2000):
            await orders.publish([number, bytes(5000)])
            confirmed.append(number)

    with pytest.raises(NotStored, match="disk is full"):
        await fill()
    reader = (await fabric.open("reader")).subscribe("orders", start="earliest")
    assert [(await reader.receive(TIMEOUT)).value[0] for _ in confirmed] == confirmed
    ballast.unlink()

    def goes_on() -> bool:
        with suppress(NotStored):
            orders.publish_nowait(["on", b""])
            return True
        return False

    await until(goes_on, TIMEOUT)
    await orders.flush()
    rest = [(await reader.receive(TIMEOUT)).value[0] for _ in range(2)]

    assert len(confirmed) > 50
    assert rest == [len(confirmed), "on"]
    info = store.log.info("orders")
    assert info is not None and info.next == len(confirmed) + 2


async def test_dead_letters_wait_for_room(
    small_disk: Path,  # noqa: F811 - the fixture
    fabric: MemoryFabric,
    make_store: MakeStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Jobs that die while the disk is full are not lost; others are acknowledged; nothing spins meanwhile."""
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(1_500_000))
    config = Config(store_reserve_bytes=300_000, store_checkpoint_bytes=200_000)
    store = await make_store(str(small_disk / "data"), config=config)
    node = await fabric.open("shop")
    orders, filler = node.pusher("orders", durable=True), node.publisher("filler", durable=True, confirm="stored")
    await orders.wait_for(stores=1, timeout=TIMEOUT)
    await filler.wait_for(stores=1, timeout=TIMEOUT)
    await orders.push_many([number, bytes(20_000)] for number in range(20))

    async def fill() -> None:
        for _ in range(2000):
            await filler.publish(bytes(5000))

    with pytest.raises(NotStored, match="disk is full"):
        await fill()
    commits: list[int] = []
    commit = store._writer.commit

    def counted(wanted: Commit) -> asyncio.Future[tuple[Appended, ...]]:
        commits.append(len(wanted.appends))
        return commit(wanted)

    monkeypatch.setattr(store._writer, "commit", counted)

    async with node.puller("orders", ack="manual") as jobs:
        for number in range(20):
            job = await jobs.receive(TIMEOUT)
            await (job.ack() if number % 2 else job.reject("broken"))
        await until(lambda: commits.count(0) > 5 and len([count for count in commits if count]) > 2, TIMEOUT)
        tries = len(commits)
        ballast.unlink()
        async with node.puller("$dead.orders", ack="manual") as letters:
            dead = [await letters.receive(TIMEOUT) for _ in range(10)]

    assert tries < 100
    assert {job.headers["dead.reason"] for job in dead if job.headers} == {"broken"}
    assert sorted(job.value[0] for job in dead) == list(range(0, 20, 2))
