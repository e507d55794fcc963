"""Jobs that a store has and its dispatcher does not know yet are loaded."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.durable.conftest import MakeStore
from tests.waiting import wait_until_async as until
from zfabric.store import Commit
from zfabric.store.keeper import append_of
from zfabric.store.queue import DurableQueue
from zfabric.store.queuehost import QueueHost
from zfabric.wire.batch import FLAG_DURABLE, FLAG_RELIABLE, BatchWriter, parse_batch
from zfabric.wire.durable_records import stream_of


async def test_a_job_that_comes_as_loading_ends_is_not_left_behind(
    make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes after the last look at the log, and before anybody knows that loading has ended."""
    store = await make_store()
    load, late = QueueHost._load, list[str]()

    def store_one(number: int) -> Callable[[QueueHost], None]:
        writer = BatchWriter(stream_of("jobs"), bytes(16), 1)
        writer.buffer.append(number)
        writer.count = 1
        frames = writer.seal(number, 0, FLAG_RELIABLE | FLAG_DURABLE)
        append = append_of(parse_batch(frames, messages_max=1, buffers_max=0, topic_bytes_max=255))
        (outcome,) = store.log.commit([Commit([append])])
        assert isinstance(outcome, tuple)
        (appended,) = outcome
        return lambda host: host.appended(append, appended)

    async def load_and_store(host: QueueHost, queue: DurableQueue) -> None:
        await load(host, queue)
        if not late:
            late.append(queue.queue)
            store_one(2)(host)

    monkeypatch.setattr(QueueHost, "_load", load_and_store)
    assert store._service is not None
    host = store._service.queues
    store_one(0)  # nobody tells the queue, so it has to be loaded
    store_one(1)(host)

    await until(lambda: late)
    await until(lambda: host._queues["jobs"].loaded == 3)
