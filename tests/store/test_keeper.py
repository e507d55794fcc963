"""What a store does with one live topic: it takes more as soon as its disk has room, whoever filled the queue."""

from __future__ import annotations

from collections.abc import Iterator
from unittest.mock import Mock

import pytest

from tests.store.support import append
from tests.store.test_writer import SlowLog
from tests.waiting import wait_until_async as until
from zfabric import Config
from zfabric.model import Source
from zfabric.protocol.lanes import Lane
from zfabric.store import Commit, Writer
from zfabric.store.keeper import Keeper
from zfabric.wire.batch import Batch, BatchWriter, parse_batch

SOURCE = Source("00", "shop")


@pytest.fixture
def log() -> Iterator[SlowLog]:
    """A log whose disk answers when it is told to."""
    log = SlowLog()
    yield log
    log.close()


def batch(number: int) -> Batch:
    """A message of the topic."""
    writer = BatchWriter("orders", b"p" * 16, 1)
    writer.buffer += b"\x01"
    writer.count = 1
    return parse_batch(writer.seal(number, 1), messages_max=10, buffers_max=0, topic_bytes_max=100)


class Kept:
    """A keeper, and what it says."""

    def __init__(self, writer: Writer, queue_bytes: int) -> None:
        self.stored: list[int] = []
        self.room = 0
        self.keeper = Keeper(
            "orders",
            writer,
            queue_bytes=queue_bytes,
            done=lambda _lane, batch, _append, _appended: self.stored.append(batch.base),
            told=lambda *_: None,
            has_room=self._has_room,
            check=lambda _: True,
        )
        self.keeper.lane = Mock()

    def state(self) -> tuple[int, bool, bool]:
        """How often it had room again, whether it is full, and whether it is busy."""
        return self.room, self.keeper.full, self.keeper.busy

    def _has_room(self, _lane: Lane) -> None:
        self.room += 1


async def test_a_topic_goes_on_when_others_had_filled_the_queue(log: SlowLog) -> None:
    """Its own batches are stored long before the queue of all has room: nothing of its own will tell it when."""
    with Writer(log, Config(store_group_bytes=1)) as writer:
        kept = Kept(writer, queue_bytes=2000)
        kept.keeper.deliver(batch(0), SOURCE)
        others = [writer.commit(Commit([append("other", base, frames=[bytes(1000)])])) for base in range(4)]
        kept.keeper.deliver(batch(1), SOURCE)
        assert kept.state() == (0, True, True)
        others += [writer.commit(Commit([append("other", base, frames=[bytes(1000)])])) for base in range(4, 8)]
        log.go.release(6)
        await until(lambda: kept.stored == [0, 1])
        assert kept.state() == (0, True, False)

        log.go.release(100)
        await until(lambda: kept.state() == (1, False, False))
        assert all(other.done() for other in others)
        kept.keeper.close()


async def test_a_keeper_is_busy_until_all_is_stored(log: SlowLog) -> None:
    """Until then its topic must not be let go: those who read it would not hear of what is stored."""
    with Writer(log) as writer:
        kept = Kept(writer, queue_bytes=10**6)
        assert kept.state() == (0, False, False)
        kept.keeper.deliver(batch(0), SOURCE)
        assert kept.state() == (0, False, True)
        log.go.release()
        await until(lambda: kept.stored == [0])
        assert kept.state() == (0, False, False)
        kept.keeper.close()
