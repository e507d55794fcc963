"""The power of the store's machine fails under load: publishers, a group with transactions, and a durable queue."""

from __future__ import annotations

import random

import pytest

from tests.durable import test_kills as topics
from tests.durable import test_queue_kills as queues
from tests.durable.program import LANES, RESULTS
from tests.durable.test_kills import TIMEOUT, Crew, crew
from tests.faults.children import hold
from tests.waiting import wait_until
from zfabric import StoreDamaged

__all__ = ["crew"]

pytestmark = pytest.mark.timeout(600)

LOSSES = 2
IDLE_S = 0.7
WRITES = range(150, 500)
"Writes and flushes from the start of the store to the failure."


class Site:
    """A store that loses power again and again, and whoever uses it."""

    def __init__(self, crew: Crew, losses: int, seed: int) -> None:
        chance = random.Random(seed)
        powers = [str(chance.choice(WRITES)) for _ in range(losses)]
        self.data = crew.path / "data"
        crew.power = powers.pop()
        self.store = crew.start("store", "store", str(self.data))
        self.publisher = crew.start("publish", "publisher", f"publisher:{crew.path}/outbox")
        self.pusher = crew.start("push", "pusher")
        self.members = [crew.start("share", "member")]
        self.workers = [crew.start("work", "worker")]
        for crew.power in [*powers, ""]:
            wait_until(lambda: self.store.process.poll() is not None, TIMEOUT)
            assert self.store.process.returncode < 0, f"the store ended with {self.store.process.returncode}"
            self.store.start()
        self.store.ready()
        for process in crew.processes:
            process.ready()

    def finish(self) -> None:
        """Whatever is stored is done."""
        self.publisher.end()
        self.pusher.end()
        confirmed = queues.pushed([self.pusher], "ok")
        wait_until(lambda: confirmed <= queues.told(self.workers, "begin").keys(), TIMEOUT, pause=0.1)
        published = len(self.publisher.lines()) - len(queues.pushed([self.publisher], "ok")) - 1
        wait_until(lambda: len(queues.told(self.members, "begin")) == published, TIMEOUT, pause=0.1)
        wait_until(self._is_idle, TIMEOUT)
        for process in (*self.members, *self.workers, self.store):
            process.end()

    def _is_idle(self) -> bool:
        """Whether no transaction and no job has ended for a while."""
        before = queues.written(self.members + self.workers)
        hold(IDLE_S, "nobody has anything to do any more")
        return queues.written(self.members + self.workers) == before

    def judge(self) -> None:
        """Complaints are assertions."""
        stored = topics.in_the_log(self.data)
        assert topics.check_log([self.publisher], stored) > LANES
        messages = [message[:2] for message in stored]
        made = [tuple(value) for _, _, value in topics.values_in(self.data, RESULTS)]
        assert len(made) == len(set(made)), "a position was behind what had been made of its messages"
        assert set(made) == set(messages), "a position was ahead of what was made of its messages"
        assert queues.told(self.members, "begin").keys() == set(messages), "the group skipped messages"
        assert all(len(times) == 1 for times in queues.told(self.members, "done").values())
        queues.judge([self.pusher], self.workers)
        assert queues.in_the_log(self.data) == ([], 0)


def test_nothing_confirmed_is_lost_and_no_position_lies(crew: Crew) -> None:
    """What was confirmed is there, each message has one result, and no job comes after its ack."""
    site = Site(crew, LOSSES, seed=4)
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
