"""How cores notice that a peer's process died, and whom they must not take for dead."""

from __future__ import annotations

import msgspec
import pytest

from tests.protocol.network import Party, World, meet
from tests.protocol.test_peers import TIMEOUT_S, talks
from zfabric.events import PeerLeft


@pytest.mark.parametrize("who_dials", ["the one that dies", "the other"])
def test_a_process_that_dies_is_missed_within_a_second(who_dials: str) -> None:
    """Its connections end and nobody listens at its addresses: no need to wait until it counts as silent."""
    world = World()
    dies, other = world.party("dies"), world.party("other")
    (dies if who_dials != "the other" else other).find(other if who_dials != "the other" else dies)
    world.run_until(lambda: other.peers == {"dies"})
    world.run(0.3)

    world.kill(dies)

    world.run_until(lambda: not other.peers, 1)
    assert [event.reason for event in other.seen(PeerLeft)] == ["gone"]


@pytest.mark.parametrize("who_dials", ["a", "b"])
def test_a_listener_that_is_away_for_a_moment_has_not_died(who_dials: str) -> None:
    """All of its connections end, and its address refuses until it has bound it anew: it is missed by nobody."""
    world = World()
    a, b = world.party("a"), world.party("b")
    (a if who_dials == "a" else b).find(b if who_dials == "a" else a)
    world.run_until(lambda: a.peers == {"b"} and b.peers == {"a"})
    for party in (a, b):
        party.inbox, party.second_inbox = f"away:{party.inbox}", f"away:{party.second_inbox}"
    world.break_connections(a, b)
    world.run(0.35)
    for party in (a, b):
        party.inbox, party.second_inbox = party.inbox.removeprefix("away:"), party.second_inbox.removeprefix("away:")

    world.run(TIMEOUT_S + 2)

    assert a.seen(PeerLeft) == b.seen(PeerLeft) == []
    assert talks(world, a, b)


def move_behind_nat(party: Party) -> None:
    """All of the addresses that it tells of refuse."""
    party.core.introduce(msgspec.structs.replace(party.core.peers.identity, inbox=("net://nobody:in",)))


def test_a_peer_that_cannot_be_dialled_back_greets_as_soon_as_its_connection_is_made_again() -> None:
    """Its addresses refuse all the time, as in a container: its next heartbeat would be too late."""
    world = World()
    a, b = world.party("a"), world.party("b")
    move_behind_nat(b)
    b.find(a)
    world.run_until(lambda: a.peers == {"b"} and b.peers == {"a"})

    for _ in range(10):
        world.break_connections(a, b)
        world.run(1.23)

    assert a.seen(PeerLeft) == b.seen(PeerLeft) == []
    world.kill(b)
    world.run_until(lambda: not a.peers, 1)


def test_a_peer_that_only_its_seed_leads_to_is_dialled_there_when_its_connection_ends() -> None:
    """As through a forwarded port: its own addresses refuse, and say nothing of whether it lives."""
    world = World()
    a, b = world.party("a"), world.party("b")
    move_behind_nat(b)
    a.seek(b.inbox)
    world.run_until(lambda: a.peers == {"b"} and b.peers == {"a"})
    forwarded, b.inbox = b.inbox, "net://away:in"
    world.break_connections(a, b)
    world.run(0.15)
    b.inbox = forwarded

    world.run(TIMEOUT_S + 2)

    assert a.seen(PeerLeft) == b.seen(PeerLeft) == []
    assert talks(world, a, b)


def test_a_dialled_connection_that_takes_nothing_more_is_hung_up() -> None:
    """Another replaces it: libzmq would keep both, and go on trying when the peer is gone."""
    world = World()
    a, b = world.party("a"), world.party("b")
    a.find(b)
    world.run_until(lambda: a.peers == {"b"} and b.peers == {"a"})
    (full,) = a.dialled
    a.unwritable.add(full)

    world.run_until(lambda: full not in a.dialled, 5)
    world.run_until(lambda: len(a.dialled) == 1, 5)

    assert talks(world, a, b)
    assert a.seen(PeerLeft) == b.seen(PeerLeft) == []


def test_a_partition_that_ends_connections_is_no_death() -> None:
    """Whoever cannot be reached, but does not refuse, counts as there until it was silent for long enough."""
    world = World()
    a, b = world.party("a"), world.party("b")
    meet(world, a, b)

    world.cut(a, b)
    world.break_connections(a, b)
    world.run(TIMEOUT_S - 2)
    assert (a.peers, b.peers) == ({"b"}, {"a"})

    world.run_until(lambda: not a.peers and not b.peers, 5)
    assert {event.reason for event in a.seen(PeerLeft) + b.seen(PeerLeft)} == {"silent"}


def test_connections_that_end_without_a_goodbye_cost_little() -> None:
    """Whoever connects and leaves makes a node ask its peers who is there four times a second, not each time."""
    world = World()
    a, others = world.party("a"), [world.party(f"b{number}") for number in range(10)]
    for other in others:
        other.find(a)
    world.run_until(lambda: len(a.peers) == len(others))
    world.run(3)
    begun, quiet = world.frames_sent, world.frames_sent
    world.run(2)
    quiet = world.frames_sent - begun

    for _ in range(2000):
        a.core.peers.connection_ended(world.now)
        a.pump()
        world.run(0.001)

    assert world.frames_sent - begun - 2 * quiet <= 4 * 2 * len(others) + len(others)


def test_a_goodbye_makes_nobody_ask_who_has_left() -> None:
    """A mesh that closes one by one would otherwise send a heartbeat to each, for each."""
    world = World()
    a, others = world.party("a"), [world.party(f"b{number}") for number in range(10)]
    for other in others:
        other.find(a)
    world.run_until(lambda: len(a.peers) == len(others))
    world.run(3.01)
    begun = world.frames_sent

    others[0].goodbye()
    world.run(0.3)

    assert len(a.peers) == len(others) - 1
    assert world.frames_sent - begun == len(others), "its own goodbyes alone"
