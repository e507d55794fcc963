"""Large buffers in shared memory."""

from __future__ import annotations

import asyncio
import sys

import numpy as np
import pytest

from tests.node.lending import MEGABYTE, array, maps, pair
from tests.node.support import MakeNode
from tests.waiting import wait_until_async
from zfabric import Config, Message, Node, Publisher, Subscription
from zfabric.testing import MemoryFabric, run

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="sealed files are Linux'")


async def test_large_buffers_are_lent_and_equal(make_node: MakeNode) -> None:
    """Arrays and bytes of all sizes arrive as they were published, whatever happens to the original; read-only."""
    one, _, publisher, subscription = await pair(make_node)
    sizes = [131_071, 131_072, 131_073, 1_000_000, 3_000_001]
    for number in range(40):
        data = np.random.default_rng(number).integers(0, 255, sizes[number % 5], np.uint8)
        frozen = data.copy()
        frozen.setflags(write=False)
        for value in (data, data.tobytes(), {"a": frozen, "small": data[:70_000], "b": data[::2]}):
            publisher.publish_nowait(value)
        data[:] = 7

        whole, raw, nested = [(await subscription.receive(timeout=30)).value for _ in range(3)]

        assert np.array_equal(whole, frozen) and not whole.flags.writeable
        assert raw == frozen.tobytes()
        assert np.array_equal(nested["a"], frozen) and np.array_equal(nested["small"], frozen[:70_000])
        assert np.array_equal(nested["b"], frozen[::2])
    assert one.statistics().buffers_lent > 100
    assert one.statistics().buffers_not_lent == 0


async def test_an_array_on_loan_is_never_copied(make_node: MakeNode) -> None:
    """What was filled in shared memory arrives, read-only on both sides, also twice; without memory it is any array."""
    one, _, publisher, subscription = await pair(make_node)
    for number in range(100):
        loaned = publisher.loan((500, 500), np.int32)
        loaned[:] = number
        publisher.publish_nowait(loaned)
        publisher.publish_nowait({"again": loaned})
        half = loaned[:250]
        publisher.publish_nowait(half)

        first, second, third = [(await subscription.receive(timeout=30)).value for _ in range(3)]

        assert (first == number).all() and (second["again"] == number).all() and (third == number).all()
        assert third.shape == (250, 500) and not (loaned.flags.writeable or first.flags.writeable)
    assert one.statistics().buffers_lent == 300
    alone = one.publisher("other")
    assert alone.loan(1000).shape == (1000,)


@pytest.mark.parametrize("limits", [{"shared_memory_blocks_max": 2}])
async def test_a_loan_that_was_given_up_is_copied(make_node: MakeNode, limits: dict[str, int]) -> None:
    """Published again after a subscriber took the block with it, the array arrives all the same."""
    one, two, publisher, subscription = await pair(make_node, **limits)
    loaned = publisher.loan(MEGABYTE, np.uint8)
    loaned[:] = 5
    publisher.publish_nowait(loaned)
    held = await subscription.receive(timeout=30)
    await two.close()
    await wait_until_async(lambda: not one.peers)
    three = await make_node("three")
    other = three.subscribe("t")
    await publisher.wait_for(timeout=30)
    await wait_until_async(lambda: maps(one, three))

    publisher.publish_nowait(loaned)

    assert ((await other.receive(timeout=30)).value == 5).all() and (held.value == 5).all()


async def test_what_a_nodes_own_subscription_holds_is_not_used_again(make_node: MakeNode) -> None:
    """Arrays that were lent to others, and returned by them, stay as they were for the publisher's own subscribers."""
    one, _, publisher, subscription = await pair(make_node)
    own = one.subscribe("t")
    kept = []
    for number in range(20):
        publisher.publish_nowait(array(number))
        kept.append((await own.receive(timeout=30)).value)
        assert (await subscription.receive(timeout=30)).value[0] == number

    assert all((value == number).all() for number, value in enumerate(kept))
    assert one.statistics().buffers_lent == 20


async def test_memory_that_is_all_in_use_holds_nobody_up(make_node: MakeNode) -> None:
    """With shared_memory_bytes hoarded by a subscriber the rest travels by socket; what it lets go of is used again."""
    one, _, publisher, subscription = await pair(make_node, shared_memory_bytes=4_000_000)
    hoard = []
    for number in range(10):
        publisher.publish_nowait(array(number))
        hoard.append(await subscription.receive(timeout=30))

    assert [int(message.value[-1]) for message in hoard] == list(range(10))
    assert all((message.value == number).all() for number, message in enumerate(hoard))
    assert (one.statistics().buffers_lent, one.statistics().buffers_not_lent) == (3, 7)

    del hoard
    await lent_again(one, publisher, subscription)


async def lent_again(one: Node, publisher: Publisher, subscription: Subscription) -> None:
    """Publish until an array is lent again."""
    before, deadline = one.statistics().buffers_lent, asyncio.get_running_loop().time() + 10
    while one.statistics().buffers_lent == before:
        assert asyncio.get_running_loop().time() < deadline
        publisher.publish_nowait(array(77))
        assert (await subscription.receive(timeout=30)).value[0] == 77


def test_what_is_hoarded_for_long_is_given_up() -> None:
    """After grace_s there are new blocks in place of those that a subscriber keeps, and these stay as they were."""

    async def main() -> None:
        async with MemoryFabric() as fabric:
            config = Config(shared_memory_blocks_max=2)
            one, two = await fabric.open("one", config=config), await fabric.open("two")
            publisher, subscription = one.publisher("t"), two.subscribe("t")
            await publisher.wait_for(timeout=30)
            hoard = []
            for number in range(12):
                publisher.publish_nowait(array(number))
                hoard.append((await subscription.receive(timeout=30)).value)
                if number in (2, 5):
                    await fabric.clock.advance(11)

            assert (one.statistics().buffers_lent, one.statistics().buffers_not_lent) == (6, 6)
            assert all((value == number).all() for number, value in enumerate(hoard))

    run(main())


@pytest.mark.parametrize(
    ("limits", "lent"),
    [
        ({"shared_memory_bytes": 0}, 0),
        ({"shared_memory_min_bytes": MEGABYTE + 1}, 0),
        ({"shared_memory_min_bytes": MEGABYTE}, 5),
        ({"shared_memory_blocks_max": 2}, 2),
    ],
    ids=str,
)
async def test_limits_of_shared_memory(make_node: MakeNode, limits: dict[str, int], lent: int) -> None:
    """shared_memory_bytes=0 turns it off, shared_memory_min_bytes and shared_memory_blocks_max say how much is lent."""
    one, two = await make_node("one", **limits), await make_node("two")
    publisher, subscription = one.publisher("t"), two.subscribe("t")
    await publisher.wait_for(timeout=30)
    await wait_until_async(lambda: maps(one, two) or not limits.get("shared_memory_bytes", 1))
    kept = []
    for number in range(5):
        publisher.publish_nowait(array(number))
        kept.append((await subscription.receive(timeout=30)).value)

    assert [value[0] for value in kept] == list(range(5))
    assert one.statistics().buffers_lent == lent


async def test_one_who_cannot_map_sends_all_by_socket(make_node: MakeNode) -> None:
    """A subscriber without shared memory gets bytes, and so does everybody else on its topic, but on no other."""
    one, _, publisher, subscription = await pair(make_node)
    other = await make_node("other", shared_memory_bytes=0)
    third = other.subscribe("t")
    await publisher.wait_for(subscribers=2, timeout=30)

    publisher.publish_nowait(array(1))

    assert (await subscription.receive(timeout=30)).value[0] == (await third.receive(timeout=30)).value[0] == 1
    assert one.statistics().buffers_lent == 0
    await third.close()
    await wait_until_async(lambda: publisher.subscribers == 1)
    publisher.publish_nowait(array(2))
    assert (await subscription.receive(timeout=30)).value[0] == 2
    assert one.statistics().buffers_lent == 1


async def test_reliable_topics_lend_and_repair_with_bytes(make_node: MakeNode) -> None:
    """A late joiner gets history by socket; at-least-once arrays are lent, kept in the window, and used again."""
    one, two = await make_node("one"), await make_node("two")
    publisher = one.publisher("t", delivery="at-least-once", history=3)
    subscription = two.subscribe("t")
    await publisher.wait_for(timeout=30)
    await wait_until_async(lambda: maps(one, two))
    for number in range(100):
        await publisher.publish(array(number))
        assert ((await subscription.receive(timeout=30)).value == number).all()
    late = two.subscribe("t", start="earliest")

    assert [(await late.receive(timeout=30)).value[9] for _ in range(3)] == [97, 98, 99]
    assert one.statistics().buffers_lent == 100


@pytest.mark.parametrize("seed", range(5))
def test_lost_doubled_and_overtaken_loans(seed: int) -> None:
    """On a bad network every array of a reliable topic arrives whole and in order, and the memory comes back."""

    async def main() -> None:
        async with MemoryFabric(seed=seed) as fabric:
            one, two = await fabric.open("one"), await fabric.open("two")
            publisher = one.publisher("t", delivery="at-least-once")
            subscription = two.subscribe("t")
            await publisher.wait_for(timeout=30)
            await wait_until_async(lambda: maps(one, two))
            fabric.disturb(drop=0.2, duplicate=0.2, reorder=0.2, delay=0.2, plane="data")
            sending = asyncio.create_task(send(publisher))
            kept: list[Message] = []
            for number in range(60):
                message = await subscription.receive(timeout=60)
                assert (message.value == number).all()
                kept = [*kept[-5:], message]
                assert all((old.value == old.value[0]).all() for old in kept)
            await sending
            del message
            kept.clear()
            fabric.calm()
            for _ in range(2):
                await publisher.publish(array(99, 200_000))
                await publisher.flush()
                await subscription.receive(timeout=30)
            assert one._driver is not None
            lending = one._driver.core.lending
            await wait_until_async(lambda: len(lending._loans) <= 1)  # the last is not processed before the next read
            assert lending.lent > 50

    run(main())


async def send(publisher: Publisher) -> None:
    """Sixty arrays, not all at once."""
    for number in range(60):
        await publisher.publish(array(number, 200_000))


async def test_memory_is_proved_to_those_whose_batches_come(make_node: MakeNode) -> None:
    """Nodes that publish nothing for each other do not look for each other's memory: a mesh is full of such pairs."""
    one, two = await make_node("one"), await make_node("two")
    await one.wait_for_peers(1, timeout=30)
    await two.wait_for_peers(1, timeout=30)
    assert one._driver is not None and two._driver is not None
    lending = one._driver.core.lending, two._driver.core.lending
    assert not any(each._borrowed for each in lending)
    publisher, subscription = one.publisher("x"), two.subscribe("x")
    await publisher.wait_for(subscribers=1, timeout=30)
    proved = {bytes.fromhex(two.id)}
    await wait_until_async(lambda: lending[0]._mapping == proved)
    assert not lending[0]._borrowed

    lending[0]._mapping.clear()  # as if it had been lost with a connection
    one._driver.core.reintroduce(asyncio.get_running_loop().time())
    one._driver.pump()
    await wait_until_async(lambda: lending[0]._mapping == proved)
    await publisher.publish(array(1))
    assert ((await subscription.receive(timeout=30)).value == 1).all()
    assert one.statistics().buffers_lent == 1
