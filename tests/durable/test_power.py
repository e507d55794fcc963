"""The store's machine loses power under load, or the store is restarted again and again: nothing is lost or stuck."""

from __future__ import annotations

import random

import pytest

from tests.durable import test_kills as topics
from tests.durable.site import Site
from tests.durable.test_kills import TIMEOUT, Crew, crew
from tests.waiting import wait_until
from zfabric import StoreDamaged

__all__ = ["crew"]

pytestmark = pytest.mark.timeout(600)

WRITES = range(150, 500)
"Writes and flushes from the start of the store to the failure."


def test_nothing_confirmed_is_lost_and_no_position_lies(crew: Crew) -> None:
    """What was confirmed is there, each message has one result, and no job comes after its ack."""
    chance = random.Random(4)
    crew.power = str(chance.choice(WRITES))
    site = Site(crew)
    for crew.power in (str(chance.choice(WRITES)), ""):
        wait_until(lambda: site.store.process.poll() is not None, TIMEOUT)
        assert site.store.process.returncode < 0, f"the store ended with {site.store.process.returncode}"
        site.store.start()
    site.ready()
    site.finish()
    site.judge()


def test_a_store_that_does_not_flush_is_caught(crew: Crew) -> None:
    """What it confirmed is lost, and its log sees that it was cut."""
    crew.handicap, crew.power = "does not flush", str(WRITES[-1])
    store = crew.start("store", "store", str(crew.path / "data"))
    publisher = crew.start("publish", "publisher", f"publisher:{crew.path}/outbox")
    wait_until(lambda: store.process.poll() is not None, TIMEOUT)
    crew.kill()
    with pytest.raises(StoreDamaged, match="cut or put back"):
        topics.in_the_log(crew.path / "data")
    (crew.path / "data" / "witness").unlink()
    with pytest.raises(AssertionError, match="confirmed and not stored"):
        topics.check_log([publisher], topics.in_the_log(crew.path / "data"))


def test_a_store_that_is_restarted_under_load_loses_nothing_and_leaves_nobody_behind(crew: Crew) -> None:
    """SIGTERM, again and again: each member of the group and each worker goes on every time."""
    site = Site(crew, members=2)
    site.ready()
    for _ in range(3):
        assert all(site.restart())
    site.finish()
    site.judge()
