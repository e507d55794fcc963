"""A store at work: a publisher, a group with transactions, a pusher and a worker, and what must be true in the end.

    python -m tests.durable.site [--restarts 10]

restarts the store (SIGTERM) again and again under load, with the default Config, and prints how long each consumer got
nothing, in ms after the store was there again, as JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from functools import partial
from pathlib import Path
from time import monotonic_ns

from tests.durable import test_kills as topics
from tests.durable import test_queue_kills as queues
from tests.durable.program import LANES, RESULTS
from tests.durable.test_kills import TIMEOUT, Crew, Process
from tests.waiting import wait_until

__all__ = ["Site"]


class Site:
    """The processes, and what they wrote."""

    def __init__(self, crew: Crew, members: int = 1) -> None:
        self._crew = crew
        self.data = crew.path / "data"
        self.store = crew.start("store", "store", str(self.data))
        self.publisher = crew.start("publish", "publisher", f"publisher:{crew.path}/outbox")
        self.pusher = crew.start("push", "pusher")
        self.members = [crew.start("share", f"member-{number}") for number in range(members)]
        self.worker = crew.start("work", "worker")
        self._everybody = list(crew.processes)

    @property
    def consumers(self) -> list[Process]:
        """Who gets something from the store."""
        return [*self.members, self.worker]

    def ready(self) -> None:
        """Everybody works."""
        for process in self._everybody:
            process.ready()

    def restart(self) -> list[float]:
        """SIGTERM to the store, and start again; how long until each consumer had something more, in ms."""
        self.store.end()
        self.store.start()
        self.store.ready()
        at = monotonic_ns()
        firsts = [wait_until(partial(_first_after, each, at), TIMEOUT, pause=0.05) for each in self.consumers]
        return [(first - at) / 1e6 for first in firsts]

    def finish(self) -> None:
        """Whatever is stored is done; much is."""
        wait_until(lambda: self._confirmed() > 2 * LANES, TIMEOUT, pause=0.1)
        self.publisher.end()
        self.pusher.end()
        confirmed = queues.pushed([self.pusher], "ok")
        wait_until(lambda: confirmed <= queues.told([self.worker], "begin").keys(), TIMEOUT, pause=0.1)
        published = len(self.publisher.lines()) - len(queues.pushed([self.publisher], "ok")) - 1
        wait_until(lambda: len(queues.told(self.members, "begin")) == published, TIMEOUT, pause=0.1)
        queues.await_rest(self._crew, [self.worker], "group")
        for process in (*self.consumers, self.store):
            process.end()

    def _confirmed(self) -> int:
        """How many messages, or how many jobs: the lesser of the two."""
        return min(len(queues.pushed([each], "ok")) for each in (self.publisher, self.pusher))

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
        queues.judge([self.pusher], [self.worker])
        assert queues.in_the_log(self.data) == ([], 0)


def _first_after(process: Process, at: int) -> int:
    """When it first began with something after that time; 0 if it has not."""
    times = (time for begun in queues.told([process], "begin").values() for time in begun if time > at)
    return min(times, default=0)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--restarts", type=int, default=10)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        crew = Crew(Path(directory))
        crew.defaults = "yes"
        try:
            site = Site(crew, members=2)
            site.ready()
            stalls = [site.restart() for _ in range(options.restarts)]
            site.finish()
            site.judge()
        finally:
            crew.kill()
    for process, each in zip(site.consumers, zip(*stalls, strict=True), strict=True):
        figures = {"median": statistics.median(each), "max": max(each)}
        print(json.dumps({"consumer": process.name, **{name: round(value) for name, value in figures.items()}}))


if __name__ == "__main__":
    main()
