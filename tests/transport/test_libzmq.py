"""What libzmq really does: each row of docs/zeromq.md with plain sockets, so that we learn when one changes."""

from __future__ import annotations

import socket as plain
import struct
import subprocess
import sys
import threading
import time
from contextlib import suppress

import pytest
import zmq

from tests.hostile.attackers import GREETING, Raw, command, message, ready
from tests.transport.support import Sockets, bind, drain
from tests.waiting import wait_until
from zfabric.transport.listening import LIBZMQ_MIN


def subscribed(publisher: zmq.Socket[bytes], count: int = 1) -> list[bytes]:
    """Wait until an XPUB has heard of that many subscriptions; returns them."""
    heard: list[bytes] = []

    def enough() -> bool:
        heard.extend(frames[0] for frames in drain(publisher))
        return len(heard) >= count

    wait_until(enough)
    return heard


def shake_hands(raw: Raw, socket_type: bytes) -> None:
    """Become an ordinary peer of a plain socket."""
    raw.send(GREETING + ready(socket_type))
    wait_until(lambda: raw.gone() or b"READY" in raw.received)


def test_the_version_is_new_enough() -> None:
    """Older libzmq has known security holes."""
    assert zmq.zmq_version_info() >= LIBZMQ_MIN


def test_xpub_drops_for_a_full_subscriber_until_half_has_drained(sockets: Sockets) -> None:
    """A full queue drops silently, and one free place does not end that: it goes on until half of it is empty."""
    publisher = sockets(zmq.XPUB, SNDHWM=10)
    subscriber = sockets(zmq.SUB, RCVHWM=10)
    publisher.bind("inproc://full")
    subscriber.connect("inproc://full")
    subscriber.subscribe(b"")
    subscribed(publisher)

    for number in range(100):
        publisher.send(b"%d" % number, zmq.NOBLOCK)
    first = [subscriber.recv() for _ in range(2)]
    publisher.send(b"still dropped", zmq.NOBLOCK)
    rest = [frames[0] for frames in drain(subscriber)]

    assert [*first, *rest] == [b"%d" % number for number in range(20)]
    publisher.poll(0)
    publisher.send(b"arrives", zmq.NOBLOCK)
    assert subscriber.recv() == b"arrives"


def test_queues_are_bounded_in_messages_not_bytes(sockets: Sockets) -> None:
    """Ten messages fit a queue of ten, whether they have a byte or a megabyte."""
    for size in (1, 1_000_000):
        push, pull = sockets(zmq.PUSH, SNDHWM=5), sockets(zmq.PULL, RCVHWM=5)
        pull.bind(f"inproc://bytes{size}")
        push.connect(f"inproc://bytes{size}")

        count = 0
        with suppress(zmq.Again):
            while count < 100:
                push.send(bytes(size), zmq.NOBLOCK)
                count += 1

        assert count == 10


def test_sub_forgets_subscriptions_beyond_its_sndhwm_on_reconnect(sockets: Sockets) -> None:
    """With a send queue of 100 a reconnecting SUB sends some of its 1,000 subscriptions; with 0 it sends all."""
    for queue in (100, 0):
        first = sockets(zmq.XPUB, RCVHWM=0)
        endpoint = bind(first)
        feed = sockets(zmq.SUB, SNDHWM=queue, RECONNECT_IVL=1)
        feed.connect(endpoint)
        number = 0
        for number in range(1000):
            feed.subscribe(b"%04d" % number)
            if number % 50 == 49:
                subscribed(first, 50)
                feed.poll(0)
        first.close()
        second = sockets(zmq.XPUB, RCVHWM=0)
        wait_until(lambda endpoint=endpoint, second=second: _can_bind(second, endpoint))  # type: ignore[misc]

        heard: set[bytes] = set()
        wait_until(lambda feed=feed, second=second, heard=heard: _again(feed, second, heard))  # type: ignore[misc]

        assert (len(heard) == 1000) is (queue == 0), f"{len(heard)} of 1000 with SNDHWM={queue}"


def _can_bind(socket: zmq.Socket[bytes], endpoint: str) -> bool:
    try:
        socket.bind(endpoint)
    except zmq.ZMQError:
        return False
    return True


def _again(feed: zmq.Socket[bytes], publisher: zmq.Socket[bytes], heard: set[bytes]) -> bool:
    """Let the feed work; true once its subscriptions have come and no more do."""
    feed.poll(0)
    quiet = not publisher.poll(50)
    heard.update(frames[0] for frames in drain(publisher))
    return bool(heard) and quiet


def test_a_resubscription_needs_calls_on_the_socket(sockets: Sockets) -> None:
    """It is the application's next call on the SUB that sends its subscriptions to a publisher that came back."""
    first = sockets(zmq.XPUB)
    endpoint = bind(first)
    feed = sockets(zmq.SUB, RECONNECT_IVL=1)
    feed.connect(endpoint)
    feed.subscribe(b"topic")
    subscribed(first)
    first.close()
    second = sockets(zmq.XPUB)
    wait_until(lambda: _can_bind(second, endpoint))

    assert not second.poll(200)
    feed.poll(0)

    assert subscribed(second) == [b"\x01topic"]


def test_xpub_does_not_tell_who_subscribed(sockets: Sockets) -> None:
    """A second subscription to the same thing is not even shown: markers must differ from node to node."""
    publisher = sockets(zmq.XPUB)
    endpoint = bind(publisher)
    for _ in range(2):
        feed = sockets(zmq.SUB)
        feed.connect(endpoint)
        feed.subscribe(b"same")
        feed.subscribe(b"other%d" % _)

    assert sorted(subscribed(publisher, 3)) == [b"\x01other0", b"\x01other1", b"\x01same"]


def test_xpub_reports_the_end_of_a_subscription_that_the_sender_never_had(sockets: Sockets) -> None:
    """Any connection can end anybody's marker in the eyes of the publisher, while libzmq goes on sending."""
    publisher = sockets(zmq.XPUB)
    endpoint = bind(publisher)
    owner = sockets(zmq.SUB)
    owner.connect(endpoint)
    owner.subscribe(b"marker")
    subscribed(publisher)
    stranger = Raw(endpoint)
    shake_hands(stranger, b"SUB")

    stranger.send(message(b"\x00marker"))

    assert subscribed(publisher) == [b"\x00marker"]
    publisher.send(b"marker and more")
    assert owner.recv() == b"marker and more"
    stranger.close()


def test_sub_sends_subscriptions_in_byte_order_after_a_reconnection(sockets: Sockets) -> None:
    """Markers that begin with FF come last, as they did at first."""
    first = sockets(zmq.XPUB)
    endpoint = bind(first)
    feed = sockets(zmq.SUB, RECONNECT_IVL=1, SNDHWM=0)
    feed.connect(endpoint)
    prefixes = [b"\xffmarker", b"zebra", b"", b"alpha\0", b"alpha", b"$x", b"A"]
    for prefix in prefixes:
        feed.subscribe(prefix)
    assert subscribed(first, 7) == [b"\x01" + prefix for prefix in prefixes]
    first.close()
    second = sockets(zmq.XPUB)
    wait_until(lambda: _can_bind(second, endpoint))

    wait_until(lambda: feed.poll(0) or second.poll(20))

    assert subscribed(second, 7) == [b"\x01" + prefix for prefix in sorted(prefixes)]


def test_router_drops_what_it_cannot_route_unless_told_otherwise(sockets: Sockets) -> None:
    """Without ROUTER_MANDATORY a frame to nobody is gone without an error."""
    router = sockets(zmq.ROUTER)
    router.send_multipart([b"nobody", b"lost"])

    router.set(zmq.ROUTER_MANDATORY, 1)

    with pytest.raises(zmq.ZMQError) as caught:
        router.send_multipart([b"nobody", b"refused"])
    assert caught.value.errno == zmq.EHOSTUNREACH


def test_router_ignores_a_second_connection_with_the_same_routing_id(sockets: Sockets) -> None:
    """It can send, and is never heard, not even when the first one has gone."""
    router = sockets(zmq.ROUTER)
    endpoint = bind(router)
    first, second = (sockets(zmq.DEALER, ROUTING_ID=b"twin") for _ in range(2))
    first.connect(endpoint)
    first.send(b"1")
    assert router.recv_multipart() == [b"twin", b"1"]

    second.connect(endpoint)
    second.send(b"2")
    assert not router.poll(200)
    first.close()
    assert not router.poll(100)


def test_own_routing_ids_are_new_for_each_connection(sockets: Sockets) -> None:
    """Ids that libzmq makes itself begin with NUL and do not come again."""
    router = sockets(zmq.ROUTER)
    endpoint = bind(router)
    seen = set()
    for _ in range(20):
        dealer = sockets(zmq.DEALER)
        dealer.connect(endpoint)
        dealer.send(b"")
        seen.add(router.recv_multipart()[0])
        dealer.close()

    assert len(seen) == 20
    assert all(len(routing_id) == 5 and routing_id[0] == 0 for routing_id in seen)


TWICE = """
import zmq
router = zmq.Context().socket(zmq.ROUTER)
for endpoint in ("tcp://127.0.0.1:1", "tcp://127.0.0.1:2"):
    router.set(zmq.CONNECT_ROUTING_ID, b"same")
    router.connect(endpoint)
"""


def test_a_connect_routing_id_used_twice_aborts_the_process() -> None:
    """libzmq asserts instead of raising."""
    outcome = subprocess.run([sys.executable, "-c", TWICE], capture_output=True, text=True, check=False)

    assert outcome.returncode == -6
    assert "Assertion failed" in outcome.stderr


def test_disconnect_ends_all_connections_to_an_endpoint(sockets: Sockets) -> None:
    """Two connections of one socket to one endpoint cannot be ended one by one."""
    far = sockets(zmq.ROUTER)
    endpoint = bind(far)
    near = sockets(zmq.ROUTER, ROUTER_MANDATORY=1)
    for name in (b"one", b"two"):
        near.set(zmq.CONNECT_ROUTING_ID, name)
        near.connect(endpoint)
        near.send_multipart([name, b"hello"])
    assert len([far.recv_multipart() for _ in range(2)]) == 2

    near.disconnect(endpoint)

    def gone(name: bytes) -> bool:
        near.poll(0)
        try:
            near.send_multipart([name, b"?"], zmq.NOBLOCK)
        except zmq.ZMQError as error:
            return error.errno == zmq.EHOSTUNREACH
        return False

    wait_until(lambda: gone(b"one") and gone(b"two"))


def test_sub_connects_once_to_an_endpoint(sockets: Sockets) -> None:
    """A second `connect` is ignored, so that one `disconnect` ends what both wanted."""
    publisher = sockets(zmq.XPUB)
    endpoint = bind(publisher)
    feed = sockets(zmq.SUB)
    feed.connect(endpoint)
    feed.connect(endpoint)
    feed.subscribe(b"")
    assert subscribed(publisher) == [b"\x01"]
    publisher.send(b"once")
    assert feed.recv() == b"once"
    assert not feed.poll(50)

    feed.disconnect(endpoint)

    wait_until(lambda: feed.poll(0) or publisher.poll(0))
    assert subscribed(publisher) == [b"\x00"]


def test_pongs_come_from_libzmq_even_if_the_program_hangs(sockets: Sockets) -> None:
    """A socket that nobody ever reads answers pings."""
    pull = sockets(zmq.PULL)
    raw = Raw(bind(pull))
    raw.send(GREETING[:11] + b"\x01" + GREETING[12:] + ready(b"PUSH"))
    wait_until(lambda: raw.gone() or b"READY" in raw.received)

    raw.send(command(b"PING", b"\x00\x64context"))

    wait_until(lambda: raw.gone() or b"PONGcontext" in raw.received)
    assert not raw.closed
    raw.close()


def test_defaults_that_we_change(sockets: Sockets) -> None:
    """Unlimited frames, half a minute for a handshake, termination that waits for ever, and no heartbeats."""
    socket = sockets(zmq.ROUTER)
    fresh = socket.context.socket(zmq.ROUTER)

    assert [fresh.get(option) for option in (zmq.MAXMSGSIZE, zmq.HANDSHAKE_IVL, zmq.HEARTBEAT_IVL)] == [-1, 30_000, 0]
    with zmq.Context() as context:
        context.set(zmq.BLOCKY, True)
        blocky = context.socket(zmq.PUSH)
        assert blocky.get(zmq.LINGER) == -1
        blocky.close(0)
    fresh.close(0)


def test_frames_over_maxmsgsize_are_refused_by_their_claim(sockets: Sockets) -> None:
    """The connection ends at the frame's header; nothing is allocated for what it claims."""
    raw = Raw(bind(sockets(zmq.PULL, MAXMSGSIZE=1000)))
    shake_hands(raw, b"PUSH")

    raw.send(b"\x02" + struct.pack(">Q", 1 << 40))

    wait_until(raw.gone)
    raw.close()


def test_a_connecting_socket_gives_up_after_an_oversize_frame(sockets: Sockets) -> None:
    """SUB does not connect again to a publisher whose frame was over its MAXMSGSIZE: no RETRIED follows the end."""
    publisher = sockets(zmq.XPUB)
    feed = sockets(zmq.SUB, MAXMSGSIZE=1000, RECONNECT_IVL=1)
    events = feed.get_monitor_socket(zmq.EVENT_DISCONNECTED | zmq.EVENT_CONNECT_RETRIED)
    feed.connect(bind(publisher))
    feed.subscribe(b"")
    subscribed(publisher)

    publisher.send(bytes(1001))

    assert events.poll(5000)
    drain(events)
    assert not events.poll(200)
    feed.disable_monitor()
    events.close()


@pytest.mark.parametrize("domain", [b"", b"anything"])
def test_zmtp_1_never_times_out_unless_there_is_a_zap_domain(sockets: Sockets, domain: bytes) -> None:
    """Half a greeting of ZMTP 1.0 is kept for ever, and refused where a ZAP domain is set, even without a handler."""
    options = {"ZAP_DOMAIN": domain} if domain else {}
    server = sockets(zmq.PULL, HANDSHAKE_IVL=50, **options)
    endpoint = bind(server)
    raw = Raw(endpoint)
    raw.send(b"\x16\x03\x01\x02\x00\x01\x00")
    begin = time.monotonic()

    wait_until(lambda: raw.gone() or time.monotonic() - begin > 0.3)

    assert raw.closed is bool(domain)
    raw.close()
    push = sockets(zmq.PUSH)
    push.connect(endpoint)
    push.send(b"modern")
    assert server.recv() == b"modern"


def test_the_descriptor_is_edge_triggered(sockets: Sockets) -> None:
    """It becomes readable once; a call that does not read everything clears it, with messages still waiting."""
    pull = sockets(zmq.PULL)
    push = sockets(zmq.PUSH)
    push.connect(bind(pull))
    poller = zmq.Poller()
    poller.register(pull.fileno(), zmq.POLLIN)
    for _ in range(10):
        push.send(b"x")
    wait_until(lambda: len(poller.poll(0)) == 1)
    wait_until(lambda: int(pull.get(zmq.EVENTS)) & zmq.POLLIN)

    wait_until(lambda: pull.get(zmq.EVENTS) and not poller.poll(0))

    assert len(drain(pull)) == 10


def test_a_descriptor_stays_readable_until_the_socket_is_called(sockets: Sockets) -> None:
    """Looking away does not end the signal: only a call on the socket takes it."""
    pull = sockets(zmq.PULL)
    push = sockets(zmq.PUSH)
    push.connect(bind(pull))
    poller = zmq.Poller()
    poller.register(pull.fileno(), zmq.POLLIN)
    push.send(b"x")

    assert [len(poller.poll(5000)) for _ in range(5)] == [1] * 5
    assert pull.recv() == b"x"


def test_the_number_of_parts_has_no_bound(sockets: Sockets) -> None:
    """Ten thousand parts arrive as one message: the bound is ours."""
    pull = sockets(zmq.PULL, RCVHWM=1, MAXMSGSIZE=100)
    push = sockets(zmq.PUSH, SNDHWM=1)
    push.connect(bind(pull))

    push.send_multipart([b"part"] * 10_000)

    assert len(pull.recv_multipart()) == 10_000


def test_a_bound_socket_accepts_any_number_of_connections(sockets: Sockets) -> None:
    """MAX_SOCKETS bounds a context's sockets, not its connections."""
    server = sockets(zmq.PULL)
    server.context.set(zmq.MAX_SOCKETS, 3)
    host, _, number = bind(server)[6:].rpartition(":")
    clients = [plain.create_connection((host, int(number))) for _ in range(50)]

    for client in clients:
        client.settimeout(5)
        assert client.recv(1) == b"\xff"
        client.close()


def test_linger_bounds_termination(sockets: Sockets) -> None:
    """A message for nobody holds `term()` for LINGER milliseconds, no longer."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    push = context.socket(zmq.PUSH)
    push.connect("tcp://127.0.0.1:1")
    push.send(b"nobody")
    push.close(linger=50)
    ended = threading.Thread(target=context.term)
    ended.start()

    ended.join(5)

    assert not ended.is_alive()
