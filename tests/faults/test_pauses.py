"""Processes that are stopped, and programs that hang while their sockets are fine."""

from __future__ import annotations

import signal

import pytest

from tests.faults.children import Crew, hold, memory_kb
from tests.waiting import wait_until

pytestmark = pytest.mark.slow
PAUSE_S = 0.5
"How long a process stays stopped after it was noticed."
COUNT = 7_000


@pytest.mark.parametrize("who", ["publisher", "subscriber"])
def test_a_stopped_process_goes_on_where_it_was(team: Crew, who: str) -> None:
    """SIGSTOP for longer than the peer timeout, SIGCONT: it was missed, it is back, nothing is lost or doubled."""
    publisher = team.publisher(count=COUNT, rate=12_000)
    subscriber = team.subscriber(seeds=publisher.endpoints[:1])
    stopped, other = (publisher, subscriber) if who == "publisher" else (subscriber, publisher)
    subscriber.until_position(1_000)
    stopped.signal(signal.SIGSTOP)
    assert other.until_event("PeerLeft")["reason"] == "silent"
    hold(PAUSE_S, "SIGSTOP")
    stopped.signal(signal.SIGCONT)

    subscriber.until_settled(COUNT)
    publisher.until("done")
    team.finish()

    team.verdict(to_end=True).check()
    assert not stopped.silences(), "it was the one who slept"


def test_a_stopped_subscriber_harms_nobody_else(team: Crew) -> None:
    """The others go on, the publisher's memory stays within the window, and the stopped one catches up."""
    publisher = team.publisher(count=COUNT, rate=9_000, subscribers=2, pad=100)
    fast = team.subscriber("fast", seeds=publisher.endpoints[:1])
    stopped = team.subscriber("stopped", seeds=publisher.endpoints[:1])
    stopped.until_position(1_000)
    before = memory_kb(publisher.pid)
    stopped.signal(signal.SIGSTOP)
    publisher.until_event("PeerLeft")
    reached = fast.position()
    hold(PAUSE_S, "SIGSTOP")
    fast.until_position(min(reached + 700, COUNT - 1))
    grown = memory_kb(publisher.pid) - before
    stopped.signal(signal.SIGCONT)

    for child in (fast, stopped):
        child.until_settled(COUNT)
    publisher.until("done")
    team.finish()

    team.verdict(to_end=True).check()
    assert not fast.events("Gap")
    assert grown < 24 * 1024, "kB: more than the window"


@pytest.mark.parametrize("who", ["publisher", "subscriber"])
def test_a_program_that_hangs_is_noticed(team: Crew, who: str) -> None:
    """Its event loop is blocked: libzmq still answers for it, the application's heartbeat does not."""
    publisher = team.publisher(count=COUNT, rate=12_000)
    subscriber = team.subscriber(seeds=publisher.endpoints[:1])
    hung, other = (publisher, subscriber) if who == "publisher" else (subscriber, publisher)
    subscriber.until_position(1_000)
    hung.signal(signal.SIGUSR1)
    assert other.until_event("PeerLeft")["reason"] == "silent"
    assert hung.process.poll() is None
    hung.signal(signal.SIGUSR2)
    wait_until(lambda: len(other.events("PeerJoined")) == 2)

    subscriber.until_settled(COUNT)
    publisher.until("done")
    team.finish()

    team.verdict(to_end=True).check()
