"""Durable queues whose store, pushers and workers are killed again and again: no job is lost or done after its ack."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from tests.durable.program import TOPIC
from tests.durable.test_kills import TIMEOUT, Crew, Process, crew
from tests.faults.children import hold
from tests.waiting import wait_until
from zfabric.store import StoredBatch, open_log
from zfabric.store.ledger import PREFIX, Ledger
from zfabric.wire.batch import parse_batch
from zfabric.wire.codec import Codec

__all__ = ["crew"]

Job = tuple[str, int]
"A pusher's life and its number."
LINE_BYTES = 30


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


def run(crew: Crew, kills: int, seed: int, *, store_only: bool = False) -> None:
    """Kill a store, two pushers and two workers, then let the workers finish; complaints are assertions."""
    directory = crew.path / "data"
    store = crew.start("store", "store", str(directory))
    pushers = [crew.start("push", name) for name in ("ada", "bob")]
    workers = [crew.start("work", name) for name in ("one", "two")]
    for process in crew.processes:
        process.ready()
    choice = random.Random(seed)
    for _ in range(kills):
        victim = store if store_only else choice.choice([store, store, *pushers, *workers])
        wanted = written(workers) + choice.randrange(20, 300) * LINE_BYTES
        wait_until(lambda wanted=wanted: written(workers) >= wanted, TIMEOUT)  # type: ignore[misc]
        victim.kill()
        victim.ready()
    for process in pushers:
        process.end()
    confirmed, tried = pushed(pushers, "ok"), pushed(pushers, "try")
    if not crew.handicap:
        wait_until(lambda: confirmed <= told(workers, "begin").keys(), TIMEOUT, pause=0.1)
    hold(1.5, "workers have nothing to do any more")
    if crew.handicap:  # its damage is done, and nobody needs to end well
        crew.kill()
    else:
        for process in (*workers, store):
            process.end()

    begun, done = told(workers, "begin"), told(workers, "done")
    assert begun.keys() <= tried, "a job that nobody pushed"
    assert confirmed <= begun.keys(), f"confirmed and lost: {sorted(confirmed - begun.keys())[:5]}"
    again = [job for job, times in done.items() if max(begun[job]) > min(times)]
    assert not again, f"given to somebody after its ack: {again[:5]}"
    twice, left = in_the_log(directory)
    assert not twice, "stored twice"
    assert not left, f"{left} jobs are left"
    assert len(done) > kills * 10


def test_everybody_is_killed_again_and_again(crew: Crew) -> None:
    """What is confirmed is done, and what is acknowledged is not given to anybody again."""
    run(crew, 8, seed=11)


@pytest.mark.parametrize(
    ("handicap", "complaint"),
    [
        ("confirms jobs early", "confirmed and lost"),
        ("notes acks early", "after its ack"),
        ("forgets ledgers", "after its ack"),
    ],
)
def test_without_the_mechanism_it_is_caught(crew: Crew, handicap: str, complaint: str) -> None:
    """Writing before confirming, writing before answering acks, the ledger."""
    crew.handicap = handicap

    with pytest.raises(AssertionError, match=complaint):
        run(crew, 2, seed=3, store_only=True)
