"""Which of the jobs that wait the dispatcher gives to whom: priorities, delays, keys, selectors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.protocol.dispatching import CONFIG, LOTS, Bench
from zfabric.errors import SelectorError


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
