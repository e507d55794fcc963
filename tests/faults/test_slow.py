"""Subscribers that do not keep up, beside others that do."""

from __future__ import annotations

import pytest

from tests.faults.children import Child, Crew, hold, memory_kb
from tests.faults.oracle import Line
from tests.waiting import SLACK_S, wait_until

pytestmark = pytest.mark.slow
RELIABLE = ("at-least-once", "exactly-once")
MEASURE_S = 0.6
GRACE_S = 1.5


def latency(child: Child, reason: str) -> Line:
    """How long its messages take, for a while."""
    child.measure()
    hold(MEASURE_S, reason)
    return child.measure()


def test_a_stuck_subscriber_is_evicted_and_told(team: Crew) -> None:
    """Full speed beside one that stopped reading: memory bounded, the other goes on, an event each side."""
    window = 2 * 1024 * 1024
    publisher = team.publisher(
        config={"grace_s": GRACE_S}, count=10_000_000, rate=4_000, chunk=4, pad=1000, window_bytes=window,
        subscribers=2, deliveries=RELIABLE,
    )  # fmt: skip
    fast = team.subscriber("fast", seeds=publisher.endpoints[:1], deliveries=RELIABLE)
    stuck = team.subscriber("stuck", seeds=publisher.endpoints[:1], deliveries=RELIABLE, buffer_bytes=1024 * 1024)
    fast.until_position(500)
    quiet = latency(fast, "quiet time to compare with")
    before = memory_kb(publisher.pid)
    stuck.command("stop")
    beside = latency(fast, "a stuck subscriber, before the window is full")

    evicted = publisher.until_event("Evicted")
    wait_until(lambda: len(publisher.events("Evicted")) == 2)
    reached = publisher.last("sent")[1]
    fast.until_position(reached)
    blocked = fast.measure()
    after = latency(fast, "after the eviction")
    grown = memory_kb(publisher.pid) - before
    stuck.command("go")
    wait_until(lambda: stuck.position() > reached)
    team.finish()

    told = stuck.events("Evicted")
    assert not evicted["here"] and evicted["peer"]["name"] == "stuck" and "full" in evicted["reason"]
    assert len(told) == 2 and all(event["here"] and event["peer"]["name"] == "pub" for event in told)
    assert {event["reason"] for event in publisher.events("Undelivered")} <= {"evicted"}
    assert not fast.events("Gap") and stuck.events("Gap")
    assert grown < 4 * window // 1024 + 8 * 1024, f"{grown} kB"
    assert min(quiet["count"], beside["count"], after["count"]) > 0, "the other one goes on receiving all the while"
    assert blocked["max"] < 2 * GRACE_S + SLACK_S, "nobody waits longer than the grace"
    team.verdict(excused=["stuck"]).check(gaps=True)


def test_a_slow_subscriber_slows_and_loses_nothing(team: Crew) -> None:
    """It takes its time for every batch, but gets on: back-pressure, no eviction, no gap."""
    publisher = team.publisher(
        config={"grace_s": GRACE_S}, count=3_000, pad=1000, window_bytes=500_000, subscribers=2, deliveries=RELIABLE
    )
    fast = team.subscriber("fast", seeds=publisher.endpoints[:1], deliveries=RELIABLE)
    slow = team.subscriber(
        "slow", seeds=publisher.endpoints[:1], deliveries=RELIABLE, pause_s=0.02, buffer_bytes=200_000
    )

    for child in (fast, slow):
        child.until_settled(3_000)
    publisher.until("done")
    team.finish()

    team.verdict(to_end=True).check()
    assert not publisher.events("Evicted")


def test_a_slow_best_effort_subscriber_loses_and_knows(team: Crew) -> None:
    """At-most-once at full speed: the slow one is told of every message that it misses, the fast one misses none."""
    only = ("at-most-once",)
    publisher = team.publisher(count=30_000, rate=20_000, pad=500, subscribers=2, deliveries=only)
    fast = team.subscriber("fast", seeds=publisher.endpoints[:1], deliveries=only)
    slow = team.subscriber("slow", seeds=publisher.endpoints[:1], deliveries=only, pause_s=0.01, buffer_bytes=200_000)

    for child in (fast, slow):
        child.until_settled(30_000)
    publisher.until("done")
    team.finish()

    verdict = team.verdict(to_end=True).check()
    assert not fast.events("Gap")
    assert verdict.announced["at-most-once"] + verdict.delivered["at-most-once"] == 60_000
    assert {gap["cause"] for gap in slow.events("Gap")} <= {"buffer", "overflow"}


def test_a_full_queue_on_the_way_is_repaired_or_told(team: Crew) -> None:
    """libzmq's own queue overflows (Config.outlet_queue_bytes): reliable streams are repaired, the other one told."""
    tight = {"outlet_queue_bytes": 100_000, "batch_bytes": 16_384}
    publisher = team.publisher(config=tight, count=6_000, chunk=500, pad=2_000)
    subscriber = team.subscriber(seeds=publisher.endpoints[:1], buffer_bytes=64 * 1024 * 1024)

    subscriber.until_settled(6_000)
    publisher.until("done")
    team.finish()

    verdict = team.verdict(to_end=True).check()
    assert verdict.delivered["at-most-once"] + verdict.announced["at-most-once"] == 6_000
    assert subscriber.last("closed")["repaired"] or verdict.announced["at-most-once"]
