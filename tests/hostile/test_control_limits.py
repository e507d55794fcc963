"""Control frames that are far too many, or say far too much."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from typing import Any

import pytest
import zmq
from msgspec.structs import replace

from tests.hostile.attackers import MakeImpostor, port
from tests.hostile.conftest import Arena, count_dials, driver_of, next_event
from tests.waiting import wait_until_async
from zfabric import PeerJoined, PeerLeft, PeerRefused
from zfabric.wire.records import (
    Ack,
    Attached,
    Goodbye,
    Heartbeat,
    Hello,
    Interest,
    PatternRequest,
    Position,
    Record,
    Refuse,
    Repair,
    Start,
    TopicOffer,
    Welcome,
)


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
    await late.wait_for_peers(2, timeout=30)


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
