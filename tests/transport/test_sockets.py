"""The transport over ZeroMQ, by itself: what it promises to the driver, whatever the other end does."""

from __future__ import annotations

import asyncio
import os
import socket as plain
import subprocess
import sys
import textwrap
import time
from functools import partial
from pathlib import Path

import pytest
import zmq

from tests.transport.support import LOOPBACK, Line, Lines, Recorder, Sockets, bind, drain
from tests.waiting import wait_until_async
from zfabric import Config
from zfabric.transport.pipes import BURST_BYTES
from zfabric.transport.sockets import ZmqTransport

BOTH = pytest.mark.parametrize("ipc", [False, True], ids=["tcp", "ipc"])


async def reached(near: Line, route: int, far: Line) -> bytes:
    """Send on a dialled route until it arrives; returns the far end's name for it."""
    assert near.send(route, b"to %d" % route)
    found = await wait_until_async(lambda: [r for r, frame in far.got.control if frame == b"to %d" % route])
    assert isinstance(found[0], bytes)
    return found[0]


# -- routes ------------------------------------------------------------------------------------


@BOTH
async def test_a_route_carries_both_directions(line: Lines, ipc: bool) -> None:
    """Who dials can send at once; the answer comes on the same route."""
    near, far = line(ipc=ipc), line(ipc=ipc)

    assert near.dial(1, far.inbox_endpoints[0])
    back = await reached(near, 1, far)
    assert far.send(back, b"answer")

    await wait_until_async(lambda: near.got.control == [(1, b"answer")])


async def test_two_routes_to_one_endpoint_live_and_one_can_go(line: Lines) -> None:
    """An endpoint that another route uses stays connected when one is hung up; the last one ends it."""
    near, far = line(), line()
    for route in (1, 2):
        assert near.dial(route, far.inbox_endpoints[0])
    backs = [await reached(near, route, far) for route in (1, 2)]
    assert len(set(backs)) == 2

    near.hang_up(1)
    assert near.send(2, b"still")
    await wait_until_async(lambda: (backs[1], b"still") in far.got.control)
    near.hang_up(2)

    await wait_until_async(lambda: not near.send(2, b"?"))
    await wait_until_async(lambda: not far.send(backs[1], b"?"))


async def test_a_hung_up_endpoint_can_be_dialled_again(line: Lines) -> None:
    """A new route to an endpoint that was left works."""
    near, far = line(), line()
    for route in range(1, 6):
        assert near.dial(route, far.inbox_endpoints[0])
        await reached(near, route, far)
        near.hang_up(route)


async def test_sending_to_a_route_that_is_gone_says_so(line: Lines) -> None:
    """False for a route that never was, and for one whose other end has closed."""
    near, far = line(), line()
    near.dial(1, far.inbox_endpoints[0])
    back = await reached(near, 1, far)
    assert not near.send(99, b"?")
    assert not far.send(b"nobody", b"?")

    await near.close(0.05)

    await wait_until_async(lambda: not far.send(back, b"?"))


async def test_what_cannot_be_dialled_says_so(line: Lines) -> None:
    """Nonsense is False, not an exception."""
    near = line()
    nonsense = ["", "x", "tcp://", "tcp://127.0.0.1", "udp://127.0.0.1:1", "http://x:80"]

    assert [endpoint for number, endpoint in enumerate(nonsense) if near.dial(number, endpoint)] == []
    for number in range(len(nonsense)):
        near.hang_up(number)


@pytest.mark.parametrize("direction", ["out", "back"])
async def test_a_peer_that_reads_nothing_is_noticed(line: Lines, sockets: Sockets, direction: str) -> None:
    """Config.control_queue_frames frames wait for one peer; then `send` is False, and memory stays where it is."""
    near = line(control_queue_frames=50)
    frame = bytes(100_000)
    if direction == "out":
        stuck = sockets(zmq.ROUTER, RCVHWM=1, RCVBUF=4096)
        near.dial(7, bind(stuck))
        route: int | bytes = 7
    else:
        stuck = sockets(zmq.DEALER, RCVHWM=1, RCVBUF=4096)
        stuck.connect(near.inbox_endpoints[0])
        stuck.send(b"here")
        await wait_until_async(lambda: near.got.control)
        route = near.got.control[0][0]

    sent = 0
    while near.send(route, frame):
        sent += 1
        assert sent < 1000

    assert sent >= 49


async def test_messages_of_several_parts_become_malformed_frames(line: Lines, sockets: Sockets) -> None:
    """A control message is one frame; anything else arrives as an empty one, which is no control frame."""
    far = line()
    dealer = sockets(zmq.DEALER)
    dealer.connect(far.inbox_endpoints[0])

    for parts in ([b"", b"x"], [b"x", b"y", b"z"], [b"x"]):
        dealer.send_multipart(parts)

    await wait_until_async(lambda: [frame for _, frame in far.got.control] == [b"", b"", b"x"])


async def test_a_burst_is_bounded_and_nothing_is_left_behind(line: Lines, sockets: Sockets) -> None:
    """No more than Config.frames_per_turn_max frames come before others get their turn, and all of them come."""
    far = line(frames_per_turn_max=10)
    dealer, publisher = sockets(zmq.DEALER), sockets(zmq.XPUB)
    dealer.connect(far.inbox_endpoints[0])
    far.connect_feed(bind(publisher))
    far.add_filter(b"")
    await wait_until_async(lambda: publisher.poll(0))

    for number in range(500):
        dealer.send(b"%d" % number)
        publisher.send(b"%d" % number)

    await wait_until_async(lambda: len(far.got.control) == len(far.got.batches) == 500)
    assert max(far.got.bursts) == 10


async def test_a_burst_of_long_batches_is_bounded_in_bytes(line: Lines, sockets: Sockets) -> None:
    """No more than BURST_BYTES leave the feed in one turn, which a processor's cache holds until they are read."""
    far, publisher = line(), sockets(zmq.XPUB)
    far.connect_feed(bind(publisher))
    far.add_filter(b"")
    await wait_until_async(lambda: publisher.poll(0))

    for _ in range(50):
        publisher.send(bytes(BURST_BYTES // 4))

    await wait_until_async(lambda: len(far.got.batches) == 50)
    assert max(far.got.bursts) == 4


# -- endpoints ---------------------------------------------------------------------------------


@BOTH
async def test_endpoints_name_what_is_bound(line: Lines, ipc: bool) -> None:
    """ipc first, if it is on, then tcp on each address; without ipc there is none."""
    both = line(ipc=ipc, addresses=("127.0.0.1", "127.0.0.2"))

    kinds = [endpoint.rpartition(":")[0] for endpoint in both.inbox_endpoints if endpoint.startswith("tcp")]

    assert kinds == ["tcp://127.0.0.1", "tcp://127.0.0.2"]
    assert both.inbox_endpoints[0].startswith("ipc://") is ipc
    assert len(both.outlet_endpoints) == 2 + ipc


async def test_ipc_can_be_turned_off(runtime_dir: Path) -> None:
    """Config.ipc=False, or a path too long for the kernel, leaves tcp."""
    for config, stem in [
        (Config(ipc=False), runtime_dir / "x"),
        (Config(), runtime_dir / ("x" * 120)),
        (Config(), None),
    ]:
        transport = ZmqTransport(config, LOOPBACK, stem)
        transport.open(Recorder())
        assert [endpoint[:3] for endpoint in transport.inbox_endpoints] == ["tcp"]
        await transport.close(0)


async def test_usable_endpoints(line: Lines, runtime_dir: Path) -> None:
    """tcp may always work; ipc only if we have it and the other's socket file is there."""
    with_ipc, without = line(ipc=True), line()
    there = with_ipc.inbox_endpoints[0]
    (runtime_dir / "file").touch()

    assert with_ipc.usable(there)
    assert not without.usable(there)
    assert not with_ipc.usable(there + "x")
    assert not with_ipc.usable(f"ipc://{runtime_dir}/file")
    assert with_ipc.usable("tcp://10.0.0.1:1")
    assert not any(with_ipc.usable(endpoint) for endpoint in ("", "inproc://x", "udp://127.0.0.1:1", "ipc://@abstract"))


async def test_rebinding_keeps_what_stays(line: Lines) -> None:
    """Routes through an address that stays go on, new ones listen, old ones do not, impossible ones are left out."""
    far = line(addresses=("127.0.0.1", "127.0.0.2"))
    near = line()
    kept, old = far.inbox_endpoints
    near.dial(1, kept)
    back = await reached(near, 1, far)

    far.rebind(("127.0.0.1", "127.0.0.3", "203.0.113.1"))

    assert [endpoint.rpartition(":")[0] for endpoint in far.inbox_endpoints] == ["tcp://127.0.0.1", "tcp://127.0.0.3"]
    assert (far.inbox_endpoints[0], len(far.outlet_endpoints)) == (kept, 2)
    assert far.send(back, b"still")
    await wait_until_async(lambda: near.got.control == [(1, b"still")])
    near.dial(2, far.inbox_endpoints[1])
    await reached(near, 2, far)
    await wait_until_async(lambda: _refuses(old))


async def test_rebinding_moves_pullers_too(line: Lines) -> None:
    """A puller's socket leaves the old addresses for the new ones; jobs come by what stays and by what is new."""
    far, near = line(addresses=("127.0.0.1", "127.0.0.2")), line()
    kept, old = far.open_pull(1)
    near.open_push("jobs")
    near.connect_push("jobs", kept)

    where = far.rebind(("127.0.0.1", "127.0.0.3", "203.0.113.1"))

    assert [endpoint.rpartition(":")[0] for endpoint in where[1]] == ["tcp://127.0.0.1", "tcp://127.0.0.3"]
    assert where[1][0] == kept
    await wait_until_async(lambda: near.push("jobs", [b"kept"]))
    await wait_until_async(lambda: far.got.jobs == [(1, [b"kept"])])
    near.disconnect_push("jobs", kept)
    near.connect_push("jobs", where[1][1])
    # What is still given to the connection that ends is lost.
    await wait_until_async(lambda: near.push("jobs", [b"new"]) and far.got.jobs[-1] == (1, [b"new"]))
    await wait_until_async(lambda: _refuses(old))


def _refuses(endpoint: str) -> bool:
    host, _, number = endpoint[6:].rpartition(":")
    try:
        plain.create_connection((host, int(number)), 1).close()
    except ConnectionRefusedError:
        return True
    return False


async def test_a_taken_port_is_an_oserror_that_names_it(line: Lines) -> None:
    """Opening on an address in use fails as sockets do, and leaves nothing open."""
    taken = line().inbox_endpoints[0].rpartition(":")[2]
    transport = ZmqTransport(Config(port=int(taken)), LOOPBACK, None)

    with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{taken}"):
        transport.open(Recorder())


async def test_an_ipc_path_that_cannot_be_bound_is_an_oserror(tmp_path: Path) -> None:
    """A directory that is not there is an OSError, not an error of another library."""
    transport = ZmqTransport(Config(), LOOPBACK, tmp_path / "no" / "x")

    with pytest.raises(OSError, match="cannot open sockets"):
        transport.open(Recorder())


async def test_too_few_sockets_are_an_oserror() -> None:
    """Config.connections_max is the context's MAX_SOCKETS: below what a node needs, it does not open."""
    transport = ZmqTransport(Config(connections_max=2), LOOPBACK, None)

    with pytest.raises(OSError, match="cannot open sockets"):
        transport.open(Recorder())


async def test_every_option_of_the_documentation_is_set(line: Lines) -> None:
    """What docs/zeromq.md says of options is true of all four sockets."""
    transport = line(backlog=77, frame_bytes_max=12345, handshake_timeout_s=1.5)
    config = transport._config
    control, data = (transport._inbox, transport._dialler), (transport._outlet, transport._feed)

    for socket in (*control, *data):
        assert socket.get(zmq.MAXMSGSIZE) == (255 + 1024 if socket is transport._outlet else 12345)
        assert socket.get(zmq.HANDSHAKE_IVL) == 1500
        assert socket.get(zmq.BACKLOG) == 77
        assert socket.get(zmq.LINGER) == 0
        assert socket.get(zmq.RECONNECT_IVL) == round(config.reconnect_interval_s * 1000)
        assert socket.get(zmq.RECONNECT_IVL_MAX) == round(config.reconnect_interval_s_max * 1000)
        assert socket.get(zmq.TCP_KEEPALIVE) == 1
        assert socket.get(zmq.ZAP_DOMAIN) == b"zfabric"
        assert socket.get(zmq.HEARTBEAT_IVL) == 0
    assert {socket.get(zmq.TCP_MAXRT) for socket in control} == {round(config.peer_timeout_s * 2000)}
    assert transport._dialler.get(zmq.RCVHWM) == 0
    assert transport._inbox.get(zmq.RCVHWM) == config.control_queue_frames
    assert transport._feed.get(zmq.SNDHWM) == 0


# -- batches -----------------------------------------------------------------------------------


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


# -- closing -----------------------------------------------------------------------------------


async def test_closing_ends_in_time_with_everything_full(line: Lines, sockets: Sockets) -> None:
    """Peers that read nothing or are gone, full queues: `close` takes its timeout and not more."""
    near = line(control_queue_frames=100)
    dead = sockets(zmq.ROUTER)
    endpoint = bind(dead)
    dead.close()
    stuck, listener = sockets(zmq.ROUTER, RCVHWM=1), sockets(zmq.SUB, RCVHWM=1)
    near.dial(1, endpoint)
    near.dial(2, bind(stuck))
    listener.connect(near.outlet_endpoints[0])
    listener.subscribe(b"")
    await wait_until_async(lambda: near.got.filters)
    for _ in range(200):
        near.send(1, bytes(10_000))
        near.send(2, bytes(10_000))
        near.publish([bytes(1_000_000)])
    begin = time.monotonic()

    await near.close(0.3)

    assert time.monotonic() - begin < 1.5


async def test_what_was_sent_before_closing_arrives(line: Lines) -> None:
    """Frames queued when `close` begins leave within its timeout."""
    near, far = line(), line()
    near.dial(1, far.inbox_endpoints[0])
    await reached(near, 1, far)
    for number in range(1000):
        assert near.send(1, b"%d" % number)

    await near.close(5)

    await wait_until_async(lambda: [frame for _, frame in far.got.control[1:]] == [b"%d" % n for n in range(1000)])


# -- lost wakeups ------------------------------------------------------------------------------


@pytest.mark.parametrize("force_waker_thread", [False, True], ids=["loop", "thread"])
async def test_no_wakeup_is_lost_between_sends_and_receives(line: Lines, force_waker_thread: bool) -> None:
    """Ping-pong on three routes, while sends and subscriptions swallow edges of the same descriptors, never stalls."""
    near = line(force_waker_thread=force_waker_thread)
    far = line(force_waker_thread=force_waker_thread)
    near.connect_feed(far.outlet_endpoints[0])
    near.add_filter(b"")
    backs = {}
    for route in (1, 2, 3):
        near.dial(route, far.inbox_endpoints[0])
        backs[route] = await reached(near, route, far)
    await wait_until_async(lambda: far.got.filters)
    far.got.control.clear()

    rounds = 300
    for number in range(rounds):
        for route in (1, 2, 3):
            assert near.send(route, b"%d" % number)
        near.add_filter(b"x%d" % number)
        seen = len(far.got.control)
        await wait_until_async(partial(_more, far, seen, 3 * number), pause=0)
        for back in backs.values():
            assert far.send(back, b"%d" % number)
        far.publish([b"%d" % number])

    await wait_until_async(lambda: len(far.got.control) == 3 * rounds)
    await wait_until_async(lambda: len(near.got.control) == 3 * rounds)
    await wait_until_async(lambda: len(near.got.batches) == rounds)
    await wait_until_async(lambda: len(far.got.filters) == rounds + 1)


def _more(line: Line, seen: int, behind: int) -> bool:
    return len(line.got.control) > seen or seen == behind


@pytest.mark.parametrize("force_waker_thread", [False, True], ids=["loop", "thread"])
async def test_bursts_from_another_thread_all_arrive(line: Lines, sockets: Sockets, force_waker_thread: bool) -> None:
    """Frames that come in bursts of every size and phase are all read, without anything else that wakes the loop."""
    far = line(force_waker_thread=force_waker_thread, frames_per_turn_max=7)
    dealer = sockets(zmq.DEALER, SNDHWM=0)
    dealer.connect(far.inbox_endpoints[0])

    def burst() -> None:
        for size in range(1, 60):
            for _ in range(size):
                dealer.send(b"x")

    await asyncio.to_thread(burst)

    await wait_until_async(lambda: len(far.got.control) == sum(range(1, 60)))
