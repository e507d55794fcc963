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
from collections.abc import Sequence
from pathlib import Path

import msgspec

from zfabric.errors import LocalProtocolError, NotStored, OutOfSequence, ProducerFenced, StoreFailed, StoreLost
from zfabric.events import Undelivered
from zfabric.node.driver import Driver
from zfabric.node.storeclient import StoreClient
from zfabric.protocol.outbox import Outbox
from zfabric.wire.batch import Buffer

__all__ = ["OutboxFile", "resend"]

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
        "Why it cannot be written any more."
        self.epoch = 0
        "Of the topic as it is published now."
        self._producer = producer
        self._forgotten = 0
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
            " WHERE NOT (producer = ? AND epoch = ?) ORDER BY number"
        )
        for number, producer, epoch, base, end, frames in self._connection.execute(sql, (self._producer, self.epoch)):
            nbytes += len(frames)
            if found and nbytes > RESEND_BYTES:
                break
            found.append(Left(number, producer, epoch, base, end, _decode(frames)))
        return found

    def settle(self, batches: Sequence[Left]) -> None:
        """Forget batches of earlier processes."""
        self._connection.executemany("DELETE FROM batches WHERE number = ?", [(batch.number,) for batch in batches])

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
            self.failure = f"the outbox {self.path} cannot be written: {error}"
            log.error("%s", self.failure)

    def forget(self, epoch: int, before: int) -> None:
        """A store has all messages before this one."""
        if before <= self._forgotten or self.failure:
            return
        self._forgotten = before
        try:
            self._connection.execute(
                "DELETE FROM batches WHERE producer = ? AND epoch = ? AND next <= ?", (self._producer, epoch, before)
            )
        except self._error as error:
            log.warning("the outbox %s keeps what was stored: %s", self.path, error)

    def close(self) -> None:
        """Let go of the file."""
        self._connection.close()


async def resend(file: OutboxFile, outbox: Outbox, driver: Driver) -> None:
    """Hand what earlier processes left to a store, then let this one's own messages go."""
    client, stores = StoreClient(driver), driver.core.stores
    most: int | None = None
    while batches := file.left()[:most]:
        store = await client.wait_for(lambda: stores.keeping(outbox.topic))
        try:
            await client.write(store, [batch.frames for batch in batches])
        except (ProducerFenced, OutOfSequence) as refusal:
            if len(batches) > 1:
                most = 1  # to see which one it is
                continue
            (batch,) = batches
            source = store.peer.source
            driver.emit(Undelivered(source, outbox.topic, batch.base, batch.next - 1, refusal.reason))
        except (NotStored, StoreLost, StoreFailed):
            await asyncio.sleep(RETRY_S)
            continue
        file.settle(batches)
    outbox.set_waiting(waiting=False, now=driver.loop.time())
    driver.schedule_pump()
