"""What a link between two nodes takes, counted: a mesh of n nodes pays it n * (n - 1) / 2 times."""

from __future__ import annotations

import msgspec
import pytest

from tests.protocol.network import World, all_meet
from zfabric.config import Config
from zfabric.protocol.effects import Route
from zfabric.wire.records import Heartbeat, encode_envelope

FRAMES_OF_A_LINK = 5
"HELLO, WELCOME, both interests with the first letters, and the acknowledgement of the second letter."
BEFORE_HEARTBEATS_S = 0.4


def frames(world: World) -> int:
    """How many were sent: the world counts a HELLO when it is said, and again when the connection is there."""
    return world.frames_sent - sum(len(party.dials) for party in world.parties.values())


def test_a_link_takes_one_connection_and_five_frames() -> None:
    """Who publishes nothing for the other says no more to it."""
    world = World("ipc")
    a, b = world.party("a"), world.party("b")
    a.find(b)
    world.run(BEFORE_HEARTBEATS_S)
    b.find(a)
    world.run(BEFORE_HEARTBEATS_S)
    assert all_meet([a, b])
    assert (len(a.dials), len(b.dials)) == (1, 0)
    assert frames(world) == FRAMES_OF_A_LINK


def test_links_of_a_mesh_cost_no_more_than_one_alone() -> None:
    """Whoever comes finds all that are there; that they are told of each other again costs neither frames nor dials."""
    world = World("ipc")
    mesh = [
        world.party(f"n{index}", config=Config(heartbeat_interval_s=100, peer_timeout_s=500)) for index in range(20)
    ]
    for index, party in enumerate(mesh):
        party.find(*mesh[:index])
        world.run(0.1)
        for other in mesh[:index]:
            other.find(party)
    world.run(2.0)
    links = 20 * 19 // 2
    assert all_meet(mesh)
    assert sum(len(party.dials) for party in mesh) == links
    assert frames(world) == links * FRAMES_OF_A_LINK


def test_nodes_of_a_host_beat_at_the_same_moments() -> None:
    """Whenever they were started: who has many peers wakes for their beats twice an interval, not once for each."""
    world = World("ipc")
    node = world.party("node")
    others = []
    for index in range(10):
        others.append(world.party(f"n{index}"))
        others[-1].find(node)
        world.run(0.137)
    heard: list[float] = []
    receive = node.core.receive

    def hear(route: Route, frame: bytes, now: float, user: str = "") -> bool:
        heard.append(now)
        return receive(route, frame, now, user)

    node.core.receive = hear  # type: ignore[method-assign]
    world.run(10.0)
    assert len(heard) >= 90
    assert len({round(at, 2) for at in heard}) <= 2 * 10 + 1


def test_a_heartbeat_leaves_nothing_to_do_unless_it_tells_something() -> None:
    """Nobody has to look at everything after each of them; one of a node that knows other peers is answered."""
    world = World("ipc")
    a, b = world.party("a"), world.party("b")
    a.find(b)
    world.run(BEFORE_HEARTBEATS_S)
    (peer,) = a.core.peers.up()
    assert a.core.timer() > world.now
    same = encode_envelope(peer.id, [Heartbeat(a.core.peers._digest)])
    assert a.core.receive(peer.routes[0], same, world.now)
    assert a.core.streams_due() > world.now and not a.core.actions(world.now)
    other = encode_envelope(peer.id, [Heartbeat(1)])
    assert a.core.receive(peer.routes[0], other, world.now)
    assert a.core.streams_due() < world.now and a.core.actions(world.now)


def test_who_came_while_it_waited_to_be_dialled_is_not_dialled() -> None:
    """When many start at once each waits for its turn to dial the others, and half of them come meanwhile."""
    world = World("ipc")
    a, silent, c = world.party("a", config=Config(dials_pending_max=1)), world.party("silent"), world.party("c")
    world.cut(a, silent)
    a.find(silent, c)
    c.find(a)
    world.run(60.0)
    assert a.peers == {"c"}
    assert {endpoint for _, endpoint in a.dials} == {silent.inbox}


@pytest.mark.parametrize(
    ("host", "own", "proof"),
    [("host", "127.0.0.1-reader", False), ("elsewhere", "127.0.0.1-reader", True), ("host", "10.0.0.1-reader", True)],
)
def test_loopback_outlets_of_this_host_need_no_proof(host: str, own: str, proof: bool) -> None:
    """Who was dialled follows the other's outlet without dialling it.

    One of another host is none of ours, and who listens beyond this host believes nobody that it is on it.
    """
    world = World("tcp")
    reader, writer = world.party("reader", address=own), world.party("writer", address="127.0.0.1-writer")
    writer.core.introduce(msgspec.structs.replace(writer.core.peers.identity, host=host))
    reader.subscribe("x")
    writer.open_topic("x")
    writer.find(reader)
    world.run(0.1)
    assert all_meet([reader, writer])
    assert bool(reader.dials) == proof
    assert reader.feeds == {writer.outlet}
