"""Processes that die at any moment, and processes that are asked to stop."""

from __future__ import annotations

import signal

import pytest

from tests.faults.children import ENDLESS, Crew
from tests.faults.proxy import Proxy
from tests.waiting import wait_until

pytestmark = pytest.mark.slow


RELIABLE = ("at-least-once", "exactly-once")


def test_a_killed_subscriber_resumes_under_its_name(team: Crew) -> None:
    """SIGKILL and a restart within the grace: nothing is missing, only what was not processed comes again."""
    publisher = team.publisher(config={"grace_s": 30.0}, count=ENDLESS, rate=12_000)
    subscriber = team.subscriber(seeds=publisher.endpoints[:1])
    for position in (1_000, 3_500):
        subscriber.until_position(position)
        subscriber.kill()
        subscriber = team.subscriber(seeds=publisher.endpoints[:1])

    subscriber.until_position(4_000)
    publisher.command("stop")
    count = publisher.until("done")
    subscriber.until_position(count - 1)
    team.finish()

    verdict = team.verdict().check(duplicates=True)
    assert all(verdict.delivered[mode] == count for mode in RELIABLE)
    assert all(verdict.duplicates[mode] < count // 2 for mode in RELIABLE)
    assert verdict.delivered["at-most-once"] < count, "nobody keeps these for who is away"
    assert not publisher.events("Undelivered")


def test_a_subscriber_that_stays_away_is_reported(team: Crew) -> None:
    """After the grace the publisher stops waiting, names what was not delivered, and `flush` raises."""
    publisher = team.publisher(
        config={"grace_s": 1.0}, count=ENDLESS, rate=9_000, window_bytes=100_000, subscribers=2, deliveries=RELIABLE
    )
    stays = team.subscriber("stays", seeds=publisher.endpoints[:1])
    leaves = team.subscriber("leaves", seeds=publisher.endpoints[:1])
    leaves.until_position(2_000)
    leaves.kill()

    undelivered = publisher.until_event("Undelivered")
    publisher.command("stop")
    stays.until_position(publisher.until("done") - 1)
    team.finish()

    assert undelivered["reason"] == "away" and undelivered["peer"]["name"] == "leaves"
    assert undelivered["first"] <= leaves.position() + 1
    assert {failure[0] for failed in publisher.all("failed") for failure in failed[1]} == {"leaves"}
    team.verdict(excused=["leaves"]).check()


def test_a_killed_publisher_leaves_a_clean_prefix(team: Crew) -> None:
    """SIGKILL in the middle of a batch: what was confirmed is there, the rest is there or not, the next one is new."""
    first = team.publisher(count=ENDLESS, chunk=1000, flush_every=5000)
    port = first.endpoints[0].rpartition(":")[2]
    subscriber = team.subscriber(seeds=first.endpoints[:1])
    subscriber.until_position(20_000)
    first.kill()
    second = team.publisher(config={"port": int(port)}, count=5_000)

    second.until("done")
    wait_until(lambda: len([got for got in subscriber.all("got") if got[1] == 1 and got[4] == 4_999]) == 3)
    team.finish()

    verdict = team.verdict().check()
    assert all(verdict.delivered[mode] > 24_000 for mode in RELIABLE)


def test_a_hole_left_by_a_dead_publisher_is_announced(team: Crew, proxy: Proxy) -> None:
    """A batch is lost, and its publisher dies before it can repair: a Gap tells, and what came later is delivered."""
    publisher = team.publisher(count=ENDLESS, rate=6_000)
    inbox, outlet = (proxy.serve(endpoint) for endpoint in publisher.endpoints)
    batches: dict[bytes, int] = {}

    def eat_fourth(flags: int, body: bytes) -> list[bytes]:
        topic = body.partition(b"\0")[0]
        batches[topic] = batches.get(topic, 0) + 1
        return [] if topic.startswith(b"t.") and batches[topic] == 4 else [body]

    outlet.frames = eat_fourth
    inbox.frames = lambda _, body: [] if len(body) > 1000 else [body]  # repairs
    subscriber = team.subscriber(seeds=publisher.endpoints[:1], via=proxy.host, config={"grace_s": 1.0})
    subscriber.until_position(299)
    wait_until(lambda: publisher.last("sent")[1] >= 1_000)
    publisher.kill()

    subscriber.until_position(500)
    team.finish()

    told = {(gap["topic"].partition(".")[2], gap["first"], gap["last"]) for gap in subscriber.events("Gap")}
    assert told >= {(mode, 300, 399) for mode in (*RELIABLE, "at-most-once")}
    team.verdict().check(gaps=True)


def test_a_publisher_that_is_terminated_under_load_loses_nothing(team: Crew) -> None:
    """SIGTERM while it publishes as fast as it can: all that `publish` accepted arrives or is announced, exit 0."""
    publisher = team.publisher(count=ENDLESS, chunk=500)
    subscriber = team.subscriber(seeds=publisher.endpoints[:1])
    subscriber.until_position(5_000)
    publisher.signal(signal.SIGTERM)

    assert publisher.wait() == 0
    accepted: dict[str, int] = dict(publisher.all("sent"))
    reliable = publisher.options.reliable
    wait_until(lambda: all(subscriber.position(topic) >= accepted[topic] for topic in reliable))
    subscriber.until_event("PeerLeft")
    team.finish()

    team.verdict().check()
    best_effort = "t.at-most-once"
    told = [gap["last"] for gap in subscriber.events("Gap") if gap["topic"] == best_effort]
    assert max([subscriber.position(best_effort), *told]) >= accepted[best_effort]


def test_a_subscriber_that_is_terminated_under_load_holds_nobody_up(team: Crew) -> None:
    """It leaves with a goodbye and exit 0; the publisher does not wait for it and serves the others."""
    publisher = team.publisher(count=6_000, rate=12_000, subscribers=2)
    leaves = team.subscriber("leaves", seeds=publisher.endpoints[:1])
    stays = team.subscriber("stays", seeds=publisher.endpoints[:1])
    leaves.until_position(1_500)
    leaves.signal(signal.SIGTERM)

    assert leaves.wait() == 0
    publisher.until("done", 30)
    stays.until_position(5_999)
    team.finish()

    team.verdict(excused=["leaves"]).check()
    assert not publisher.silences()
