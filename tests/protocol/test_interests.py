"""Topics and subscriptions: who is told what, and how much of it is believed."""

from __future__ import annotations

import msgspec
import pytest

from tests.protocol.network import LATENCY_S, Inlet, Party, World
from zfabric.config import Config
from zfabric.errors import LimitExceeded, LocalProtocolError
from zfabric.events import IncompatibleDelivery, ProtocolError, SubscriberJoined, SubscriberLeft
from zfabric.protocol.markers import MARKER, marker, parse_marker
from zfabric.wire.bundle import ADDRESS
from zfabric.wire.records import Interest, PatternRequest, TopicOffer


def pair(config: Config | None = None) -> tuple[World, Party, Party]:
    """Two nodes that are peers."""
    world = World()
    a, b = world.party("a", config=config), world.party("b", config=config)
    a.find(b)
    world.run_until(lambda: a.peers and b.peers)
    world.run(0.1)
    return world, a, b


def route(of: Party, to: Party) -> int | bytes:
    """The route by which a node talks to another one."""
    return of.core.peers.known[to.core.me].routes[0]


def test_a_subscription_is_in_place_only_when_the_feed_is() -> None:
    """INTEREST alone is not enough: the publisher waits for the marker on its own outlet."""
    world, a, b = pair()
    outbox = a.open_topic("t")
    held = world.held_filters = []

    b.subscribe("t")
    world.run(1)
    assert outbox.remote == {}
    assert [request.pattern for request, _ in a.core.interests.remote[b.core.me].patterns.values()] == ["t"]

    world.held_filters = None
    for on_its_way in held:
        world.filter(*on_its_way)
    world.run(0.1)
    assert len(outbox.remote) == 1


def test_the_marker_comes_after_the_patterns() -> None:
    """Filters are sent in byte order after a reconnect, and every marker sorts behind every topic."""
    assert marker(bytes(16), 0) > b"~" * 255
    assert parse_marker(b"\x01" + marker(b"n" * 16, 7)) == (True, b"n" * 16, 7)
    assert parse_marker(b"\x00" + marker(b"n" * 16, 7)) == (False, b"n" * 16, 7)


@pytest.mark.parametrize("data", [b"", b"\x01", b"\x01topic\0", b"\x01" + MARKER, b"\x01" + MARKER * 30])
def test_other_subscriptions_are_no_markers(data: bytes) -> None:
    """Whatever somebody subscribes to, only 22 bytes of the right form are a marker."""
    assert parse_marker(data) is None


def test_overlapping_subscriptions_share_a_filter() -> None:
    """The feed is asked once per prefix, and the filter goes with the last subscription that needs it."""
    world, _, b = pair()
    lanes = [b.subscribe(pattern)[0] for pattern in ("plant.*", "plant.*.temp", "plant.*")]

    for lane in lanes:
        assert [item for item in b.filters.items() if item[0][:1] not in (ADDRESS, MARKER)] == [(b"plant.", 1)]
        b.unsubscribe(lane)
    world.run(0.1)

    assert [prefix[:1] for prefix in b.filters] == [ADDRESS, MARKER]


def test_nobody_follows_a_publisher_of_nothing_interesting() -> None:
    """Feeds connect only where a topic matches; once connected they stay until the peer leaves."""
    world, a, b = pair()
    a.open_topic("dull")
    lane, _ = b.subscribe("exciting")
    world.run(1)
    assert b.feeds == set()

    a.open_topic("exciting")
    world.run(1)
    assert b.feeds == {a.outlet}

    b.unsubscribe(lane)
    world.run(1)
    assert b.feeds == {a.outlet}, "coming and going would race with the next subscription"


def test_a_closed_topic_is_forgotten() -> None:
    """Closing a topic stops its readers from following it; opening it again begins a new epoch."""
    world, a, b = pair()
    first = a.open_topic("t")
    lane, inlet = b.subscribe("t")
    world.run_until(lambda: first.remote)

    a.core.interests.close_topic("t")
    a.pump()
    world.run(0.1)
    assert b.core.interests.publishers_of(lane) == 0
    second = a.open_topic("t")
    world.run_until(lambda: second.remote and b.core.interests.publishers_of(lane) == 1)

    assert second.epoch > first.epoch
    a.publish(second, "new")
    world.run(0.1)
    assert inlet.values == ["new"]
    assert b.core.streams.lost == {}


def test_a_topic_is_open_once() -> None:
    """The core knows one outbox for each topic."""
    a = World().party("a")
    a.open_topic("t")

    with pytest.raises(LocalProtocolError):
        a.open_topic("t")


def test_own_limits() -> None:
    """Config.topics_max and Config.patterns_max bound this node."""
    a = World().party("a", config=Config(topics_max=1, patterns_max=1))
    a.open_topic("a")
    lane, _ = a.subscribe("a")

    with pytest.raises(LimitExceeded, match="topics_max"):
        a.open_topic("b")
    with pytest.raises(LimitExceeded, match="patterns_max"):
        a.subscribe("b")

    a.core.interests.close_topic("a")
    a.unsubscribe(lane)
    a.open_topic("b")
    a.subscribe("b")


@pytest.mark.parametrize("field", ["topics", "patterns"])
def test_limits_of_peers(field: str) -> None:
    """A peer that offers or asks for too much is told on, and what is over the limit is not kept."""
    world, a, b = pair(Config(topics_max=5, patterns_max=5))
    offers = [TopicOffer(f"t{n}", 1, "at-most-once") for n in range(20)]
    requests = [PatternRequest(n, f"p{n}", "") for n in range(20)]

    topics, patterns = (offers, []) if field == "topics" else ([], requests)
    a.say(route(a, b), Interest(False, False, 1, 1, topics=topics, patterns=patterns), sender=b.core.me)
    world.run(0.1)

    remote = a.core.interests.remote[b.core.me]
    assert max(len(remote.topics), len(remote.patterns)) == 5
    assert a.seen(ProtocolError)
    assert a.peers == {"b"}


def test_a_peer_at_its_limit_may_repeat_itself() -> None:
    """Repeating what is known (a topic opened again, a resync) does not count against the limit."""
    world, a, b = pair(Config(topics_max=2, patterns_max=2))
    said = Interest(
        False,
        False,
        1,
        1,
        topics=[TopicOffer("t1", 1, "at-most-once"), TopicOffer("t2", 1, "at-most-once")],
        patterns=[PatternRequest(1, "p1", ""), PatternRequest(2, "p2", "")],
    )

    a.say(route(a, b), said, msgspec.structs.replace(said, serial=2), sender=b.core.me)
    world.run(0.1)

    assert a.seen(ProtocolError) == []


@pytest.mark.parametrize("name", ["", "a..b", "a b", "x" * 256, "a.*b"])
def test_malformed_names_of_peers_are_errors_of_theirs(name: str) -> None:
    """A peer's nonsense is an event; its other topics count."""
    world, a, b = pair()
    offered = Interest(False, False, 1, 1, topics=[TopicOffer("good", 1, "at-most-once")])

    a.say(route(a, b), offered, sender=b.core.me)
    a.say(route(a, b), Interest(False, False, 1, 2, topics=[TopicOffer(name, 1, "")]), sender=b.core.me)
    a.say(route(a, b), Interest(False, False, 1, 3, patterns=[PatternRequest(9, name, "")]), sender=b.core.me)
    world.run(0.1)

    assert list(a.core.interests.remote[b.core.me].topics) == ["good"]
    assert len(a.seen(ProtocolError)) == 2
    assert a.peers == {"b"}


def test_long_lists_are_split_over_records() -> None:
    """Thousands of topics and subscriptions travel in records of bounded size and are complete on arrival."""
    world = World()
    a, b = world.party("a"), world.party("b")
    for number in range(2500):
        a.core.interests.open_topic(f"t.{number}", "at-most-once", with_crc=False)
    b.subscribe("t.*")
    a.find(b)

    world.run_until(lambda: all(outbox.remote for outbox in a.core.interests.outboxes.values()), 10)

    assert len(b.core.interests.remote[a.core.me].topics) == 2500
    assert len(a.seen(SubscriberJoined)) == 2500


def test_a_resync_does_not_blink() -> None:
    """Exchanging everything again after a reconnect takes no subscriber away, not even for a moment."""
    world, a, b = pair()
    outbox = a.open_topic("t")
    b.subscribe("t")
    world.run_until(lambda: outbox.remote)

    world.break_connections(a, b)
    world.run(10)

    assert len(a.seen(SubscriberJoined)) == 1
    assert a.seen(SubscriberLeft) == []
    assert len(outbox.remote) == 1


def test_asking_for_more_than_is_offered_is_told_to_both() -> None:
    """A reliable subscription to a best-effort topic gets nothing but an event on both sides."""
    world, a, b = pair()
    outbox = a.open_topic("t", "at-most-once")

    b.subscribe("t", "at-least-once")
    world.run(1)

    assert outbox.remote == {}
    for party in (a, b):
        (event,) = party.seen(IncompatibleDelivery)
        assert (event.topic, event.offered, event.requested) == ("t", "at-most-once", "at-least-once")


def test_a_subscription_that_ends_at_once_leaves_no_trace() -> None:
    """Made and ended in one turn, a subscription is never spoken of."""
    world, a, b = pair()
    inlet = Inlet()
    outbox = a.open_topic("t")
    from zfabric.wire.records import Start
    from zfabric.wire.topics import Pattern

    lane = b.core.interests.subscribe(Pattern("t"), "", Start(), inlet)
    b.core.interests.unsubscribe(lane)
    b.pump()
    world.run(1)

    assert outbox.remote == {}
    assert a.seen(SubscriberJoined) == []
    assert a.core.interests.remote[b.core.me].patterns == {}


def test_losing_batches_is_told_once_with_exact_numbers() -> None:
    """A hole in an at-most-once stream is one Gap; a loss at its end is found after a while."""
    world, a, b = pair()
    outbox = a.open_topic("t")
    _, inlet = b.subscribe("t")
    world.run_until(lambda: outbox.remote)

    a.publish(outbox, 0, 1)
    world.held_batches = []
    a.publish(outbox, 2, 3, 4)
    world.held_batches = None
    a.publish(outbox, 5)
    world.run(LATENCY_S * 5)
    assert (inlet.values, b.core.streams.lost) == ([0, 1, 5], {"t": 3})

    world.held_batches = []
    a.publish(outbox, 6, 7)
    world.run(10)
    assert b.core.streams.lost == {"t": 5}


def test_a_late_change_or_state_is_ignored() -> None:
    """What comes late by another connection cannot bring back a topic that is gone."""
    world, a, b = pair()
    outbox = b.open_topic("t")
    world.run(0.1)
    remote = a.core.interests.remote[b.core.me]
    assert list(remote.topics) == ["t"]
    b.core.interests.close_topic(outbox.topic)
    b.pump()
    world.run(0.1)
    assert not remote.topics

    offer = [TopicOffer("t", 1, "at-most-once")]
    for late in (Interest(False, False, 0, 1, topics=offer), Interest(True, False, 0, 1, topics=offer)):
        a.say(route(a, b), late, sender=b.core.me)
        world.run(0.1)
        assert not remote.topics


def test_a_missing_change_is_asked_for() -> None:
    """One change never arrived, the next does: the peer tells everything anew."""
    world, a, b = pair()
    world.cut(a, b)
    b.open_topic("lost")
    world.run(0.01)
    world.heal()
    b.open_topic("found")

    remote = a.core.interests.remote[b.core.me]
    world.run_until(lambda: sorted(remote.topics) == ["found", "lost"], 1)
