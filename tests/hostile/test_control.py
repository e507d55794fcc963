"""Control frames that are malformed, forged or far too many."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgpack
import pytest
import zmq
from msgspec.structs import replace

from tests.hostile.attackers import Impostor, port
from tests.hostile.conftest import Arena, next_event
from tests.waiting import wait_until_async
from zfabric import DuplicateId, PeerJoined, PeerLeft, PeerRefused
from zfabric.node.driver import Driver
from zfabric.wire.records import (
    Ack,
    Attached,
    Goodbye,
    Heartbeat,
    Hello,
    Interest,
    PatternRequest,
    PeerAddress,
    Peers,
    Position,
    Record,
    Refuse,
    Repair,
    Start,
    TopicOffer,
    Unknown,
    Welcome,
    encode_envelope,
)

MakeImpostor = Callable[..., Impostor]
ME = bytes(range(16))
HEAD = b"\x93\x01\xc4\x10" + ME
inboxes = pytest.mark.parametrize("name", ["inbox-tcp", "inbox-ipc"])

MALFORMED = {
    "empty": b"",
    "text": b"GET / HTTP/1.1",
    "nil": b"\xc0",
    "reserved byte": b"\xc1",
    "map": msgpack.packb({"version": 1}),
    "short id": msgpack.packb([1, b"short", []]),
    "no records": msgpack.packb([1, ME]),
    "records of no type": msgpack.packb([1, ME, [1, 2, 3]]),
    "unknown tag": msgpack.packb([1, ME, [[99]]]),
    "tag of text": msgpack.packb([1, ME, [["HELLO"]]]),
    "missing fields": msgpack.packb([1, ME, [[11, 1]]]),
    "negative number": msgpack.packb([1, ME, [[17, -1, "topic"]]]),
    "number that sums overflow": msgpack.packb([1, ME, [[11, 1, "topic", 1, 2**64 - 1, 0]]]),
    "too many ranges": msgpack.packb([1, ME, [[12, 1, "t", 1, [[0, 1]] * 65]]]),
    "long name": msgpack.packb([1, ME, [[17, 1, "x" * 256]]]),
    "extension": msgpack.packb([1, ME, [msgpack.ExtType(5, b"x")]]),
    "bad UTF-8": HEAD + b"\x91\x93\x11\x01\xa2\xff\xfe",
    "truncated": encode_envelope(ME, [Heartbeat(1)])[:-1],
    "trailing bytes": encode_envelope(ME, [Heartbeat(1)]) + b"\x00",
    "array bomb": HEAD + b"\xdd\xff\xff\xff\xff",
    "map bomb": HEAD + b"\x91\xdf\xff\xff\xff\xff",
    "text bomb": HEAD + b"\x91\x93\x11\x01\xdb\xff\xff\xff\xff",
    "nested array bombs": HEAD + b"\xdd\x0f\xff\xff\xff" * 50_000,
    "nested arrays": HEAD + b"\x91" * 200_000,
    "nested records": HEAD + b"\x91\x94\x05\xc2\xc2\x00" + b"\x91" * 100_000,
    "nested unknown": b"\x93\x01" + b"\x91" * 100_000,
}


# -- malformed ---------------------------------------------------------------------------------


@inboxes
async def test_malformed_frames_are_counted_and_named(arena: Arena, impostor: MakeImpostor, name: str) -> None:
    """Each frame that is not the protocol is one error and one event with its connection; nothing else happens."""
    attacker = impostor()
    attacker.dial(port(arena.victim, name))

    for frame in MALFORMED.values():
        attacker.send(frame)
        event = await arena.complaint("control frame")
        assert event.address.startswith("connection ")

    assert arena.statistics.protocol_errors == len(MALFORMED)
    await arena.stays_small()


async def test_a_control_message_is_one_frame(arena: Arena, impostor: MakeImpostor) -> None:
    """A message of several parts, as an empty delimiter makes it, is malformed."""
    attacker = impostor()
    attacker.dial(port(arena.victim, "inbox-tcp"))

    attacker.send(b"", encode_envelope(attacker.id, [Hello(None, attacker.identity)]))

    await arena.complaint("control frame")


async def test_a_malformed_frame_of_a_peer_names_it(arena: Arena, impostor: MakeImpostor) -> None:
    """Who has greeted is called by name and id."""
    attacker = impostor()
    await attacker.join(port(arena.victim, "inbox-tcp"))

    attacker.send(b"rubbish")

    assert (await arena.complaint()).address == f"impostor ({attacker.id.hex()})"


@pytest.mark.parametrize("limits", [{"control_records_max": 100}])
async def test_more_records_than_the_limit_are_refused(
    arena: Arena, impostor: MakeImpostor, limits: dict[str, Any]
) -> None:
    """A frame of more than Config.control_records_max records is not looked at."""
    attacker = impostor()
    await attacker.join(port(arena.victim, "inbox-tcp"))

    attacker.say(*[Heartbeat(0)] * 100)
    attacker.say(*[Goodbye()] * 101)

    await arena.complaint("101 records", "Config.control_records_max is 100")
    assert len(arena.victim.peers) == 2


async def test_another_protocol_version_is_refused_on_both_sides(arena: Arena, impostor: MakeImpostor) -> None:
    """A frame of version 2 is answered with REFUSE and the reason, and reported here, too."""
    attacker = impostor()
    attacker.dial(port(arena.victim, "inbox-tcp"))

    attacker.send(msgpack.packb([2, attacker.id, [["anything", {"new": 1}]], "more"]))

    refused = await attacker.hear(Refuse)
    assert (refused.code, refused.detail) == ("version", "speaks protocol version 2; this node speaks 1")
    told = await next_event(arena.events, PeerRefused)
    assert (told.reason, told.detail) == (refused.code, refused.detail)
    assert arena.statistics.protocol_errors == 1


async def test_being_refused_for_the_version_is_reported(arena: Arena) -> None:
    """A seed that answers with REFUSE in a later version's envelope becomes an event with its words."""
    with zmq.Context() as context, context.socket(zmq.ROUTER) as later:
        number = later.bind_to_random_port("tcp://127.0.0.1")
        node = await arena.fabric.open("old", seeds=[f"tcp://127.0.0.1:{number}"])
        events = node.events()
        await wait_until_async(lambda: later.poll(0))
        route, _ = later.recv_multipart()
        later.send_multipart([route, msgpack.packb([2, os.urandom(16), [[3, "version", "speak 2, please"]]])])

        refused = await next_event(events, PeerRefused)

        assert (refused.reason, refused.detail) == ("version", "speak 2, please")
        assert refused.address == f"tcp://127.0.0.1:{number}"
        await node.close(0)
        later.close(0)


# -- strangers ---------------------------------------------------------------------------------


@inboxes
async def test_records_without_a_greeting_are_answered_with_unknown(
    arena: Arena, impostor: MakeImpostor, name: str
) -> None:
    """Who never said HELLO is asked for it, and counted as a stranger."""
    attacker = impostor()
    attacker.dial(port(arena.victim, name))

    for record in (Heartbeat(1), Interest(True, False, 0, 0), Ack(1, "good.a", 1, 0, 0), Peers([]), Attached([])):
        attacker.say(record)
    attacker.say(Welcome(attacker.identity))
    attacker.say(Welcome(attacker.identity), Refuse("version", "go away"), Unknown(), Goodbye())

    await wait_until_async(lambda: arena.statistics.strangers == 7)
    await wait_until_async(lambda: sum(isinstance(record, Unknown) for record in attacker.listen()) == 5)
    assert len(arena.victim.peers) == 1


async def test_a_stranger_cannot_speak_for_a_peer(arena: Arena, impostor: MakeImpostor) -> None:
    """GOODBYE and acks under a peer's id from another connection change nothing."""
    attacker = impostor()
    attacker.dial(port(arena.victim, "inbox-tcp"))
    friend = bytes.fromhex(arena.friend.id)

    attacker.say(Goodbye(), sender=friend)
    attacker.say(Ack(1, "good.a", 1, 1, 1), sender=friend)

    await attacker.hear(Unknown)
    assert arena.victim.peers[0].id == arena.friend.id


async def test_another_fabric_is_refused_and_reported(arena: Arena, impostor: MakeImpostor) -> None:
    """HELLO of another fabric gets REFUSE; both sides have the reason."""
    attacker = impostor(fabric="another")
    attacker.dial(port(arena.victim, "inbox-tcp"))

    attacker.say(Hello(None, attacker.identity))

    assert (await attacker.hear(Refuse)).code == "fabric"
    assert (await next_event(arena.events, PeerRefused)).address == "impostor on host"


async def test_a_duplicate_id_is_an_event_on_both_sides(arena: Arena, impostor: MakeImpostor) -> None:
    """Who uses the id of a live peer, or the node's own, is refused; the real one stays."""
    for taken in (arena.friend.id, arena.victim.id):
        attacker = impostor(node_id=bytes.fromhex(taken))
        attacker.dial(port(arena.victim, "inbox-tcp"))
        attacker.say(Hello(None, attacker.identity))

        assert (await attacker.hear(Refuse)).code == "duplicate-id"
        assert (await next_event(arena.events, DuplicateId)).id == taken
        refused = await next_event(arena.events, PeerRefused)
        assert (refused.address, refused.reason) == ("impostor on host", "duplicate-id")
    assert [peer.id for peer in arena.victim.peers] == [arena.friend.id]


async def test_who_is_told_that_its_id_is_taken_reports_it(arena: Arena) -> None:
    """The refused side of a duplicate id has the event, too."""
    with zmq.Context() as context, context.socket(zmq.ROUTER) as other:
        number = other.bind_to_random_port("tcp://127.0.0.1")
        node = await arena.fabric.open("twin", seeds=[f"tcp://127.0.0.1:{number}"])
        events = node.events()
        await wait_until_async(lambda: other.poll(0))
        route, _ = other.recv_multipart()
        other.send_multipart([route, encode_envelope(ME, [Refuse("duplicate-id", "taken")])])

        assert (await next_event(events, DuplicateId)).id == node.id
        await node.close(0)
        other.close(0)


async def test_a_stranger_on_a_reused_port_is_noticed(arena: Arena, impostor: MakeImpostor) -> None:
    """HELLO that looks for a node which is not here any more is answered with `stranger`."""
    attacker = impostor()
    attacker.dial(port(arena.victim, "inbox-tcp"))

    attacker.say(Hello(os.urandom(16), attacker.identity))

    assert (await attacker.hear(Refuse)).code == "stranger"
    assert len(arena.victim.peers) == 1


# -- floods and limits -------------------------------------------------------------------------


@pytest.mark.parametrize("limits", [{"peers_max": 20, "peer_timeout_s": 0.6, "heartbeat_interval_s": 0.1}])
async def test_hello_floods_stop_at_peers_max(arena: Arena, impostor: MakeImpostor, limits: dict[str, Any]) -> None:
    """Random ids fill the table and are refused then; they fall out again, and nobody dials them."""
    attacker = impostor()
    attacker.dial(port(arena.victim, "inbox-tcp"))
    endpoints = tuple(f"tcp://127.0.0.1:{number}" for number in range(1, 60))
    dials = count_dials(arena)

    for _ in range(3000):
        attacker.say(Hello(None, replace(attacker.identity, inbox=endpoints)), sender=os.urandom(16))
        attacker.listen()

    refused = await attacker.hear(Refuse)
    assert (refused.code, "Config.peers_max = 20" in refused.detail) == ("peers-max", True)
    driver = driver_of(arena)
    assert len(driver.core.peers.known) <= 20
    await wait_until_async(lambda: len(driver.core.peers.known) == 1)
    await arena.lives()
    assert dials == []
    newcomer = impostor()
    await newcomer.join(port(arena.victim, "inbox-tcp"))
    await arena.stays_small()


@pytest.mark.parametrize("limits", [{"peers_max": 1}])
async def test_a_full_node_may_have_room_later(arena: Arena, limits: dict[str, Any]) -> None:
    """`peers-max` is an event on both sides and no reason never to try again."""
    late = await arena.fabric.open("late")
    events = late.events()

    assert (await next_event(events, PeerRefused)).reason == "peers-max"
    assert (await next_event(arena.events, PeerRefused)).reason == "peers-max"

    driver = driver_of(arena)
    driver.core.peers._config = driver._config = driver._config.__class__(mdns=False, peers_max=2)
    await late.wait_for_peers(2, timeout=10)


async def test_many_hellos_in_one_frame_are_refused(arena: Arena, impostor: MakeImpostor) -> None:
    """Each HELLO is answered with all that the node knows, so one frame cannot ask for that a thousand times."""
    attacker = impostor()
    attacker.dial(port(arena.victim, "inbox-tcp"))

    attacker.say(*[Hello(None, attacker.identity)] * 5000)

    await arena.complaint("too many HELLOs")
    assert attacker.listen() == []


async def test_a_hello_flood_of_one_peer_harms_nobody(arena: Arena, impostor: MakeImpostor) -> None:
    """Greeting again and again costs an answer each time, and nothing is kept."""
    attacker = impostor()
    await attacker.join(port(arena.victim, "inbox-tcp"))

    for _ in range(2000):
        attacker.say(Hello(None, attacker.identity))
        attacker.listen()

    await wait_until_async(lambda: sum(isinstance(record, Welcome) for record in attacker.listen()) == 2001)
    assert len(arena.victim.peers) == 2
    await arena.stays_small()


async def test_who_hears_nothing_does_not_fill_memory(arena: Arena, impostor: MakeImpostor) -> None:
    """A peer that asks all the time and never reads has its connection given up, not its answers queued for ever."""
    attacker = impostor()
    attacker.dealer.set(zmq.RCVHWM, 1)
    attacker.dealer.set(zmq.SNDHWM, 100)
    await attacker.join(port(arena.victim, "inbox-tcp"))

    for _ in range(20_000):
        with suppress(zmq.Again):
            attacker.say(Hello(None, attacker.identity))
    await arena.lives()
    await arena.stays_small()


@pytest.mark.parametrize("limits", [{"topics_max": 50, "patterns_max": 40}])
async def test_topics_and_patterns_of_a_peer_are_bounded(
    arena: Arena, impostor: MakeImpostor, limits: dict[str, Any]
) -> None:
    """What is over Config.topics_max and patterns_max is refused by name and counted; the peer stays."""
    attacker = impostor()
    await attacker.join(port(arena.victim, "inbox-tcp"))

    attacker.say(Interest(False, False, 0, 0, [TopicOffer(f"t{n}", 1, "at-most-once") for n in range(60)]))
    event = await arena.complaint("51 is over Config.topics_max = 50")
    attacker.say(Interest(False, False, 0, 0, patterns=[PatternRequest(n, f"p{n}.*", "") for n in range(60)]))
    await arena.complaint("41 is over Config.patterns_max = 40")

    assert event.address == f"impostor ({attacker.id.hex()})"
    assert arena.statistics.protocol_errors == 2
    seen = next(peer for peer in arena.victim.peers if peer.name == "impostor")
    assert (len(seen.topics), len(seen.patterns)) == (50, 40)


async def test_forged_names_in_an_interest_are_refused(arena: Arena, impostor: MakeImpostor) -> None:
    """Topics and patterns with illegal characters are an error that names the peer."""
    attacker = impostor()
    await attacker.join(port(arena.victim, "inbox-tcp"))

    for name in ("", "a..b", "a b", "ä", "a\0b", "a/b", "*", "\x1b[2J", "a" * 254 + "."):
        attacker.say(Interest(False, False, 0, 0, [TopicOffer(name, 1, "at-most-once")]))
        assert "topic" in (await arena.complaint()).reason
    for name in ("", "a..b", "a#", "*.b*", "a\0"):
        attacker.say(Interest(False, False, 0, 0, patterns=[PatternRequest(1, name, "")]))
        assert "topic" in (await arena.complaint()).reason
    assert arena.statistics.protocol_errors == 14


async def test_one_lane_is_one_pattern(arena: Arena, impostor: MakeImpostor) -> None:
    """A lane that is sent again with another pattern replaces the first, so that it cannot grow memory unseen."""
    attacker = impostor(outlet=True)
    await attacker.join(port(arena.victim, "inbox-tcp"))

    for number in range(200):
        attacker.say(Interest(False, False, 1, 0, patterns=[PatternRequest(7, f"good.{number}.#", "")]))
    attacker.say(Interest(False, False, 1, 0, patterns=[PatternRequest(7, "good.*", "")]))
    attacker.say(Interest(False, False, 1, 0, patterns_gone=[7]))
    attacker.say(Hello(None, attacker.identity))

    await attacker.hear(Welcome, lambda welcome: welcome is not attacker.heard[0])
    (remote,) = [r for key, r in driver_of(arena).core.interests.remote.items() if key == attacker.id]
    assert (len(remote.table), remote.patterns) == (0, {})


async def test_impossible_starts_and_positions_break_nothing(arena: Arena, impostor: MakeImpostor) -> None:
    """Numbers that no honest peer sends, NaN among them, are taken for something harmless."""
    attacker = impostor()
    await attacker.join(port(arena.victim, "inbox-tcp"))
    with attacker.client(zmq.SUB) as feed:
        feed.connect(port(arena.victim, "outlet-tcp"))
        feed.subscribe(b"\xff" + attacker.id + (1).to_bytes(4, "big"))
        values = (float("nan"), float("inf"), -1.0, 1e300, -5, 2**63)
        starts = [Start(kind, value) for kind in ("seq", "last", "since") for value in values]
        lanes = range(1, len(starts) + 1)
        requests = [PatternRequest(n, "good.a", "at-least-once", s) for n, s in zip(lanes, starts, strict=True)]
        attacker.say(Interest(False, False, 1, 0, patterns=requests))

        for lane in lanes:
            at = await attacker.hear(Attached, lambda record, lane=lane: record.positions[0].lane == lane)  # type: ignore[misc]
            assert at.positions[0].next_seq >= 0
        nonsense = [Position(lane, topic, 2**62, 2**62, 2**62) for lane in range(5) for topic in ("good.b", "x", "..")]
        attacker.say(Attached(nonsense))
        attacker.say(Goodbye())
        await next_event(arena.events, PeerLeft)
    assert arena.statistics.protocol_errors == 0


async def test_impossible_acks_are_counted(arena: Arena, impostor: MakeImpostor) -> None:
    """An ack of what was never sent, or never received, is an error; one for nobody's stream is nothing."""
    attacker = impostor()
    await attacker.join(port(arena.victim, "inbox-tcp"))
    with attacker.client(zmq.SUB) as feed:
        feed.connect(port(arena.victim, "outlet-tcp"))
        feed.subscribe(b"\xff" + attacker.id + (1).to_bytes(4, "big"))
        attacker.say(Interest(False, False, 1, 0, patterns=[PatternRequest(3, "good.a", "at-least-once")]))
        at = (await attacker.hear(Attached)).positions[0]

        attacker.say(Ack(3, "good.a", at.epoch, 2**62, 0))
        await arena.complaint("acknowledges what was never sent")
        attacker.say(Ack(3, "good.a", at.epoch, at.next_seq, at.next_seq + 1))
        await arena.complaint("acknowledges what was never sent")
        attacker.say(Ack(3, "good.a", at.epoch, 0, 0, [(5, 1), (2**62, 2**62), (0, 2**62)]))
        attacker.say(Ack(99, "good.a", at.epoch, 2**60, 0), Ack(3, "nothing", 1, 2**60, 0))
        attacker.say(Goodbye())
        await next_event(arena.events, PeerLeft)
    assert arena.statistics.protocol_errors == 2


@pytest.mark.parametrize("limits", [{"repair_reply_bytes": 20_000, "repair_bytes_per_s": 200_000}])
async def test_repair_floods_get_a_bounded_answer(arena: Arena, impostor: MakeImpostor, limits: dict[str, Any]) -> None:
    """Requests for everything, again and again, get Config.repair_reply_bytes at once, repair_bytes_per_s in all."""
    source = arena.victim.publisher("history", delivery="at-least-once", history=1000)
    for _ in range(100):
        await source.publish(b"x" * 5000)
        await source.flush()
    attacker = impostor()
    await attacker.join(port(arena.victim, "inbox-tcp"))
    with attacker.client(zmq.SUB) as feed:
        feed.connect(port(arena.victim, "outlet-tcp"))
        feed.subscribe(b"\xff" + attacker.id + (1).to_bytes(4, "big"))
        earliest = PatternRequest(3, "history", "at-least-once", Start("earliest"))
        attacker.say(Interest(False, False, 1, 0, patterns=[earliest]))
        at = (await attacker.hear(Attached)).positions[0]
        begin = time.monotonic()

        attacker.say(Repair(3, "history", at.epoch, [(0, 100)] * 64))
        await wait_until_async(lambda: repaired_bytes(attacker.listen()) > 0)
        first = repaired_bytes(attacker.listen())
        for round_ in range(2000):
            attacker.say(Repair(3, "history", at.epoch, [(round_ % 50, 100)]))
        attacker.say(*[Repair(3, "history", at.epoch, [(n % 50, 100)]) for n in range(2000)])
        attacker.say(*[Repair(n, "nothing", 1, [(0, 2**62)] * 64) for n in range(2000)])
        attacker.say(Hello(None, attacker.identity))
        await wait_until_async(lambda: sum(isinstance(record, Welcome) for record in attacker.listen()) == 2)
        spent = time.monotonic() - begin
        attacker.say(Goodbye())

    assert first <= 20_000 + 5200
    assert repaired_bytes(attacker.heard) <= 200_000 * (1 + spent) + 20_000 + 5200
    assert sum(type(record).__name__ == "Missing" for record in attacker.heard) == 2000
    await arena.stays_small()


def repaired_bytes(records: list[Record]) -> int:
    """What came in answer to REPAIR."""
    return sum(len(frame) for record in records for frame in getattr(record, "frames", ()))


# -- addresses ---------------------------------------------------------------------------------


def driver_of(arena: Arena) -> Driver:
    """The victim's engine room."""
    driver = arena.victim._driver
    assert driver is not None
    return driver


def count_dials(arena: Arena) -> list[str]:
    """The addresses that the victim dials from now on."""
    transport, dialled = driver_of(arena)._transport, []
    dial = transport.dial

    def counting(route: int, endpoint: str) -> bool:
        dialled.append(endpoint)
        return dial(route, endpoint)

    transport.dial = counting  # type: ignore[method-assign]
    return dialled


@pytest.mark.parametrize(
    "limits",
    [{"dials_per_s_max": 40.0, "dials_pending_max": 10, "discovery_records_max": 200, "endpoints_per_peer_max": 2}],
)
async def test_forged_addresses_cannot_flood_the_network(
    arena: Arena, impostor: MakeImpostor, limits: dict[str, Any]
) -> None:
    """PEERS with thousands of addresses: few targets are kept, few are dialled at once, few a second."""
    attacker = impostor()
    await attacker.join(port(arena.victim, "inbox-tcp"))
    dialler = driver_of(arena).core.peers.dialler
    dials, begin, most = count_dials(arena), time.monotonic(), 0

    for first in range(0, 5000, 1000):
        attacker.say(
            Peers(
                [
                    PeerAddress(
                        os.urandom(16), tuple(f"tcp://127.1.{n % 250}.{m}:{1 + n // 250}" for m in range(1, 21))
                    )
                    for n in range(first, first + 1000)
                ]
            )
        )
    while len(dials) < (60 if arena.key is None else 12):
        await arena.lives()
        most = max(most, len(dialler._by_route))

    assert len(dials) <= 40 + 40 * (time.monotonic() - begin) + 2
    assert (most, len(dialler._targets) <= 200) == (10 if arena.key is None else 1, True)
    assert {endpoint.split(":")[1].rpartition(".")[2] for endpoint in dials} <= {"1", "2"}
    await arena.lives()


async def test_forged_ids_at_one_address_do_not_pile_up_connections(arena: Arena, impostor: MakeImpostor) -> None:
    """An address is dialled once at a time, whoever is said to live there; one in use is not dialled again."""
    attacker = impostor()
    await attacker.join(port(arena.victim, "inbox-tcp"))
    with zmq.Context() as context, context.socket(zmq.STREAM) as silent:
        number = silent.bind_to_random_port("tcp://127.0.0.1")
        dials = count_dials(arena)
        addresses = (f"tcp://127.0.0.1:{number}", *arena.friend.endpoints)

        attacker.say(Peers([PeerAddress(os.urandom(16), addresses) for _ in range(1000)]))

        await wait_until_async(lambda: len(dials) >= 3)
        for _ in range(10):
            await arena.lives()
        assert max(dials.count(endpoint) for endpoint in dials) <= 200  # again and again, not once for each id
        arena.attackers += 1
        await arena.stays_small()
        silent.close(0)


async def test_nonsense_addresses_are_not_dialled_or_fail_quietly(arena: Arena, impostor: MakeImpostor) -> None:
    """Whatever text is announced as an address, the node goes on."""
    attacker = impostor()
    await attacker.join(port(arena.victim, "inbox-tcp"))
    nonsense = ["", "tcp://", "tcp://:", "tcp://*:*", "tcp://127.0.0.1", "tcp://127.0.0.1:99999", "tcp://[::1:1"]
    nonsense += ["tcp://\0:1", "ipc://", "ipc:///", "ipc:///nowhere", "inproc://x", "udp://127.0.0.1:1", "ä" * 100]
    nonsense += ["tcp://127.0.0.1:1\n", "file:///etc/passwd", "tcp://127.0.0.1:0", "tcp://127.0.0.1:-1"]

    attacker.say(Peers([PeerAddress(os.urandom(16), (endpoint,)) for endpoint in nonsense]))
    attacker.say(Hello(None, replace(attacker.identity, inbox=tuple(nonsense), outlet=tuple(nonsense))))
    attacker.say(Interest(False, False, 0, 0, [TopicOffer("good.b", 1, "at-least-once")]))
    for _ in range(10):
        await arena.lives()

    assert len(arena.victim.peers) == 2


@pytest.mark.parametrize("limits", [{"peer_timeout_s": 0.4, "heartbeat_interval_s": 0.1}])
async def test_a_silent_peer_is_given_up(arena: Arena, impostor: MakeImpostor, limits: dict[str, Any]) -> None:
    """Nothing for Config.peer_timeout_s, although libzmq answers pings for a hung program: the peer is gone."""
    attacker = impostor()
    joined = time.monotonic()
    await attacker.join(port(arena.victim, "inbox-tcp"))
    await next_event(arena.events, PeerJoined)

    left = await next_event(arena.events, PeerLeft)

    assert (left.peer.name, left.reason) == ("impostor", "silent")
    assert time.monotonic() - joined >= 0.4
    beats = sum(isinstance(record, Heartbeat) for record in attacker.listen())
    assert beats >= 1
