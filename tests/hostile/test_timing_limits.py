"""Limits of time and pace, reached in virtual time."""

from __future__ import annotations

import random
from itertools import pairwise
from math import inf

import pytest

from tests.protocol.network import World, meet
from zfabric.config import Config
from zfabric.protocol.effects import Send
from zfabric.protocol.inbox import ReliableInbox
from zfabric.wire.batch import FLAG_RELIABLE, Batch
from zfabric.wire.records import Heartbeat, Peers, decode_envelope

NOBODY = "net://nobody:in"


def test_pauses_between_tries_grow_from_the_first_to_the_longest() -> None:
    """Config.reconnect_interval_s and reconnect_interval_s_max bound every pause of a seed that never answers."""
    config = Config(handshake_timeout_s=0.2, reconnect_interval_s=0.1, reconnect_interval_s_max=0.5)
    world = World()
    a = world.party("a", config=config)

    a.seek(NOBODY)
    world.run(20)

    pauses = [later - earlier - 0.2 for (earlier, _), (later, _) in pairwise(a.dials)]
    assert 20 <= len(pauses) <= 40
    assert pauses == sorted(pauses, key=lambda pause: round(pause, 6))
    assert min(pauses) >= 0.1 - 1e-6 and max(pauses) == pytest.approx(0.5)


def test_a_discovered_address_is_forgotten() -> None:
    """After Config.dial_keep_s without an answer or another announcement nobody dials there any more."""
    world = World()
    a = world.party("a", config=Config(dial_keep_s=3.0, handshake_timeout_s=0.2))

    a.core.found(b"x" * 16, [NOBODY], world.now)
    a.pump()
    world.run(60)

    assert a.dials and a.dials[-1][0] <= 3.0


def test_a_peer_that_fell_silent_is_sought_for_a_while() -> None:
    """It is dialled again until Config.rejoin_s has passed."""
    config = Config(rejoin_s=20.0)
    world = World()
    a, b = world.party("a", config=config), world.party("b")
    meet(world, a, b)
    world.kill(b)
    died, before = world.now, len(a.dials)

    world.run(100)

    times = [when for when, _ in a.dials[before:]]
    assert times and died + 10 < times[-1] <= died + config.peer_timeout_s + 20.0 + 1


def test_lists_of_peers_are_sent_with_growing_pauses() -> None:
    """A peer whose digest differs for ever is told no sooner than Config.gossip_interval_s, and ever more rarely."""
    config = Config(gossip_interval_s=2.0)
    world = World()
    a, b = world.party("a", config=config), world.party("b")
    meet(world, a, b)
    peer = a.core.peers.known[b.core.me]
    told, now = [], world.now
    peer.gossiped_at, peer.gossip_doublings = -inf, 0

    for _ in range(1000):
        now += 0.1
        peer.last_heard = now
        a.core.peers.heartbeat(peer, Heartbeat(1), now)
        for action in a.core.actions(now):
            if isinstance(action, Send):
                told += [now for record in decode_envelope(action.frame, 100)[1] if isinstance(record, Peers)]

    assert 3 <= len(told) <= 8
    assert min(later - earlier for earlier, later in pairwise(told)) >= 2.0 - 1e-6


def test_received_bytes_make_an_ack_due_at_once() -> None:
    """Below Config.ack_bytes an ack waits for Config.ack_delay_s, from there on it does not."""
    config = Config(ack_bytes=1000, ack_delay_s=0.5)
    inbox = ReliableInbox(1, "t", 1, config, random.Random(0))
    inbox.anchor(0, 0.0)
    assert inbox.take_ack(0.0) is not None

    def arrives(base: int, nbytes: int) -> None:
        inbox.accept(Batch("t", b"p" * 16, 1, base, 1, 0, b"", None, (), nbytes, FLAG_RELIABLE), 1.0)
        assert inbox.next_batch() is not None
        inbox.delivered(1.0)

    arrives(0, 900)
    assert inbox.take_ack(1.0) is None
    assert inbox.timer() == 1.5
    arrives(1, 100)
    ack = inbox.take_ack(1.0)

    assert ack is not None
    assert ack.received == 2


def test_positions_are_repeated_with_pauses_that_end_growing() -> None:
    """A reader that does not answer hears how far the stream is after Config.position_interval_s, then ever later."""
    config = Config(position_interval_s=0.1, position_interval_s_max=0.8, peer_timeout_s=60.0)
    world = World()
    a, b = world.party("a", config=config), world.party("b", config=config)
    meet(world, a, b)
    outbox = a.open_topic("t", "at-least-once")
    b.subscribe("t")
    world.run_until(lambda: outbox.remote)
    world.cut(a, b)
    a.publish(outbox, 1)
    assert outbox.position_at == pytest.approx(world.now + 0.1)

    due: list[float] = []
    while len(due) < 8:
        due.append(outbox.position_at)
        world.run_until(lambda: outbox.position_at != due[-1])

    pauses = [round(later - earlier, 3) for earlier, later in pairwise(due)]
    assert pauses == [0.2, 0.4, 0.8, 0.8, 0.8, 0.8, 0.8]
