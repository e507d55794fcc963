"""Batches, markers and filters that are malformed, forged or far too many."""

from __future__ import annotations

import asyncio
import os
import random
import struct
from typing import Any

import msgpack
import pytest
import zmq

from tests.hostile.attackers import Impostor, MakeImpostor, port
from tests.hostile.conftest import Arena, next_event
from tests.waiting import wait_until_async
from zfabric import DecodeError, Gap, Message, PeerLeft, Subscription
from zfabric.wire.batch import BatchWriter
from zfabric.wire.records import Data, Goodbye, Interest, Missing, PatternRequest, Positions, TopicOffer

ONE = msgpack.packb(1)


async def evil_publisher(arena: Arena, impostor: MakeImpostor, **options: Any) -> tuple[Impostor, Subscription]:
    """A peer whose outlet the victim follows, and the victim's subscription to it."""
    subscription = arena.victim.subscribe("evil.#", **options)
    attacker = impostor(outlet=True)
    await attacker.join(port(arena.victim, "inbox-ipc"))
    await attacker.offer("evil.x")
    await wait_until_async(lambda: heard_filter(attacker, b"\x01evil"))
    return attacker, subscription


def heard_filter(attacker: Impostor, beginning: bytes) -> bool:
    """Whether the attacker's outlet has received a subscription that begins so."""
    while attacker.outlet.poll(0):
        if attacker.outlet.recv().startswith(beginning):
            return True
    return False


async def test_malformed_batches_are_counted(arena: Arena, impostor: MakeImpostor) -> None:
    """Everything that is not a batch is one error each, and a good one behind them arrives."""
    attacker, subscription = await evil_publisher(arena, impostor)
    (good,) = (bytes(frame) for frame in attacker.batch("evil.x", ONE))
    (summed,) = (bytes(frame) for frame in attacker.batch("evil.x", ONE, crc=True))
    head, header, body = good[:7], good[7:70], good[70:]
    cut = [good[:size] for size in range(5, len(good))]
    broken = [
        summed[:-1] + b"\x02",
        head + header[:3] + b"\xcc\x02" + header[5:] + body,
        head + header[:2] + b"\x98" + header[3:] + body,
        head + header,
        good + b"\xc1",
        good + b"\x91" * 200_000,
        good + b"\x93\xdf\xff\xff\xff\xff",
        good + msgpack.packb([{"a": 1}]),
        good + msgpack.packb([{}, {0: {1: 2}}]),
        b"evil.\xff\xfe\0" + header + body,
        b"evil." + b"x" * 300 + b"\0" + header + body,
        b"evil.",
    ]

    for frame in cut + broken:
        attacker.publish(frame)
    attacker.publish(good)

    assert (await subscription.receive(timeout=30)).value == 1
    assert arena.statistics.protocol_errors == len(cut) + len(broken)
    assert "batch" in (await arena.complaint()).reason
    await arena.stays_small()


@pytest.mark.parametrize("limits", [{"batch_messages_max": 100, "buffers_per_batch_max": 10, "topic_bytes_max": 30}])
async def test_batches_beyond_the_limits_are_refused(
    arena: Arena, impostor: MakeImpostor, limits: dict[str, Any]
) -> None:
    """batch_messages_max, buffers_per_batch_max and topic_bytes_max hold for what arrives; the reason names them."""
    attacker, subscription = await evil_publisher(arena, impostor)

    attacker.publish(*attacker.batch("evil.x", *[ONE] * 101))
    await arena.complaint("Config.batch_messages_max")
    attacker.publish(*attacker.batch("evil.x", ONE), *[b"buffer"] * 11)
    await arena.complaint("Config.buffers_per_batch_max")
    attacker.publish(*attacker.batch("evil." + "x" * 26, ONE))
    await arena.complaint("topic")
    attacker.publish(*attacker.batch("evil.x", *[ONE] * 100, base=500), *[b"buffer"] * 10)

    assert [(await subscription.receive(timeout=30)).value for _ in range(100)] == [1] * 100
    assert arena.statistics.protocol_errors == 3


@pytest.mark.parametrize("limits", [{"frame_bytes_max": 100_000, "reconnect_interval_s_max": 0.3}])
async def test_a_batch_that_is_too_large_here_is_reported_as_lost(arena: Arena, limits: dict[str, Any]) -> None:
    """A frame over Config.frame_bytes_max ends the feed's connection: that is told, and it is connected again.

    libzmq itself would never try again.
    """
    subscription = arena.victim.subscribe("large")
    publisher = arena.friend.publisher("large")
    await publisher.wait_for(subscribers=1, timeout=30)
    await publisher.publish("small")
    assert (await subscription.receive(timeout=30)).value == "small"

    await publisher.publish("x" * 100_000)

    await arena.complaint("Config.frame_bytes_max")
    await publisher.wait_for(subscribers=1, timeout=30)
    await publisher.publish("small again")
    assert (await subscription.receive(timeout=30)).value == "small again"
    gap = await next_event(arena.events, Gap)
    assert (gap.topic, gap.first, gap.last) == ("large", 1, 1)
    await arena.stays_small()


@pytest.mark.parametrize("limits", [{"frame_bytes_max": 100_000, "reconnect_interval_s_max": 0.3}])
async def test_a_reliable_batch_that_is_too_large_here_is_told_to_be_missing(
    arena: Arena, limits: dict[str, Any]
) -> None:
    """Nobody tries for ever to repair what this node does not take: it told its peers how much it does."""
    subscription = arena.victim.subscribe("large")
    publisher = arena.friend.publisher("large", delivery="at-least-once")
    await publisher.wait_for(subscribers=1, timeout=30)

    await publisher.publish("x" * 100_000)
    await arena.complaint("Config.frame_bytes_max")
    await publisher.publish("small")

    assert (await subscription.receive(timeout=30)).value == "small"
    gap = await next_event(arena.events, Gap)
    assert (gap.first, gap.last, gap.cause) == (0, 0, "too-large")


async def test_forged_topics_are_refused(arena: Arena, impostor: MakeImpostor) -> None:
    """A topic with illegal characters never becomes a stream, whatever pattern takes it; the peer is named."""
    attacker, subscription = await evil_publisher(arena, impostor)
    topics = ["evil.a b", "evil..x", "evil.", "evil.\x1b[2J", "evil.*", "evil.#", "evil./etc/passwd"]

    for topic in topics:
        writer = BatchWriter("evil.x", attacker.id, 1)
        writer.buffer += ONE
        writer.count = 1
        frame = bytes(writer.seal(0, 1)[0])
        attacker.publish(topic.encode() + frame[6:])
        assert (await arena.complaint()).address == f"impostor ({attacker.id.hex()})"
    attacker.publish(*attacker.batch("evil.x", ONE))

    assert (await subscription.receive(timeout=30)).topic == "evil.x"


async def test_payloads_that_do_not_decode_are_reported(arena: Arena, impostor: MakeImpostor) -> None:
    """Bad UTF-8, bombs, deep nesting and wrong counts are DecodeErrors; good messages beside them arrive."""
    attacker, _ = await evil_publisher(arena, impostor)
    seen: list[int] = []

    @arena.victim.on("evil.#")
    async def read(message: Message) -> None:
        seen.append(message.seq)

    bad = [
        b"\xa2\xff\xfe",
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\xdd\x0f\xff\xff\xff" * 20_000,
        b"\x91" * 200_000,
        b"\xc1",
        b"",
        msgpack.packb(msgpack.ExtType(1, b"\x00")),
        msgpack.packb(msgpack.ExtType(2, msgpack.packb(["|O8", [1], 0]))),
        msgpack.packb(msgpack.ExtType(2, msgpack.packb(["<f8", [2**40, 2**20], b""]))),
    ]

    for number, body in enumerate(bad):
        attacker.publish(*attacker.batch("evil.x", body, base=number))
        event = await next_event(arena.events, DecodeError)
        assert (event.topic, event.seq, event.source.id) == ("evil.x", number, attacker.id.hex())
    attacker.publish(*attacker.batch("evil.x", ONE, b"\xa2\xff\xfe", ONE, base=len(bad)))

    await wait_until_async(lambda: seen == [len(bad), len(bad) + 2])
    assert arena.statistics.total("undecodable") == len(bad) + 1
    await arena.stays_small()


@pytest.mark.parametrize("limits", [{"batch_messages_max": 50, "inboxes_max": 30}])
async def test_malformed_bundles_are_counted(arena: Arena, impostor: MakeImpostor, limits: dict[str, Any]) -> None:
    """Bundles that are cut short, too long, forged or of too many streams are one error each; a good one arrives."""
    attacker, subscription = await evil_publisher(arena, impostor)
    to = arena.victim.id
    good = attacker.bundle(("evil.x", 0, ONE), ("evil.y", 0, ONE), to=to)
    broken = [good[:size] for size in range(17, 60)]
    broken += [
        good[:33] + b"\xc1" + good[34:],
        good[:29] + b"\xff\xff\xff\xff" + good[33:],
        attacker.bundle(("evil.x", 0, ONE), to=to, counts=[51]),
        attacker.bundle(("evil.x", 0, ONE), ("evil.y", 0, ONE), to=to, counts=[1]),
        attacker.bundle(("evil.a b", 0, ONE), to=to),
        attacker.bundle(("evil." + "x" * 300, 0, ONE), to=to),
        attacker.bundle(("evil.\x1b[2J", 0, ONE), to=to),
    ]

    for frame in broken:
        attacker.publish(frame)
    attacker.publish(good, b"a buffer")
    attacker.publish(attacker.bundle(*[(f"evil.t{number}", 0, ONE) for number in range(40)], to=to))
    attacker.publish(attacker.bundle(("evil.t0", 1, ONE), ("evil.*", 0, ONE), ("evil.t1", 1, ONE), to=to))

    seen = [(await subscription.receive(timeout=30)).topic for _ in range(32)]
    assert seen == [*(f"evil.t{number}" for number in range(30)), "evil.t0", "evil.t1"]
    assert arena.statistics.protocol_errors == len(broken) + 3
    assert len(arena.victim._driver.core.interests.local._cache) < 60  # type: ignore[union-attr]
    await arena.stays_small()


async def test_payloads_of_bundles_that_do_not_decode_are_reported(arena: Arena, impostor: MakeImpostor) -> None:
    """Bad values, bombs and wrong counts are a DecodeError for each message, with its topic."""
    attacker, subscription = await evil_publisher(arena, impostor)
    to = arena.victim.id
    bad = [b"\xc1", b"", b"\xdd\xff\xff\xff\xff", b"\x91" * 200_000, msgpack.packb(msgpack.ExtType(1, b"\x00"))]
    reading = asyncio.ensure_future(subscription.receive(timeout=30))

    for number, body in enumerate(bad):
        attacker.publish(attacker.bundle(("evil.x", number, body), ("evil.y", number, body), to=to))
        events = [await next_event(arena.events, DecodeError) for _ in range(2)]
        assert [(event.topic, event.seq) for event in events] == [("evil.x", number), ("evil.y", number)]
    attacker.publish(attacker.bundle(("evil.x", 9, b"\xa2\xff\xfe"), ("evil.y", 9, ONE), to=to))

    assert (await reading).topic == "evil.y"
    await arena.stays_small()


async def test_a_stranger_s_batches_are_counted_and_dropped(arena: Arena, impostor: MakeImpostor) -> None:
    """A producer that is no peer is a stranger, on whatever outlet its batches come."""
    attacker, subscription = await evil_publisher(arena, impostor)
    me, attacker.id = attacker.id, os.urandom(16)
    for number in range(50):
        attacker.publish(*attacker.batch("evil.x", ONE, base=number))
    attacker.id = me
    attacker.publish(*attacker.batch("evil.x", ONE, base=7))

    assert (await subscription.receive(timeout=30)).seq == 7
    assert arena.statistics.strangers == 50


async def test_noise_from_an_outlet_is_only_noise(arena: Arena, impostor: MakeImpostor) -> None:
    """Random bytes and good batches with random changes: values, errors or gaps, and the node goes on."""
    attacker, subscription = await evil_publisher(arena, impostor)
    noise = random.Random(7)
    (good,) = (bytes(frame) for frame in attacker.batch("evil.x", ONE, ONE, ONE))

    for _ in range(1000):
        frame = bytearray(good)
        for _ in range(noise.randrange(1, 4)):
            frame[noise.randrange(5, len(frame))] = noise.randrange(256)
        attacker.publish(frame, *[noise.randbytes(5)] * noise.randrange(3))
        attacker.publish(b"evil" + noise.randbytes(noise.randrange(100)))
    epoch = 2**32 - 1
    attacker.publish(*attacker.batch("evil.last", ONE, epoch=epoch))

    while (await subscription.receive(timeout=30)).topic != "evil.last":
        pass
    await arena.stays_small()


@pytest.mark.parametrize("limits", [{"inboxes_max": 20}])
async def test_streams_are_bounded_and_live_ones_stay(
    arena: Arena, impostor: MakeImpostor, limits: dict[str, Any]
) -> None:
    """Beyond Config.inboxes_max new streams are refused by name; those that flow go on; a peer that left makes room."""
    attacker, subscription = await evil_publisher(arena, impostor)

    for number in range(25):
        attacker.publish(*attacker.batch(f"evil.t{number}", ONE))
    attacker.publish(*attacker.batch("evil.t0", ONE, base=1))

    await arena.complaint("21 is over Config.inboxes_max = 20")
    seen = [(await subscription.receive(timeout=30)).topic for _ in range(21)]
    assert seen == [*(f"evil.t{number}" for number in range(20)), "evil.t0"]
    assert arena.statistics.protocol_errors == 5
    attacker.say(Goodbye())
    await next_event(arena.events, PeerLeft)
    heir, _ = await evil_publisher(arena, impostor)
    heir.publish(*heir.batch("evil.new", ONE))
    assert (await subscription.receive(timeout=30)).topic == "evil.new"


async def test_repairs_of_nothing_and_for_others_are_refused(arena: Arena, impostor: MakeImpostor) -> None:
    """DATA without frames, with rubbish or with another node's batch is an error."""
    attacker, _ = await evil_publisher(arena, impostor)
    forged = Impostor(arena.fabric.name, node_id=bytes.fromhex(arena.friend.id))
    batch = [bytes(frame) for frame in forged.batch("good.b", ONE, base=10_000)]
    forged.close()

    attacker.say(Data(1, []))
    await arena.complaint("no frames")
    attacker.say(Data(1, [b"rubbish"]))
    await arena.complaint("not a batch")
    attacker.say(Data(1, batch))
    await arena.complaint("another node")
    assert arena.statistics.protocol_errors == 3


async def test_missing_floods_keep_nothing_without_bound(arena: Arena, impostor: MakeImpostor) -> None:
    """A publisher that says of a million separate messages that they are gone does not fill the subscriber's memory."""
    attacker, subscription = await evil_publisher(arena, impostor)
    attacker.say(Interest(False, False, 0, 0, [TopicOffer("evil.r", 1, "at-least-once")]))
    writer = BatchWriter("evil.r", attacker.id, 1)
    lane = subscription.lane.request.lane
    at = {"lane": lane, "topic": "evil.r", "epoch": 1, "first_kept": 0, "next_seq": 0}
    records = [Missing(lane, "evil.r", 1, n, n + 1, "expired") for n in range(1, 40_000, 2)]
    attacker.say(attached(**at))
    attacker.say(*records[:19_000])

    writer.buffer += ONE
    writer.count = 1
    attacker.publish(*writer.seal(0, 1, 2))

    assert (await subscription.receive(timeout=30)).seq == 0
    gap = await next_event(arena.events, Gap)
    assert (gap.first, gap.last, gap.cause) == (1, 1, "expired")
    (inbox,) = (inbox for (_, topic), inbox in subscription.lane.inboxes.items() if topic == "evil.r")
    assert len(inbox._lost) <= 4096
    await arena.stays_small()


def attached(**position: Any) -> Any:
    """ATTACHED with one position."""
    from zfabric.wire.records import Attached, Position

    return Attached([Position(**position)])


async def test_an_outlet_that_another_peer_names_stays_connected(arena: Arena, impostor: MakeImpostor) -> None:
    """Who claims a good peer's outlet as its own and leaves does not cut the good peer off."""
    attacker = impostor()
    attacker.identity = type(attacker.identity)(
        attacker.identity.token, arena.fabric.name, "thief", "host", 1, (), (port(arena.friend, "outlet-ipc"),)
    )
    await attacker.join(port(arena.victim, "inbox-tcp"))
    attacker.say(Interest(False, False, 0, 0, [TopicOffer("good.b", 1, "at-least-once")]))

    attacker.say(Goodbye())

    assert (await next_event(arena.events, PeerLeft)).peer.name == "thief"
    await arena.lives()


# -- the outlet --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["outlet-tcp", "outlet-ipc"])
@pytest.mark.parametrize("limits", [{"peers_max": 10}])
async def test_marker_floods_do_not_keep_real_subscribers_out(
    arena: Arena, impostor: MakeImpostor, name: str, limits: dict[str, Any]
) -> None:
    """Markers of nobody are bounded by Config.peers_max and make room for those of peers."""
    interests = arena.victim._driver.core.interests  # type: ignore[union-attr]
    honest = impostor()
    with honest.client(zmq.SUB) as flood, honest.client(zmq.SUB) as feed:
        flood.set(zmq.SNDHWM, 0)
        flood.connect(port(arena.victim, name))
        for _ in range(3000):
            flood.subscribe(b"\xff" + os.urandom(16) + struct.pack(">I", 1))
        for generation in range(100):
            flood.subscribe(b"\xff" + honest.id + struct.pack(">I", generation))
        await wait_until_async(lambda: honest.id in interests._markers)
        assert len(interests._markers) <= 10

        await honest.join(port(arena.victim, "inbox-tcp"))
        publisher = arena.victim.publisher("for.honest")
        feed.connect(port(arena.victim, name))
        feed.subscribe(b"\xff" + honest.id + struct.pack(">I", 1000))
        honest.say(Interest(False, False, 1000, 0, patterns=[PatternRequest(1, "for.honest", "")]))

        await publisher.wait_for(subscribers=1, timeout=30)
        assert max(len(generations) for generations in interests._markers.values()) <= 16
    await arena.stays_small()


@pytest.mark.parametrize("name", ["outlet-tcp", "outlet-ipc"])
@pytest.mark.parametrize("limits", [{"outlet_filter_bytes": 300_000}])
async def test_a_flood_of_subscriptions_is_bounded(
    arena: Arena, impostor: MakeImpostor, name: str, limits: dict[str, Any]
) -> None:
    """Beyond Config.outlet_filter_bytes the outlet hangs up on everybody; the flood is gone, good ones come back."""
    attacker = impostor()
    with attacker.client(zmq.SUB) as flood:
        flood.set(zmq.SNDHWM, 0)
        flood.set(zmq.RECONNECT_IVL, 10_000)
        flood.connect(port(arena.victim, name))
        for _ in range(3000):
            flood.subscribe(os.urandom(200))
        await arena.complaint("outlet_filter_bytes")
        await arena.lives()
        transport: Any = arena.victim._driver._transport  # type: ignore[union-attr]
        await wait_until_async(lambda: transport._filter_bytes < 1000)
    await arena.lives()
    await arena.stays_small()


@pytest.mark.parametrize("name", ["outlet-tcp", "outlet-ipc"])
async def test_messages_to_an_outlet_and_strange_filters_are_ignored(
    arena: Arena, impostor: MakeImpostor, name: str
) -> None:
    """XSUB may send anything upstream, and subscribe to anything: only markers mean something."""
    interests = arena.victim._driver.core.interests  # type: ignore[union-attr]
    attacker = impostor()
    noise = random.Random(3)
    before = dict(interests._markers)
    with attacker.client(zmq.XSUB) as xsub:
        xsub.set(zmq.SNDHWM, 0)
        xsub.connect(port(arena.victim, name))
        for _ in range(500):
            xsub.send(b"\x01" + noise.randbytes(noise.randrange(60)))
            xsub.send(b"\x02\xff" + bytes.fromhex(arena.friend.id) + bytes(4))
            xsub.send(noise.randbytes(1 + noise.randrange(60)))
        xsub.send(b"\x01\xff" + attacker.id + bytes(4))
        await wait_until_async(lambda: attacker.id in interests._markers)

        assert {key: value for key, value in interests._markers.items() if key in before} == before
    await arena.lives()


async def test_positions_of_nonsense_streams_are_nothing(arena: Arena, impostor: MakeImpostor) -> None:
    """POSITIONS for lanes and topics that nobody knows leave no trace."""
    attacker, subscription = await evil_publisher(arena, impostor)
    streams = arena.victim._driver.core.streams  # type: ignore[union-attr]
    before = len(streams._inboxes)

    attacker.say(Positions([attached_position(lane, f"evil.{n}") for lane in range(20) for n in range(100)]))
    attacker.publish(*attacker.batch("evil.x", ONE))

    assert (await subscription.receive(timeout=30)).value == 1
    assert len(streams._inboxes) == before + 1


def attached_position(lane: int, topic: str) -> Any:
    """A position far ahead."""
    from zfabric.wire.records import Position

    return Position(lane, topic, 2**62, 2**62, 2**62)
