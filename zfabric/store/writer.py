"""The thread that writes: everything that waits goes to the disk in one group, with one flush, and then is confirmed.

While one group is on its way the next one gathers, so the slower the disk, the larger the groups.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from types import TracebackType
from typing import Self, TypeAlias

from zfabric.config import Config
from zfabric.errors import LimitExceeded, NotStored, StoreFailed
from zfabric.store.log import Appended, Commit, Log, Outcome

__all__ = ["Writer"]

_Waiting: TypeAlias = "Future[tuple[Appended, ...]] | asyncio.Future[tuple[Appended, ...]]"


class Writer:
    """Commits to a log from any thread or event loop. Close it before the log."""

    def __init__(
        self, log: Log, config: Config | None = None, *, on_failure: Callable[[StoreFailed], None] | None = None
    ):
        """`on_failure` is called once, from the writer's thread, when nothing can be confirmed any more."""
        self._log = log
        self._config = config or Config()
        self._on_failure = on_failure
        self._changed = threading.Condition()
        self._queue: deque[tuple[Commit, int, _Waiting]] = deque()
        self._waiting_bytes = 0
        self._closing = False
        self._failure: StoreFailed | None = None
        self._thread = threading.Thread(target=self._run, name="zfabric-store-writer", daemon=True)
        self._thread.start()

    @property
    def waiting_bytes(self) -> int:
        """Bytes of commits that are not on the disk yet."""
        return self._waiting_bytes

    @property
    def failure(self) -> StoreFailed | None:
        """Why nothing is confirmed any more, if that is so."""
        return self._failure

    def submit(self, commit: Commit) -> Future[tuple[Appended, ...]]:
        """Queue a commit; the future is done once it is safe. For threads.

        Raises LimitExceeded when `Config.store_queue_bytes` wait already, StoreFailed when the log failed or this was
        closed. The future raises NotStored (also its kinds) when the commit was refused, StoreFailed when it is unknown
        whether it was stored.
        """
        future: Future[tuple[Appended, ...]] = Future()
        self._put(commit, future)
        return future

    def commit(self, commit: Commit) -> asyncio.Future[tuple[Appended, ...]]:
        """`submit` for coroutines: `await writer.commit(...)` returns once it is safe, in the order of the calls."""
        future: asyncio.Future[tuple[Appended, ...]] = asyncio.get_running_loop().create_future()
        self._put(commit, future)
        return future

    def _put(self, commit: Commit, future: _Waiting) -> None:
        nbytes = commit.nbytes
        with self._changed:
            if self._failure is not None:
                raise self._failure
            if self._closing:
                raise StoreFailed("the writer is closed")
            waiting = self._waiting_bytes + nbytes
            if waiting > self._config.store_queue_bytes and self._waiting_bytes:
                raise LimitExceeded("store_queue_bytes", waiting, self._config.store_queue_bytes)
            self._waiting_bytes = waiting
            self._queue.append((commit, nbytes, future))
            self._changed.notify()

    def close(self) -> None:
        """Write what waits, then end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- the thread ----------------------------------------------------------------------------

    def _run(self) -> None:
        while group := self._next_group():
            try:
                outcomes: list[Outcome | StoreFailed] = list(self._log.commit([commit for commit, _, _ in group]))
            except Exception as error:  # noqa: BLE001 - whatever it is, nobody may be told that it was stored
                failure = error if isinstance(error, StoreFailed) else StoreFailed(f"{type(error).__name__}: {error}")
                self._give_up(group, failure)
                return
            with self._changed:
                self._waiting_bytes -= sum(nbytes for _, nbytes, _ in group)
            _settle([(future, outcome) for (_, _, future), outcome in zip(group, outcomes, strict=True)])

    def _next_group(self) -> list[tuple[Commit, int, _Waiting]]:
        """What goes together; empty at the end."""
        with self._changed:
            while not self._queue and not self._closing:
                self._changed.wait()
            group: list[tuple[Commit, int, _Waiting]] = []
            total = 0
            while self._queue and (not group or total + self._queue[0][1] <= self._config.store_group_bytes):
                group.append(self._queue.popleft())
                total += group[-1][1]
            return group

    def _give_up(self, group: list[tuple[Commit, int, _Waiting]], failure: StoreFailed) -> None:
        with self._changed:
            self._failure = failure
            lost = [*group, *self._queue]
            self._queue.clear()
            self._waiting_bytes = 0
        _settle([(future, failure) for _, _, future in lost])
        if self._on_failure is not None:
            self._on_failure(failure)


def _settle(settled: list[tuple[_Waiting, Outcome | StoreFailed]]) -> None:
    """Tell everybody who waits; each event loop is woken once."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[_Waiting, Outcome | StoreFailed]]] = {}
    for future, outcome in settled:
        if isinstance(future, asyncio.Future):
            by_loop.setdefault(future.get_loop(), []).append((future, outcome))
        else:
            _tell(future, outcome)
    for loop, told in by_loop.items():
        try:
            loop.call_soon_threadsafe(_tell_all, told)
        except RuntimeError:
            # The loop was closed: nobody waits any more.
            continue


def _tell_all(told: list[tuple[_Waiting, Outcome | StoreFailed]]) -> None:
    for future, outcome in told:
        _tell(future, outcome)


def _tell(future: _Waiting, outcome: Outcome | StoreFailed) -> None:
    # Who waits in another thread may give up at any moment, and no more from here on.
    if future.done() if isinstance(future, asyncio.Future) else not future.set_running_or_notify_cancel():
        return
    if isinstance(outcome, NotStored | StoreFailed):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
