"""The ledger of a durable queue: what is settled and how often jobs failed, as few rows of the log."""

from __future__ import annotations

import random

from zfabric.protocol.jobs import QueuePolicy
from zfabric.store.ledger import CHUNK, PREFIX, Ledger
from zfabric.store.log import Position

QUEUE = "orders"


def write(ledger: Ledger, rows: dict[str, Position]) -> None:
    """The log takes what has changed."""
    for update in ledger.take_updates():
        assert update.value is not None
        rows[update.name] = Position(update.value, update.epoch)
    ledger.written(ledger.floor)


def test_it_is_the_same_when_it_is_read_again() -> None:
    """Whatever happened, in any order; another queue whose name begins alike has no part in it."""
    chance = random.Random(4)
    ledger, rows = Ledger(QUEUE, {}), {f"{PREFIX}{QUEUE}2": Position(b"", 0), f"{PREFIX}{QUEUE}.x/1": Position(b"", 0)}
    settled, attempts = set[int](), dict[int, int]()
    ledger.set_policy(QueuePolicy(max_attempts=3))
    for turn in range(300):
        start = chance.randrange(3 * CHUNK)
        stop = start + chance.choice((1, 1, 5, 2000))
        if chance.random() < 0.5:
            ledger.settle(start, stop)
            settled.update(range(start, stop))
        elif start not in settled:
            ledger.failed(start, turn + 1)
            attempts[start] = turn + 1
        if chance.random() < 0.2:
            write(ledger, rows)
    write(ledger, rows)

    again = Ledger(QUEUE, rows)
    end = 4 * CHUNK
    assert again.open(0, end) == ledger.open(0, end)
    assert {n for start, stop in again.open(0, end) for n in range(start, stop)} == set(range(end)) - settled
    assert again.attempts(0, end) == {n: count for n, count in attempts.items() if n not in settled}
    assert again.policy.max_attempts == 3
    assert not again.dirty


def test_rows_are_used_again() -> None:
    """A million jobs that are settled one after the other, a little out of order, take a handful of rows."""
    ledger, rows = Ledger(QUEUE, {}), dict[str, Position]()
    for start in range(0, 1_000_000, 500):
        ledger.settle(start + 250, start + 500)
        write(ledger, rows)
        ledger.settle(start, start + 250)
    write(ledger, rows)

    assert ledger.floor == 1_000_000
    assert len(rows) <= 3
    assert Ledger(QUEUE, rows).floor == 1_000_000


def test_what_was_refused_is_written_later() -> None:
    """Also a job that is not settled after all."""
    ledger, rows = Ledger(QUEUE, {}), dict[str, Position]()
    ledger.settle(0, 10)
    ledger.take_updates()
    ledger.refused()
    ledger.unsettle(4)
    assert ledger.dirty
    write(ledger, rows)

    assert Ledger(QUEUE, rows).open(0, 12) == [(4, 5), (10, 12)]
