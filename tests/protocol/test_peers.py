"""How cores meet, lose and find each other again."""

from __future__ import annotations

import pytest

from tests.protocol.network import LATENCY_S, Party, World, all_meet, meet
from zfabric.config import Config
from zfabric.events import DuplicateId, PeerJoined, PeerLeft, PeerRefused, ProtocolError
from zfabric.wire.records import Goodbye, Heartbeat, Hello, Interest, Refuse, Unknown, decode_envelope, encode_envelope

TIMEOUT_S = Config().peer_timeout_s


def names(events: list[PeerJoined]) -> list[str]:
    """Whom events are about."""
    return [event.peer.name for event in events]


def talks(world: World, one: Party, other: Party) -> bool:
    """Whether a new subscription of one gets a new publication of the other, within 10 seconds."""
    topic = f"probe.{world.now:.6f}.{one.name}".replace(".", "-")
    outbox = other.open_topic(topic)
    _, inlet = one.subscribe(topic)
    world.run_until(lambda: outbox.remote, 10)
    other.publish(outbox, "hello")
    world.run_until(lambda: inlet.values == ["hello"], 1)
    return True


# -- meeting -----------------------------------------------------------------------------------


def test_one_side_that_knows_the_other_is_enough() -> None:
    """A dials, both join once, within a few latencies."""
    world = World()
    a, b = world.party("a"), world.party("b")

    a.find(b)
    world.run(20 * LATENCY_S)

    assert (a.peers, b.peers) == ({"b"}, {"a"})
    assert (names(a.seen(PeerJoined)), names(b.seen(PeerJoined))) == (["b"], ["a"])
    assert talks(world, a, b)
    assert talks(world, b, a)


def test_both_dial_at_the_same_time() -> None:
    """Two connections between the same nodes are one peer, told once, and both ways work."""
    world = World()
    a, b = world.party("a"), world.party("b")

    a.find(b)
    b.find(a)
    world.run(1)

    assert (names(a.seen(PeerJoined)), names(b.seen(PeerJoined))) == (["b"], ["a"])
    assert talks(world, a, b)
    assert talks(world, b, a)
    assert a.seen(PeerLeft) == b.seen(PeerLeft) == []


@pytest.mark.parametrize("pause", [n * LATENCY_S / 2 for n in range(12)])
def test_both_dial_nearly_at_the_same_time(pause: float) -> None:
    """Whatever way the greetings cross, the subscriptions made meanwhile are in place in the end."""
    world = World()
    a, b = world.party("a"), world.party("b")
    outboxes = a.open_topic("of.a"), b.open_topic("of.b")

    a.find(b)
    world.run(pause)
    b.find(a)
    b.subscribe("of.a")
    world.run(pause)
    a.subscribe("of.b")

    world.run_until(lambda: all(outbox.remote for outbox in outboxes), 5)
    assert (names(a.seen(PeerJoined)), names(b.seen(PeerJoined))) == (["b"], ["a"])


@pytest.mark.parametrize("pause", [0.0, 0.5, 3.0])
def test_a_second_way_to_a_peer_harms_nothing(pause: float) -> None:
    """A seed that leads to a known peer is hung up; what is said at that moment still gets through."""
    world = World()
    a, b = world.party("a"), world.party("b")
    a.find(b)
    world.run(pause)
    a.seek(b.inbox)
    for number in range(10):
        a.open_topic(f"a.{number}")
        b.open_topic(f"b.{number}")
        b.subscribe(f"a.{number}")
        a.subscribe(f"b.{number}")
        world.run(LATENCY_S)

    outboxes = [*a.core.interests.outboxes.values(), *b.core.interests.outboxes.values()]
    world.run_until(lambda: all(outbox.remote for outbox in outboxes), 5)
    assert (a.peers, b.peers) == ({"b"}, {"a"})
    assert (a.core.strangers, b.core.strangers) == (0, 0)
    assert a.core.protocol_errors == b.core.protocol_errors == 0


@pytest.mark.parametrize("scheme", ["net", "ipc"])
@pytest.mark.parametrize("seeker", ["a", "b"])
@pytest.mark.parametrize("pause", [n * LATENCY_S / 2 for n in range(10)])
def test_nothing_is_lost_on_a_connection_that_is_hung_up(scheme: str, seeker: str, pause: float) -> None:
    """News that one side sends by a second connection, which the other closes, are said again."""
    world = World(scheme)
    a, b = world.party("a"), world.party("b")
    a.find(b)
    outbox = a.open_topic("of.a")
    world.run(0.7)
    (a if seeker == "a" else b).seek((b if seeker == "a" else a).second_inbox)
    world.run(pause)

    b.subscribe("of.a")

    world.run_until(lambda: outbox.remote, 5)


def test_own_address_as_a_seed_is_given_up() -> None:
    """A node that dials itself notices and stops."""
    world = World()
    a = world.party("a")

    a.seek(a.inbox)
    world.run(60)

    assert (a.peers, len(a.dials)) == (set(), 1)
    assert a.events == []


def test_another_fabric_is_refused_on_both_sides() -> None:
    """Both sides are told, and the dialler does not insist."""
    world = World()
    a, b = world.party("a", fabric="one"), world.party("b", fabric="two")

    a.find(b)
    world.run(120)

    assert (a.peers, b.peers) == (set(), set())
    assert [event.reason for event in a.seen(PeerRefused)] == ["fabric"]
    assert len(a.dials) == 1


# -- trouble -----------------------------------------------------------------------------------


def test_a_broken_connection_is_no_departure() -> None:
    """After a reconnect, under a new route on the accepting side, everything is exchanged again."""
    world = World()
    a, b = world.party("a"), world.party("b")
    before = b.open_topic("before")
    a.find(b)
    _, inlet = a.subscribe("before")
    world.run_until(lambda: before.remote)

    world.break_connections(a, b)
    during = b.open_topic("during")
    a.subscribe("during")
    world.run_until(lambda: during.remote, 10)

    b.publish(before, 1)
    world.run_until(lambda: inlet.values == [1])
    assert a.seen(PeerLeft) == b.seen(PeerLeft) == []
    assert (names(a.seen(PeerJoined)), names(b.seen(PeerJoined))) == (["b"], ["a"])


def test_what_the_accepting_side_says_while_a_connection_is_broken_is_said_again() -> None:
    """The side that cannot dial loses its route; its news still arrive after the reconnect."""
    world = World()
    a, b = world.party("a"), world.party("b")
    outbox = a.open_topic("of.a")
    a.find(b)
    world.run(3)

    world.break_connections(a, b)
    b.subscribe("of.a")

    world.run_until(lambda: outbox.remote, 10)
    assert b.seen(PeerLeft) == []


def test_silence_is_noticed_and_ends() -> None:
    """A cut cable makes both sides leave after the timeout, and join again when it is mended."""
    world = World()
    a, b = world.party("a"), world.party("b")
    meet(world, a, b)
    outbox = a.open_topic("t")
    _, inlet = b.subscribe("t")
    world.run_until(lambda: outbox.remote)

    world.cut(a, b)
    cut_at = world.now
    world.run_until(lambda: not a.peers and not b.peers, 20)
    assert TIMEOUT_S - 1 <= world.now - cut_at <= TIMEOUT_S + 2
    assert [event.reason for event in a.seen(PeerLeft)] == ["silent"]
    assert outbox.remote == {}

    world.run(100)
    world.heal()
    world.run_until(lambda: all_meet([a, b]), 15)
    world.run_until(lambda: outbox.remote, 5)
    a.publish(outbox, "again")
    world.run_until(lambda: inlet.values == ["again"])
    assert a.core.me != b.core.me


def test_a_short_interruption_is_not_noticed() -> None:
    """Less than the timeout of silence changes nothing."""
    world = World()
    a, b = world.party("a"), world.party("b")
    meet(world, a, b)

    world.cut(a, b)
    world.run(TIMEOUT_S - 1.5)
    world.heal()
    world.run(30)

    assert a.seen(PeerLeft) == b.seen(PeerLeft) == []


def test_an_idle_peer_is_kept_alive_by_heartbeats() -> None:
    """Nothing to say for an hour is no silence, and costs about one frame a second."""
    world = World()
    a, b = world.party("a"), world.party("b")
    meet(world, a, b)

    world.run(3600)

    assert a.seen(PeerLeft) == b.seen(PeerLeft) == []


def test_a_node_that_was_stopped_does_not_blame_the_others() -> None:
    """After a long pause of its own (a sleeping laptop) it first listens before it declares anybody gone."""
    world = World()
    a, b, c = world.party("a"), world.party("b"), world.party("c")
    meet(world, a, b, c)

    a.stalled = True
    world.run(60)
    assert b.peers == {"c"}
    a.stalled = False
    a.core.handle_timer(world.now)
    a.pump()

    assert a.seen(PeerLeft) == []
    world.run_until(lambda: all_meet([a, b, c]), 30)
    assert talks(world, a, b)


def test_goodbye_is_for_good() -> None:
    """A peer that said goodbye leaves at once; late announcements of it are not believed."""
    world = World()
    a, b = world.party("a"), world.party("b")
    meet(world, a, b)
    dials = len(a.dials)

    b.goodbye()
    world.run(0.1)
    assert [event.reason for event in a.seen(PeerLeft)] == ["goodbye"]

    a.find(b)
    world.run(60)
    assert len(a.dials) == dials


def test_goodbye_waits_for_the_last_batch() -> None:
    """A goodbye that overtakes batches, which come by another connection, does not lose them."""
    world = World()
    a, b = world.party("a"), world.party("b")
    meet(world, a, b)
    outbox = a.open_topic("last")
    _, inlet = b.subscribe("last")
    world.run_until(lambda: outbox.remote)

    slow = world.held_batches = []
    a.publish(outbox, 1, 2, 3)
    a.core.goodbye()
    a.pump()
    world.run(0.2)
    assert b.peers == {"a"}
    world.held_batches = None
    for batch in slow:
        world.send_batch(*batch)
    world.run(0.1)

    assert inlet.values == [1, 2, 3]
    assert (b.peers, [event.reason for event in b.seen(PeerLeft)]) == (set(), ["goodbye"])


def test_goodbye_does_not_wait_for_ever() -> None:
    """A last batch that was lost delays the departure by Config.gap_settle_s, and is counted."""
    world = World()
    a, b = world.party("a"), world.party("b")
    meet(world, a, b)
    outbox = a.open_topic("last")
    _, inlet = b.subscribe("last")
    world.run_until(lambda: outbox.remote)

    world.held_batches = []
    a.publish(outbox, 1, 2, 3)
    a.goodbye()
    world.run_until(lambda: not b.peers, Config().gap_settle_s + 0.1)

    assert inlet.values == []
    assert b.core.streams.lost == {"last": 3}


def test_a_crashed_node_comes_back_as_another() -> None:
    """A new incarnation at the same address, found by its seed, replaces the one that fell silent."""
    world = World()
    a, old = world.party("a"), world.party("b", address="fixed")
    a.seek(old.inbox)
    world.run_until(lambda: a.peers == {"b"})

    world.kill(old)
    world.run(2)
    new = world.party("b", address="fixed")
    world.run_until(lambda: any(peer.id == new.core.me for peer in a.core.peers.up()), 30)
    world.run(TIMEOUT_S + 2)

    assert [peer.id for peer in a.core.peers.up()] == [new.core.me]
    assert talks(world, a, new)


# -- impostors ---------------------------------------------------------------------------------


def test_a_stranger_on_a_reused_port_is_not_taken_for_the_peer() -> None:
    """Who answers at a known address must be who was looked for; both sides learn that it was not."""
    world = World()
    a, gone = world.party("a"), world.party("gone", address="port")
    world.kill(gone)
    stranger = world.party("stranger", address="port")

    a.find(gone)
    world.run(60)

    assert [event.reason for event in a.seen(PeerRefused)] == ["stranger"]
    assert (a.peers, stranger.peers) == (set(), set())
    assert len(a.dials) == 1


def test_peers_do_not_become_strangers_who_took_their_port() -> None:
    """Old connections that reach a new owner of the port are asked to greet, and refused."""
    world = World()
    a, b = world.party("a"), world.party("b", address="port")
    a.find(b)
    world.run_until(lambda: a.peers == {"b"})

    world.kill(b)
    stranger = world.party("stranger", address="port")
    world.run(TIMEOUT_S + 5)

    assert "b" not in a.peers
    assert stranger.peers <= {"a"}
    assert all(peer.id == stranger.core.me for peer in a.core.peers.up())


def test_a_second_node_with_a_taken_id_is_refused() -> None:
    """The newer of two nodes with one id is refused, and everybody concerned is told."""
    world = World()
    a, first = world.party("a"), world.party("first", node_id=b"x" * 16)
    meet(world, a, first)
    second = world.party("second", node_id=b"x" * 16)

    second.find(a)
    world.run(30)

    assert (a.peers, second.peers) == ({"first"}, set())
    assert a.seen(DuplicateId)
    assert second.seen(DuplicateId)
    assert {event.reason for event in second.seen(PeerRefused)} == {"duplicate-id"}


def test_records_of_somebody_who_never_greeted_are_not_believed() -> None:
    """Without HELLO on that connection even the right id gets nothing but UNKNOWN."""
    world = World()
    a, b = world.party("a"), world.party("b")
    meet(world, a, b)
    told = world.captured = []

    a.say(b"forged", Unknown(), sender=b.core.me)
    a.receive(b"forged", encode_envelope(b.core.me, [Refuse("stranger", "")]))
    a.say(b"forged", Goodbye(), sender=b.core.me)
    a.say(b"forged", Heartbeat(0), sender=b.core.me)

    assert a.peers == {"b"}
    answers = [decode_envelope(frame, 100)[1] for route, frame in told if route == b"forged"]
    assert answers == [[Unknown()]]


def test_another_version_is_refused_with_a_reason_both_can_read() -> None:
    """A frame of a newer protocol gets REFUSE in a shape that every version knows."""
    world = World()
    a, b = world.party("a"), world.party("b")
    told = world.captured = []
    newer = b"\x93\x02" + encode_envelope(b.core.me, [])[2:]

    a.receive(b"in1", newer)

    ((sender, records),) = [decode_envelope(frame, 10) for _, frame in told]
    assert sender == a.core.me
    assert isinstance(records[0], Refuse) and records[0].code == "version"
    assert "version 2" in records[0].detail
    assert a.core.protocol_errors == 1


def test_a_refusal_in_another_version_is_understood() -> None:
    """The dialler learns why from a REFUSE of whatever version, and tells its user."""
    world = World()
    a, b = world.party("a"), world.party("b")
    b.alive = False
    a.find(b)
    world.run(LATENCY_S)
    refusal = encode_envelope(b.core.me, [Refuse("version", "speaks protocol version 1; this node speaks 7")])

    a.receive(next(iter(a.dialled)), b"\x93\x07" + refusal[2:])

    assert [(event.reason, event.detail[-7:]) for event in a.seen(PeerRefused)] == [("version", "peaks 7")]


@pytest.mark.parametrize("frame", [b"", b"\xc1", b"\x90", b"\x93\x01\x00\x90", b"\xff" * 100, b"\x93\x01"])
def test_frames_that_are_not_the_protocol_are_counted_and_told(frame: bytes) -> None:
    """Garbage is an event, never an exception."""
    a = World().party("a")

    a.receive(b"in1", frame)

    assert a.core.protocol_errors == 1
    assert len(a.seen(ProtocolError)) == 1


def test_who_only_greeted_by_a_connection_that_took_nothing_is_no_peer() -> None:
    """The other end closed it at once: what else it had sent is answered with UNKNOWN, and harms nobody."""
    world = World()
    a, b = world.party("a"), world.party("b")
    route = bytes(5)

    a.say(route, Hello(a.core.me, b.core.peers.identity), sender=b.core.me)
    assert a.core.peers.known[b.core.me].unwritable == route
    world.captured = []
    a.say(route, Interest(True, False, 0, 0), sender=b.core.me)

    assert a.peers == set()
    (frame,) = [frame for to, frame in world.captured if to == route]
    assert [type(record) for record in decode_envelope(frame, 10)[1]] == [Unknown]
