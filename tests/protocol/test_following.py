"""A reader that takes a lease's jobs one by one out of a list: the pull looks how far it is when it must know."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Thread

from zfabric.config import Config
from zfabric.protocol.pulls import Pull
from zfabric.wire.queue_records import Jobs, JobsDone, JobsUndone, QueueRecord

PEER = b"p" * 16
COUNT = 10


class Reading:
    """A puller with one lease of ten jobs, and its reader."""

    def __init__(self) -> None:
        self.told: list[QueueRecord] = []
        self.pull = Pull(
            1,
            "q",
            Config(),
            lambda _, record: self.told.append(record),
            lambda: None,
            credit=100,
            concurrency=1,
            selector="",
            lease_s=30,
            handler_timeout_s=5,
        )
        self.pull.offered(PEER, 0.0)
        self.pull.flush(0.0)
        assert self.pull.received(PEER, Jobs(1, 7, 0, COUNT, 0, b""), 0.0)
        delivery = self.pull.head()
        assert delivery is not None
        self.rest: Iterator[int] = self.pull.follow(delivery, list(range(COUNT)), 0.0)

    def read(self, count: int) -> list[int]:
        """Take some jobs."""
        return [next(self.rest) for _ in range(count)]

    def said(self) -> list[QueueRecord]:
        """What was said since the last time, but for credit."""
        told, self.told = self.told, []
        return [record for record in told if isinstance(record, JobsDone | JobsUndone)]


def reading() -> Reading:
    """Nothing is taken yet."""
    reader = Reading()
    reader.said()
    return reader


def test_what_was_taken_is_done_but_for_the_last() -> None:
    """The job that the reader has is not done before it takes the next one."""
    reader = reading()
    reader.read(4)
    reader.pull.flush(1.0)
    assert reader.said() == [JobsDone(1, [(7, 0, 3)])]
    reader.read(1)
    reader.pull.flush(1.0)
    assert reader.said() == [JobsDone(1, [(7, 3, 4)])]
    reader.pull.settle_followed()
    reader.pull.flush(1.0)
    assert reader.said() == [JobsDone(1, [(7, 4, 5)])]
    assert reader.pull.begun == 5
    assert reader.pull.held == 5


def test_only_what_nobody_has_begun_with_is_recalled() -> None:
    """Jobs that go back vanish from what the reader still gets; the one in its hand stays there."""
    reader = reading()
    reader.read(4)
    reader.pull.recalled(PEER, 4, 1.0)
    assert reader.said() == [JobsUndone(1, 7, 6, 10, "returned")]
    assert list(reader.rest) == [4, 5]
    reader.pull.settle_followed()
    reader.pull.flush(1.0)
    assert reader.said() == [JobsDone(1, [(7, 0, 6)])]
    assert reader.pull.held == 0


def test_a_reader_gets_no_jobs_of_a_pusher_that_is_lost() -> None:
    """What it has in hand then is not settled any more, and that is told."""
    reader = reading()
    reader.read(4)
    assert reader.pull.lost(PEER) == 7
    assert list(reader.rest) == []
    reader.pull.settle_followed()
    assert reader.pull.refused == [(PEER, 1)]


def test_a_job_that_failed_is_the_last_one_only() -> None:
    """Those before it are done, those behind it go back untouched."""
    reader = reading()
    reader.read(4)
    reader.pull.settle_followed("it broke")
    reader.pull.close()
    reader.pull.flush(1.0)
    assert reader.said() == [
        JobsUndone(1, 7, 3, 4, "nack", None, "it broke"),
        JobsUndone(1, 7, 4, 10, "returned"),
        JobsDone(1, [(7, 0, 3)]),
    ]


def test_a_reader_that_hangs_loses_the_job_in_its_hand_and_all_that_wait() -> None:
    """The time of a job's handler counts from when it was taken, not from when its lease came."""
    reader = reading()
    reader.read(4)
    reader.pull.flush(4.0)
    reader.said()
    reader.pull.handle_timer(8.0)
    assert reader.said() == []
    reader.pull.handle_timer(9.0)
    undone = [record for record in reader.said() if isinstance(record, JobsUndone)]
    assert [(record.start, record.stop, record.why) for record in undone] == [(3, 4, "hung"), (4, 10, "returned")]
    assert list(reader.rest) == []


def test_a_reader_learns_that_it_was_looked_at() -> None:
    """So it knows when what it takes from then on needs another look."""
    reader = reading()
    assert not reader.pull.seen
    reader.pull.flush(1.0)
    assert reader.pull.seen


def test_a_reader_in_another_thread_gets_no_job_that_is_given_back() -> None:
    """However often others ask for jobs while it takes them: each is either taken or given back."""
    for _ in range(300):
        reader = reading()
        taken: list[int] = []
        thread = Thread(target=lambda reader=reader, taken=taken: taken.extend(reader.rest))
        thread.start()
        for _ in range(4):
            reader.pull.recalled(PEER, 1, 1.0)
        thread.join()
        reader.pull.settle_followed()
        reader.pull.flush(1.0)
        said = reader.said()
        back = [n for record in said if isinstance(record, JobsUndone) for n in range(record.start, record.stop)]
        done = [n for record in said if isinstance(record, JobsDone) for _, a, b in record.done for n in range(a, b)]
        assert done == taken
        assert sorted(taken + back) == list(range(COUNT))


def test_what_is_done_is_told_together_while_there_is_more_to_do() -> None:
    """After `Config.ack_delay_s`, or when half of what the puller may have is done; of a store's jobs at once."""
    told: list[QueueRecord] = []
    pull = Pull(
        1,
        "q",
        Config(ack_delay_s=1.0),
        lambda _, record: told.append(record),
        lambda: None,
        credit=COUNT,
        concurrency=1,
        selector="",
        lease_s=30,
        handler_timeout_s=5,
    )
    pull.offered(PEER, 0.0)
    pull.flush(0.0)
    assert pull.received(PEER, Jobs(1, 7, 0, COUNT, 0, b""), 0.0)

    def do_one(now: float) -> float:
        taken = pull.take(1, now)
        assert taken is not None
        delivery, start, stop = taken
        pull.done(delivery, start, stop)
        due = pull.tell_by(delivery, now)
        pull.flush(now)
        return due

    def done() -> list[QueueRecord]:
        return [record for record in told if isinstance(record, JobsDone)]

    assert do_one(2.0) == do_one(2.5) == 3.0
    assert not done()
    assert pull.timer() == 3.0
    pull.handle_timer(3.0)
    assert pull.changed
    pull.flush(3.0)
    assert done() == [JobsDone(1, [(7, 0, 2)])]
    assert [do_one(4.0), do_one(4.0)] == [5.0, 5.0]
    assert do_one(4.0) == 4.0, "five of ten are done"
    assert done()[1:] == [JobsDone(1, [(7, 2, 5)])]
