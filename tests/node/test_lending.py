"""Large buffers in shared memory, between real processes that are killed, stopped and copied."""

from __future__ import annotations

import asyncio
import gc
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.node.support import MakeNode, Start, line_of
from tests.waiting import wait_until_async
from zfabric import Config, Message, Node, Publisher, Subscription
from zfabric.testing import MemoryFabric, run

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="sealed files are Linux'")
MEGABYTE = 1_000_000


def array(number: int, nbytes: int = MEGABYTE) -> np.ndarray[Any, Any]:
    """An array that tells its number all over."""
    return np.full(nbytes // 4, number, np.int32)


def memory_files(pid: int | str = "self") -> int:
    """How many of zfabric's memory files a process has mapped or open."""
    folder = Path(f"/proc/{pid}")
    mapped = {line.split()[-2] for line in (folder / "maps").read_text().splitlines() if "memfd:zfabric" in line}
    opened = 0
    for link in (folder / "fd").iterdir():
        try:
            opened += "memfd:zfabric" in str(link.readlink())
        except FileNotFoundError:
            pass
    return len(mapped) + opened


SECRET = 1
"What a node has before it lends anything: one open file."
OWN = 3
"What a block of its own costs: it is mapped, and Python keeps two descriptors of it."


async def pair(make_node: MakeNode, **options: Any) -> tuple[Node, Node, Publisher, Subscription]:
    """A publisher and a subscriber that can map its memory."""
    one, two = await make_node("one", **options), await make_node("two", **options)
    publisher, subscription = one.publisher("t"), two.subscribe("t")
    await publisher.wait_for(timeout=30)
    await wait_until_async(lambda: maps(one, two))
    return one, two, publisher, subscription


def maps(publisher: Node, *subscribers: Node) -> bool:
    """Whether these subscribers have proved that they can map a publisher's memory."""
    assert publisher._driver is not None
    return {bytes.fromhex(node.id) for node in subscribers} <= publisher._driver.core.lending._mapping


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


SUBSCRIBER = """
async def main():
    config = Config(mdns=False, peer_timeout_s=1.0, heartbeat_interval_s=0.2)
    async with Node("two", fabric=sys.argv[1], config=config) as node, node.subscribe("t") as subscription:
        say("ready")
        held = []
        async for message in subscription:
            value = message.value
            if (value[0] != value).any():
                say("torn")
            held.append(value)
            del message, value
            say(len(held))
            if len(held) == {count}:
                break
        {then}
asyncio.run(main())
"""


async def subscriber_of(
    publisher: Publisher, node: Node, start: Start, count: int, then: str = "await asyncio.to_thread(input)"
) -> subprocess.Popen[str]:
    """A process that subscribes, and holds the first `count` arrays."""
    process = start(SUBSCRIBER.format(count=count, then=then), node.fabric)
    await publisher.wait_for(timeout=30)
    await wait_until_async(lambda: node._driver is not None and node._driver.core.lending._mapping)
    assert await line_of(process) == "ready"
    return process


async def test_a_subscriber_that_is_killed_takes_nothing_with_it(make_node: MakeNode, start: Start) -> None:
    """Blocks that it held are given up; then there is room for as many again, and no file stays."""
    gc.collect()
    at_first = memory_files()
    one = await make_node("one", peer_timeout_s=1.0, heartbeat_interval_s=0.2, shared_memory_bytes=4_000_000)
    publisher = one.publisher("t")
    for _ in range(3):
        process = await subscriber_of(publisher, one, start, count=3)
        for number in range(3):
            publisher.publish_nowait(array(number))
            assert await line_of(process) == str(number + 1)
        before = one.statistics().buffers_lent
        assert memory_files() == at_first + SECRET + 3 * OWN

        process.kill()
        process.wait(10)
        await wait_until_async(lambda: not one.peers)

        assert before % 3 == 0 and one.statistics().buffers_not_lent == 0
        assert memory_files() == at_first + SECRET
    assert one.statistics().buffers_lent == 9


PUBLISHER = """
async def main():
    import numpy as np
    async with Node("one", fabric=sys.argv[1], config=CONFIG) as node:
        publisher = node.publisher("t")
        await publisher.wait_for(timeout=30)
        number = 0
        while True:
            number += 1
            publisher.publish_nowait(np.full(250_000, number, np.int32))
            await asyncio.sleep(0.001)
asyncio.run(main())
"""


async def test_a_publisher_that_is_killed_leaves_its_arrays_and_nothing_else(make_node: MakeNode, start: Start) -> None:
    """What was received stays as it was; when it is let go of, the killed process's memory is, too."""
    gc.collect()
    before = memory_files()
    two = await make_node("two", peer_timeout_s=1.0, heartbeat_interval_s=0.2)
    subscription = two.subscribe("t")
    process = start(PUBLISHER, two.fabric)
    received = [(await subscription.receive(timeout=30)).value for _ in range(50)]
    await wait_until_async(lambda: memory_files() > before + SECRET)

    process.send_signal(signal.SIGKILL)
    process.wait(10)
    await wait_until_async(lambda: not two.peers)

    assert all((value == value[0]).all() for value in received)
    assert [int(value[0]) for value in received] == sorted({int(value[0]) for value in received})
    del received
    await subscription.close()
    while subscription.pending:
        await subscription.receive(timeout=1)
    del subscription
    await wait_until_async(lambda: gc.collect() >= 0 and memory_files() == before + SECRET)


def test_a_publisher_that_closes_stays_until_its_memory_is_mapped() -> None:
    """What was published right before the end arrives, however late."""

    async def main() -> None:
        async with MemoryFabric() as fabric:
            one, two = await fabric.open("one"), await fabric.open("two")
            publisher, subscription = one.publisher("t"), two.subscribe("t")
            await publisher.wait_for(timeout=30)
            fabric.disturb(delay=1.0, delay_s=1.0, plane="data")
            publisher.publish_nowait(array(7))
            await one.close()

            assert ((await subscription.receive(timeout=30)).value == 7).all()

    run(main())


async def test_a_stopped_subscriber_keeps_what_it_held(make_node: MakeNode, start: Start) -> None:
    """Stopped until it is given up, while the memory is used again for others, it finds its arrays as before."""
    one = await make_node("one", peer_timeout_s=1.0, heartbeat_interval_s=0.2, shared_memory_bytes=8_000_000)
    two = await make_node("two")
    publisher = one.publisher("t")
    then = "await asyncio.to_thread(input); say([int(v[0]) for v in held], all((v == v[0]).all() for v in held))"
    process = await subscriber_of(publisher, one, start, count=3, then=then)
    subscription = two.subscribe("t")
    await publisher.wait_for(subscribers=2, timeout=30)
    await wait_until_async(lambda: maps(one, two))
    for number in range(3):
        publisher.publish_nowait(array(number))
        assert await line_of(process) == str(number + 1)

    process.send_signal(signal.SIGSTOP)
    await wait_until_async(lambda: publisher.subscribers == 1)
    before = one.statistics().buffers_lent
    for number in range(100, 160):
        publisher.publish_nowait(array(number))
        while (await subscription.receive(timeout=30)).value[0] != number:
            pass
    assert one.statistics().buffers_lent - before > 50
    process.send_signal(signal.SIGCONT)

    output, errors = process.communicate("go\n", timeout=30)
    assert output.splitlines()[-1] == "[0, 1, 2] True", errors


FORKING = """
async def main():
    config = Config(mdns=False, peer_timeout_s=30.0)
    async with Node("two", fabric=sys.argv[1], config=config) as node, node.subscribe("t") as subscription:
        say("ready")
        value = (await subscription.receive(timeout=30)).value
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.read(read, 1)
            say("child", int(value[0]), bool((value == value[0]).all()))
            os._exit(0)
        del value
        say("forked")
        async for message in subscription:
            if message.value[0] == 60:
                break
            del message
        os.write(write, b"x")
        os.waitpid(child, 0)
asyncio.run(main())
"""


async def test_the_copy_of_a_process_keeps_what_it_held(make_node: MakeNode, start: Start) -> None:
    """After fork() the child's array stays as it was when the parent lets go of its own and more arrives."""
    one = await make_node("one", shared_memory_bytes=4_000_000)
    publisher = one.publisher("t")
    process = start(FORKING, one.fabric)
    await publisher.wait_for(timeout=30)
    await wait_until_async(lambda: one._driver is not None and one._driver.core.lending._mapping)
    assert await line_of(process) == "ready"
    publisher.publish_nowait(array(1))
    assert await line_of(process) == "forked"
    for number in range(2, 61):
        publisher.publish_nowait(array(number))
        await asyncio.sleep(0)
    output, errors = await asyncio.to_thread(process.communicate, None, 20)

    assert output.splitlines() == ["child 1 True"], errors
    assert one.statistics().buffers_lent > 1


FORKING_OWNER = """
async def main():
    import numpy as np
    async with Node("one", fabric=sys.argv[1], config=CONFIG) as node, node.subscribe("t") as own:
        publisher = node.publisher("t")
        await publisher.wait_for(subscribers=2, timeout=30)
        publisher.publish_nowait(np.full(250_000, 1, np.int32))
        value = (await own.receive(timeout=30)).value
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.read(read, 1)
            say("child", int(value[0]), bool((value == value[0]).all()))
            os._exit(0)
        del value
        for number in range(2, 30):
            publisher.publish_nowait(np.full(250_000, number, np.int32))
            await own.receive(timeout=30)
            await asyncio.to_thread(input)
        os.write(write, b"x")
        os.waitpid(child, 0)
asyncio.run(main())
"""


async def test_the_copy_of_a_publisher_keeps_what_it_held(make_node: MakeNode, start: Start) -> None:
    """Forked with an array that it published and received itself, the child finds it as it was."""
    two = await make_node("two")
    subscription = two.subscribe("t")
    process = start(FORKING_OWNER, two.fabric)
    assert process.stdin is not None
    for number in range(1, 30):
        assert (await subscription.receive(timeout=30)).value[0] == number
        if number > 1:
            process.stdin.write("\n")
            process.stdin.flush()
    output, errors = await asyncio.to_thread(process.communicate, None, 20)

    assert output.splitlines() == ["child 1 True"], errors


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
