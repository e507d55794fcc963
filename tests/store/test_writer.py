"""The writer's thread: groups, confirmations, limits and failure."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence

import pytest

from tests.store.support import append, messages
from tests.waiting import wait_until
from zfabric import Config
from zfabric.errors import LimitExceeded, OutOfSequence, StoreFailed
from zfabric.store import Appended, Commit, Outcome, Writer
from zfabric.store.memory import MemoryLog


class SlowLog(MemoryLog):
    """Waits in `commit` until it is let go; remembers the groups that it got."""

    def __init__(self) -> None:
        super().__init__()
        self.groups: list[int] = []
        self.go = threading.Semaphore(0)
        self.broken = False

    def commit(self, commits: Sequence[Commit]) -> list[Outcome]:
        """Store them when told to."""
        self.groups.append(len(commits))
        assert self.go.acquire(timeout=10)
        if self.broken:
            raise StoreFailed("the disk is on fire")
        return super().commit(commits)


@pytest.fixture
def log() -> Iterator[SlowLog]:
    """A log whose disk answers when it is told to."""
    log = SlowLog()
    yield log
    log.close()


def test_what_waits_shares_the_next_flush(log: SlowLog) -> None:
    """Commits that come while the disk is busy go together in the next group, in order."""
    with Writer(log) as writer:
        first = writer.submit(Commit([append("a", 0)]))
        wait_until(lambda: log.groups == [1])
        others = [writer.submit(Commit([append("a", base)])) for base in range(1, 20)]
        log.go.release(2)

        assert first.result(10) == (Appended(0, 1),)
        assert [future.result(10)[0].offset for future in others] == list(range(1, 20))
    assert log.groups == [1, 19]


def test_a_group_is_bounded(log: SlowLog) -> None:
    """`Config.store_group_bytes` bounds what shares a flush; a larger commit goes alone."""
    log.go.release(10)
    commits = [Commit([append("a", base, frames=[bytes(1000)])]) for base in range(5)]
    with Writer(log, Config(store_group_bytes=2500)) as writer:
        futures = [writer.submit(commit) for commit in commits]
        assert [future.result(10)[0].offset for future in futures] == list(range(5))
    assert max(log.groups) <= 2
    with Writer(log, Config(store_group_bytes=10)) as writer:
        assert writer.submit(Commit([append("b", 0)])).result(10) == (Appended(0, 1),)


def test_the_queue_is_bounded(log: SlowLog) -> None:
    """Beyond `Config.store_queue_bytes` commits are refused at once, until the disk has caught up."""
    commit = Commit([append("a", 0)])
    with Writer(log, Config(store_queue_bytes=commit.nbytes)) as writer:
        future = writer.submit(commit)
        with pytest.raises(LimitExceeded, match="store_queue_bytes"):
            writer.submit(commit)
        log.go.release(2)
        future.result(10)
        assert wait_until(lambda: writer.waiting_bytes == 0)
        assert writer.submit(commit).result(10)[0].duplicate


async def test_coroutines_await_their_commit(log: SlowLog) -> None:
    """`await writer.commit()` returns what became of it; a refusal is raised; giving up waiting harms nobody."""
    with Writer(log) as writer:
        futures = [writer.commit(Commit([append("a", base)])) for base in (0, 5, 1, 2)]
        futures[2].cancel()
        log.go.release(10)

        outcomes = await asyncio.gather(*futures, return_exceptions=True)

    assert outcomes[0] == (Appended(0, 1),)
    assert isinstance(outcomes[1], OutOfSequence)
    assert isinstance(outcomes[2], asyncio.CancelledError)
    assert outcomes[3] == (Appended(2, 1),)


def test_a_thread_may_give_up_at_the_worst_moment(log: SlowLog, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between a look at its future and the outcome: the writer serves the others."""
    with Writer(log) as writer:
        first = writer.submit(Commit([append("a", 0)]))
        wait_until(lambda: log.groups == [1])
        monkeypatch.setattr(first, "done", lambda: not first.cancel())
        log.go.release(2)

        assert writer.submit(Commit([append("a", 1)])).result(10) == (Appended(1, 1),)


def test_a_failed_log_confirms_nothing_more(log: SlowLog) -> None:
    """When a write fails, everybody who waits is told, and so is everybody who comes later."""
    told: list[StoreFailed] = []
    with Writer(log, on_failure=told.append) as writer:
        first = writer.submit(Commit([append("a", 0)]))
        wait_until(lambda: log.groups == [1])
        queued = writer.submit(Commit([append("a", 1)]))
        log.broken = True
        log.go.release(10)

        for future in (first, queued):
            with pytest.raises(StoreFailed, match="on fire"):
                future.result(10)
        assert wait_until(lambda: told) == [writer.failure]
        with pytest.raises(StoreFailed):
            writer.submit(Commit([append("a", 2)]))
    assert log.groups == [1]
    assert messages(log, "a") == []


def test_closing_writes_what_waits(log: SlowLog) -> None:
    """`close()` returns when all that was queued is stored; then the writer takes nothing more."""
    log.go.release(10)
    writer = Writer(log)
    futures = [writer.submit(Commit([append("a", base)])) for base in range(5)]

    writer.close()

    assert all(future.done() for future in futures)
    with pytest.raises(StoreFailed, match="closed"):
        writer.submit(Commit([append("a", 5)]))
