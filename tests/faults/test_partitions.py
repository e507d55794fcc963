"""Hosts that cannot reach each other for a while: network namespaces, nftables and tbf."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.faults.children import Child, Crew, hold, open_files
from tests.faults.firewall import Firewall, hosts_with_firewalls
from tests.netns import Namespace
from tests.waiting import SLACK_S, wait_until

pytestmark = pytest.mark.slow
PORT = 7400
CUT_S = 0.5
"How long links stay cut after it was noticed."
CATCH_UP_S = 30.0

RELIABLE = ("at-least-once", "exactly-once")

Hosts = list[tuple[Namespace, Firewall]]


@pytest.fixture
def two() -> Iterator[Hosts]:
    """Two hosts."""
    with hosts_with_firewalls(2) as hosts:
        yield hosts


@pytest.fixture
def three() -> Iterator[Hosts]:
    """Three hosts."""
    with hosts_with_firewalls(3) as hosts:
        yield hosts


def start(
    team: Crew, hosts: Hosts, *, timeouts: dict[str, Any] | None = None, **publishing: Any
) -> tuple[Child, list[Child]]:
    """A publisher on the first host and a subscriber on each of the others, connected."""
    a, timeouts = hosts[0][0], timeouts or {}
    config = {"port": PORT, **timeouts}
    publisher = team.publisher(on=a, config=config, subscribers=len(hosts) - 1, **publishing)
    seeds = [f"tcp://{a.ipv4}:{PORT}"]
    subscribers = [
        team.subscriber(f"sub-{n}", on=host, seeds=seeds, config=timeouts) for n, (host, _) in enumerate(hosts[1:])
    ]
    publisher.until("began")
    return publisher, subscribers


def caught_up(team: Crew, publisher: Child, subscribers: list[Child], count: int) -> None:
    """After the fault everything arrives soon: once, in order, nothing lost."""
    for subscriber in subscribers:
        subscriber.until_settled(count, CATCH_UP_S)
    publisher.until("done", CATCH_UP_S)
    team.finish()
    team.verdict(to_end=True).check()


def test_a_full_partition_heals(team: Crew, two: Hosts) -> None:
    """Both sides notice that the other is silent, and afterwards nothing is missing and nothing came twice."""
    publisher, subscribers = start(team, two, count=8_000, rate=12_000)
    subscribers[0].until_position(1_000)
    two[1][1].cut(two[0][0].ipv4)
    for child in (publisher, *subscribers):
        assert child.until_event("PeerLeft")["reason"] == "silent"
    hold(CUT_S, "partition")
    two[1][1].clear()

    caught_up(team, publisher, subscribers, 8_000)


def test_a_partition_longer_than_the_grace_is_told(team: Crew, two: Hosts) -> None:
    """The publisher gives its subscriber up and says so; later the subscriber is told what it missed."""
    a, b = two
    grace = {"grace_s": 1.5, "port": PORT}
    publisher = team.publisher(on=a[0], config=grace, count=6_000, rate=6_000, deliveries=RELIABLE)
    subscriber = team.subscriber(on=b[0], seeds=[f"tcp://{a[0].ipv4}:{PORT}"], deliveries=RELIABLE)
    subscriber.until_position(1_000)
    b[1].cut(a[0].ipv4)
    undelivered = publisher.until_event("Undelivered")
    b[1].clear()
    publisher.until("done")
    subscriber.until_settled(6_000)
    team.finish()

    assert publisher.all("failed")
    verdict = team.verdict(excused=["sub"], to_end=True).check(gaps=True)
    gaps = subscriber.events("Gap")
    assert undelivered["reason"] == "away"
    assert [gap["cause"] for gap in gaps] == ["expired"] * len(RELIABLE)
    for mode in RELIABLE:
        assert verdict.delivered[mode] + verdict.announced[mode] == 6_000


@pytest.mark.parametrize("direction", ["from", "to"])
def test_a_one_way_partition_is_noticed_by_both(team: Crew, two: Hosts, direction: str) -> None:
    """Packets pass in one direction only: heartbeats of the application tell both sides."""
    publisher, subscribers = start(team, two, count=6_000, rate=9_000)
    subscribers[0].until_position(1_000)
    firewall, address = two[1][1], two[0][0].ipv4
    (firewall.drop_from if direction == "from" else firewall.drop_to)(address)
    for child in (publisher, *subscribers):
        assert child.until_event("PeerLeft")["reason"] == "silent"
    firewall.clear()

    caught_up(team, publisher, subscribers, 6_000)


def test_a_partial_partition_harms_nobody_else(team: Crew, three: Hosts) -> None:
    """One of two subscribers is cut off from the publisher, though not from the other one."""
    publisher, subscribers = start(team, three, count=10_000, rate=10_000)
    near, far = subscribers
    far.until_position(1_000)
    three[2][1].cut(three[0][0].ipv4)
    publisher.until_event("PeerLeft")
    before = near.position()
    hold(CUT_S, "partial partition")
    near.until_position(min(before + 1_000, 9_999))
    assert not near.silences()
    three[2][1].clear()

    caught_up(team, publisher, subscribers, 10_000)


def test_a_flapping_link_wears_nothing_out(team: Crew, two: Hosts) -> None:
    """Up and down every half second: no descriptors leak, and little is sent twice."""
    publisher, subscribers = start(team, two, count=11_000, rate=12_000)
    subscribers[0].until_position(1_000)
    children = [publisher, *subscribers]
    files = [open_files(child.pid) for child in children]
    firewall, address = two[1][1], two[0][0].ipv4
    for _ in range(3):
        firewall.cut(address)
        hold(0.4, "link down")
        firewall.clear()
        hold(0.4, "link up")
    subscribers[0].until_settled(11_000, CATCH_UP_S)
    wait_until(lambda: all(open_files(c.pid) <= n + 4 for c, n in zip(children, files, strict=True)))

    caught_up(team, publisher, subscribers, 11_000)
    closed = subscribers[0].last("closed")
    assert closed["duplicates"] <= publisher.last("closed")["batches_sent"] // 4


def test_packet_loss_only_slows(team: Crew, two: Hosts) -> None:
    """First 1 %, then 10 % of all packets: nobody takes the other for dead."""
    publisher, subscribers = start(team, two, count=4_000, rate=9_000, timeouts={"peer_timeout_s": 3.0})
    two[1][1].lose(1)
    subscribers[0].until_position(1_500, CATCH_UP_S)
    two[1][1].lose(10)
    subscribers[0].until_settled(4_000, CATCH_UP_S)
    two[1][1].clear()

    caught_up(team, publisher, subscribers, 4_000)
    assert not publisher.silences() and not subscribers[0].silences()


def test_heavy_packet_loss_kills_nobody(team: Crew, two: Hosts) -> None:
    """30 % of all packets: TCP's pauses grow to seconds, but with a patient timeout nobody is taken for dead."""
    patient = {"heartbeat_interval_s": 1.0, "peer_timeout_s": 15.0}
    publisher, subscribers = start(team, two, count=300, rate=1_000, timeouts=patient)
    two[1][1].lose(30)
    subscribers[0].until_settled(300, 60)
    two[1][1].clear()

    caught_up(team, publisher, subscribers, 300)
    assert not publisher.silences() and not subscribers[0].silences()


def test_a_narrow_link_sees_no_storm_of_repairs(team: Crew, two: Hosts) -> None:
    """1 Mbit/s: what is still on its way is asked for again a few times at most on a busy machine."""
    two[0][1].limit("1mbit")
    publisher, subscribers = start(team, two, count=700, rate=3_000, pad=100)

    subscribers[0].until_settled(700)
    caught_up(team, publisher, subscribers, 700)
    closed = subscribers[0].last("closed")
    assert closed["repaired"] <= 5 * publisher.last("closed")["batches_sent"]


def test_a_vanished_host_is_noticed_in_time(team: Crew, two: Hosts) -> None:
    """A pulled cable sends no FIN: the peer counts as gone after its timeout, and is back with the cable."""
    publisher, subscribers = start(team, two, count=6_000, rate=9_000)
    subscribers[0].until_position(1_000)
    two[1][0].disconnect()
    event = publisher.until_event("PeerLeft")
    last = max(line["at"] for line in subscribers[0].lines() if "got" in line)
    assert 0.5 < event["at"] - last < 2.5 + SLACK_S
    two[1][0].connect()

    caught_up(team, publisher, subscribers, 6_000)


def test_segments_refused_by_reset(team: Crew, two: Hosts) -> None:
    """A middlebox answers with RST for a while."""
    publisher, subscribers = start(team, two, count=6_000, rate=9_000)
    subscribers[0].until_position(1_000)
    two[1][1].reset_from(two[0][0].ipv4)
    hold(0.5, "resets")
    two[1][1].clear()

    caught_up(team, publisher, subscribers, 6_000)
