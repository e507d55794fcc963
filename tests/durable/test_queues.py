"""Durable queues at one store: jobs, and what became of them, outlive the store and everybody else."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.durable.conftest import MakeStore
from tests.waiting import wait_until_async as until
from zfabric import Config, EncodeFailed, LocalProtocolError, NotStored, WindowFull
from zfabric.model import Job
from zfabric.protocol.jobs import Unreadable
from zfabric.store import Store, rules
from zfabric.store.bodies import Bodies
from zfabric.store.sqlite import SqliteLog
from zfabric.testing import MemoryFabric

TIMEOUT = 30.0
QUIET_S = 0.2
"After this long without a job there are most likely no more than there should be."


@asynccontextmanager
async def store_at(fabric: MemoryFabric, path: Path, config: Config | None = None) -> AsyncIterator[Store]:
    """A store that restarts there."""
    config = config or Config()
    async with Store(str(path), node=fabric.node("store", config=config), config=config) as store:
        yield store


async def rest(puller: Any, count: int) -> list[Job]:
    """All jobs that are there, so many, in hand."""
    jobs: list[Job] = [await puller.receive(TIMEOUT) for _ in range(count)]
    with suppress(TimeoutError):
        jobs.append(await puller.receive(QUIET_S))
    return jobs


async def queue_state(node: Any, queue: str) -> Any:
    """What the store tells of a queue."""
    return next((state.statistics for state in await node.queues() if state.queue == queue), None)


async def test_jobs_outlive_store_and_pusher(fabric: MemoryFabric, tmp_path: Path) -> None:
    """What was confirmed is there after both are gone; what was acknowledged is not; attempts go on counting."""
    async with store_at(fabric, tmp_path), fabric.node("shop") as shop, fabric.node("packing") as packing:
        orders = shop.pusher("orders", durable=True, backoff_s=0.0)
        await orders.wait_for(stores=1, timeout=TIMEOUT)
        assert await orders.push("first") == 0
        assert await orders.push_many(range(1, 100)) == 99
        assert await orders.push("special", key="k", headers={"size": 3}, priority=9) == 100
        async with packing.puller("orders", ack="manual") as jobs:
            got = [await jobs.receive(TIMEOUT) for _ in range(50)]
            assert (got[0].value, got[0].key, got[0].headers, got[0].priority) == ("special", "k", {"size": 3}, 9)
            for job in got[:40]:
                await job.ack()
            await got[40].nack()
            await until(lambda: jobs.pushers == 1 and jobs.pending > 0)

    packing = await fabric.open("packing-2")
    async with store_at(fabric, tmp_path), packing.puller("orders", ack="manual") as jobs:
        left = await rest(jobs, 61)

    done = {job.seq for job in got[:40]}
    assert sorted(job.seq for job in left) == sorted(set(range(101)) - done)
    in_hand = got[40:]  # one failed, and the others when their worker's node closed
    assert {job.seq: job.attempt for job in left if job.attempt > 1} == {job.seq: 2 for job in in_hand}
    assert all(job.value == job.seq for job in left if job.seq)


async def test_an_ack_returns_when_it_is_on_the_disk(fabric: MemoryFabric, make_store: MakeStore) -> None:
    """And says so when it came too late, or the store left first."""
    store = await make_store()
    shop, packing = await fabric.open("shop"), await fabric.open("packing")
    orders = shop.pusher("orders", durable=True)
    await orders.wait_for(stores=1, timeout=TIMEOUT)
    await orders.push_many(range(3))
    jobs = packing.puller("orders", ack="manual", credit=1)
    first = await jobs.receive(TIMEOUT)

    assert store.log.position("$queue/orders") is None or store._service.queues._queues["orders"].floor == 0  # type: ignore[union-attr]
    await first.ack()
    assert store._service.queues._queues["orders"].floor == 1  # type: ignore[union-attr]
    await first.ack()  # again: nothing happens
    await jobs.close()
    hasty = packing.puller("orders", ack="manual", credit=1, handler_timeout_s=0.1)
    second = await hasty.receive(TIMEOUT)
    await until(lambda: second._settlement._delivery.is_late(0))  # type: ignore[union-attr]
    with pytest.raises(NotStored, match="lease had ended"):
        await second.ack()
    await hasty.close()
    again = await packing.puller("orders", ack="manual").receive(TIMEOUT)
    fabric.crash(store.node)
    with pytest.raises(NotStored, match="left before it answered"):
        await asyncio.wait_for(again.ack(), TIMEOUT)


async def test_an_ack_is_answered_after_its_puller_has_ended(fabric: MemoryFabric, make_store: MakeStore) -> None:
    """A worker that stops hears that its last job is done, although its puller holds nothing and takes no more."""
    await make_store()
    shop, packing = await fabric.open("shop"), await fabric.open("packing")
    orders = shop.pusher("orders", durable=True)
    await orders.wait_for(stores=1, timeout=TIMEOUT)
    await orders.push("last")
    jobs = packing.puller("orders", ack="manual")
    job = await jobs.receive(TIMEOUT)

    jobs.end()
    await asyncio.wait_for(job.ack(), TIMEOUT)

    await until(lambda: not packing._driver.core.queues.pulls)  # type: ignore[union-attr]


async def test_a_node_that_closes_waits_for_answers_to_its_acks(fabric: MemoryFabric, make_store: MakeStore) -> None:
    """And says which jobs may come again if the store does not answer in time."""
    store = await make_store()
    shop = await fabric.open("shop")
    orders = shop.pusher("orders", durable=True)
    await orders.wait_for(stores=1, timeout=TIMEOUT)
    await orders.push_many(range(2))

    async def ack_and_close(name: str, timeout: float) -> None:
        packing = await fabric.open(name)
        job = await packing.puller("orders", ack="manual").receive(TIMEOUT)
        acking = asyncio.ensure_future(job.ack())
        await asyncio.sleep(0)  # the ack is on its way
        await packing.close(timeout)
        await asyncio.wait_for(acking, TIMEOUT)

    await ack_and_close("packing", TIMEOUT)
    store._service.queues._committing.add("orders")  # type: ignore[union-attr]  # as if its disk were slow
    with pytest.raises(NotStored, match="node closed before the store answered"):
        await ack_and_close("packing-2", 0.2)
    store._service.queues._committing.discard("orders")  # type: ignore[union-attr]


async def test_workers_and_handlers_need_not_know(fabric: MemoryFabric, make_store: MakeStore) -> None:
    """`@node.worker` takes durable jobs and those of nodes alike."""
    await make_store()
    shop, packing = await fabric.open("shop"), await fabric.open("packing")
    orders = shop.pusher("orders", durable=True)
    await orders.wait_for(stores=1, timeout=TIMEOUT)
    await orders.push_many(range(100))
    await (await fabric.open("kiosk")).pusher("orders").push_many(range(100, 200))
    done = set()

    @packing.worker("orders", concurrency=4)
    async def pack(job: Job) -> None:
        done.add(job.value)

    await until(lambda: done == set(range(200)))
    await until_state(packing, depth=0, done=100)


async def until_state(node: Any, **wanted: int) -> None:
    """Wait until the store tells this of the queue `orders`."""
    async with asyncio.timeout(TIMEOUT):
        while True:
            states = [s.statistics for s in await node.queues() if s.queue == "orders" and s.source.name == "store"]
            if states and all(getattr(states[0], name) == value for name, value in wanted.items()):
                return
            await asyncio.sleep(0)  # a node without peers answers itself at once


async def test_without_a_store_it_is_told_at_once(fabric: MemoryFabric, make_store: MakeStore) -> None:
    """Or waits in the window, as `without_store` says, which is bounded."""
    shop = await fabric.open("shop")
    orders = shop.pusher("orders", durable=True)
    with pytest.raises(NotStored, match="zfabric store run"):
        await orders.push(1)
    with pytest.raises(NotStored):
        orders.push_nowait(1)
    patient = shop.pusher("later", durable=True, without_store="buffer", queue_bytes=2000)
    patient.push_nowait("x" * 3000)
    await asyncio.sleep(0)
    with pytest.raises(WindowFull):
        patient.push_nowait(2)
    waiting = asyncio.ensure_future(patient.push("y"))

    store = await make_store()

    assert await waiting == 1
    await patient.flush()
    assert patient.depth == 0
    assert store.log.info("$queue.later").next == 2  # type: ignore[union-attr]
    with pytest.raises(LocalProtocolError, match="other options"):
        shop.pusher("orders", durable=True, max_attempts=1)
    with pytest.raises(EncodeFailed, match="reserved"):
        await orders.push(1, headers={"$delay": 1})
    with pytest.raises(ValueError, match="one store"):
        await orders.wait_for(workers=1)
    with pytest.raises(LocalProtocolError, match="its store"):
        orders.finished(0)


@pytest.mark.parametrize("marks", [True, False])
async def test_what_was_stored_and_not_confirmed_is_recognised(
    fabric: MemoryFabric, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, marks: bool
) -> None:
    """A store that restarts is sent again what it did not confirm; without its marks it would have it twice."""
    if not marks:
        monkeypatch.setattr(rules, "_is_new", lambda append, mark: True)
    shop = await fabric.open("shop")
    orders = shop.pusher("orders", durable=True)
    async with store_at(fabric, tmp_path) as store:
        await orders.wait_for(stores=1, timeout=TIMEOUT)
        await orders.push(0)
        monkeypatch.setattr(store._service, "_tell", lambda *_: None)
        pushing = asyncio.ensure_future(orders.push_many(range(1, 5000)))
        await until(lambda: store.log.info("$queue.orders").next == 5000)  # type: ignore[union-attr]
    async with store_at(fabric, tmp_path) as store:
        await asyncio.wait_for(pushing, TIMEOUT)
        assert await orders.push("next") == (5000 if marks else 9999)


async def test_a_store_that_is_another_gets_them_from_the_start(fabric: MemoryFabric, tmp_path: Path) -> None:
    """A pusher that goes on at an empty store numbers its jobs anew: it is not refused for ever."""
    shop = await fabric.open("shop")
    orders = shop.pusher("orders", durable=True, without_store="buffer")
    async with store_at(fabric, tmp_path / "one"):
        await orders.wait_for(stores=1, timeout=TIMEOUT)
        await orders.push_many(range(10))
    pushing = asyncio.ensure_future(orders.push("more"))
    async with store_at(fabric, tmp_path / "two") as store:
        assert await asyncio.wait_for(pushing, TIMEOUT) == 0
        assert store.log.info("$queue.orders").next == 1  # type: ignore[union-attr]


async def test_a_store_that_stays_away_is_replaced(fabric: MemoryFabric, tmp_path: Path) -> None:
    """What it may have and has not confirmed waits for it for the grace, then goes to another store."""
    shop = await fabric.open("shop", config=Config(grace_s=0.5))
    orders = shop.pusher("orders", durable=True, without_store="buffer")
    async with store_at(fabric, tmp_path / "one"):
        await orders.wait_for(stores=1, timeout=TIMEOUT)
        await orders.push("stored")
        orders.push_nowait("on its way")
        orders._writer.seal()  # type: ignore[attr-defined]
        flushing = asyncio.ensure_future(orders.flush())
        await asyncio.sleep(0)
    async with store_at(fabric, tmp_path / "two"):
        await asyncio.wait_for(flushing, TIMEOUT)
        assert orders.depth == 0


async def test_delays_priorities_and_ids_survive(fabric: MemoryFabric, tmp_path: Path) -> None:
    """Delays count from when the job was stored, ids hold for their window, also when their job is done and trimmed."""
    async with store_at(fabric, tmp_path) as store:
        shop = await fabric.open("shop")
        orders = shop.pusher("orders", durable=True)
        await orders.wait_for(stores=1, timeout=TIMEOUT)
        await orders.push("once", dedupe_id="a")
        async with shop.puller("orders", ack="manual") as jobs:
            await (await jobs.receive(TIMEOUT)).ack()
        pushed_at = asyncio.get_running_loop().time()
        await orders.push("late", delay=1.0)
        await orders.push("never", ttl=0.2)
        await orders.push("low", priority=1)
        await orders.push("high", priority=8)
        await store._service.queues.trim()  # type: ignore[union-attr]
        assert store.log.info("$queue.orders").first == 0  # type: ignore[union-attr]

    async with store_at(fabric, tmp_path):
        await orders.wait_for(stores=1, timeout=TIMEOUT)
        await orders.push("once again", dedupe_id="a")
        await until_state(shop, expired=1)
        async with shop.puller("orders", ack="manual") as jobs:
            values = [(await jobs.receive(TIMEOUT)).value for _ in range(3)]
            assert asyncio.get_running_loop().time() - pushed_at >= 1.0
            assert [value for value in values if value != "late"] == ["high", "low"]
            assert "late" in values
            with pytest.raises(TimeoutError):
                await jobs.receive(QUIET_S)


async def test_room_is_given_back(fabric: MemoryFabric, tmp_path: Path) -> None:
    """The stream is trimmed up to the first job that is not settled; what is settled behind it stays settled."""
    config = Config()
    async with store_at(fabric, tmp_path, config) as store:
        shop = await fabric.open("shop")
        orders = shop.pusher("orders", durable=True)
        await orders.wait_for(stores=1, timeout=TIMEOUT)
        await orders.push_many(range(1000))
        async with shop.puller("orders", ack="manual", credit=1000) as jobs:
            got = [await jobs.receive(TIMEOUT) for _ in range(1000)]
            for job in got[:600] + got[601:999]:
                job._settlement.ack(job, confirm=False)  # type: ignore[union-attr, call-arg]
            await got[999].ack()
            await store._service.queues.trim()  # type: ignore[union-attr]
            assert store.log.info("$queue.orders").first == 600  # type: ignore[union-attr]
    packing = await fabric.open("packing")
    async with store_at(fabric, tmp_path) as store, packing.puller("orders", ack="manual") as jobs:
        assert [job.value for job in await rest(jobs, 1)] == [600]


async def test_dead_letters_are_durable(fabric: MemoryFabric, tmp_path: Path) -> None:
    """With value, key, priority and the reason; settled and buried in one commit."""
    async with store_at(fabric, tmp_path), fabric.node("shop") as shop:
        orders = shop.pusher("orders", durable=True, max_attempts=2, backoff_s=0.0)
        await orders.wait_for(stores=1, timeout=TIMEOUT)
        await orders.push({"n": 1}, key="k", headers={"h": 1}, priority=7)
        await orders.push(b"x" * 200_000)
        async with shop.puller("orders", ack="manual") as jobs:
            first = await jobs.receive(TIMEOUT)
            await (await jobs.receive(TIMEOUT)).reject("broken")
            await first.nack(0, "not now")
            await (await jobs.receive(TIMEOUT)).nack(0, "still not")
        await until_state(shop, depth=0, dead=2)
        await until_buried(shop, 2)
    shop = await fabric.open("shop-2")
    async with store_at(fabric, tmp_path), shop.puller("$dead.orders", ack="manual") as jobs:
        dead = sorted(await rest(jobs, 2), key=lambda job: job.seq)
        assert [job.headers["dead.reason"] for job in dead] == ["broken", "still not"]  # type: ignore[index]
        assert dead[0].value == b"x" * 200_000
        assert (dead[1].value, dead[1].key, dead[1].priority) == ({"n": 1}, "k", 7)
        assert dead[1].headers["h"] == 1  # type: ignore[index]
        for job in dead:
            await job.ack()
    async with store_at(fabric, tmp_path), fabric.node("shop") as shop:
        await until_state(shop, depth=0, dead=0)
        await until_buried(shop, 0)


async def until_buried(node: Any, jobs: int) -> None:
    """Wait until the store has so many dead letters."""
    async with asyncio.timeout(TIMEOUT):
        while True:
            state = await queue_state(node, "$dead.orders")
            if state is not None and state.depth == jobs:
                return
            await asyncio.sleep(0)  # a node without peers answers itself at once


async def test_keys_stay_in_order_over_restarts(fabric: MemoryFabric, tmp_path: Path) -> None:
    """Jobs of one key are leased one after the other, also those that a restart finds half done."""
    values = []
    async with store_at(fabric, tmp_path):
        shop = await fabric.open("shop")
        orders = shop.pusher("orders", durable=True)
        await orders.wait_for(stores=1, timeout=TIMEOUT)
        for number in range(10):
            orders.push_nowait(number, key=number % 2)
        await orders.flush()
        async with shop.puller("orders", ack="manual") as jobs:
            for _ in range(5):
                job = await jobs.receive(TIMEOUT)
                values.append(job.value)
                await job.ack()
    async with store_at(fabric, tmp_path), shop.puller("orders", ack="manual") as jobs:
        for _ in range(5):
            job = await jobs.receive(TIMEOUT)
            values.append(job.value)
            await job.ack()
    assert [value for value in values if value % 2] == [1, 3, 5, 7, 9]
    assert [value for value in values if not value % 2] == [0, 2, 4, 6, 8]


async def test_the_index_is_bounded(fabric: MemoryFabric, tmp_path: Path) -> None:
    """Beyond `Config.store_jobs_max` jobs wait in the log, and come in their turn; values are not kept in memory."""
    config = Config(store_jobs_max=50, store_jobs_cache_bytes=10_000)
    async with store_at(fabric, tmp_path, config) as store:
        shop = await fabric.open("shop")
        orders = shop.pusher("orders", durable=True)
        await orders.wait_for(stores=1, timeout=TIMEOUT)
        for number in range(300):
            orders.push_nowait([number, "x" * 1000], headers={"n": number})
        await orders.flush()
        await orders.push_many([number, "x" * 1000] for number in range(300, 600))
        queue = store._service.queues._queues["orders"]  # type: ignore[union-attr]
        assert queue.full
        assert queue.dispatcher.singles < 300
        assert queue.loaded < 300
        assert queue.bodies._nbytes <= 10_000 or len(queue.bodies._held) == 1
        seen = []
        async with shop.puller("orders", ack="manual") as jobs:
            for _ in range(600):
                job = await jobs.receive(TIMEOUT)
                seen.append(job.value[0])
                await job.ack()
    assert sorted(seen) == list(range(600))


async def test_a_backlog_is_read_beside_the_event_loop(
    fabric: MemoryFabric, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In steps, for leases and for dead letters; pullers with selectors and without get all that is theirs."""
    loop_thread = threading.get_ident()
    in_loop: list[str] = []
    read = SqliteLog.read

    def watched(self: SqliteLog, stream: str, *arguments: int) -> Any:
        if threading.get_ident() == loop_thread:
            in_loop.append(stream)
        return read(self, stream, *arguments)

    config = Config(store_jobs_cache_bytes=10_000)
    async with store_at(fabric, tmp_path, config):
        shop = await fabric.open("shop")
        orders = shop.pusher("orders", durable=True)
        await orders.wait_for(stores=1, timeout=TIMEOUT)
        for number in range(100):
            orders.push_nowait([number, "x" * 1000], headers={"side": number // 50})
        await orders.flush()
        await orders.push_many([number, "x" * 1000] for number in range(100, 300))
    monkeypatch.setattr(SqliteLog, "read", watched)
    async with store_at(fabric, tmp_path, config):
        async with shop.puller("orders", ack="manual", selector="side = 1") as side:
            jobs = [await side.receive(TIMEOUT) for _ in range(50)]
            async with shop.puller("orders", ack="manual") as everything:
                jobs += await rest(everything, 250)
                for job in jobs[50:110]:
                    await job.reject()
                await asyncio.gather(*(job.ack() for job in jobs[110:]))
            for job in jobs[:50]:
                await job.ack()
            await until_state(shop, depth=0, dead=60)
        async with shop.puller("$dead.orders", ack="manual") as letters:
            dead = await rest(letters, 60)

    assert sorted(job.value[0] for job in jobs) == list(range(300))
    assert sorted(letter.value[0] for letter in dead) == sorted(job.value[0] for job in jobs[50:110])
    assert in_loop == []


async def test_jobs_that_cannot_be_read_are_dead(fabric: MemoryFabric, make_store: MakeStore) -> None:
    """A damaged batch costs its own jobs; the others flow."""
    store = await make_store(config=Config(store_jobs_cache_bytes=1))
    shop = await fabric.open("shop")
    orders = shop.pusher("orders", durable=True)
    await orders.wait_for(stores=1, timeout=TIMEOUT)
    await orders.push_many(range(10))
    await orders.push_many(range(10, 20))
    await orders.push(20, key="k")
    bodies = store._service.queues._queues["orders"].bodies  # type: ignore[union-attr]
    find = Bodies._find

    def damaged(self: Bodies, number: int) -> Any:
        if 10 <= number < 20:
            raise Unreadable(10, 20, "its checksum differs")
        return find(self, number)

    bodies._find = damaged.__get__(bodies)  # type: ignore[method-assign]
    async with shop.puller("orders", ack="manual") as jobs:
        values = [job.value for job in await rest(jobs, 11)]

    assert sorted(values) == [*range(10), 20]
    await until_state(shop, dead=10)


async def test_large_values_and_arrays(fabric: MemoryFabric, tmp_path: Path) -> None:
    """They are alone in their batch, and leased as they came."""
    async with store_at(fabric, tmp_path):
        shop = await fabric.open("shop")
        orders = shop.pusher("orders", durable=True)
        await orders.wait_for(stores=1, timeout=TIMEOUT)
        for size in (10, 100_000, 20):
            orders.push_nowait(bytes(size))
        orders.push_nowait(b"k" * 70_000, key="k")
        await orders.flush()
    async with store_at(fabric, tmp_path), shop.puller("orders", ack="manual") as jobs:
        assert sorted(len(job.value) for job in await rest(jobs, 4)) == [10, 20, 70_000, 100_000]


async def test_a_node_that_is_the_store_cannot_mix(fabric: MemoryFabric, make_store: MakeStore) -> None:
    """A queue is the store's, or its node's own in memory."""
    store = await make_store()
    store.node.pusher("mine")
    shop = await fabric.open("shop")
    mine = shop.pusher("mine", durable=True)
    await mine.wait_for(stores=1, timeout=TIMEOUT)
    with pytest.raises(NotStored, match="without durable=True"):
        await mine.push(1)
    theirs = shop.pusher("theirs", durable=True)
    await theirs.push(1)
    with pytest.raises(LocalProtocolError, match="is the store of"):
        store.node.pusher("theirs")
