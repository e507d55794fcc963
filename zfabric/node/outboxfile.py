"""What a durable publisher has not had confirmed, in a small file that outlives its process.

A batch is written here before it is sent, and forgotten when a store has it. The next process resends what is left to a
store under the identity that it had, (producer, epoch, number), so a store that had got it recognises it.

The file survives the process, not a loss of power: SQLite's write-ahead log is not flushed for each batch. What must
survive that waits for `confirm="stored"`.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from math import inf
from pathlib import Path

import msgspec

from zfabric.errors import LocalProtocolError, NotStored, OutOfSequence, ProducerFenced, StoreFailed, StoreLost
from zfabric.events import StoreLacks, Undelivered
from zfabric.node.driver import Driver
from zfabric.node.storeclient import StoreClient
from zfabric.protocol.outbox import Outbox
from zfabric.protocol.stores import KnownStore
from zfabric.wire.batch import Buffer

__all__ = ["OutboxFile", "Resending"]

log = logging.getLogger("zfabric")

RESEND_BYTES = 1024 * 1024
"What is resent in one request."
RETRY_S = 0.2
_SCHEMA = """
CREATE TABLE IF NOT EXISTS topic (id INTEGER PRIMARY KEY CHECK (id = 1), name TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS batches (
    number INTEGER PRIMARY KEY AUTOINCREMENT, producer BLOB NOT NULL, epoch INTEGER NOT NULL, base INTEGER NOT NULL,
    next INTEGER NOT NULL, frames BLOB NOT NULL
);
"""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[bytes]).decode


class Left(msgspec.Struct, frozen=True):
    """A batch of an earlier process."""

    number: int
    producer: bytes
    epoch: int
    base: int
    next: int
    frames: list[bytes]


class OutboxFile:
    """The file of one topic, of one process at a time."""

    def __init__(self, path: Path, topic: str, producer: bytes) -> None:
        """Raises LocalProtocolError when it is another topic's or another process has it, and OSError."""
        try:
            import apsw
        except ModuleNotFoundError as error:
            raise LocalProtocolError("outbox= needs apsw: pip install 'zfabric[store]'") from error
        self.path = path
        self.failure = ""
        "Why it cannot be used any more."
        self.epoch = 0
        "Of the topic as it is published now."
        self._producer = producer
        self._forgotten = 0
        self._settled = 0
        "Batches of earlier processes up to this one were dealt with."
        self._error = apsw.Error
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
        self._connection = connection = apsw.Connection(str(path))
        try:
            connection.pragma("locking_mode", "exclusive")
            connection.pragma("journal_mode", "wal")
            connection.pragma("synchronous", "normal")
            connection.execute(_SCHEMA)
            connection.execute("INSERT OR IGNORE INTO topic VALUES (1, ?)", (topic,))
            ((name,),) = connection.execute("SELECT name FROM topic")
        except apsw.Error as error:
            connection.close()
            reason = "is in use by another process" if isinstance(error, apsw.BusyError) else f"is no outbox: {error}"
            raise LocalProtocolError(f"the outbox {path} {reason}") from error
        if name != topic:
            connection.close()
            raise LocalProtocolError(f"the outbox {path} is that of {name!r}, not of {topic!r}")

    def left(self) -> list[Left]:
        """What earlier processes had no confirmation of, in order; up to `RESEND_BYTES`, or one batch."""
        found: list[Left] = []
        nbytes = 0
        sql = (
            "SELECT number, producer, epoch, base, next, frames FROM batches"
            " WHERE number > ? AND NOT (producer = ? AND epoch = ?) ORDER BY number"
        )
        try:
            rows = self._connection.execute(sql, (self._settled, self._producer, self.epoch))
            for number, producer, epoch, base, end, frames in rows:
                nbytes += len(frames)
                if found and nbytes > RESEND_BYTES:
                    break
                found.append(Left(number, producer, epoch, base, end, _decode(frames)))
        except (self._error, msgspec.DecodeError) as error:
            self._fail("read", error)
        return found

    def settle(self, batches: Sequence[Left]) -> None:
        """Forget batches of earlier processes."""
        self._settled = batches[-1].number
        sql = "DELETE FROM batches WHERE number <= ? AND NOT (producer = ? AND epoch = ?)"
        self._delete(sql, self._settled, self._producer, self.epoch)

    def keep(self, epoch: int, base: int, end: int, frames: Sequence[Buffer]) -> None:
        """Write a batch that is about to be sent."""
        if self.failure:
            return
        try:
            self._connection.execute(
                "INSERT INTO batches (producer, epoch, base, next, frames) VALUES (?, ?, ?, ?, ?)",
                (self._producer, epoch, base, end, _encode(frames)),
            )
        except self._error as error:
            self._fail("written", error)

    def forget(self, epoch: int, before: int) -> None:
        """A store has all messages before this one."""
        if before <= self._forgotten or self.failure:
            return
        self._forgotten = before
        sql = "DELETE FROM batches WHERE producer = ? AND epoch = ? AND next <= ?"
        self._delete(sql, self._producer, epoch, before)

    def _delete(self, sql: str, *values: bytes | int) -> None:
        """What a store has is recognised there, should it be resent: it does no harm to keep it."""
        try:
            self._connection.execute(sql, values)
        except self._error as error:
            log.warning("the outbox %s keeps what was stored: %s", self.path, error)

    def _fail(self, done: str, error: Exception) -> None:
        self.failure = f"the outbox {self.path} cannot be {done}: {error}"
        log.error("%s", self.failure)

    def close(self) -> None:
        """Let go of the file."""
        self._connection.close()


class Resending:
    """Hands what earlier processes left to a store, then lets this one's own messages go.

    What came before the first batch that is left was confirmed. A log that has it is waited for as long as a store that
    left is; then one gets the batch that lacks what was before, and that is told.
    """

    def __init__(self, file: OutboxFile, outbox: Outbox, driver: Driver, *, away_s: float) -> None:
        self._file = file
        self._outbox = outbox
        self._driver = driver
        self._client = StoreClient(driver)
        self._away_s = away_s
        self._lacking: dict[bytes, int] = {}
        "Logs that lack messages before the first batch, and the number that comes next there."
        self._waits_until = inf

    async def run(self) -> None:
        """Resend all of it."""
        most: int | None = None
        while batches := self._file.left()[:most]:
            store = await self._store()
            gone = self._lacking.get(store.id)
            try:
                await self._client.write(store, [batch.frames for batch in batches], gone=gone)
            except (ProducerFenced, OutOfSequence) as refusal:
                most = _place(batches, refusal) or None  # those before it can be stored
                if most is None:
                    self._refused(store, batches[0], refusal)
            except (NotStored, StoreLost, StoreFailed):
                await asyncio.sleep(RETRY_S)
            else:
                if gone is not None:
                    last = batches[0].base - 1
                    self._driver.events.put(
                        StoreLacks(store.peer.source, self._outbox.topic, gone, last, elsewhere=False)
                    )
                most = None
                self._settle(batches)
        self._outbox.set_waiting(waiting=False, now=self._driver.loop.time())
        self._driver.schedule_pump()

    async def _store(self) -> KnownStore:
        """Who gets the next batches: a store that may know all before them, or at last that which knows most of it."""
        while True:
            timeout = max(0.0, self._waits_until - self._driver.loop.time()) if self._lacking else None
            with suppress(TimeoutError):
                return await self._client.wait_for(lambda: next(self._stores(lacking=False), None), timeout)
            known = max(self._stores(lacking=True), key=lambda store: self._lacking[store.id], default=None)
            if known is not None:
                return known
            self._lacking.clear()

    def _stores(self, *, lacking: bool) -> Iterator[KnownStore]:
        """The stores of the topic that are known to lack something, or are not."""
        for store in self._driver.core.stores.all():
            if store.covers(self._outbox.topic) and (store.id in self._lacking) == lacking:
                yield store

    def _refused(self, store: KnownStore, first: Left, refusal: ProducerFenced | OutOfSequence) -> None:
        """A log does not take the first batch as it is."""
        if isinstance(refusal, OutOfSequence) and refusal.expected < first.base and store.id not in self._lacking:
            self._lacking[store.id] = refusal.expected
            self._waits_until = min(self._waits_until, self._driver.loop.time() + self._away_s)
        else:
            topic = self._outbox.topic
            self._driver.events.put(Undelivered(store.peer.source, topic, first.base, first.next - 1, refusal.reason))
            self._settle([first])

    def _settle(self, batches: Sequence[Left]) -> None:
        self._file.settle(batches)
        self._lacking.clear()


def _place(batches: Sequence[Left], refusal: ProducerFenced | OutOfSequence) -> int:
    """Which of the batches was refused."""
    origin = refusal.producer, refusal.epoch
    base = refusal.base if isinstance(refusal, OutOfSequence) else None
    found = (
        place
        for place, batch in enumerate(batches)
        if (batch.producer, batch.epoch) == origin and base in (None, batch.base)
    )
    return next(found, 0)
