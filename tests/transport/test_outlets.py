"""Batches over ZeroMQ: from outlets to those who subscribed, however slow they are."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import zmq

from tests.transport.support import BOTH, Lines, Sockets, bind, drain
from tests.waiting import wait_until_async


@BOTH
async def test_batches_reach_who_subscribed(line: Lines, ipc: bool) -> None:
    """A filter takes what begins with it; frames beside the first arrive as they were."""
    near, far = line(ipc=ipc), line(ipc=ipc)
    near.connect_feed(far.outlet_endpoints[0])
    near.add_filter(b"good")
    await wait_until_async(lambda: far.got.filters == [b"\x01good"])

    far.publish([b"bad"])
    far.publish([b"good", b"", bytes(100_000)])
    far.publish([bytearray(b"good too")])

    await wait_until_async(lambda: near.got.batches == [[b"good", b"", bytes(100_000)], [b"good too"]])
    near.remove_filter(b"good")
    await wait_until_async(lambda: far.got.filters[-1] == b"\x00good")


async def test_two_followers_of_one_outlet_are_one_connection(line: Lines) -> None:
    """Following an outlet twice delivers once, and it ends when both have left."""
    near, far = line(), line()
    for _ in range(2):
        near.connect_feed(far.outlet_endpoints[0])
    near.add_filter(b"")
    await wait_until_async(lambda: far.got.filters == [b"\x01"])

    near.disconnect_feed(far.outlet_endpoints[0])
    far.publish([b"1"])
    await wait_until_async(lambda: near.got.batches == [[b"1"]])
    near.disconnect_feed(far.outlet_endpoints[0])

    await wait_until_async(lambda: far.got.filters == [b"\x01", b"\x00"])


async def test_a_broken_feed_is_mended(line: Lines, sockets: Sockets) -> None:
    """libzmq gives a connection up after an oversize frame; the transport tells, and connects again."""
    near = line(frame_bytes_max=1000, reconnect_interval_s=0.01, reconnect_interval_s_max=0.1)
    publisher = sockets(zmq.XPUB)
    endpoint = bind(publisher)
    near.connect_feed(endpoint)
    near.add_filter(b"")
    await wait_until_async(lambda: drain(publisher) == [[b"\x01"]])

    publisher.send(bytes(1001))

    await wait_until_async(lambda: near.got.broken == [endpoint])
    await wait_until_async(lambda: _sent(publisher, b"again") and near.got.batches)
    assert near.got.batches[0] == [b"again"]


def _sent(socket: zmq.Socket[bytes], frame: bytes) -> bool:
    socket.send(frame)
    return True


async def test_a_publisher_that_comes_back_is_not_broken(line: Lines, sockets: Sockets) -> None:
    """An ordinary reconnection is libzmq's own affair."""
    near = line(reconnect_interval_s=0.01, reconnect_interval_s_max=0.05)
    first = sockets(zmq.XPUB)
    endpoint = bind(first)
    near.connect_feed(endpoint)
    near.add_filter(b"")
    await wait_until_async(lambda: first.poll(0))
    first.close()
    begin = time.monotonic()
    await wait_until_async(lambda: time.monotonic() - begin > 0.2)

    second = sockets(zmq.XPUB)
    await wait_until_async(lambda: _bound(second, endpoint))

    await wait_until_async(lambda: second.poll(0))
    assert near.got.broken == []


def _bound(socket: zmq.Socket[bytes], endpoint: str) -> bool:
    try:
        socket.bind(endpoint)
    except zmq.ZMQError:
        return False
    return True


async def test_a_paused_feed_waits_and_costs_nothing(line: Lines, sockets: Sockets) -> None:
    """While paused nothing is read and the event loop rests; afterwards everything arrives."""
    near = line()
    publisher = sockets(zmq.XPUB)
    near.connect_feed(bind(publisher))
    near.add_filter(b"")
    await wait_until_async(lambda: publisher.poll(0))
    near.pause_feed(True)

    for number in range(50):
        publisher.send(b"%d" % number)
    begin, turns = time.monotonic(), len(near.got.bursts)
    await wait_until_async(lambda: time.monotonic() - begin > 0.2)

    assert near.got.batches == []
    assert len(near.got.bursts) - turns < 60
    near.pause_feed(False)
    await wait_until_async(lambda: near.got.batches == [[b"%d" % number] for number in range(50)])


async def test_the_outlet_s_queue_follows_the_size_of_batches(line: Lines) -> None:
    """Large batches shorten the queue at once, small ones lengthen it after a while."""
    near = line(outlet_queue_bytes=1_000_000)

    near.publish([bytes(100_000)])
    assert near._outlet.get(zmq.SNDHWM) == 10
    near.publish([bytes(10_000_000)])
    assert near._outlet.get(zmq.SNDHWM) == 8
    for _ in range(1002):
        near.publish([bytes(1000)])
    assert near._outlet.get(zmq.SNDHWM) == 1000


STUCK = """
import asyncio, resource, zmq
from pathlib import Path
from tests.transport.support import Recorder
from zfabric import Config
from zfabric.transport.sockets import ZmqTransport

def rss():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

async def main():
    far = ZmqTransport(Config(outlet_queue_bytes=64 * 2**20), ("127.0.0.1",), None)
    got = Recorder()
    far.open(got)
    with zmq.Context() as context, context.socket(zmq.SUB) as stuck:
        stuck.set(zmq.RCVHWM, 1)
        stuck.set(zmq.RCVBUF, 4096)
        stuck.set(zmq.LINGER, 0)
        stuck.connect(far.outlet_endpoints[0])
        stuck.subscribe(b"")
        while not got.filters:
            await asyncio.sleep(0)
        before = rss()
        for number in range(60):
            far.publish([b"topic", bytes(8 * 2**20 - number)])
            await asyncio.sleep(0)
        print(rss() - before)
        await far.close(0)

asyncio.run(main())
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_a_stuck_subscriber_costs_no_more_than_its_queue() -> None:
    """480 MB of 8 MB buffers to a subscriber that reads nothing: Config.outlet_queue_bytes (64 MB) are kept, about."""
    root = Path(__file__).parents[2]
    outcome = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(STUCK)],
        cwd=root, env=os.environ | {"PYTHONPATH": str(root)}, capture_output=True, text=True, check=True, timeout=50,
    )  # fmt: skip

    assert int(outcome.stdout) < 110 * 2**20, outcome.stdout
