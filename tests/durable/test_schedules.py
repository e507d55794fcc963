"""Schedules at one store: whoever declares them, each tick makes one job."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.durable.conftest import MakeStore
from tests.durable.test_queues import TIMEOUT, rest, store_at
from tests.waiting import wait_until_async as until
from zfabric import Config, EncodeFailed, NotStored, StoreDamaged
from zfabric.store import Commit, schedulehost
from zfabric.store.log import Mark, Outcome
from zfabric.testing import MemoryFabric

START = 1_000_000.0


class SetClock:
    """The time of day of a fabric, which the test sets."""

    def __init__(self, fabric: MemoryFabric, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = START
        monkeypatch.setattr(fabric.clock, "utc", lambda: self.now)
        monkeypatch.setattr(schedulehost, "LOOK_S", 0.02)


@pytest.fixture
def clock(fabric: MemoryFabric, monkeypatch: pytest.MonkeyPatch) -> SetClock:
    """It stands until a test sets it."""
    return SetClock(fabric, monkeypatch)


async def test_each_tick_makes_one_job_whoever_declares_it(
    fabric: MemoryFabric, make_store: MakeStore, clock: SetClock
) -> None:
    """Two nodes declare the same, again and again; the job has what was declared, its schedule and its tick."""
    _ = await make_store()
    shop, twin = await fabric.open("shop"), await fabric.open("twin")
    options: dict[str, Any] = {"queue": "reports", "value": {"kind": "daily"}, "key": "k", "headers": {"size": 3}}
    for node in (shop, twin, shop):
        await node.schedule("nightly", cron="0 * * * *", priority=9, **options)
    puller = twin.puller("reports", ack="manual")

    for hour in (1, 2):
        clock.now = START // 3600 * 3600 + 3600 * hour
        job = await puller.receive(TIMEOUT)
        assert (job.value, job.key, job.priority) == ({"kind": "daily"}, "k", 9)
        assert job.headers == {"size": 3, "schedule": "nightly", "tick": int(clock.now)}
        await job.ack()
        await twin.schedule("nightly", cron="0 * * * *", priority=9, **options)
    (listed,) = await shop.schedules()
    assert (listed.name, listed.queue, listed.value, listed.cron) == (
        "nightly",
        "reports",
        options["value"],
        "0 * * * *",
    )
    assert listed.last == datetime.fromtimestamp(clock.now, UTC)
    assert listed.next == datetime.fromtimestamp(clock.now + 3600, UTC)

    assert await twin.unschedule("nightly")
    assert not await shop.unschedule("nightly")
    clock.now += 7200
    with pytest.raises(TimeoutError):
        await puller.receive(0.3)
    assert await shop.schedules() == []


async def test_schedules_outlive_the_store(fabric: MemoryFabric, tmp_path: Path, clock: SetClock) -> None:
    """What was missed is one job, or none; nothing is made twice by a clock that was set back."""
    shop = await fabric.open("shop")
    async with store_at(fabric, tmp_path):
        await shop.schedule("one", queue="q", every=10)
        await shop.schedule("none", queue="q", every=10, missed="none")
        clock.now += 10
        async with shop.puller("q", ack="manual") as puller:
            for job in [await puller.receive(TIMEOUT), await puller.receive(TIMEOUT)]:
                await job.ack()
    clock.now += 35
    async with store_at(fabric, tmp_path), shop.puller("q", ack="manual") as puller:
        missed = await rest(puller, 1)
        assert [(job.headers or {}) for job in missed] == [{"schedule": "one", "tick": START + 40}]
        for job in missed:
            await job.ack()
    clock.now -= 3600
    async with store_at(fabric, tmp_path), shop.puller("q", ack="manual") as puller:
        await until(lambda: bool(shop.peers), TIMEOUT)
        assert {schedule.last for schedule in await shop.schedules()} == {
            datetime.fromtimestamp(START + tick, UTC) for tick in (10, 40)
        }
        clock.now += 3605
        made = {(job.headers or {})["schedule"]: job.headers for job in await rest(puller, 2)}
        assert made.keys() == {"one", "none"}
        assert all(headers and headers["tick"] >= START + 50 for headers in made.values())


async def test_a_job_that_was_refused_is_pushed_later(
    fabric: MemoryFabric, make_store: MakeStore, clock: SetClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk takes neither the job nor the tick: the tick is not lost, and not made twice."""
    store = await make_store()
    shop = await fabric.open("shop")
    await shop.schedule("s", queue="q", every=10)
    commit, refused = store.log.commit, list[int]()

    def once(commits: Sequence[Commit]) -> list[Outcome]:
        if not refused and any(each.appends for each in commits):
            refused.append(1)
            return [NotStored("the disk is full") for _ in commits]
        return commit(commits)

    monkeypatch.setattr(store.log, "commit", once)
    clock.now += 10
    async with shop.puller("q", ack="manual") as puller:
        ticks = [(job.headers or {})["tick"] for job in await rest(puller, 1)]

    assert refused
    assert ticks == [START + 10]


async def test_what_cannot_be_is_refused(fabric: MemoryFabric, make_store: MakeStore) -> None:
    """ValueError names what is wrong; without a store and beyond its limits NotStored names the cure."""
    shop = await fabric.open("shop")
    with pytest.raises(NotStored, match="zfabric store run"):
        await shop.schedule("s", queue="q", every=1, timeout=0.1)
    _ = await make_store(config=Config(store_schedules_max=1))

    with pytest.raises(ValueError, match="cron '61"):
        await shop.schedule("s", queue="q", cron="61 * * * *")
    with pytest.raises(ValueError, match="Berlim"):
        await shop.schedule("s", queue="q", cron="0 3 * * *", timezone="Europe/Berlim")
    for wrong in ({}, {"every": 0}, {"every": 1, "cron": "* * * * *"}, {"every": 1, "headers": {"tick": 1}}):
        with pytest.raises(ValueError, match=r"every|tick"):
            await shop.schedule("s", queue="q", **wrong)
    with pytest.raises(EncodeFailed):
        await shop.schedule("s", queue="q", value=object(), every=1)
    await shop.schedule("s", queue="q", every=1000)
    with pytest.raises(NotStored, match="store_schedules_max"):
        await shop.schedule("another", queue="q", every=1000)


async def test_a_schedule_stays_where_it_is(fabric: MemoryFabric, make_store: MakeStore, clock: SetClock) -> None:
    """Stores that come later do not get a second one, whichever of them all nodes agree on for new jobs."""
    _ = await make_store(name="first")
    shop = await fabric.open("shop")
    await shop.schedule("s", queue="q", value=np.arange(3), every=10)
    for number in range(4):
        _ = await make_store(name=f"later-{number}")
    twin = await fabric.open("twin")
    await until(lambda: len(shop.peers) == len(twin.peers) == 6, TIMEOUT)
    await until(lambda: all(len(node._opened().core.stores.all()) == 5 for node in (shop, twin)), TIMEOUT)
    for node in (shop, twin):
        await node.schedule("s", queue="q", value=np.arange(3), every=20)

    (only,) = await twin.schedules()
    assert only.every == 20
    clock.now += 20
    async with twin.puller("q") as puller:
        assert list((await puller.receive(TIMEOUT)).value) == [0, 1, 2]
    assert await twin.unschedule("s")
    assert await shop.schedules() == []


async def test_a_schedule_whose_queue_is_damaged_stops_no_other(
    fabric: MemoryFabric, make_store: MakeStore, clock: SetClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is tried again, and the others have their jobs meanwhile."""
    store, node = await make_store(), await fabric.open("shop")
    mark, looks = store.log.mark, list[str]()

    def damaged(producer: bytes, stream: str) -> Mark | None:
        if stream.endswith("bad"):
            looks.append(stream)
            raise StoreDamaged("log-00000001.db", "a row of the head has another checksum")
        return mark(producer, stream)

    monkeypatch.setattr(store.log, "mark", damaged)
    for queue in ("bad", "good"):
        await node.schedule(f"for-{queue}", every=60, queue=queue)
    puller = node.puller("good", ack="auto")

    for minute in (1, 2):
        clock.now = START // 60 * 60 + 60 * minute
        assert (await puller.receive(TIMEOUT)).headers["tick"] == int(clock.now)  # type: ignore[index]
    await until(lambda: len(looks) > 2)
