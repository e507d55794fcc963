"""A dispatcher with its clock and its workers."""

from __future__ import annotations

from typing import Any

import msgspec

from zfabric.config import Config
from zfabric.protocol.dispatcher import Dispatcher
from zfabric.protocol.jobs import QueuePolicy
from zfabric.protocol.workers import WorkerKey
from zfabric.wire.queue_records import (
    Credit,
    Jobs,
    JobsDone,
    JobsUndone,
    Pull,
    QueueRecord,
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
