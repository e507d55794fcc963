"""Processes that die at any moment, and processes that are asked to stop."""

from __future__ import annotations

import signal

import pytest

from tests.faults.children import Crew
from tests.waiting import wait_until

pytestmark = pytest.mark.slow
PORT = 47_101


def start_pair(team: Crew, port: int, **publishing: object) -> tuple[object, object]:
    """A publisher on a fixed port and a subscriber that knows it."""
    publisher = team.publisher(config={"port": port}, **publishing)
    subscriber = team.subscriber(seeds=[f"tcp://127.0.0.1:{port}"])
    return publisher, subscriber


@pytest.mark.parametrize("delivery", ["at-least-once", "exactly-once"])
def test_a_killed_subscriber_resumes_under_its_name(team: Crew, delivery: str) -> None:
    """SIGKILL at any point and a restart within the grace: nothing is missing; what was not processed comes again."""
    port = PORT if delivery == "at-least-once" else PORT + 1
    publisher = team.publisher(config={"port": port}, delivery=delivery, count=30_000, rate=12_000)
    subscriber = team.subscriber(seeds=[f"tcp://127.0.0.1:{port}"])
    for position in (2_000, 9_000):
        subscriber.until_position(position)
        subscriber.kill()
        subscriber = team.subscriber(seeds=[f"tcp://127.0.0.1:{port}"])

    assert publisher.until("done", 20) == 30_000
    subscriber.until_position(29_999)
    team.finish()

    verdict = team.verdict().check(duplicates=True)
    assert verdict.delivered == 30_000
    assert not publisher.events("Undelivered")
