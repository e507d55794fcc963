"""Whatever arrives, in whatever order: the core never raises, and keeps to its limits."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.protocol.network import Party, World
from zfabric.config import Config
from zfabric.errors import RemoteProtocolError
from zfabric.protocol.markers import marker
from zfabric.wire import records as r
from zfabric.wire.batch import BatchWriter

IDS = [bytes([n]) * 16 for n in range(1, 5)]
ROUTES: list[int | bytes] = [1, 2, 3, b"in1", b"in2", b"in3"]
LIMITS = Config(
    peers_max=3, topics_max=4, patterns_max=4, inboxes_max=8, discovery_records_max=8, control_records_max=50
)

ids = st.sampled_from(IDS)
numbers = st.integers(0, 5) | st.sampled_from([2**31, 2**63 - 1, 2**64 - 1])
topics = st.sampled_from(["t", "u", "plant.temp", "", "$sys.x", "a..b", "x" * 255])
patterns = st.sampled_from(["t", "#", "plant.*", "*", "", "a.*b", "#.#", "x" * 255])
deliveries = st.sampled_from(["", "at-most-once", "at-least-once", "exactly-once", "never"])
endpoints = st.lists(st.sampled_from(["net://b:in", "net://c:in", "tcp://1.2.3.4:5", "", "net://a:in"]), max_size=3)
tokens = st.sampled_from([bytes(16), b"t" * 16])
ranges = st.lists(st.tuples(numbers, numbers), max_size=4)

identities = st.builds(
    r.Identity,
    tokens,
    st.sampled_from(["test", "other", ""]),
    st.sampled_from(["b", ""]),
    st.just("host"),
    numbers,
    endpoints.map(tuple),
    st.sampled_from([(), ("net://b:out",), ("ipc://b:out", "net://b:out")]),
)
positions = st.lists(st.builds(r.Position, numbers, topics, numbers, numbers, numbers), max_size=3)
starts = st.builds(
    r.Start, st.sampled_from(["latest", "earliest", "seq", "last", "since"]), numbers | st.floats(allow_nan=True)
)


@st.composite
def batches(draw: st.DrawFn) -> list[bytes]:
    """Batches, good ones and impossible ones."""
    topic = draw(st.sampled_from(["t", "u", "plant.temp", "q"]))
    writer = BatchWriter(topic, draw(ids), draw(st.integers(0, 3)))
    for value in draw(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=3)):
        writer.buffer += msgspec.msgpack.encode(value)
        writer.count += 1
    frame = bytearray(writer.seal(draw(st.integers(0, 20) | st.just(2**63)), 0, draw(st.integers(0, 255)))[0])
    if draw(st.booleans()):
        frame[draw(st.integers(0, len(frame) - 1))] ^= draw(st.integers(1, 255))
    return [bytes(frame)]


records = st.one_of(
    st.builds(r.Hello, st.none() | ids, identities),
    st.builds(r.Welcome, identities),
    st.builds(r.Refuse, st.sampled_from(["self", "stranger", "fabric", "duplicate-id", "peers-max", "?"]), st.just("")),
    st.builds(r.Unknown),
    st.builds(
        r.Interest,
        st.booleans(),
        st.booleans(),
        numbers,
        st.lists(st.builds(r.TopicOffer, topics, numbers, deliveries), max_size=6),
        st.lists(topics, max_size=2),
        st.lists(st.builds(r.PatternRequest, numbers, patterns, deliveries, starts), max_size=6),
        st.lists(numbers, max_size=2),
    ),
    st.builds(r.Attached, positions),
    st.builds(r.Positions, positions),
    st.builds(r.Heartbeat, numbers),
    st.builds(r.Peers, st.lists(st.builds(r.PeerAddress, ids, endpoints.map(tuple)), max_size=4)),
    st.builds(r.Goodbye),
    st.builds(r.Ack, numbers, topics, numbers, numbers, numbers, ranges),
    st.builds(r.Repair, numbers, topics, numbers, ranges),
    st.builds(r.Data, numbers, batches()),
    st.builds(r.Missing, numbers, topics, numbers, numbers, numbers, st.just("expired")),
    st.builds(r.Evicted, numbers, topics, numbers, st.just("")),
    st.builds(r.Incompatible, numbers, topics, deliveries, deliveries),
    st.builds(r.Resume, numbers, topics),
)

steps = st.one_of(
    st.tuples(st.just("records"), st.sampled_from(ROUTES), ids, st.lists(records, min_size=1, max_size=4)),
    st.tuples(st.just("bytes"), st.sampled_from(ROUTES), st.binary(max_size=60)),
    st.tuples(st.just("batch"), batches()),
    st.tuples(st.just("filter"), st.booleans(), ids, st.integers(0, 4)),
    st.tuples(st.just("filter bytes"), st.binary(max_size=30)),
    st.tuples(st.just("time"), st.sampled_from([0.0, 0.01, 0.5, 2.0, 6.0, 100.0])),
    st.tuples(st.just("route lost"), st.sampled_from(ROUTES)),
    st.tuples(st.just("found"), ids, endpoints),
    st.tuples(st.just("subscribe"), st.sampled_from(["t", "#", "plant.*"]), deliveries.filter(lambda d: d != "never")),
    st.tuples(st.just("publish"), st.sampled_from(["t", "plant.temp"])),
    st.tuples(st.just("goodbye")),
)


def play(world: World, a: Party, step: tuple[Any, ...]) -> None:
    """Do one step of a scenario."""
    match step:
        case ("records", route, sender, said):
            try:
                r.decode_envelope(r.encode_envelope(sender, said), 1000)
            except RemoteProtocolError:
                pass  # what the strategies made does not even decode: good to send, too
            a.receive(route, r.encode_envelope(sender, said))
        case ("bytes", route, data):
            a.receive(route, data)
        case ("batch", frames):
            a.core.receive_batch(frames, world.now)
        case ("filter", on, node_id, generation):
            a.core.receive_filter(bytes([on]) + marker(node_id, generation), world.now)
        case ("filter bytes", data):
            a.core.receive_filter(data, world.now)
        case ("time", seconds):
            world.run(seconds)
        case ("route lost", route):
            a.core.route_lost(route, world.now)
        case ("found", node_id, addresses):
            a.core.found(node_id, addresses, world.now)
        case ("subscribe", pattern, delivery):
            if len(a.core.interests.lanes) < LIMITS.patterns_max:
                a.subscribe(pattern, delivery)
        case ("publish", topic):
            a.publish(a.core.interests.outboxes[topic], 1, 2)
        case ("goodbye",):
            a.core.goodbye()
    a.pump()


@settings(max_examples=400, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(steps, max_size=40))
def test_nothing_that_arrives_makes_the_core_raise(scenario: list[tuple[Any, ...]]) -> None:
    """Any sequence of frames, filters, pauses and calls is taken in without an exception and within the limits."""
    world = World()
    a = world.party("a", node_id=IDS[0], config=LIMITS)
    world.captured = []
    a.open_topic("t", "at-least-once")
    a.open_topic("plant.temp")
    a.subscribe("t", "at-least-once")

    for step in scenario:
        play(world, a, step)

    core = a.core
    assert len(core.peers.known) <= LIMITS.peers_max
    for remote in core.interests.remote.values():
        assert len(remote.topics) <= LIMITS.topics_max
        assert len(remote.patterns) <= LIMITS.patterns_max
    assert set(core.interests.remote) <= set(core.peers.known)
    world.run(30)


@settings(max_examples=300)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_frame_or_a_protocol_error(data: bytes) -> None:
    """Bytes that are no envelope are counted, and nothing else happens."""
    a = World().party("a")

    a.receive(b"in", data)

    assert a.core.protocol_errors == 1
    assert a.core.peers.known == {}


@settings(max_examples=300)
@given(st.lists(st.binary(max_size=120), min_size=1, max_size=3))
def test_any_frames_are_a_batch_or_a_protocol_error(frames: list[bytes]) -> None:
    """So are bytes on the data plane."""
    a = World().party("a")

    a.core.receive_batch(frames, 0.0)

    assert a.core.protocol_errors + a.core.strangers == 1
