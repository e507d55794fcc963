"""Control frames that are malformed or forged."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import msgpack
import pytest
import zmq

from tests.hostile.attackers import MakeImpostor, port
from tests.hostile.conftest import Arena, next_event
from tests.waiting import wait_until_async
from zfabric import DuplicateId, PeerRefused
from zfabric.wire.records import (
    Ack,
    Attached,
    Goodbye,
    Heartbeat,
    Hello,
    Interest,
    Peers,
    Refuse,
    Unknown,
    Welcome,
    encode_envelope,
)

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

    def asked() -> int:
        return sum(isinstance(record, Unknown) for record in attacker.listen())

    for record in (Heartbeat(1), Interest(True, False, 0, 0), Ack(1, "good.a", 1, 0, 0), Peers([]), Attached([])):
        before = asked()
        attacker.say(record)
        await wait_until_async(partial(lambda before: asked() == before + 1, before))
    attacker.say(Welcome(attacker.identity))
    attacker.say(Welcome(attacker.identity), Refuse("version", "go away"), Unknown(), Goodbye())

    await wait_until_async(lambda: arena.statistics.strangers == 7)
    assert asked() == 5
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
