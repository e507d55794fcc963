"""How a few addresses become a mesh, and what keeps forged ones from doing harm."""

from __future__ import annotations

from itertools import pairwise
from math import inf

import pytest

from tests.protocol.network import World, all_meet, meet
from zfabric.config import Config
from zfabric.events import PeerJoined, PeerLeft, PeerRefused, SubscriberJoined
from zfabric.wire.records import Hello, Identity

# -- finding everybody -------------------------------------------------------------------------


def test_a_seed_is_tried_for_ever() -> None:
    """Whatever the pause, a seed that appears at last is found within the longest back-off."""
    world = World()
    a = world.party("a")
    a.seek("net://late:in")

    world.run(3 * 3600)
    late = world.party("late")

    world.run_until(lambda: all_meet([a, late]), Config().reconnect_interval_s_max + Config().handshake_timeout_s)


def test_a_seed_that_left_is_sought_again() -> None:
    """After the node behind a seed said goodbye, its successor at that address is found."""
    world = World()
    a, first = world.party("a"), world.party("first", address="seed")
    a.seek(first.inbox)
    world.run_until(lambda: a.peers == {"first"})

    first.goodbye()
    world.run(10)
    world.party("second", address="seed")

    world.run_until(lambda: a.peers == {"second"}, 15)


@pytest.mark.parametrize("size", [3, 8])
def test_a_chain_of_seeds_becomes_a_mesh(size: int) -> None:
    """Each node knows only the one before; soon everybody knows everybody."""
    world = World()
    chain = [world.party(f"n{index}") for index in range(size)]
    for before, party in pairwise(chain):
        party.seek(before.inbox)

    world.run_until(lambda: all_meet(chain), 10)


def test_three_islands_grow_together() -> None:
    """Separate meshes that get one bridge each know everybody within seconds."""
    world = World()
    islands = [[world.party(f"{island}{index}") for index in range(4)] for island in "xyz"]
    for island in islands:
        meet(world, *island)
    everybody = [party for island in islands for party in island]

    islands[0][3].find(islands[1][0])
    islands[1][3].find(islands[2][0])

    world.run_until(lambda: all_meet(everybody), 30)
    world.run(60)
    assert all(party.seen(PeerLeft) == [] for party in everybody)
    assert {len(party.seen(PeerJoined)) for party in everybody} == {len(everybody) - 1}


def test_a_settled_mesh_is_quiet() -> None:
    """When everybody knows everybody, nobody gossips: a heartbeat a second per pair is all."""
    world = World()
    parties = [world.party(f"n{index}") for index in range(5)]
    meet(world, *parties)
    world.run(120)

    before = world.frames_sent
    world.run(60)

    assert world.frames_sent - before <= 5 * 4 * 60 * 1.2


def test_one_subscriber_is_told_once() -> None:
    """A subscriber that joins by two connections at once is one SubscriberJoined event."""
    world = World()
    a, b = world.party("a"), world.party("b")
    a.open_topic("t")
    b.subscribe("t")

    a.find(b)
    b.find(a)
    world.run(10)

    assert len(a.seen(SubscriberJoined)) == 1


# -- limits ------------------------------------------------------------------------------------


def test_forged_announcements_cannot_make_a_node_flood_the_network() -> None:
    """Thousands of addresses are dialled at Config.dials_per_s_max, never more than dials_pending_max at a time."""
    world = World()
    config = Config(dials_per_s_max=50, dials_pending_max=40, discovery_records_max=500, dial_keep_s=5)
    a = world.party("a", config=config)

    for number in range(5000):
        a.core.found(number.to_bytes(16, "big"), [f"net://nobody{number}:in"], world.now)
    a.pump()
    most = 0
    for _ in range(200):
        world.run(0.05)
        most = max(most, len(a.dialled))

    assert most <= 40
    for start in (second / 2 for second in range(20)):
        assert sum(start <= when < start + 1 for when, _ in a.dials) <= 50 + 50
    world.run(60)
    assert a.dialled == {}
    assert a.core.timer() == inf


def test_peers_max_is_kept_and_told() -> None:
    """A full node refuses further peers with a reason; when one leaves, there is room."""
    world = World()
    hub = world.party("hub", config=Config(peers_max=2))
    others = [world.party(f"n{index}") for index in range(3)]
    for party in others:
        party.seek(hub.inbox)
        world.run(0.5)

    assert hub.peers == {"n0", "n1"}
    assert {event.reason for event in others[2].seen(PeerRefused)} == {"peers-max"}

    others[0].goodbye()
    world.run_until(lambda: "n2" in hub.peers, 30)


def test_endpoints_of_a_peer_are_limited() -> None:
    """Only Config.endpoints_per_peer_max addresses of one announcement are looked at."""
    world = World()
    a = world.party("a", config=Config(endpoints_per_peer_max=4))

    a.core.found(b"x" * 16, [f"net://nobody{number}:in" for number in range(100)], world.now)
    a.pump()
    world.run(1)

    assert len(set(a.dials)) <= 4 * 2


def test_a_greeting_with_too_many_records_is_an_error() -> None:
    """Config.control_records_max bounds a frame."""
    world = World()
    a = world.party("a", config=Config(control_records_max=10))
    identity = Identity(bytes(16), "test", "b", "host", 1, (), ())

    a.say(b"in1", *[Hello(None, identity)] * 11, sender=b"b" * 16)

    assert a.core.protocol_errors == 1
    assert a.core.peers.known == {}
