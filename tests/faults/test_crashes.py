"""Processes that die at any moment, and processes that are asked to stop."""

from __future__ import annotations

import signal

import pytest

from tests.faults.children import Crew
from tests.faults.proxy import Proxy
from tests.waiting import wait_until

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("delivery", ["at-least-once", "exactly-once"])
def test_a_killed_subscriber_resumes_under_its_name(team: Crew, delivery: str) -> None:
    """SIGKILL and a restart within the grace: nothing is missing, only what was not processed comes again."""
    publisher = team.publisher(delivery=delivery, count=30_000, rate=12_000)
    subscriber = team.subscriber(seeds=publisher.endpoints[:1])
    for position in (2_000, 9_000):
        subscriber.until_position(position)
        subscriber.kill()
        subscriber = team.subscriber(seeds=publisher.endpoints[:1])

    assert publisher.until("done", 20) == 30_000
    subscriber.until_position(29_999)
    team.finish()

    verdict = team.verdict().check(duplicates=True)
    assert verdict.delivered == 30_000
    assert verdict.duplicates < 10_000
    assert not publisher.events("Undelivered")


def test_a_subscriber_that_stays_away_is_reported(team: Crew) -> None:
    """After the grace the publisher stops waiting, names what was not delivered, and `flush` raises."""
    publisher = team.publisher(config={"grace_s": 1.0}, count=20_000, rate=8_000, window_bytes=100_000, subscribers=2)
    stays = team.subscriber("stays", seeds=publisher.endpoints[:1])
    leaves = team.subscriber("leaves", seeds=publisher.endpoints[:1])
    leaves.until_position(2_000)
    leaves.kill()

    undelivered = publisher.until_event("Undelivered")
    publisher.until("done", 20)
    stays.until_position(19_999)
    team.finish()

    assert undelivered["reason"] == "away" and undelivered["peer"]["name"] == "leaves"
    assert undelivered["first"] <= leaves.position() + 1
    assert any(failure[0] == "leaves" for failed in publisher.all("failed") for failure in failed[1])
    team.verdict(excused=["leaves"]).check()


@pytest.mark.parametrize("delivery", ["at-most-once", "at-least-once", "exactly-once"])
def test_a_killed_publisher_leaves_a_clean_prefix(team: Crew, delivery: str) -> None:
    """SIGKILL in the middle of a batch: what was confirmed is there, the rest is there or not, the next one is new."""
    first = team.publisher(delivery=delivery, count=10_000_000, chunk=1000, flush_every=5000)
    port = first.endpoints[0].rpartition(":")[2]
    subscriber = team.subscriber(seeds=first.endpoints[:1])
    subscriber.until_position(50_000)
    first.kill()
    second = team.publisher(delivery=delivery, config={"port": int(port)}, count=5_000)

    second.until("done")
    wait_until(lambda: [got for got in subscriber.all("got") if got[1] == 1 and got[4] == 4_999])
    team.finish()

    verdict = team.verdict().check(gaps=delivery == "at-most-once")
    assert verdict.delivered > 55_000


def test_a_hole_left_by_a_dead_publisher_is_announced(team: Crew, proxy: Proxy) -> None:
    """A batch is lost, and its publisher dies before it can repair: a Gap tells, and what came later is delivered."""
    publisher = team.publisher(count=1_000, flush_every=10_000, rate=2_000)
    inbox, outlet = (proxy.serve(endpoint) for endpoint in publisher.endpoints)
    batches = iter(range(1_000_000))
    outlet.frames = lambda _, body: [] if body.startswith(b"t\0") and next(batches) == 3 else [body]
    grace = {"grace_s": 1.0}
    subscriber = team.subscriber(seeds=publisher.endpoints[:1], via=proxy.host, config=grace)
    subscriber.until_position(299)
    inbox.blackhole = True
    publisher.until("sent")
    wait_until(lambda: publisher.last("sent")[1] >= 800)
    publisher.kill()

    gap = subscriber.until_event("Gap")
    subscriber.until_position(500)
    team.finish()

    assert (gap["first"], gap["last"]) == (300, 399)
    team.verdict().check(gaps=True)


@pytest.mark.parametrize("delivery", ["at-most-once", "at-least-once"])
def test_a_publisher_that_is_terminated_under_load_loses_nothing(team: Crew, delivery: str) -> None:
    """SIGTERM while it publishes as fast as it can: all that `publish` accepted arrives or is announced, exit 0."""
    publisher = team.publisher(delivery=delivery, count=10_000_000, chunk=500, flush_every=10_000_000)
    subscriber = team.subscriber(seeds=publisher.endpoints[:1])
    subscriber.until_position(20_000)
    publisher.signal(signal.SIGTERM)

    assert publisher.wait() == 0
    accepted = publisher.last("sent")[1]
    arrived = wait_until(lambda: delivery == "at-most-once" or subscriber.position() >= accepted, 10)
    subscriber.until_event("PeerLeft")
    team.finish()

    assert arrived
    team.verdict().check(gaps=delivery == "at-most-once")
    missed = [gap for gap in subscriber.events("Gap") if gap["last"] >= accepted]
    assert subscriber.position() >= accepted or missed


def test_a_subscriber_that_is_terminated_under_load_holds_nobody_up(team: Crew) -> None:
    """It leaves with a goodbye and exit 0; the publisher does not wait for it and serves the others."""
    publisher = team.publisher(count=30_000, rate=12_000, subscribers=2)
    leaves = team.subscriber("leaves", seeds=publisher.endpoints[:1])
    stays = team.subscriber("stays", seeds=publisher.endpoints[:1])
    leaves.until_position(5_000)
    leaves.signal(signal.SIGTERM)

    assert leaves.wait() == 0
    publisher.until("done", 10)
    stays.until_position(29_999)
    team.finish()

    team.verdict(excused=["leaves"]).check()
    assert not publisher.silences()
