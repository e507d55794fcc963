"""A store with a durable topic, a group of two and a durable queue with two workers, under rotating faults."""

from __future__ import annotations

from tests.durable import test_kills as topics
from tests.durable import test_queue_kills as queues
from tests.durable.program import ENDPOINTS
from tests.durable.test_kills import Crew, Process
from tests.faults.proxy import Line, Proxy
from tests.faults.rotation import Rotation
from tests.waiting import wait_until

__all__ = ["StoreRound"]

DRAIN_S = 40.0
SETTLE_NS = 5 * 10**9
"After a fault: what a member or worker has in hand may be somebody else's for so long."
SEPARATING = ("stop", "blackhole", "delay", "flip")
"Faults after which peers may take each other for dead, and live."


class StoreRound(Rotation[Process]):
    """One store, one publisher, one pusher, two members and two workers."""

    def __init__(self, crew: Crew, proxy: Proxy, seed: str) -> None:
        super().__init__(proxy, seed)
        self._crew = crew
        crew.via = proxy.host
        self.data = crew.path / "data"
        self.store = crew.start("store", "store", str(self.data))
        self.publisher = crew.start("publish", "publisher", f"publisher:{crew.path}/outbox")
        self.pusher = crew.start("push", "pusher")
        self.members = [crew.start("share", f"member-{number}") for number in range(2)]
        self.workers = [crew.start("work", f"worker-{number}") for number in range(2)]
        self.faults += [self.kill_store, self.kill_consumer, self.kill_producer]
        for child in self.children:
            self.lines[child] = self._serve(child)
        wait_until(
            lambda: all(queues.told([child], "done") for child in self.members + self.workers),
            topics.TIMEOUT,
            pause=0.1,
        )

    @property
    def children(self) -> list[Process]:
        """All."""
        return [self.store, self.publisher, self.pusher, *self.members, *self.workers]

    def _serve(self, child: Process) -> list[Line]:
        child.ready()
        word, *endpoints = child.lines()[0].split()
        assert word == ENDPOINTS
        return [self.proxy.serve(endpoint) for endpoint in endpoints]

    def finish(self) -> str:
        """What is stored is done, once; what is confirmed is stored."""
        for producer in (self.publisher, self.pusher):
            producer.end()
        self.store.end()
        stored = {message[:2] for message in topics.in_the_log(self.data)}
        self.store.start()
        self.lines[self.store] = self._serve(self.store)
        wait_until(lambda: stored <= queues.told(self.members, "begin").keys(), DRAIN_S, pause=0.1)
        pushed = queues.pushed([self.pusher], "ok")
        wait_until(lambda: pushed <= queues.told(self.workers, "begin").keys(), DRAIN_S, pause=0.1)
        queues.await_rest(self._crew, self.workers, "group")
        for child in (*self.members, *self.workers, self.store):
            child.end()
        return self.judge()

    def judge(self) -> str:
        """Complaints are assertions; a summary of the histories."""
        stored = topics.in_the_log(self.data)
        confirmed = topics.check_log([self.publisher], stored)
        again = self._judge_group({message[:2] for message in stored})
        begun, done = queues.told(self.workers, "begin"), queues.told(self.workers, "done")
        queues.judge([self.pusher], self.workers, excused=self._was_in_hand)
        twice, left = queues.in_the_log(self.data)
        assert not twice, f"jobs stored twice: {twice[:5]}"
        assert not left, f"{left} jobs are left"
        return (
            f"{confirmed} of {len(stored)} messages confirmed, {again} given again; "
            f"{len(done)} of {len(begun)} jobs confirmed as done; {dict(self.done)}"
        )

    def _judge_group(self, stored: set[tuple[str, int]]) -> int:
        begun, done = queues.told(self.members, "begin"), queues.told(self.members, "done")
        assert begun.keys() == stored, f"the group skipped {sorted(stored - begun.keys())[:5]}"
        twice = [message for message, times in done.items() if len(times) > 1]
        assert not twice, f"two members had the position stored: {twice[:5]}"
        again = {message: sorted(times) for message, times in begun.items() if len(times) > 1}
        for message, times in again.items():
            assert any(began < times[-1] and times[0] < ended + SETTLE_NS for _, began, ended in self.times), (
                f"{message} came again though nobody had failed"
            )
        return len(again)

    def _was_in_hand(self, done: int, begun: int) -> bool:
        """Whether a worker may have begun what another had done: it was stopped or cut off, and did not know yet."""
        return any(
            began < done and begun < ended + SETTLE_NS for name, began, ended in self.times if name in SEPARATING
        )

    # -- faults --------------------------------------------------------------------------------

    def _kill(self, children: list[Process]) -> None:
        child = self.random.choice(children)
        child.kill()
        self.lines[child] = self._serve(child)

    def kill_store(self) -> None:
        """SIGKILL."""
        self._kill([self.store])

    def kill_consumer(self) -> None:
        """A member of the group, or a worker."""
        self._kill(self.members + self.workers)

    def kill_producer(self) -> None:
        """The publisher, whose successor has its outbox, or the pusher."""
        self._kill([self.publisher, self.pusher])
