"""Groups, transactions and positions between real nodes and a store in memory."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest

import zfabric
from tests.waiting import wait_until_async
from zfabric import Config, Node
from zfabric.store import Store

FAST = Config(mdns=False, heartbeat_interval_s=0.2, peer_timeout_s=1.0)


@pytest.fixture
async def fabric(tmp_path: Any) -> AsyncIterator[dict[str, Any]]:
    """A store and what nodes need to find it."""
    import uuid

    options: dict[str, Any] = {"fabric": f"groups-{uuid.uuid4().hex[:8]}", "config": FAST}
    async with Store("memory:", **options) as store:
        yield {**options, "store": store}


def node(fabric: dict[str, Any], name: str) -> Node:
    """A node of that fabric."""
    return Node(name, fabric=fabric["fabric"], config=fabric["config"])


async def publish(fabric: dict[str, Any], topic: str, numbers: range, keys: int = 10) -> None:
    """Publish numbers, each with a key, until they are stored."""
    async with node(fabric, "shop") as shop:
        orders = shop.publisher(topic, durable=True)
        await orders.wait_for(stores=1, timeout=30)
        for number in numbers:
            await orders.publish(number, key=number % keys)
        await orders.flush()
        await orders.close()


async def test_members_share_by_key_and_each_group_gets_everything(fabric: dict[str, Any]) -> None:
    """Two groups, one of them with two members: each group has each message once, keys stay in order."""
    seen: dict[str, list[tuple[Any, Any]]] = defaultdict(list)

    async def read(subscription: Any, name: str) -> None:
        async for message in subscription:
            seen[name].append((message.key, message.value))

    async with node(fabric, "a") as a, node(fabric, "b") as b:
        first = a.subscribe("orders", group="billing", start="earliest")
        second = b.subscribe("orders", group="billing", start="earliest")
        third = b.subscribe("#", group="audit", start="earliest")
        for subscription in (first, second, third):
            await subscription.wait_for(timeout=30)
        tasks = [asyncio.create_task(read(s, n)) for s, n in ((first, "1"), (second, "2"), (third, "audit"))]
        await publish(fabric, "orders", range(1000), keys=50)
        await wait_until_async(lambda: len(seen["1"]) + len(seen["2"]) == 1000 == len(seen["audit"]), 30)
        for task in tasks:
            task.cancel()
    keys = [{key for key, _ in seen[name]} for name in ("1", "2")]

    assert keys[0]
    assert keys[1]
    assert not keys[0] & keys[1]
    for found in seen.values():
        for wanted in range(50):
            values = [value for key, value in found if key == wanted]
            assert values == sorted(values)


async def test_a_group_goes_on_where_it_was(fabric: dict[str, Any]) -> None:
    """What was processed and committed does not come again; what came while nobody was there does."""
    async with node(fabric, "a") as a:
        subscription = a.subscribe("orders", group="billing", start="earliest")
        await publish(fabric, "orders", range(100))
        async with asyncio.timeout(30):
            values = [(await subscription.receive()).value for _ in range(100)]
            await subscription.close()
        assert sorted(values) == list(range(100))
    await publish(fabric, "orders", range(100, 150))
    async with node(fabric, "b") as b:
        subscription = b.subscribe("orders", group="billing", start="latest")
        found: set[int] = set()
        while len(found) < 50:
            found.add((await subscription.receive(timeout=30)).value)

    # `close` cannot know of the last message in hand whether it was dealt with.
    assert found - {values[-1]} <= set(range(100, 150))


async def test_manual_acks_commit_only_what_was_settled(fabric: dict[str, Any]) -> None:
    """A member that goes without acknowledging leaves its messages to the next."""
    await publish(fabric, "orders", range(20))
    async with node(fabric, "a") as a:
        subscription = a.subscribe("orders", group="billing", start="earliest", ack="manual")
        messages = [await subscription.receive(timeout=30) for _ in range(20)]
        for message in messages:
            if message.value % 2:
                await message.ack()
        await messages[0].nack()
        again = await subscription.receive(timeout=30)
        assert again.value == messages[0].value
        await subscription.close()
    async with node(fabric, "b") as b:
        subscription = b.subscribe("orders", group="billing", ack="manual")
        values = {(await subscription.receive(timeout=30)).value for _ in range(10)}

    assert values == set(range(0, 20, 2))


async def test_a_transaction_is_all_or_nothing(fabric: dict[str, Any]) -> None:
    """An exception voids outputs and position: the message comes again; then both stand."""
    await publish(fabric, "orders", range(10))
    async with node(fabric, "a") as a:
        results = a.subscribe("bills", group="results", start="earliest")
        orders = a.subscribe("orders", group="billing", start="earliest", delivery="exactly-once")
        failed = set()
        done: list[int] = []
        async for message in orders:
            try:
                async with orders.transaction() as tx:
                    await tx.publish("bills", message.value * 10, key=message.key)
                    if message.value not in failed:
                        failed.add(message.value)
                        raise ArithmeticError
            except ArithmeticError:
                continue
            done.append(message.value)
            if len(done) == 10:
                break
        bills = [(await results.receive(timeout=30)).value for _ in range(10)]

        assert done == list(range(10))
        assert bills == [10 * value for value in range(10)]
        assert results.pending == 0


async def test_transactions_by_batch_survive_a_change_of_members(fabric: dict[str, Any]) -> None:
    """Members join and leave meanwhile: each input has one output."""
    count = 3000
    await publish(fabric, "orders", range(count), keys=100)
    async with node(fabric, "results") as reader:
        results = reader.subscribe("bills", group="results", start="earliest")

        async def work(name: str, batches: int) -> None:
            async with node(fabric, name) as worker:
                orders = worker.subscribe(
                    "orders", group="billing", start="earliest", delivery="exactly-once", buffer_bytes=4000
                )
                async for batch in orders.batches():
                    try:
                        async with orders.transaction() as tx:
                            for message in batch:
                                await tx.publish("bills", message.value, key=message.key)
                    except zfabric.TransactionFailed:
                        continue
                    assert batch
                    batch.clear()  # it is the reader's own
                    batches -= 1
                    if not batches:
                        leaving.add(asyncio.current_task())
                        return

        leaving: set[Any] = set()
        tasks = [asyncio.create_task(work(f"w{index}", 3 if index < 3 else -1)) for index in range(5)]
        seen: list[int] = []
        while len(seen) < count:
            seen.append((await results.receive(timeout=30)).value)
        for task in set(tasks) - leaving:  # who cancels a node that closes leaves its sockets open
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

        assert sorted(seen) == list(range(count))
        assert results.pending == 0


async def test_positions_rise_within_a_partition(fabric: dict[str, Any]) -> None:
    """`message.position` names topic, partition and offset; without a store there is none."""
    await publish(fabric, "orders", range(100))
    async with node(fabric, "a") as a:
        subscription = a.subscribe("orders", group="billing", start="earliest")
        last: dict[int, int] = {}
        offsets = []
        for _ in range(100):
            position = (await subscription.receive(timeout=30)).position
            assert position is not None
            assert position.offset > last.get(position.partition, -1)
            last[position.partition] = position.offset
            offsets.append(position.offset)

    assert sorted(offsets) == list(range(100))


async def test_what_makes_no_sense_is_refused(fabric: dict[str, Any]) -> None:
    """Another pattern under the same name, a taken name, options that do not go together."""
    async with node(fabric, "a") as a:
        first = a.subscribe("orders", group="billing", member="one")
        await first.wait_for(timeout=30)
        other = a.subscribe("bills", group="billing")
        with pytest.raises(zfabric.GroupRefused, match="reads 'orders', not 'bills'"):
            await other.receive(timeout=30)
        second = a.subscribe("orders", group="billing", member="one")
        await second.wait_for(timeout=30)
        with pytest.raises(zfabric.GroupRefused, match="took the name 'one'"):
            await first.receive(timeout=30)
        with pytest.raises(ValueError, match="lose nothing"):
            a.subscribe("orders", group="billing", overflow="latest")
        with pytest.raises(ValueError, match="transactions acknowledge"):
            a.subscribe("orders", group="billing", delivery="exactly-once", ack="manual")
        with pytest.raises(ValueError, match="group="):
            a.subscribe("orders", member="one")
        with pytest.raises(zfabric.LocalProtocolError, match="exactly-once"):
            second.transaction()


async def test_a_program_looks_at_groups_and_moves_them(fabric: dict[str, Any]) -> None:
    """List, get, lag, seek in all forms and in some topics, reset, pause and resume, each with what a member gets."""
    async with node(fabric, "a") as a:
        assert await a.groups.list() == ()
        await publish(fabric, "orders", range(100))
        await publish(fabric, "offers", range(10))
        bills = a.subscribe("#", group="billing", member="first", start="earliest")
        other = a.subscribe("orders", group="audit")
        await asyncio.gather(bills.wait_for(timeout=30), other.wait_for(timeout=30))

        async def take(count: int) -> list[tuple[str, int]]:
            return sorted([(m.topic, m.value) for m in [await bills.receive(timeout=30) for _ in range(count)]])

        assert len(await take(110)) == 110
        async with asyncio.timeout(30):
            while await a.groups.lag("billing"):
                bills.pending  # noqa: B018 - what was taken is acknowledged when more is asked for
                with suppress(TimeoutError):
                    await bills.receive(timeout=0.05)
        names = [group.name for group in await a.groups.list()]
        state = await a.groups.get("billing")
        sought = await a.groups.seek("billing", 95, topics=["orders"])
        last_orders = await take(5)
        await a.groups.seek("billing", -3, topics=["offers"])
        last_offers = await take(3)
        paused = await a.groups.pause("billing")
        since = await a.groups.seek("billing", timedelta(hours=1))
        await bills.wait_for(timeout=30)
        waiting = bills.pending
        resumed = await a.groups.resume("billing")
        again = await take(110)
        reset = await a.groups.reset("billing", topics=["offers"])
        offers = await take(10)

    assert names == ["audit", "billing"]
    assert (state.pattern, state.partitions, state.store) == ("#", 64, fabric["store"].log.id.hex())
    assert state.members == (zfabric.GroupMember("a", "first", 64),)
    assert state.topics == {"orders": zfabric.GroupProgress(100, 100), "offers": zfabric.GroupProgress(10, 10)}
    assert (sought.lag, sought.topics["orders"].lag, reset.topics["offers"].lag) == (5, 5, 10)
    assert last_orders == [("orders", value) for value in range(95, 100)]
    assert last_offers == [("offers", value) for value in range(7, 10)]
    assert (paused.paused, since.lag, waiting, resumed.paused) == (True, 110, 0, False)
    assert again == sorted([("offers", value) for value in range(10)] + [("orders", value) for value in range(100)])
    assert offers == [("offers", value) for value in range(10)]


async def test_groups_that_are_not_there_and_senseless_starts(fabric: dict[str, Any]) -> None:
    """Each is a typed error that names what there is; without any store it is NotStored, in time."""
    async with node(fabric, "a") as a:
        await publish(fabric, "orders", range(1))
        await a.subscribe("orders", group="billing").wait_for(timeout=30)
        with pytest.raises(zfabric.GroupRefused, match="there are: billing"):
            await a.groups.lag("biling")
        with pytest.raises(zfabric.GroupRefused, match="no stream 'none'"):
            await a.groups.reset("billing", topics=["none"])
        for start in ("somewhere", "last-per-key", zfabric.Position("orders", -1, 0, "00" * 16)):
            with pytest.raises(ValueError, match=r"start must be|a group"):
                await a.groups.seek("billing", start)  # type: ignore[arg-type] # also what type checkers refuse
    async with Node("alone", fabric=fabric["fabric"] + "-alone", config=FAST) as alone:
        with pytest.raises(zfabric.NotStored, match="zfabric store run"):
            await alone.groups.list(timeout=0.1)
