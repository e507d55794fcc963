"""Connections that break, dawdle, lie or go silent: everything between two programs passes a proxy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from tests.faults.children import Child, Crew, hold, memory_kb
from tests.faults.proxy import Line, Proxy
from tests.waiting import wait_until

pytestmark = pytest.mark.slow
TOPIC_FRAME = b"t\0"
"How a batch on topic `t` begins."


class Pair:
    """A publisher and a subscriber with the proxy between them: all connections go from the latter to the former."""

    def __init__(self, team: Crew, proxy: Proxy, *, subscribing: dict[str, Any] | None = None, **publishing: Any) -> None:
        self.team = team
        self.publisher = team.publisher(**publishing)
        self.inbox, self.outlet = (proxy.serve(endpoint) for endpoint in self.publisher.endpoints)
        options = {"seeds": self.publisher.endpoints[:1], "via": proxy.host, **(subscribing or {})}
        self.subscriber = team.subscriber(**options)

    def finish(self, count: int) -> Child:
        """Everything arrives in the end; returns the subscriber."""
        self.subscriber.until_position(count - 1)
        self.publisher.until("done")
        self.team.finish()
        return self.subscriber


@pytest.mark.parametrize("delivery", ["at-least-once", "exactly-once"])
@pytest.mark.parametrize("which", ["inbox", "outlet", "both"])
def test_resets_in_mid_stream_are_repaired(team: Crew, proxy: Proxy, which: str, delivery: str) -> None:
    """RST, with whatever was in the kernel's buffers lost, on either connection or on both."""
    pair = Pair(team, proxy, delivery=delivery, count=30_000, rate=15_000)
    lines: Sequence[Line] = {"inbox": [pair.inbox], "outlet": [pair.outlet]}.get(which, [pair.inbox, pair.outlet])
    for position in (2_000, 8_000, 14_000):
        pair.subscriber.until_position(position)
        assert wait_until(lambda: proxy.reset(*lines)) >= 1

    pair.finish(30_000)

    team.verdict().check()


def test_resets_of_a_best_effort_stream_are_announced(team: Crew, proxy: Proxy) -> None:
    """At-most-once: what a broken link took is counted and named in a Gap."""
    pair = Pair(team, proxy, delivery="at-most-once", count=40_000, rate=15_000)
    for position in (2_000, 10_000):
        pair.subscriber.until_position(position)
        proxy.reset(pair.outlet)
    pair.finish(40_000)

    verdict = team.verdict(to_end=True).check(gaps=True)
    assert verdict.delivered + verdict.announced == 40_000
    assert pair.subscriber.last("closed")["lost"] == verdict.announced


def test_late_and_shuffled_connections_lose_nothing(team: Crew, proxy: Proxy) -> None:
    """100 ms and as much jitter on data, none on control frames: repairs overtake what they repair."""
    pair = Pair(team, proxy, count=10_000, rate=5_000)
    pair.outlet.delay_s = pair.outlet.jitter_s = 0.1
    pair.subscriber.until_position(3_000)
    pair.outlet.delay_s, pair.inbox.delay_s = 0.0, 0.1
    pair.finish(10_000)

    team.verdict().check()
    closed = pair.subscriber.last("closed")
    assert closed["repaired"] <= pair.publisher.last("closed")["batches_sent"], "repairs must not storm"


@pytest.mark.parametrize("which", ["inbox", "outlet", "both"])
def test_a_half_open_link_is_left_and_taken_up_again(team: Crew, proxy: Proxy, which: str) -> None:
    """Connections stand and carry nothing: no FIN, no RST, no data."""
    pair = Pair(team, proxy, count=20_000, rate=8_000)
    lines: Sequence[Line] = {"inbox": [pair.inbox], "outlet": [pair.outlet]}.get(which, [pair.inbox, pair.outlet])
    pair.subscriber.until_position(3_000)
    for line in lines:
        line.blackhole = True
    if which == "outlet":
        hold(1.5, "half-open data connection")
    else:
        for child in (pair.publisher, pair.subscriber):
            assert child.until_event("PeerLeft")["reason"] == "silent"
    for line in lines:
        line.blackhole = False
    pair.finish(20_000)

    team.verdict().check()


@pytest.mark.parametrize("which", ["inbox", "outlet"])
@pytest.mark.parametrize("delivery", ["at-least-once", "exactly-once"])
def test_flipped_bits_are_refused_and_repaired(team: Crew, proxy: Proxy, which: str, delivery: str) -> None:
    """With checksums (any interface but loopback) a damaged frame is counted, never delivered, and sent again."""
    safe = {"checksums": True}
    pair = Pair(team, proxy, subscribing=safe, delivery=delivery, count=20_000, rate=8_000, pad=50, **safe)
    line = getattr(pair, which)
    pair.subscriber.until_position(1_000)
    line.flip_every = 20_000 if which == "outlet" else 500
    wait_until(lambda: line.flipped > 20, 10)
    line.flip_every = 0
    proxy.reset(line)
    pair.finish(20_000)

    team.verdict().check()
    assert line.flipped


def test_flipped_bits_of_a_best_effort_stream_are_announced(team: Crew, proxy: Proxy) -> None:
    """At-most-once: a damaged batch is a Gap, never a wrong value."""
    safe = {"checksums": True}
    pair = Pair(team, proxy, subscribing=safe, delivery="at-most-once", count=20_000, rate=8_000, pad=50, **safe)
    pair.subscriber.until_position(1_000)
    pair.outlet.flip_every = 20_000
    wait_until(lambda: pair.outlet.flipped > 20, 10)
    pair.outlet.flip_every = 0
    proxy.reset(pair.outlet)
    pair.finish(20_000)

    verdict = team.verdict(to_end=True).check(gaps=True)
    assert verdict.announced


@pytest.mark.parametrize("delivery", ["at-most-once", "at-least-once", "exactly-once"])
def test_the_loss_of_the_last_message_is_noticed(team: Crew, proxy: Proxy, delivery: str) -> None:
    """The last batch vanishes and silence follows: the publisher's position reveals it within two seconds."""
    pair = Pair(team, proxy, delivery=delivery, count=1_000, rate=2_000, flush_every=10_000)
    eaten = []

    def eat_last(flags: int, body: bytes) -> list[bytes]:
        if body.startswith(TOPIC_FRAME) and pair.subscriber.position() >= 899:
            eaten.append(body)
            return []
        return [body]

    pair.outlet.frames = eat_last
    if delivery == "at-most-once":
        gap = pair.subscriber.until_event("Gap", 6.0)
        assert (gap["last"], gap["cause"]) == (999, "overflow")
    else:
        pair.subscriber.until_position(999, 6.0)
    pair.publisher.until("done")
    team.finish()

    assert eaten
    team.verdict(to_end=True).check(gaps=delivery == "at-most-once")


def test_batches_that_come_twice_or_in_disorder_are_delivered_once(team: Crew, proxy: Proxy) -> None:
    """The network repeats, swaps and replays whole batches."""
    pair = Pair(team, proxy, delivery="exactly-once", count=20_000, rate=8_000)
    held: list[bytes] = []

    def shuffle(flags: int, body: bytes) -> list[bytes]:
        if not body.startswith(TOPIC_FRAME):
            return [body]
        choice = pair.outlet.random.random()
        held.append(body)
        if choice < 0.2:
            return [body, body]
        if choice < 0.4 and len(held) > 3:
            return [held[-3], body, held[-2]]
        if choice < 0.5:
            return []
        return [body]

    pair.outlet.frames = shuffle
    pair.finish(20_000)

    team.verdict().check()
    assert pair.subscriber.last("closed")["duplicates"] > 10


def test_duplicate_reordered_and_replayed_acks_change_nothing(team: Crew, proxy: Proxy) -> None:
    """Control frames of the subscriber come twice, late, and again long after."""
    pair = Pair(team, proxy, delivery="exactly-once", count=20_000, rate=8_000)
    held: list[bytes] = []

    def replay(flags: int, body: bytes) -> list[bytes]:
        held.append(body)
        again = held[pair.inbox.random.randrange(len(held))]
        return [again, body, body] if len(held) > 5 else [body]

    pair.inbox.inward = replay
    pair.finish(20_000)

    team.verdict().check()
    assert len(held) > 20 and not pair.publisher.silences()


def test_lost_acks_only_delay(team: Crew, proxy: Proxy) -> None:
    """Half of the subscriber's control frames vanish: the publisher asks again until it knows."""
    pair = Pair(team, proxy, count=20_000, rate=8_000)
    pair.inbox.inward = lambda _, body: [] if pair.inbox.random.random() < 0.5 else [body]
    pair.finish(20_000)

    team.verdict().check()


def test_repairs_that_are_lost_too_are_asked_for_again(team: Crew, proxy: Proxy) -> None:
    """A third of all frames from the publisher vanish, data and control alike; memory stays bounded."""
    pair = Pair(team, proxy, count=20_000, rate=8_000, pad=50)
    pair.subscriber.until_position(500)
    before = memory_kb(pair.subscriber.pid)
    for line in (pair.inbox, pair.outlet):
        line.frames = lambda _, body: [] if pair.outlet.random.random() < 0.3 else [body]
    pair.subscriber.until_position(15_000)
    for line in (pair.inbox, pair.outlet):
        line.frames = None
    grown = memory_kb(pair.subscriber.pid) - before
    pair.finish(20_000)

    team.verdict().check()
    assert grown < 48 * 1024
