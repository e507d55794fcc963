"""Channels: whatever happens to connections, records arrive once and in order, or both sides begin anew."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from tests.protocol.network import LATENCY_S, Party, World, meet
from zfabric.config import Config
from zfabric.protocol.peers import PeerRecord
from zfabric.wire.letters import LETTER_RECORDS_MAX, Letter, LetterRecord
from zfabric.wire.service_records import Failure

SHORT = Config(heartbeat_interval_s=0.5, peer_timeout_s=1.5, rejoin_s=1000, channel_retry_s=0.2)


class Talker:
    """A machine that says numbers to its peers and writes down what it hears, by session."""

    def __init__(self, party: Party) -> None:
        self.records: dict[type[LetterRecord], Callable[[PeerRecord, Any, float], None]] = {Failure: self._hear}
        self.party = party
        self.peers: dict[bytes, PeerRecord] = {}
        self.sessions = 0
        self.said = 0
        self.heard: list[str] = []
        self.past: list[list[str]] = []
        self.rooms = 0
        party.core.channels.register(self)

    def peer_joined(self, peer: PeerRecord, now: float) -> None:
        """Begin."""
        assert peer.id not in self.peers
        self.peers[peer.id] = peer
        self.sessions += 1
        self.said = 0
        self.past.append(self.heard)
        self.heard = []

    def peer_left(self, peer: PeerRecord, now: float) -> None:
        """End."""
        del self.peers[peer.id]

    def has_room(self, peer: PeerRecord, now: float) -> None:
        """Something was acknowledged."""
        self.rooms += 1

    def _hear(self, peer: PeerRecord, record: Failure, now: float) -> None:
        self.heard.append(record.code)

    def say(self, *, nbytes: int = 64) -> None:
        """Say the next number."""
        for peer in self.peers.values():
            text = f"{self.party.name}.{self.sessions}.{self.said}"
            self.party.core.channels.tell(peer, Failure(0, text), nbytes)
        self.said += 1
        self.party.pump()


def talkers(world: World, config: Config = SHORT) -> tuple[Talker, Talker]:
    """Two nodes that are peers."""
    a, b = (Talker(world.party(name, config=config)) for name in "ab")
    meet(world, a.party, b.party)
    world.run(1)
    return a, b


def check(heard: list[str]) -> None:
    """What one session heard comes from one session of the other, from its beginning and without a hole."""
    if heard:
        session = heard[0].rsplit(".", 1)[0]
        assert heard == [f"{session}.{number}" for number in range(len(heard))]


def test_records_of_a_turn_are_one_letter_and_one_frame() -> None:
    """Ten records, one frame, and an acknowledgement a little later."""
    world = World()
    a, b = talkers(world)
    peer = next(iter(a.peers.values()))
    before = world.frames_sent

    for number in range(10):
        a.party.core.channels.tell(peer, Failure(0, f"a.1.{number}"))
    a.party.pump()
    world.run(3 * LATENCY_S)

    assert world.frames_sent == before + 1
    assert len(b.heard) == 10
    world.run_until(lambda: a.rooms == 1, SHORT.ack_delay_s + 3 * LATENCY_S)


def test_a_broken_connection_loses_nothing() -> None:
    """What was on its way when the connection broke is sent again on the next."""
    world = World()
    a, b = talkers(world)

    for _ in range(20):
        a.say()
        b.say()
        world.break_connections(a.party, b.party)
        world.run(0.05)
    world.run_until(lambda: len(a.heard) == len(b.heard) == 20, 5)

    check(a.heard)
    check(b.heard)
    assert a.sessions == b.sessions == 1


def test_lost_letters_are_said_again_without_a_reconnection() -> None:
    """A short cut that nobody notices."""
    world = World()
    a, b = talkers(world)

    world.cut(a.party, b.party)
    a.say()
    world.run(0.1)
    world.heal()
    a.say()
    world.run_until(lambda: len(b.heard) == 2, 1)

    check(b.heard)
    assert a.sessions == 1


def test_who_forgot_and_who_did_not_both_begin_anew() -> None:
    """One node was stopped for so long that the other took it for gone; it does not know."""
    world = World()
    a, b = talkers(world)
    for _ in range(3):
        a.say()
        b.say()
    world.run(0.1)
    b.party.stalled = True
    world.run_until(lambda: not a.peers, 5)
    b.party.stalled = False
    b.say()
    world.run_until(lambda: a.peers, 5)
    world.run(1)
    a.say()
    b.say()
    world.run(1)

    assert (a.sessions, b.sessions) == (2, 2)
    assert a.heard == ["b.2.0"]
    assert b.heard == ["a.2.0"]


def test_a_session_that_took_something_old_is_broken() -> None:
    """A node that forgot its peer hears an old letter before its own first one has left: both begin anew."""
    world = World()
    a, b = talkers(world)
    b.say()
    world.run(0.1)
    peer, channels = next(iter(a.peers.values())), a.party.core.channels
    channels.peer_left(peer, world.now)
    channels.peer_joined(peer, world.now)
    old = next(iter(b.party.core.channels._channels.values())).session
    channels.heard(peer, Letter(old, 0, 0, []), world.now)
    a.party.pump()
    world.run(3)
    a.say()
    b.say()
    world.run(1)

    assert (a.heard, b.heard) == ([f"b.{b.sessions}.0"], [f"a.{a.sessions}.0"])
    assert b.sessions == 2


def test_there_is_room_until_channel_bytes_wait() -> None:
    """And there is again when they were acknowledged."""
    world = World()
    a, b = talkers(world, Config(channel_bytes=1000))
    peer = next(iter(a.peers.values()))
    channels = a.party.core.channels

    a.say(nbytes=900)
    assert channels.has_room(peer)
    a.say(nbytes=200)
    assert not channels.has_room(peer)
    world.run_until(lambda: channels.has_room(peer), 1)

    assert len(b.heard) == 2


def test_letters_are_bounded() -> None:
    """Many records, or long ones, become several letters in several frames."""
    world = World()
    a, b = talkers(world)
    peer = next(iter(a.peers.values()))
    count = 2 * LETTER_RECORDS_MAX + 1

    for number in range(count):
        a.party.core.channels.tell(peer, Failure(0, f"a.1.{number}"), 10_000)
    before = world.frames_sent
    a.party.pump()
    frames = world.frames_sent - before
    world.run_until(lambda: len(b.heard) == count, 1)

    check(b.heard)
    assert frames == pytest.approx(count * 10_000 / (4 * 1024 * 1024), abs=1.5)


@pytest.mark.parametrize("seed", range(150))
def test_sessions_agree_after_any_faults(seed: int) -> None:
    """Breaks, cuts of any length and stopped nodes; then calm, in which both hear all of the last session."""
    world, rng = World(seed=seed), random.Random(seed)
    a, b = talkers(world)
    for _ in range(rng.randrange(10, 60)):
        match rng.randrange(8):
            case 0:
                world.break_connections(a.party, b.party)
            case 1:
                world.cut(a.party, b.party)
            case 2 | 3:
                world.heal()
            case 4:
                rng.choice((a, b)).party.stalled = rng.random() < 0.5
            case _:
                rng.choice((a, b)).say()
        world.run(rng.choice((0, LATENCY_S, 0.01, 0.3, 1.0, 2.0)))
    world.heal()
    a.party.stalled = b.party.stalled = False
    a.party.pump()
    b.party.pump()
    world.run_until(lambda: a.peers and b.peers, 60)
    world.run(5)
    before = a.sessions, b.sessions
    a.say()
    b.say()
    world.run(5)

    assert (a.sessions, b.sessions) == before, "sessions end for ever"
    for talker in (a, b):
        for heard in (*talker.past, talker.heard):
            check(heard)
    assert a.heard == [f"b.{b.sessions}.{number}" for number in range(b.said)]
    assert b.heard == [f"a.{a.sessions}.{number}" for number in range(a.said)]
