"""Many topics, late joiners, and strangers on old ports."""

from __future__ import annotations

from functools import partial

import pytest

from tests.faults.children import Child, Crew
from tests.faults.proxy import Proxy
from tests.waiting import wait_until

pytestmark = pytest.mark.slow
TOPICS = 5_000
"More than libzmq's default queue of 1,000, in which a SUB socket loses subscriptions when it reconnects."


def topics_complete(subscriber: Child, count: int, incarnation: int = 0) -> bool:
    """Whether every topic has come as far as message `count - 1`."""
    last = {got[2] for got in subscriber.all("got") if got[1] == incarnation and got[4] == count - 1}
    return len(last) == TOPICS


@pytest.mark.timeout(240)
def test_all_topics_survive_resets_and_a_restart_on_the_same_ports(team: Crew, proxy: Proxy) -> None:
    """5,000 subscriptions by 5,000 patterns: a reconnection brings all back, and so does a new publisher."""
    only = ("at-least-once",)
    publisher = team.publisher(topics=TOPICS, count=3, chunk=1, rate=5_000, deliveries=only)
    inbox, outlet = publisher.endpoints
    lines = [proxy.serve(endpoint) for endpoint in (inbox, outlet)]
    subscriber = team.subscriber(seeds=[inbox], via=proxy.host, topics=TOPICS, deliveries=only)
    publisher.until("began", 20)
    wait_until(lambda: topics_complete(subscriber, 1), 40, pause=0.1)
    assert proxy.reset(*lines)
    wait_until(lambda: topics_complete(subscriber, 3), 40, pause=0.1)
    publisher.kill()
    ports = [int(endpoint.rpartition(":")[2]) for endpoint in (inbox, outlet)]
    again = team.publisher(
        topics=TOPICS, count=1, chunk=1, deliveries=only, config={"port": ports[0]}, outlet_port=ports[1]
    )
    again.until("done", 60)
    wait_until(lambda: topics_complete(subscriber, 1, 1), 40, pause=0.1)
    team.finish()

    team.verdict().check()


def test_late_joiners_get_history_and_the_present_without_a_seam(team: Crew) -> None:
    """start="earliest" while 10,000 messages a second are published: no hole, no double, from message 0 on."""
    only = ("at-least-once", "exactly-once")
    publisher = team.publisher(count=15_000, rate=20_000, kept=100_000, subscribers=0, deliveries=only)
    seeds = publisher.endpoints[:1]
    joiners = []
    for number, position in enumerate((1_000, 4_000, 8_000)):
        wait_until(partial(_published, publisher, position))
        joiners.append(team.subscriber(f"late-{number}", seeds=seeds, start="earliest", deliveries=only))
    for joiner in joiners:
        joiner.until_settled(15_000)
    publisher.until("done")
    team.finish()

    verdict = team.verdict(to_end=True).check()
    assert all(verdict.delivered[mode] == 3 * 15_000 for mode in only)


def test_a_late_joiner_is_told_what_history_no_longer_has(team: Crew) -> None:
    """It asks for more than the publisher keeps: a Gap with the cause `expired`, then everything that is left."""
    only = ("at-least-once",)
    publisher = team.publisher(count=4_000, rate=8_000, kept=500, subscribers=0, deliveries=only)
    publisher.until("done")
    late = team.subscriber("late", seeds=publisher.endpoints[:1], start=0, deliveries=only)
    late.until_settled(4_000)
    team.finish()

    verdict = team.verdict(excused=["late"], to_end=True).check(gaps=True)
    assert [gap["cause"] for gap in late.events("Gap")] == ["expired"]
    assert verdict.delivered["at-least-once"] >= 500


@pytest.mark.parametrize("fabric", ["faults", "others"])
def test_a_stranger_on_old_ports_is_ignored(team: Crew, fabric: str) -> None:
    """Another node takes over both ports of a killed publisher: nothing of it is delivered unless it says HELLO.

    A stranger of the same fabric is a publisher like any other once it has; one of another fabric never is.
    """
    publisher = team.publisher(count=1_000_000, rate=9_000)
    subscriber = team.subscriber(seeds=publisher.endpoints[:1])
    subscriber.until_position(500)
    inbox, outlet = (int(endpoint.rpartition(":")[2]) for endpoint in publisher.endpoints)
    publisher.kill()
    stranger = team.publisher(
        "stranger", fabric=fabric, config={"port": inbox}, outlet_port=outlet, count=3_000, rate=9_000,
        subscribers=int(fabric == "faults"),
    )  # fmt: skip
    stranger.until("done")
    subscriber.until_event("PeerLeft")
    if fabric == "faults":
        subscriber.until_position(2_999)
    else:
        wait_until(lambda: subscriber.events("PeerRefused"))
    team.finish()

    names = {got[0] for got in subscriber.all("got")}
    assert names == ({"pub", "stranger"} if fabric == "faults" else {"pub"})
    team.verdict(excused=[] if fabric == "faults" else ["sub"]).check()


def _published(publisher: Child, position: int) -> bool:
    return bool((publisher.last("sent") or [0, 0])[1] >= position)
