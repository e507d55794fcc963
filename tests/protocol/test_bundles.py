"""Small batches of many topics that travel together: who gets them, and that nothing else differs."""

from __future__ import annotations

from tests.protocol.network import LATENCY_S, Inlet, Party, World
from zfabric.events import Gap
from zfabric.protocol.outbox import Outbox
from zfabric.wire.bundle import address, addressee, parse_bundle

TOPICS = [f"plant.t{number}" for number in range(20)]


def opened(
    *names: str, delivery: str = "at-most-once", pattern: str = "plant.*"
) -> tuple[World, Party, list[Outbox], list[Inlet]]:
    """A publisher of many topics, and nodes that subscribe to them."""
    world = World()
    a = world.party("a")
    others = [world.party(name) for name in names]
    outboxes = [a.open_topic(topic, delivery) for topic in TOPICS]
    inlets = [other.subscribe(pattern)[1] for other in others]
    a.find(*others)
    world.run_until(lambda: all(len(outbox.remote) == len(names) for outbox in outboxes))
    world.run(0.1)
    return world, a, outboxes, inlets


def test_many_small_batches_are_one_frame() -> None:
    """With the batches of one turn in it, once for each peer, and addressed to it."""
    world, a, outboxes, (first, second) = opened("b", "c")

    bundles = a.publish_together(outboxes, 1, 2)
    world.run(0.1)

    assert [addressee([bundle]) for bundle in bundles] == [p.core.me for p in sorted(
        (world.parties["b"], world.parties["c"]), key=lambda party: party.core.me
    )]  # fmt: skip
    assert parse_bundle([bundles[0]], messages_max=100).topics == TOPICS
    assert first.values == second.values == [1, 2] * len(TOPICS)
    assert world.parties["b"].core.streams.received == dict.fromkeys(TOPICS, 2)
    assert {outbox.base for outbox in outboxes} == {2}


def test_bundles_and_batches_are_one_stream() -> None:
    """Numbers go on whichever way a batch travels, and what is lost of either is one Gap each."""
    world, a, outboxes, (inlet,) = opened("b")
    b = world.parties["b"]

    a.publish(outboxes[0], "alone")
    a.publish_together(outboxes, "together")
    world.run(0.1)
    world.held_batches = []
    a.publish(outboxes[0], "lost")
    a.publish_together(outboxes, "lost")
    world.held_batches = None
    a.publish_together(outboxes, "again")
    a.publish(outboxes[0], "and alone")
    world.run(LATENCY_S * 5)

    assert inlet.values == ["alone", *["together"] * 20, *["again"] * 20, "and alone"]
    assert b.core.streams.lost == {TOPICS[0]: 2, **dict.fromkeys(TOPICS[1:], 1)}
    assert {gap.cause for gap in b.seen(Gap)} == {"overflow"}
    assert b.core.streams.duplicates == 0


def test_a_bundle_that_comes_again_is_old() -> None:
    """Nothing of it is delivered twice."""
    world, a, outboxes, (inlet,) = opened("b")

    bundles = a.publish_together(outboxes, 1)
    world.run(0.1)
    world.parties["b"].core.receive_batch(bundles, world.now)

    assert inlet.values == [1] * len(TOPICS)
    assert world.parties["b"].core.streams.duplicates == len(TOPICS)


def test_a_lost_last_bundle_is_noticed() -> None:
    """Its topics' positions are told like those of batches."""
    world, a, outboxes, _ = opened("b")
    a.publish_together(outboxes, 1)
    world.run(0.1)
    world.held_batches = []

    a.publish_together(outboxes, 2)
    world.run(10)

    assert world.parties["b"].core.streams.lost == dict.fromkeys(TOPICS, 1)


def test_everybody_gets_only_what_it_asked_for() -> None:
    """Topics with different listeners are different bundles; a few batches go by themselves."""
    world, a, outboxes, (everything,) = opened("b")
    c = world.party("c")
    _, some = c.subscribe("plant.t0")
    a.find(c)
    world.run_until(lambda: len(outboxes[0].remote) == 2)
    world.run(0.1)

    bundles = a.publish_together(outboxes, 1)
    few = a.publish_together(outboxes[:5], 2)
    world.run(0.1)

    assert [parse_bundle([bundle], messages_max=100).topics for bundle in bundles] == [TOPICS[1:]]
    assert few == []
    assert sorted(everything.values) == [1] * 20 + [2] * 5
    assert some.values == [1, 2]


def test_what_is_not_plain_travels_alone() -> None:
    """Reliable topics, keys and headers, long batches, and topics with subscriptions of this very node."""
    _, a, outboxes, _ = opened("b", delivery="at-least-once")
    assert a.publish_together(outboxes, 1) == []

    _, a, outboxes, _ = opened("b")
    outboxes[0].writer.annotate("key", None, None)
    bundles = a.publish_together(outboxes, 1)
    assert parse_bundle(bundles, messages_max=100).topics == TOPICS[1:]
    assert a.publish_together(outboxes, "x" * 10_000) == []

    a.subscribe("plant.t3")
    bundles = a.publish_together(outboxes, 1)
    assert parse_bundle(bundles, messages_max=100).topics == [topic for topic in TOPICS if topic != "plant.t3"]


def test_bundles_are_cut_at_the_length_of_a_batch() -> None:
    """None is much longer than Config.batch_bytes, and none has more messages than Config.batch_messages_max."""
    world, a, outboxes, (inlet,) = opened("b")

    bundles = a.publish_together(outboxes, *["x" * 390] * 10)
    assert len(bundles) == 2
    assert max(map(len, bundles)) < 70_000
    world.run(0.1)
    assert len(inlet.values) == 200


def test_subscriptions_of_one_node_share_a_bundle() -> None:
    """Each gets its topics' messages; one that asked for more than is offered gets none."""
    world, a, outboxes, (everything,) = opened("b")
    b = world.parties["b"]
    _, one = b.subscribe("plant.t7")
    _, again = b.subscribe("plant.#", "at-most-once")
    _, reliable = b.subscribe("plant.#", "at-least-once")
    world.run(0.1)

    for number, outbox in enumerate(outboxes):
        outbox.writer.buffer += bytes([number])
        outbox.writer.count += 1
    assert len(a.publish_together(outboxes)) == 1
    world.run(0.1)

    assert sorted(everything.values) == sorted(again.values) == list(range(20))
    assert (one.values, reliable.values) == ([7], [])
    assert b.core.streams.received == dict.fromkeys(TOPICS, 1)


def test_who_wants_signatures_takes_nothing_of_a_bundle() -> None:
    """Its batches are not signed: each is a gap, and others get them; a topic that is signed goes alone."""
    world, a, outboxes, (inlet,) = opened("b")
    b = world.parties["b"]
    lane, strict = b.subscribe("plant.#")
    lane.signed = True
    world.run(0.1)

    a.publish_together(outboxes, 1)
    world.run(0.1)

    assert (inlet.values, strict.values) == ([1] * len(TOPICS), [])
    assert {(gap.topic, gap.cause) for gap in b.seen(Gap)} == {(topic, "signature") for topic in TOPICS}
    assert b.core.signatures.refused == len(TOPICS)
    outboxes[0].writer.sign = lambda _frames: bytes(72)
    outboxes[0].count_listeners()
    (bundle,) = a.publish_together(outboxes, 2)
    assert parse_bundle([bundle], messages_max=100).topics == TOPICS[1:]


def test_what_is_for_another_node_is_dropped() -> None:
    """A node that subscribes to everything hears the bundles for others as well, and counts each message once."""
    world, a, outboxes, (first, second) = opened("b", "c", pattern="#")

    assert len(a.publish_together(outboxes, 1)) == 2
    world.run(0.1)

    assert first.values == second.values == [1] * len(TOPICS)
    assert world.parties["b"].core.streams.duplicates == 0


def test_a_crowd_gets_batches() -> None:
    """Where many peers listen to a topic, libzmq copies one batch for all of them."""
    world, a, outboxes, inlets = opened("b", "c", "d", "e", "f")

    assert a.publish_together(outboxes, 1) == []
    world.run(0.1)
    assert all(inlet.values == [1] * len(TOPICS) for inlet in inlets)


def test_the_address_is_subscribed_to_before_the_first_marker() -> None:
    """Who is told that a subscription is in place can be sent bundles."""
    world = World()
    b = world.party("b")
    b.subscribe("t")

    assert [prefix[:1] for prefix in b.filters] == [b"\xfe", b"t", b"\xff"]
    assert address(b.core.me) in b.filters
