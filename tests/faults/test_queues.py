"""Queues under faults: jobs are done, whoever dies, sleeps, hangs or is cut off meanwhile."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any

import pytest

from tests.faults.children import ENDLESS, Child, Crew, hold
from tests.faults.firewall import Firewall, hosts_with_firewalls
from tests.faults.jobs import check_done
from tests.netns import Namespace
from tests.waiting import wait_until

pytestmark = pytest.mark.slow
COUNT, RATE = 1_000, 1_000
PACE = 500
"Jobs a second that one worker can do alone."
PORT = 7400
WAIT_S = 30.0


@pytest.fixture
def two() -> Iterator[list[tuple[Namespace, Firewall]]]:
    """Two hosts."""
    with hosts_with_firewalls(2) as hosts:
        yield hosts


def start(
    team: Crew, workers: int = 2, *, working: dict[str, Any] | None = None, **pushing: Any
) -> tuple[Child, list[Child]]:
    """A pusher and some workers, connected."""
    pusher = team.pusher(**{"count": ENDLESS, "rate": PACE, "subscribers": workers, **pushing})
    seeds = pusher.endpoints[:1]
    options = {"pause_s": 0.005, **(working or {})}
    those = [team.worker(f"worker-{number}", seeds=seeds, **options) for number in range(workers)]
    pusher.until("began")
    return pusher, those


def until_finished(worker: Child, count: int) -> None:
    """Wait until a worker has done that many jobs."""
    wait_until(lambda: len(worker.all("finished")) >= count, WAIT_S)


def stop(pusher: Child) -> int:
    """Push no more, and wait until all is done; returns how many jobs that was."""
    pusher.command("stop")
    return int(pusher.until("done", WAIT_S))


def until_dead(workers: list[Child], count: int) -> None:
    """Wait until that many are."""
    wait_until(lambda: sum(worker.process.poll() is not None for worker in workers) >= count, WAIT_S)


def until_silences(child: Child, count: int) -> None:
    """Wait until it took its peer for gone that often."""
    wait_until(lambda: len(child.silences()) >= count, WAIT_S)


def until_met(children: list[Child], count: int) -> None:
    """Wait until all of them have met a peer that often."""
    wait_until(lambda: all(len(child.events("PeerJoined")) >= count for child in children), WAIT_S)


def test_a_killed_worker_s_jobs_are_done_by_others(team: Crew) -> None:
    """SIGKILL, three times: what they had is done again, and nothing else is."""
    pusher, workers = start(team, 3)
    for worker in workers[:2]:
        until_finished(worker, 50)
        worker.kill()
    workers.append(team.worker("late", seeds=pusher.endpoints[:1], pause_s=0.005))
    until_finished(workers[2], 300)
    workers[2].kill()
    count = stop(pusher)

    finished = check_done(workers, "pusher", count)
    counted = pusher.last("counted")
    assert (counted["done"], counted["dead"], counted["depth"]) == (count, 0, 0)
    assert sum(finished.values()) - count <= counted["redelivered"], "only what was lost is done again"
    assert sum(finished.values()) - count <= 3 * 12, "each had four in hand, and what it could not tell any more"
    team.finish()


def test_a_stopped_worker_s_late_ack_is_refused(team: Crew) -> None:
    """SIGSTOP past its lease: the job is done by another, and what the stopped one says later counts for nothing."""
    pusher, workers = start(team, 2)
    stopped, other = workers
    until_finished(stopped, 50)
    stopped.signal(signal.SIGSTOP)
    pusher.until_event("PeerLeft")
    until_finished(other, 200)
    hold(0.5, "SIGSTOP")
    stopped.signal(signal.SIGCONT)
    orphaned = stopped.until_event("JobsOrphaned")
    count = stop(pusher)

    check_done(workers, "pusher", count)
    counted = pusher.last("counted")
    assert (counted["done"], counted["dead"]) == (count, 0), "each counts once"
    assert orphaned["count"] > 0
    team.finish()


def test_a_hung_handler_s_job_is_done_by_another(team: Crew) -> None:
    """The node runs, its handlers do not: after a while the jobs go elsewhere, and the acks of these are refused."""
    pusher, workers = start(team, 2, working={"handler_timeout_s": 0.7})
    hung, other = workers
    until_finished(hung, 50)
    hung.command("stop")
    count = stop(pusher)
    assert not pusher.silences(), "its node was there all the time"
    hung.command("go")
    hung.until_event("AckRefused")

    check_done([other, hung], "pusher", count)
    counted = pusher.last("counted")
    assert (counted["done"], counted["dead"]) == (count, 0)
    team.finish()


def test_a_blocked_worker_is_noticed(team: Crew) -> None:
    """Its event loop hangs while libzmq answers for it: its jobs are done by another."""
    pusher, (hung, other) = start(team, 2)
    until_finished(hung, 50)
    hung.signal(signal.SIGUSR1)
    pusher.until_event("PeerLeft")
    count = stop(pusher)
    hung.signal(signal.SIGUSR2)

    check_done([hung, other], "pusher", count)
    hung.until_event("PeerJoined")
    team.finish()


def test_a_killed_pusher_s_jobs_are_reported_where_they_were(team: Crew) -> None:
    """The workers say how many have nobody to hear of them; the next incarnation's jobs are its own, from 0."""
    pusher, workers = start(team, 2, working={"pause_s": 0.05})
    until_finished(workers[0], 20)
    pusher.kill()
    orphans = [worker.until_event("JobsOrphaned")["count"] for worker in workers]
    assert all(orphans)
    again = team.pusher(count=100, subscribers=2, seeds=[worker.endpoints[0] for worker in workers])
    again.until("done", WAIT_S)

    check_done(workers, "pusher", 100, incarnation=1)
    team.finish()


def test_a_pusher_that_closes_reports_what_is_not_done(team: Crew) -> None:
    """Its flush fails, and an event counts the jobs."""
    pusher, workers = start(team, 1, count=COUNT, rate=RATE, working={"pause_s": 0.2}, config={"close_timeout_s": 1.0})
    pusher.until("pushed", WAIT_S)
    assert pusher.close() == 0

    assert pusher.until_event("JobsUnfinished")["count"] > 0
    assert pusher.all("failed")
    workers[0].until_event("JobsOrphaned")
    team.finish()


def test_poison_dies_and_the_others_flow(team: Crew) -> None:
    """After three attempts; one that kills its workers, too, and takes no neighbour with it."""
    pusher, workers = start(team, 2, count=COUNT, rate=RATE, poison=100, killer=300, attempts=3)
    for number in range(3):
        until_dead(workers, number + 1)
        workers.append(team.worker(f"next-{number}", seeds=pusher.endpoints[:1], pause_s=0.005))
    pusher.until("done", WAIT_S)

    check_done(workers, "pusher", COUNT, dead=2)
    counted = pusher.last("counted")
    assert (counted["done"], counted["dead"]) == (COUNT - 2, 2)
    dead = {event["id"]: (event["attempts"], event["reason"]) for event in pusher.events("JobDead")}
    assert (dead[100][0], dead[300][0]) == (3, 3)
    assert dead[100][1] == "ValueError: poison" or "lost" in dead[100][1], "its worker may be the one that is killed"
    assert "lost" in dead[300][1]
    assert sum(number == 300 for worker in workers for _, _, number, _ in worker.all("begun")) == 3
    for child in (pusher, *workers):  # a living one may have had the poison, and its log tells
        assert child.process.poll() is not None or child.close() == 0


def test_workers_that_come_and_go_each_second(team: Crew) -> None:
    """A storm: a worker joins and another is killed or closed, again and again; every job has one owner at a time."""
    slow = {"pause_s": 0.03}
    pusher, workers = start(team, 2, working=slow, rate=200)
    for number in range(6):
        until_finished(workers[-1], 10)
        workers.append(team.worker(f"storm-{number}", seeds=pusher.endpoints[:1], **slow))
        leaving = workers[number]
        if number % 2:
            leaving.kill()
        else:
            assert leaving.close() == 0
    count = stop(pusher)

    finished = check_done(workers, "pusher", count)
    assert pusher.last("counted")["done"] == count
    assert sum(finished.values()) <= count + 3 * 12
    team.finish()


@pytest.mark.parametrize("cuts", [1, 5])
def test_partitions_and_flapping_links(team: Crew, two: list[tuple[Namespace, Firewall]], cuts: int) -> None:
    """Cut off until both take each other for gone, once and again: in the end every job is done, and counts once."""
    (a, wall), (b, _) = two
    fixed: dict[str, Any] = {"address_poll_s": 1000}  # else they meet over IPv6, which is not cut
    pusher = team.pusher(on=a, config={"port": PORT, **fixed}, count=COUNT, rate=RATE, attempts=0)
    worker = team.worker(on=b, seeds=[f"tcp://{a.ipv4}:{PORT}"], config=fixed, pause_s=0.002)
    pusher.until("began")
    for number in range(cuts):
        until_met([pusher, worker], number + 1)
        until_finished(worker, 50)
        wall.cut(b.ipv4)
        for child in (pusher, worker):
            until_silences(child, number + 1)
        wall.clear()
    pusher.until("done", WAIT_S)

    check_done([worker], "pusher", COUNT)
    counted = pusher.last("counted")
    assert (counted["done"], counted["dead"]) == (COUNT, 0)
    team.finish()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_what_a_lost_worker_had_at_most_once_is_counted(team: Crew, number: signal.Signals) -> None:
    """Nothing is tried again; every job was finished, or is counted as lost, and none was finished twice."""
    pusher, workers = start(
        team, 3, delivery="at-most-once", working={"delivery": "at-most-once", "pause_s": 0.1}, rate=150
    )
    until_finished(workers[0], 20)
    wait_until(lambda: len(workers[0].all("begun")) > len(workers[0].all("finished")) + 1, WAIT_S)
    workers[0].signal(number)
    pusher.until_event("PeerLeft")
    count = stop(pusher)
    workers[0].signal(signal.SIGCONT)

    counted = pusher.last("counted")
    finished = [row[2] for worker in workers for row in worker.all("finished")]
    assert counted["done"] + counted["lost"] == count
    assert counted["lost"] == sum(row["count"] for row in pusher.events("JobsLost")) > 0
    assert len(set(finished)) == len(finished), "none twice"
    assert count - len(finished) <= counted["lost"] < count // 2
    team.finish()
