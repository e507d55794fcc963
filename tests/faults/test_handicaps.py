"""The fault tests are tested: with one mechanism switched off, the same scenarios fail."""

from __future__ import annotations

from typing import Any

import pytest

from tests.faults.children import ENDLESS, Crew
from tests.faults.oracle import judge
from tests.faults.proxy import FrameFilter, Line, Proxy
from tests.waiting import wait_until

pytestmark = pytest.mark.slow
COUNT = 1_000
IN_VAIN_S = 1.8
"Far longer than a healthy pair needs: what has not come by then was lost."
ONLY = ("exactly-once",)
SAFE: dict[str, Any] = {"checksums": True}


def scenario(
    team: Crew,
    proxy: Proxy,
    fault: FrameFilter,
    *,
    publishing: dict[str, Any],
    subscribing: dict[str, Any],
    timeout: float = 30.0,
) -> None:
    """1,000 messages with a fault on the data connection; AssertionError unless all arrive once and are confirmed."""
    publisher = team.publisher(count=COUNT, rate=2_000, deliveries=ONLY, **publishing)
    inbox, outlet = (proxy.serve(endpoint) for endpoint in publisher.endpoints)
    outlet.frames = fault
    subscriber = team.subscriber(seeds=[publisher.endpoints[0]], via=proxy.host, deliveries=ONLY, **subscribing)
    subscriber.until_settled(COUNT, timeout)
    publisher.until("done", timeout)
    team.finish()
    assert inbox.accepted
    team.verdict(to_end=True).check()


def nothing(flags: int, body: bytes) -> list[bytes]:
    """No fault."""
    return [body]


class Batches:
    """Does something to every third batch, or to one of them."""

    def __init__(self, action: str) -> None:
        self._action = action
        self._seen = 0
        self._line = Line(("", 0), 1)
        self._line.flip_every = 40

    def __call__(self, flags: int, body: bytes) -> list[bytes]:
        """A frame filter."""
        if not body.startswith(b"t."):
            return [body]
        self._seen += 1
        match self._action:
            case "repeat":
                return [body, body]
            case "eat the fourth":
                return [] if self._seen == 4 else [body]
            case "eat the last":
                return [] if self._seen == 10 else [body]
            case _:
                return [body[:60] + self._line.damage(body[60:])]


HANDICAPPED = [
    ("no acks", "subscriber", "", {}),
    ("no repair", "publisher", "eat the fourth", {}),
    ("no positions", "publisher", "eat the last", {}),
    ("no deduplication", "subscriber", "repeat", {}),
    ("no checksums", "both", "damage", SAFE),
]


@pytest.mark.parametrize(("handicap", "where", "action", "options"), HANDICAPPED)
def test_each_mechanism_is_missed(
    team: Crew, proxy: Proxy, handicap: str, where: str, action: str, options: dict[str, Any]
) -> None:
    """Without it the scenario fails."""
    handicapped = {**options, "handicap": handicap}
    publishing = handicapped if where in ("publisher", "both") else options
    subscribing = handicapped if where in ("subscriber", "both") else options
    fault = Batches(action) if action else nothing

    with pytest.raises(AssertionError):
        scenario(team, proxy, fault, publishing=publishing, subscribing=subscribing, timeout=IN_VAIN_S)


@pytest.mark.parametrize("action", ["eat the fourth", "eat the last", "repeat"])
def test_the_scenarios_pass_with_all_mechanisms(team: Crew, proxy: Proxy, action: str) -> None:
    """With all of them it does not."""
    scenario(team, proxy, Batches(action), publishing={}, subscribing={})


@pytest.mark.parametrize("handicap", ["", "no retention"])
def test_what_a_crash_took_is_kept_until_it_was_processed(team: Crew, handicap: str) -> None:
    """A subscriber received everything, processed little and is killed: its successor gets the rest."""
    publisher = team.publisher(count=ENDLESS, rate=500, deliveries=ONLY, handicap=handicap)
    seeds = publisher.endpoints[:1]
    subscriber = team.subscriber(seeds=seeds, deliveries=ONLY)
    subscriber.until_position(100)
    subscriber.command("stop")
    enough = publisher.last("sent")[1] + 500
    wait_until(lambda: publisher.last("sent")[1] > enough)
    publisher.command("stop")
    count = publisher.until("done")
    subscriber.kill()
    successor = team.subscriber(seeds=seeds, deliveries=ONLY)
    wait_until(lambda: publisher.events("SubscriberJoined")[1:])
    if not handicap:
        successor.until_position(count - 1)
    team.finish()

    lost = team.verdict().lost
    assert bool(lost) == bool(handicap)


LOST = {"tried": ["t", 9]}, {"ok": ["t", 9]}
PUBLISHER = {"role": "publish", "name": "p", "incarnation": 0, "opened": "id", "streams": {"t": "at-least-once"}}
SUBSCRIBER = {"role": "subscribe", "name": "s", "incarnation": 0, "opened": "other"}


def got(first: int, last: int) -> dict[str, Any]:
    """A line of a subscriber's history."""
    return {"got": ["p", 0, "t", first, last]}


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        ([got(0, 9)], None),
        ([got(0, 8)], "lost"),
        ([got(0, 3), got(5, 9)], "lost"),
        ([got(0, 12)], "never sent"),
        ([got(0, 5), got(4, 9)], "out of order"),
        ([got(0, 9), {"damaged": "x", "topic": "t", "seq": 3}], "never sent"),
    ],
)
def test_the_oracle_sees_what_is_wrong(lines: list[dict[str, Any]], complaint: str | None) -> None:
    """Ten messages were sent and confirmed."""
    verdict = judge([[PUBLISHER, *LOST], [SUBSCRIBER, *lines]])

    if complaint is None:
        verdict.check()
    else:
        with pytest.raises(AssertionError, match=complaint):
            verdict.check(duplicates=True)


def test_the_oracle_sees_doubles_and_silence() -> None:
    """A successor may repeat what a killed subscriber had; a hole without a Gap is never fine."""
    twice = judge([[PUBLISHER, *LOST], [SUBSCRIBER, got(0, 9)], [SUBSCRIBER, got(5, 9)]])
    unconfirmed = [{"tried": ["t", 9]}]
    hole = judge([[PUBLISHER, *unconfirmed], [SUBSCRIBER, got(0, 3), got(5, 9)]])
    gap = {"event": "Gap", "source": {"id": "id"}, "topic": "t", "first": 4, "last": 4}
    told = judge([[PUBLISHER, *unconfirmed], [SUBSCRIBER, got(0, 3), gap, got(5, 9)]])

    twice.check(duplicates=True)
    with pytest.raises(AssertionError, match="twice"):
        twice.check()
    with pytest.raises(AssertionError, match="without a word"):
        hole.check()
    told.check(gaps=True)
    with pytest.raises(AssertionError):
        told.check()
