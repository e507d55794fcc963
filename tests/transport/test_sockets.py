"""Routes over ZeroMQ: what the transport promises to the driver, whatever the other end does."""

from __future__ import annotations

import asyncio
import time
from functools import partial

import pytest
import zmq

from tests.transport.support import BOTH, Line, Lines, Sockets, bind, reached
from tests.waiting import SLACK_S, wait_until_async
from zfabric.transport.pipes import BURST_BYTES

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


@BOTH
async def test_a_dialled_endpoint_that_refuses_is_told(line: Lines, ipc: bool) -> None:
    """At every attempt once its listener has gone, under the route that leads there, and no other."""
    near, far, stays = line(ipc=ipc, reconnect_interval_s=0.01), line(ipc=ipc), line(ipc=ipc)
    for route, there in ((1, far), (2, stays)):
        near.dial(route, there.inbox_endpoints[0])
        await reached(near, route, there)
    assert near.got.unreachable == []

    await far.close(0.05)

    await wait_until_async(lambda: len(near.got.unreachable) > 2)
    assert set(near.got.unreachable) == {1}


@BOTH
async def test_what_is_sent_at_the_end_of_a_dialled_connection_arrives_by_the_next(line: Lines, ipc: bool) -> None:
    """Whoever is told of the end can greet at once: it waits until the connection is made again."""
    near, far = line(ipc=ipc, reconnect_interval_s=0.01), line(ipc=ipc)
    near.dial(1, far.inbox_endpoints[0])
    back = await reached(near, 1, far)
    assert near.got.interrupted == []

    far.drop_links()
    await wait_until_async(lambda: near.got.interrupted)
    assert near.got.interrupted == [1]
    assert near.send(1, b"greeting")

    await wait_until_async(lambda: far.got.control[-1][1] == b"greeting")
    assert far.got.control[-1][0] != back


@BOTH
async def test_the_end_of_a_connection_to_the_inbox_is_told(line: Lines, ipc: bool) -> None:
    """Not whose it was: libzmq does not say."""
    near, far = line(ipc=ipc), line(ipc=ipc)
    near.dial(1, far.inbox_endpoints[0])
    await reached(near, 1, far)
    assert far.got.ends == 0

    await near.close(0.05)

    await wait_until_async(lambda: far.got.ends)


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

    assert time.monotonic() - begin < 0.3 + SLACK_S


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
