"""The dispatcher: every job ends once, and only who has its lease can end it."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from zfabric.config import Config
from zfabric.errors import SelectorError
from zfabric.protocol.dispatcher import Dispatcher
from zfabric.protocol.jobs import JobState, QueuePolicy
from zfabric.protocol.workers import WorkerKey
from zfabric.wire.queue_records import (
    AckRefused,
    Backlog,
    Credit,
    CreditReturned,
    Jobs,
    JobsDone,
    JobsUndone,
    Pull,
    QueueRecord,
    Recall,
)

encode = msgspec.msgpack.encode
decode = msgspec.msgpack.decode

CONFIG = Config(priority_ageing_s=10, recall_s=0.5)
LOTS = 10**9


class Bench:
    """A dispatcher with a clock and workers that remember what they got."""

    def __init__(self, config: Config = CONFIG, **policy: Any) -> None:
        self.now = 0.0
        self.queue = Dispatcher("q", config, QueuePolicy(**policy))
        self.got: dict[WorkerKey, list[Jobs]] = {}
        self.told: list[tuple[WorkerKey, QueueRecord]] = []
        self.room: dict[bytes, bool] = {}

    def worker(
        self,
        name: str,
        jobs: int = 100,
        *,
        selector: str = "",
        lease_s: float = 1000,
        keep: int = LOTS,
        nbytes: int = LOTS,
    ) -> WorkerKey:
        """A new worker with credit."""
        key = name.encode(), 1
        self.got[key] = []
        self.queue.join(key, Pull(1, "q", round(lease_s * 1000), nbytes, selector), self.now)
        self.credit(key, jobs, keep=keep)
        return key

    def credit(self, key: WorkerKey, jobs: int, keep: int = LOTS) -> None:
        """Grant more."""
        self.queue.credit(key, Credit(1, jobs, keep), self.now)

    def block(self, *values: Any) -> int:
        """Push plain jobs."""
        body = b"\xdd" + len(values).to_bytes(4, "big") + b"".join(map(encode, values))
        return self.queue.push_block(len(values), body, 5, self.now)

    def push(self, value: Any, **options: Any) -> int:
        """Push one job with options."""
        return self.queue.push(encode(value), 5, self.now, **options)

    def run(self, seconds: float = 0.0) -> None:
        """Lease, after that much time."""
        self.now += seconds
        if self.queue.timer() <= self.now:
            self.queue.handle_timer(self.now)
        self.queue.dispatch(self.now, lambda peer: self.room.get(peer, True))
        for key, record, _ in self.queue.take_told():
            self.told.append((key, record))
            if isinstance(record, Jobs):
                self.got[key].append(record)

    def values(self, key: WorkerKey) -> list[Any]:
        """The values of all leases that a worker ever got."""
        return [value for jobs in self.got[key] for value in decode(jobs.body)]

    def leases(self, key: WorkerKey) -> list[tuple[int, int, Any]]:
        """(lease, position, value) of everything it got."""
        return [(jobs.lease, index, value) for jobs in self.got[key] for index, value in enumerate(decode(jobs.body))]

    def take(self, key: WorkerKey) -> Jobs:
        """The only lease that it got since the last time."""
        (jobs,) = self.got[key]
        self.got[key] = []
        return jobs

    def done(self, key: WorkerKey, lease: int, start: int = 0, stop: int = 1) -> None:
        """It has done these."""
        self.queue.done(key, JobsDone(1, [(lease, start, stop)]), self.now)

    def undone(self, key: WorkerKey, lease: int, start: int, stop: int, why: Any, **options: Any) -> None:
        """It has not done these."""
        self.queue.undone(key, JobsUndone(1, lease, start, stop, why, **options), self.now)

    def said(self, kind: type[Any]) -> list[Any]:
        """Records of one kind so far."""
        return [record for _, record in self.told if isinstance(record, kind)]


def test_many_alike_are_one_lease_and_one_ack() -> None:
    """A thousand jobs cost two records, and the body travels as it was pushed."""
    bench = Bench()
    a = bench.worker("a", 1000)

    bench.block(*range(1000))
    bench.run()
    jobs = bench.take(a)

    assert (jobs.count, jobs.first, jobs.meta, jobs.ids) == (1000, 0, None, [])
    assert decode(jobs.body) == list(range(1000))
    assert (bench.queue.depth, bench.queue.in_flight) == (1000, 1000)
    bench.done(a, jobs.lease, 0, 1000)
    assert (bench.queue.depth, bench.queue.nbytes, bench.queue.floor) == (0, 0, 1000)
    assert bench.queue.floor == 1000


def test_credit_bounds_jobs_and_bytes() -> None:
    """A worker gets no more than it asked for, but one lease however large; it learns that there are more, once."""
    bench = Bench()
    a = bench.worker("a", 3)
    bench.block(*range(10))
    bench.run()
    bench.run()

    assert bench.values(a) == [0, 1, 2]
    assert bench.said(Backlog) == [Backlog(1)]

    b = bench.worker("b", nbytes=1)
    bench.run()
    assert bench.values(b) == [3]
    bench.done(b, bench.got[b][0].lease)
    bench.run()
    assert bench.values(b) == [3, 4]


def test_a_peer_without_room_gets_nothing() -> None:
    """The channel's bound counts, too."""
    bench = Bench()
    a = bench.worker("a")
    bench.room[b"a"] = False
    bench.block(1)
    bench.run()
    assert bench.values(a) == []

    bench.room[b"a"] = True
    bench.run()
    assert bench.values(a) == [1]


def test_jobs_are_shared_and_idle_workers_come_first() -> None:
    """Ten jobs for two workers are five each; who has more than the others gets less."""
    bench = Bench()
    a, b = bench.worker("a"), bench.worker("b")
    bench.block(*range(10))
    bench.run()
    assert (len(bench.values(a)), len(bench.values(b))) == (5, 5)

    c = bench.worker("c")
    bench.block(*range(4))
    bench.run()
    assert len(bench.values(c)) == 4


@pytest.mark.parametrize("seed", range(20))
def test_every_job_ends_exactly_once(seed: int) -> None:
    """Blocks and single jobs, acks in any order and in parts, nacks, losses, returns: nothing is lost or done twice."""
    rng, bench = random.Random(seed), Bench(max_attempts=0, backoff_s=0.1)
    workers = [bench.worker(name, 20) for name in "abc"]
    pushed: list[int] = []
    done: Counter[int] = Counter()
    held: list[tuple[WorkerKey, int, int, int]] = []
    for _ in range(400):
        match rng.randrange(8):
            case 0:
                values = list(range(len(pushed), len(pushed) + rng.randrange(1, 30)))
                pushed += values
                bench.block(*values)
            case 1:
                bench.push(
                    len(pushed),
                    priority=rng.randrange(10),
                    delay_s=rng.choice((0, 0, 0.5)),
                    key=rng.choice((None, 1, "k")),
                )
                pushed.append(len(pushed))
            case 2 if rng.random() < 0.1:
                gone = rng.choice(workers)
                bench.queue.leave(gone, "lost", bench.now)
                held = [entry for entry in held if entry[0] != gone]
                workers[workers.index(gone)] = bench.worker(gone[0].decode(), 20)
            case _ if held:
                key, lease, position, value = held.pop(rng.randrange(len(held)))
                if rng.random() < 0.8:
                    bench.done(key, lease, position, position + 1)
                    done[value] += 1
                else:
                    bench.undone(key, lease, position, position + 1, rng.choice(("nack", "hung", "returned")))
                bench.credit(key, 1)
        bench.run(rng.choice((0, 0.01, 0.2)))
        for key in workers:
            held += [(key, *entry) for entry in bench.leases(key)]
            bench.got[key].clear()
    for _ in range(10_000):
        if not bench.queue.depth:
            break
        for key, lease, position, value in held:
            bench.done(key, lease, position, position + 1)
            done[value] += 1
            bench.credit(key, 1)
        bench.run(1)
        held = [(key, *entry) for key in workers for entry in bench.leases(key)]
        for key in workers:
            bench.got[key].clear()

    assert done == Counter(pushed)
    assert (bench.queue.depth, bench.queue.nbytes, bench.queue.in_flight) == (0, 0, 0)
    assert bench.queue.floor == len(pushed)
    assert not bench.said(AckRefused)


def test_acks_may_come_in_any_order_and_count_once() -> None:
    """The second one for the same position is refused."""
    bench = Bench()
    a = bench.worker("a")
    bench.block(*range(4))
    bench.run()
    lease = bench.take(a).lease

    bench.done(a, lease, 2, 4)
    bench.done(a, lease, 0, 1)
    bench.done(a, lease, 3, 4)
    bench.run()

    assert bench.said(AckRefused) == [AckRefused(1, lease, 3, 4)]
    assert bench.queue.depth == 1
    assert bench.queue.floor == 1
    bench.done(a, lease, 1, 2)
    assert bench.queue.floor == 4


def test_a_late_ack_is_refused() -> None:
    """The lease ended because nobody renewed it, and the job is somebody else's."""
    bench = Bench()
    a = bench.worker("a", lease_s=1)
    bench.block("job")
    bench.run()
    lease = bench.take(a).lease
    bench.queue.renew(a, 0.9)
    bench.run(1.5)
    assert bench.queue.in_flight == 1
    b = bench.worker("b")
    bench.queue.credit_back(a)

    bench.run(0.5)

    again = bench.take(b)
    assert again.meta is not None
    assert again.meta.attempts == {0: 2}
    bench.done(a, lease)
    bench.run()
    assert bench.said(AckRefused) == [AckRefused(1, lease, 0, 1)]
    assert bench.queue.depth == 1
    assert bench.queue.counters.refused == 1
    bench.done(b, again.lease)
    assert bench.queue.depth == 0


def test_a_lost_worker_s_jobs_are_free_at_once_and_travel_alone() -> None:
    """In order, one at a time for each worker, so that a job that kills its worker takes no other with it."""
    bench = Bench()
    a = bench.worker("a")
    bench.block(*range(5))
    bench.run()
    bench.queue.leave(a, "lost", bench.now)
    b = bench.worker("b")
    seen = []
    for _ in range(5):
        bench.run()
        jobs = bench.take(b)
        assert (jobs.count, jobs.meta is not None and jobs.meta.attempts) == (1, {0: 2})
        seen += decode(jobs.body)
        bench.done(b, jobs.lease)

    assert seen == [0, 1, 2, 3, 4]


def test_a_job_that_kills_its_workers_dies_and_its_neighbours_live() -> None:
    """Job 3 ends every worker that begins with it."""
    bench = Bench(max_attempts=3)
    bench.block(*range(10))
    for number in range(100):
        if not bench.queue.depth:
            break
        worker = bench.worker(f"w{number}", 4)
        while worker in bench.queue.workers.all:
            bench.run()
            fresh, bench.got[worker] = bench.got[worker], []
            if not fresh:
                break
            for jobs in fresh:
                for position, value in enumerate(decode(jobs.body)):
                    if value == 3:
                        bench.queue.leave(worker, "killed", bench.now)
                        break
                    bench.done(worker, jobs.lease, position, position + 1)
                    bench.credit(worker, 1)
        bench.queue.leave(worker, "no more to do", bench.now)

    assert [(job.id, job.attempts) for job, _ in bench.queue.take_dead()] == [(3, 3)]
    assert bench.queue.counters.done == 9


def test_failures_rest_longer_and_longer_and_end() -> None:
    """0.1, 0.2, 0.3 seconds at most; the fourth failure is the last."""
    bench = Bench(max_attempts=4, backoff_s=0.1, backoff_s_max=0.3)
    a = bench.worker("a")
    bench.block("job")
    bench.run()
    pauses = []
    for _ in range(4):
        jobs = bench.take(a)
        bench.undone(a, jobs.lease, 0, 1, "nack", reason="no")
        before = bench.now
        while not bench.got[a] and bench.queue.depth:
            bench.run(0.01)
        pauses.append(bench.now - before)

    assert pauses == pytest.approx([0.1, 0.2, 0.3, 0], abs=0.011)
    ((job, reason),) = bench.queue.take_dead()
    assert (job.attempts, reason, bench.queue.depth, bench.queue.counters.redelivered) == (4, "no", 0, 3)


def test_a_nack_s_own_delay_counts() -> None:
    """Not the back-off."""
    bench = Bench(backoff_s=100, backoff_s_max=100)
    a = bench.worker("a")
    bench.block("job")
    bench.run()
    bench.undone(a, bench.take(a).lease, 0, 1, "nack", delay_ms=500)
    bench.run(0.4)
    assert not bench.got[a]
    bench.run(0.1)
    assert bench.values(a) == ["job"]


def test_what_nobody_began_with_comes_back_as_new() -> None:
    """It is first in line, in order, and its attempt does not count."""
    bench = Bench()
    a = bench.worker("a", 5)
    bench.block(*range(5))
    bench.run()
    lease = bench.take(a).lease
    bench.block(5, 6)
    bench.undone(a, lease, 2, 5, "returned")
    bench.credit(a, 10)
    bench.run()

    assert bench.values(a) == [2, 3, 4, 5, 6]
    assert all(jobs.meta is None for jobs in bench.got[a])


def test_rejected_jobs_are_dead_at_once() -> None:
    """With the worker's reason."""
    bench = Bench()
    a = bench.worker("a")
    bench.push("job", headers={"x": 1}, key="k")
    bench.run()
    bench.undone(a, bench.take(a).lease, 0, 1, "reject", reason="nonsense")

    ((job, reason),) = bench.queue.take_dead()
    assert (decode(job.value), job.headers, job.key, job.attempts, reason) == ("job", {"x": 1}, "k", 1, "nonsense")


def test_priorities_are_strict_and_nothing_starves() -> None:
    """9 before 4 before 0; but ten seconds of waiting (priority_ageing_s) count as one priority."""
    bench = Bench()
    bench.push("low", priority=0)
    bench.block("plain")
    bench.push("high", priority=9)
    a = bench.worker("a", 0)
    order: list[Any] = []
    for _ in range(3):
        bench.credit(a, 1)
        bench.run()
    order = bench.values(a)
    assert order == ["high", "plain", "low"]

    bench.push("old", priority=3)
    bench.now += 21
    bench.push("new", priority=5)
    bench.credit(a, 1)
    bench.run()
    assert bench.values(a)[-1] == "old"


def test_delayed_jobs_wait_and_expired_ones_are_given_up() -> None:
    """Whether they expire in the line, while they rest, or at a worker."""
    bench = Bench()
    bench.push("later", delay_s=5)
    bench.push("gone", ttl_s=1)
    bench.push("never", delay_s=10, ttl_s=2)
    a = bench.worker("a", 0)
    bench.run(3)
    assert bench.queue.counters.expired == 2
    bench.credit(a, 5)
    bench.run(1.9)
    assert bench.values(a) == []
    bench.run(0.1)
    assert bench.values(a) == ["later"]

    bench.got[a].clear()
    bench.push("slow", ttl_s=1)
    bench.run()
    jobs = bench.take(a)
    assert jobs.meta is not None
    assert jobs.meta.ttl_ms == {0: 1000}
    bench.run(2)
    bench.undone(a, jobs.lease, 0, 1, "expired")
    assert bench.queue.take_expired() == 3
    assert bench.queue.depth == 1


def test_jobs_of_one_key_go_one_after_the_other() -> None:
    """In order, also when the first one fails; other keys do not wait."""
    bench = Bench(backoff_s=1)
    a, b = bench.worker("a"), bench.worker("b")
    for number in range(3):
        bench.push(("k", number), key="k")
    bench.push(("other", 0), key=["a", "list"])
    seen: list[Any] = []
    fail = True
    for _ in range(20):
        bench.run(0.5)
        fresh = [(key, *entry) for key in (a, b) for entry in bench.leases(key)]
        bench.got = {a: [], b: []}
        assert sum(value[0] == "k" for *_, value in fresh) <= 1
        for key, lease, position, value in fresh:
            if value == ["k", 0] and fail:
                fail = False
                bench.undone(key, lease, position, position + 1, "nack")
            else:
                seen.append(value)
                bench.done(key, lease, position, position + 1)

    assert [value for value in seen if value[0] == "k"] == [["k", 0], ["k", 1], ["k", 2]]
    assert len(seen) == 4


def test_a_dead_job_does_not_block_its_key() -> None:
    """Nor does one that expires behind it."""
    bench = Bench(max_attempts=1)
    a = bench.worker("a")
    bench.push(0, key="k")
    bench.push(1, key="k", ttl_s=1)
    bench.push(2, key="k")
    bench.run()
    lease = bench.take(a).lease
    bench.run(2)
    bench.undone(a, lease, 0, 1, "nack")
    bench.run()

    assert bench.values(a) == [2]
    assert bench.queue.counters.expired == 1


def test_the_same_dedupe_id_is_the_same_job_for_a_while() -> None:
    """Within the window and while it is remembered (dedupe_ids_max), whether done or not."""
    bench = Bench(replace(CONFIG, dedupe_ids_max=2), dedupe_window_s=10)
    first = bench.push("one", dedupe_id="x")
    assert bench.push("one again", dedupe_id="x") == first
    assert bench.queue.counters.deduplicated == 1
    bench.now = 11
    assert bench.push("later", dedupe_id="x") != first

    bench.push("", dedupe_id="y")
    bench.push("", dedupe_id="z")
    bench.push("forgotten", dedupe_id="x")
    assert bench.queue.counters.deduplicated == 1


def test_selectors_choose_jobs_in_order() -> None:
    """By headers, key, priority and attempt; others wait for somebody else. Bad ones are refused."""
    bench = Bench()
    red = bench.worker("red", selector="colour = 'red' OR priority = 9")
    bench.block("plain")
    bench.push("r1", headers={"colour": "red"})
    bench.push("b1", headers={"colour": "blue"})
    bench.push("r2", headers={"colour": "red"})
    bench.push("p9", priority=9)
    bench.run()
    assert bench.values(red) == ["p9", "r1", "r2"]

    first_time = bench.worker("first", selector="attempt = 1")
    bench.run()
    assert bench.values(first_time) == ["plain", "b1"]
    with pytest.raises(SelectorError):
        bench.worker("bad", selector="no selector")


def test_a_line_that_nobody_reads_stays_short() -> None:
    """What other workers took leaves the lines of selectors, too, also if they have no credit."""
    bench = Bench()
    a = bench.worker("a", LOTS)
    bench.worker("red", 0, selector="colour = 'red'")
    for _ in range(2000):
        bench.push("r", headers={"colour": "red"})
        bench.run()
        bench.done(a, bench.take(a).lease)
    line = bench.queue.workers.all[b"red", 1].line

    assert sum(map(len, line._levels.values())) < 200


def test_idle_workers_let_busy_ones_give_back() -> None:
    """After recall_s, half of what the busiest has; not before, and not again at once."""
    bench = Bench()
    a = bench.worker("a")
    bench.block(*range(10))
    bench.run()
    bench.worker("b")
    bench.run()
    assert not bench.said(Recall)
    assert bench.queue.timer() == pytest.approx(0.5)
    bench.run(0.5)
    bench.run()
    assert [(key, record) for key, record in bench.told if isinstance(record, Recall)] == [(a, Recall(1, 5))]


def test_idle_pushers_return_credit() -> None:
    """All but what they may keep, once there is nothing to lease."""
    bench = Bench()
    a = bench.worker("a", 100, keep=10)
    bench.block(*range(5))
    bench.run()

    assert bench.said(CreditReturned) == [CreditReturned(1, 85)]
    assert bench.queue.workers.all[a].credit == 10


def test_a_puller_that_ends_settles_what_it_has() -> None:
    """It gets no more, and then it is gone."""
    bench = Bench()
    a = bench.worker("a", 2)
    bench.block(1, 2, 3)
    bench.run()
    lease = bench.take(a).lease
    bench.queue.end(a)
    bench.credit(a, 10)
    bench.run()
    bench.undone(a, lease, 1, 2, "returned")
    bench.run()
    assert not bench.got[a]
    bench.done(a, lease, 0, 1)
    assert not bench.queue.workers.all
    assert (bench.queue.counters.done, bench.queue.depth) == (1, 2)


def test_one_lease_is_bounded() -> None:
    """In jobs (lease_jobs_max) and in bytes (batch_bytes)."""
    bench = Bench(replace(CONFIG, lease_jobs_max=4, batch_bytes=1000))
    a = bench.worker("a")
    bench.block(*range(10))
    bench.run()
    assert [jobs.count for jobs in bench.got[a]] == [4, 4, 2]
    bench.got[a].clear()
    bench.block(*["x" * 300] * 8)
    for _ in range(5):
        bench.push("y" * 400)
    bench.run()
    assert [jobs.count for jobs in bench.got[a]] == [3, 3, 2, 2, 2, 1]


def test_changes_can_be_journaled() -> None:
    """As ranges of jobs and what became of them."""
    bench = Bench(max_attempts=1)
    bench.queue.journal = True
    a = bench.worker("a")
    bench.block("a", "b", "c")
    bench.run()
    lease = bench.take(a).lease
    bench.done(a, lease, 0, 2)
    bench.undone(a, lease, 2, 3, "nack")

    assert bench.queue.take_changes() == [
        (0, 3, JobState.WAITING, 0),
        (0, 3, JobState.LEASED, 0),
        (0, 2, JobState.DONE, 0),
        (2, 3, JobState.DEAD, 0),
    ]


def test_dropping_the_oldest_makes_room() -> None:
    """Of those that nobody has."""
    bench = Bench()
    a = bench.worker("a", 1)
    bench.block(1, 2)
    bench.run()
    assert bench.queue.drop_oldest(bench.now) == 1
    assert bench.queue.drop_oldest(bench.now) is None
    bench.done(a, bench.take(a).lease)
    assert (bench.queue.depth, bench.queue.nbytes) == (0, 0)
