"""Connections that break, dawdle, lie or go silent: everything between two programs passes a proxy.

Every publisher here has three topics, one for each delivery.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from typing import Any

import pytest

from tests.faults.children import ENDLESS, Child, Crew, hold, memory_kb
from tests.faults.proxy import Line, Proxy
from tests.waiting import wait_until

pytestmark = pytest.mark.slow
COUNT, RATE = 4_000, 9_000
BATCH = b"t."
"How every batch begins."
SAFE: dict[str, Any] = {"checksums": True}


class Pair:
    """A publisher and a subscriber with the proxy between them, whoever connects to whom."""

    def __init__(
        self, team: Crew, proxy: Proxy, *, subscribing: dict[str, Any] | None = None, **publishing: Any
    ) -> None:
        self.team = team
        self._proxy = proxy
        self.publisher = team.publisher(**{"count": COUNT, "rate": RATE, "via": proxy.host, **publishing})
        self.count = self.publisher.options.count
        self.inbox, self.outlet = (proxy.serve(endpoint) for endpoint in self.publisher.endpoints)
        options = {"seeds": self.publisher.endpoints[:1], "via": proxy.host, **(subscribing or {})}
        self.subscriber = team.subscriber(**options)
        self._back = proxy.serve(self.subscriber.endpoints[0])

    def lines(self, which: str) -> Sequence[Line]:
        """The connections for control frames, that for data, or both."""
        control = [self.inbox, self._back]
        return {"inbox": control, "outlet": [self.outlet], "both": [*control, self.outlet]}[which]

    def until_connected(self, lines: Sequence[Line]) -> None:
        """Wait until one of the lines has a connection to break."""
        wait_until(lambda: any(self._proxy.connections(line) for line in lines))

    def finish(self) -> Child:
        """Everything arrives in the end; returns the subscriber."""
        if self.count == ENDLESS:
            self.publisher.command("stop")
            self.count = self.publisher.until("done", 30)
        self.subscriber.until_settled(self.count)
        self.publisher.until("done")
        self.team.finish()
        return self.subscriber


def test_resets_in_mid_stream(team: Crew, proxy: Proxy) -> None:
    """RST takes what was in the kernel's buffers: reliable streams are repaired, at-most-once ones tell their loss."""
    pair = Pair(team, proxy)
    for position, which in ((500, "outlet"), (1_200, "inbox"), (1_900, "both"), (2_600, "outlet")):
        pair.subscriber.until_position(position)
        lines = pair.lines(which)
        pair.until_connected(lines)
        proxy.reset(*lines)
    pair.finish()

    verdict = team.verdict(to_end=True).check()
    assert verdict.delivered["at-most-once"] + verdict.announced["at-most-once"] == COUNT
    assert pair.subscriber.last("closed")["lost"] == verdict.announced["at-most-once"]


def test_late_and_shuffled_connections(team: Crew, proxy: Proxy) -> None:
    """100 ms and as much jitter on data, none on control frames, then the reverse: repairs overtake live data."""
    pair = Pair(team, proxy)
    pair.outlet.delay_s = pair.outlet.jitter_s = 0.1
    pair.subscriber.until_position(1_000)
    pair.outlet.delay_s, pair.inbox.delay_s = 0.0, 0.1
    pair.finish()

    team.verdict(to_end=True).check()
    assert not pair.publisher.silences() and not pair.subscriber.silences()
    closed = pair.subscriber.last("closed")
    assert closed["repaired"] <= pair.publisher.last("closed")["batches_sent"], "repairs must not storm"


@pytest.mark.parametrize("which", ["outlet", "both"])
def test_a_half_open_link(team: Crew, proxy: Proxy, which: str) -> None:
    """Connections stand and carry nothing, without FIN or RST: the peer is left in time, and taken up again."""
    pair = Pair(team, proxy, count=6_000)
    pair.subscriber.until_position(500)
    for line in pair.lines(which):
        line.blackhole = True
    if which == "outlet":
        hold(1.0, "half-open data connection")
    else:
        for child in (pair.publisher, pair.subscriber):
            assert child.until_event("PeerLeft")["reason"] == "silent"
    for line in pair.lines(which):
        line.blackhole = False
    pair.finish()

    team.verdict(to_end=True).check()


def test_flipped_bits(team: Crew, proxy: Proxy) -> None:
    """With checksums (any interface but loopback) a damaged frame is counted, never believed, and sent again.

    Lengths of frames are damaged too, so that the rest of a connection makes no sense any more.
    """
    pair = Pair(team, proxy, subscribing=SAFE, count=ENDLESS, pad=50, **SAFE)
    pair.subscriber.until_position(500)
    pair.inbox.flip_every, pair.outlet.flip_every = 300, 20_000
    wait_until(lambda: pair.outlet.flipped > 20 and pair.inbox.flipped > 2)
    pair.inbox.flip_every = pair.outlet.flip_every = 0
    proxy.reset()
    pair.finish()

    team.verdict(to_end=True).check()
    assert pair.subscriber.last("closed")["protocol_errors"]


def test_the_loss_of_the_last_message(team: Crew, proxy: Proxy) -> None:
    """The last batches vanish and silence follows: the publisher's position reveals it."""
    pair = Pair(team, proxy, count=1_000, rate=6_000)
    eaten: dict[bytes, int] = {}

    def eat_last(flags: int, body: bytes) -> list[bytes]:
        if body.startswith(BATCH):
            topic = body.partition(b"\0")[0]
            eaten[topic] = eaten.get(topic, 0) + 1
            return [] if eaten[topic] == 10 else [body]
        return [body]

    pair.outlet.frames = eat_last
    pair.subscriber.until_settled(1_000)
    pair.finish()

    verdict = team.verdict(to_end=True).check()
    assert [(gap["first"], gap["last"], gap["cause"]) for gap in pair.subscriber.events("Gap")] == [
        (900, 999, "overflow")
    ]
    assert verdict.announced["at-most-once"] == 100


def test_batches_that_come_twice_or_in_disorder(team: Crew, proxy: Proxy) -> None:
    """The network repeats, swaps and replays whole batches: each message is delivered once, in order."""
    pair = Pair(team, proxy)
    held: list[bytes] = []

    def shuffle(flags: int, body: bytes) -> list[bytes]:
        if not body.startswith(BATCH):
            return [body]
        choice = pair.outlet.random.random()
        held.append(body)
        if choice < 0.2:
            return [body, body]
        if choice < 0.4 and len(held) > 6:
            return [held[-6], body, held[-4]]
        return [] if choice < 0.5 else [body]

    pair.outlet.frames = shuffle
    pair.finish()

    team.verdict(to_end=True).check()
    assert pair.subscriber.last("closed")["duplicates"] > 10


def test_duplicate_reordered_and_replayed_acks(team: Crew, proxy: Proxy) -> None:
    """Control frames of the subscriber come twice, late, and again long after: nothing changes."""
    pair = Pair(team, proxy)
    held: list[bytes] = []

    def replay(flags: int, body: bytes) -> list[bytes]:
        held.append(body)
        again = held[pair.inbox.random.randrange(len(held))]
        return [again, body, body] if len(held) > 5 else [body]

    pair.inbox.inward = replay
    pair.finish()

    team.verdict(to_end=True).check()
    assert len(held) > 20 and not pair.publisher.silences()


def test_lost_acks(team: Crew, proxy: Proxy) -> None:
    """Half of the subscriber's control frames vanish: the publisher asks again until it knows."""
    pair = Pair(team, proxy)
    pair.subscriber.until_position(500)
    pair.inbox.inward = lambda _, body: [] if pair.inbox.random.random() < 0.5 else [body]
    pair.finish()

    team.verdict(to_end=True).check()


def test_repairs_that_are_lost_too(team: Crew, proxy: Proxy) -> None:
    """A third of all frames from the publisher vanish, data and control alike; memory stays bounded."""
    pair = Pair(team, proxy, pad=50)
    pair.subscriber.until_position(500)
    before = memory_kb(pair.subscriber.pid)
    for line in (pair.inbox, pair.outlet):
        line.frames = lambda _, body: [] if pair.outlet.random.random() < 0.3 else [body]
    pair.subscriber.until_position(2_500)
    for line in (pair.inbox, pair.outlet):
        line.frames = None
    grown = memory_kb(pair.subscriber.pid) - before
    pair.finish()

    team.verdict(to_end=True).check()
    assert grown < 48 * 1024


@pytest.mark.parametrize("what", ["control", "data"])
def test_damaged_frames(team: Crew, proxy: Proxy, what: str) -> None:
    """One flipped bit in every other frame: wrong positions, acknowledgements and numbers must not be believed."""
    pair = Pair(team, proxy, subscribing=SAFE, count=ENDLESS, flush_every=200, **SAFE)
    random = pair.inbox.random
    pair.subscriber.until_position(500)
    damaged: list[int] = []

    def damage(flags: int, body: bytes) -> list[bytes]:
        if random.random() > 0.5 or not body:
            return [body]
        end = min(len(body), 80) if random.random() < 0.5 else len(body)  # often in the header
        place = random.randrange(end)
        damaged.append(place)
        return [body[:place] + bytes([body[place] ^ 1 << random.randrange(8)]) + body[place + 1 :]]

    lines = pair.lines("inbox" if what == "control" else "outlet")
    for line in lines:
        line.frames = line.inward = damage
    wait_until(lambda: len(damaged) > 15)  # a publisher that is held up fills larger, and so fewer, batches
    for line in lines:
        line.frames = line.inward = None
    pair.finish()

    team.verdict(to_end=True).check()
    assert pair.subscriber.last("closed")["protocol_errors"]


def test_a_damaged_greeting(team: Crew, proxy: Proxy) -> None:
    """The publisher's control frames are damaged while its subscriber comes back: they greet again until it works."""
    pair = Pair(team, proxy, subscribing=SAFE, count=6_000, **SAFE)
    pair.subscriber.until_position(500)
    pair.subscriber.signal(signal.SIGUSR1)
    pair.publisher.until_event("PeerLeft")
    damaged: list[bytes] = []

    def damage(flags: int, body: bytes) -> list[bytes]:
        damaged.append(body)
        return [body[:-1] + bytes([body[-1] ^ 1])] if len(damaged) < 8 and len(body) > 4 else [body]

    pair.inbox.frames = damage
    pair.subscriber.signal(signal.SIGUSR2)
    pair.finish()

    team.verdict(to_end=True).check()
    assert len(damaged) >= 8
