"""Large buffers in shared memory, between real processes that are killed, stopped and copied."""

from __future__ import annotations

import asyncio
import gc
import signal
import subprocess
import sys

import pytest

from tests.node.lending import OWN, SECRET, array, maps, memory_files
from tests.node.support import MakeNode, Start, line_of
from tests.waiting import wait_until_async
from zfabric import Node, Publisher
from zfabric.testing import MemoryFabric, run

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="sealed files are Linux'")

SUBSCRIBER = """
async def main():
    config = Config(mdns=False, peer_timeout_s=2.0, heartbeat_interval_s=0.4)
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
    one = await make_node("one", peer_timeout_s=2.0, heartbeat_interval_s=0.4, shared_memory_bytes=4_000_000)
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
    two = await make_node("two", peer_timeout_s=2.0, heartbeat_interval_s=0.4)
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
    one = await make_node("one", peer_timeout_s=2.0, heartbeat_interval_s=0.4, shared_memory_bytes=8_000_000)
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
