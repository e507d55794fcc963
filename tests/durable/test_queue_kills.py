"""Durable queues whose store, pushers and workers are killed again and again: no job is lost or done after its ack."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.durable.program import CONFIG, TOPIC
from tests.durable.test_kills import TIMEOUT, Crew, Process, crew
from tests.faults.children import hold
from tests.waiting import wait_until
from zfabric.store import StoredBatch, open_log
from zfabric.store.ledger import PREFIX, Ledger
from zfabric.sync import Node
from zfabric.wire.batch import parse_batch
from zfabric.wire.codec import Codec

__all__ = ["crew"]

pytestmark = pytest.mark.timeout(600)

Job = tuple[str, int]
"A pusher's life and its number."
Excuse = Callable[[int, int], bool]
"Gets when a job was done, and when it was begun again."
LAST = ("judge", 1)
"A job that nobody of the crew pushes."
LINE_BYTES = 30
"Of a worker's history."
KILLS = 8


def told(processes: list[Process], word: str) -> dict[Job, list[int]]:
    """When workers said this of each job."""
    found: dict[Job, list[int]] = {}
    for process in processes:
        for number in range(len(process.histories)):
            for line in process.lines(number):
                words = line.split()
                if words[0] == word:
                    found.setdefault((words[1], int(words[2])), []).append(int(words[3]))
    return found


def written(processes: list[Process]) -> int:
    """Bytes of their histories."""
    return sum(path.stat().st_size for process in processes for path in process.histories if path.exists())


def pushed(processes: list[Process], word: str) -> set[Job]:
    """The jobs of which pushers said this."""
    return {
        (process.histories[number].stem, int(line.split()[1]))
        for process in processes
        for number in range(len(process.histories))
        for line in process.lines(number)
        if line.startswith(f"{word} ")
    }


def in_the_log(directory: Path) -> tuple[list[Job], int]:
    """Jobs that stand in the log more than once, as far as it has not been trimmed, and how many are not settled."""
    codec, found, offset = Codec(inline_bytes=65_536), Counter[Job](), 0
    with open_log(str(directory)) as log:
        end = next(info.next for info in log.streams() if info.name == f"$queue.{TOPIC}")
        left = Ledger(TOPIC, log.positions(PREFIX)).open(0, end)
        while items := log.read(f"$queue.{TOPIC}", offset, 10**7):
            for batch in items:
                if isinstance(batch, StoredBatch):
                    parsed = parse_batch(batch.frames, messages_max=10**6, buffers_max=10, topic_bytes_max=255)
                    found.update((name, number) for name, number in codec.decode_many(parsed.body, ()))
            offset = items[-1].next
    return [job for job, count in found.items() if count > 1], sum(stop - start for start, stop in left)


def begin(crew: Crew) -> tuple[Process, list[Process], list[Process]]:
    """A store, two pushers and two workers, at work."""
    store = crew.start("store", "store", str(crew.path / "data"))
    pushers = [crew.start("push", name) for name in ("ada", "bob")]
    workers = [crew.start("work", name) for name in ("one", "two")]
    for process in crew.processes:
        process.ready()
    return store, pushers, workers


def await_lines(workers: list[Process], lines: int) -> None:
    """Wait until workers have written about so much more."""
    wanted = written(workers) + lines * LINE_BYTES
    wait_until(lambda: written(workers) >= wanted, TIMEOUT)


def await_rest(crew: Crew, workers: list[Process], group: str = "") -> None:
    """Wait until every job is done, and the store has written that; and a group is through with its topic."""
    with Node("judge", fabric=crew.fabric, config=CONFIG) as node:

        def at_rest() -> bool:
            depths = [state.statistics.depth for state in node.queues() if state.queue == TOPIC]
            return depths == [0] and not (group and node.groups.lag(group, timeout=TIMEOUT))

        wait_until(at_rest, TIMEOUT, pause=0.1)
        node.pusher(TOPIC, durable=True).push(LAST)
        wait_until(lambda: LAST in told(workers, "done"), TIMEOUT, pause=0.1)  # an ack is written with all before it


def no_excuse(done: int, begun: int) -> bool:
    """Nobody was cut off."""
    return False


def given_again(workers: list[Process], excused: Excuse = no_excuse) -> list[Job]:
    """Jobs that somebody began with after somebody had heard that the store knows that they are done.

    `excused` says whether who began then may have had in hand what was done meanwhile.
    """
    begun = told(workers, "begin")
    return [
        job
        for job, times in told(workers, "done").items()
        if any(at > min(times) and not excused(min(times), at) for at in begun[job])
    ]


def judge(pushers: list[Process], workers: list[Process], excused: Excuse = no_excuse) -> None:
    """Complaints are assertions."""
    begun, confirmed = told(workers, "begin").keys() - {LAST}, pushed(pushers, "ok")
    assert begun <= pushed(pushers, "try"), "a job that nobody pushed"
    assert confirmed <= begun, f"confirmed and lost: {sorted(confirmed - begun)[:5]}"
    again = given_again(workers, excused)
    assert not again, f"given to somebody after its ack: {again[:5]}"


def test_everybody_is_killed_again_and_again(crew: Crew) -> None:
    """What is confirmed is done, and what is acknowledged is not given to anybody again."""
    crew.defaults = "yes"  # whoever takes a worker that stands still for dead may give its jobs to another
    store, pushers, workers = begin(crew)
    choice = random.Random(11)
    for _ in range(KILLS):
        victim = choice.choice([store, store, *pushers, *workers])
        await_lines(workers, choice.randrange(20, 300))
        victim.kill()
        victim.ready()
    for process in pushers:
        process.end()
    await_rest(crew, workers)
    for process in (*workers, store):
        process.end()

    judge(pushers, workers)
    twice, left = in_the_log(crew.path / "data")
    assert not twice, "stored twice"
    assert not left, f"{left} jobs are left"
    assert len(told(workers, "done")) > KILLS * 10


def test_a_store_that_confirms_jobs_early_is_caught(crew: Crew) -> None:
    """Without writing before confirming, one kill loses jobs."""
    crew.handicap = "confirms jobs early"
    store, pushers, workers = begin(crew)

    await_lines(workers, 200)
    store.kill()
    store.ready()
    crew.kill(pushers)
    hold(1.5, "workers get what there is")
    crew.kill()

    with pytest.raises(AssertionError, match="confirmed and lost"):
        judge(pushers, workers)


@pytest.mark.parametrize("handicap", ["keeps no ledgers", "forgets ledgers"])
def test_a_store_that_forgets_acks_is_caught(crew: Crew, handicap: str) -> None:
    """Without writing acks, or without reading them back, one kill gives jobs to somebody after their ack."""
    crew.handicap = handicap
    store, pushers, workers = begin(crew)

    await_lines(workers, 200)
    store.kill()
    store.ready()
    for process in pushers:
        process.end()
    confirmed = pushed(pushers, "ok")
    wait_until(lambda: confirmed <= told(workers, "begin").keys() and given_again(workers), TIMEOUT, pause=0.1)
    crew.kill()

    with pytest.raises(AssertionError, match="after its ack"):
        judge(pushers, workers)
