"""Records what a node hears."""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Self

import msgspec

from zfabric.capture.format import CapturedBatch, pack_values
from zfabric.capture.writer import CaptureWriter
from zfabric.config import Config
from zfabric.errors import LimitExceeded, LocalProtocolError
from zfabric.model import Message
from zfabric.node.node import Node
from zfabric.node.options import texts
from zfabric.node.subscription import Subscription
from zfabric.wire.batch import Batch
from zfabric.wire.topics import Pattern

__all__ = ["Recorder", "consecutive"]


class Recorder:
    """Writes everything that matches some patterns into a capture file, batch by batch, with no payload decoded.

    It records from `start()` on, which `async with` calls, until `close()` or until it has `messages_max`. What
    several patterns match is recorded once. `delivery` is as for `node.subscribe`: by default a reliable publisher
    waits for the recorder, with `"at-most-once"` it does not. `signed` leaves out what its publisher did not sign. The
    other options are those of CaptureWriter.
    Messages are acknowledged when they are taken, not when they are on the disk.
    """

    def __init__(
        self,
        node: Node,
        path: str | os.PathLike[str],
        patterns: Sequence[str] = ("#",),
        *,
        delivery: str | None = None,
        signed: bool = False,
        messages_max: int | None = None,
        compress: bool = False,
        split_bytes: int | None = None,
        split_s: float | None = None,
        overwrite: bool = False,
        config: Config | None = None,
    ) -> None:
        self._node = node
        self._patterns = [Pattern(text) for text in dict.fromkeys(texts("patterns", patterns))]
        self._delivery = delivery
        self._signed = signed
        self._left = messages_max
        self._config = Config() if config is None else config
        self._began_s = time.time()
        self._writer = CaptureWriter(
            path,
            started=self._began_s,
            fabric=node.fabric,
            recorder=node.name,
            patterns=tuple(pattern.text for pattern in self._patterns),
            compress=compress,
            split_bytes=split_bytes,
            split_s=split_s,
            overwrite=overwrite,
            config=config,
        )
        self.too_large = 0
        "Messages left out because a block cannot hold them (Config.capture_block_bytes_max)."
        self._pending: deque[CapturedBatch] = deque()
        # The loop takes and a thread writes, so each of these is changed by one of them only.
        self._taken = self._taken_bytes = self._written_bytes = 0
        self._writing = asyncio.Lock()
        self._subscriptions: list[Subscription] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._ended = asyncio.Event()

    def __repr__(self) -> str:
        return f"<Recorder {self.paths[0]} [{self.messages} messages]>"

    async def __aenter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def paths(self) -> tuple[os.PathLike[str], ...]:
        """The files so far."""
        return tuple(self._writer.paths)

    @property
    def messages(self) -> int:
        """Messages recorded so far."""
        return self._taken - self.too_large

    @property
    def nbytes(self) -> int:
        """Bytes written so far."""
        return self._writer.nbytes

    @property
    def subscriptions(self) -> tuple[Subscription, ...]:
        """One for each pattern."""
        return tuple(self._subscriptions)

    def start(self) -> None:
        """Subscribe and begin. Raises what `node.subscribe` raises."""
        if self._tasks:
            raise LocalProtocolError("the recorder was started already")
        self._clock_s = self._began_s - asyncio.get_running_loop().time()
        for pattern in self._patterns:
            self._subscriptions.append(
                self._node.subscribe(pattern.text, delivery=self._delivery, signed=self._signed, type=msgspec.Raw)
            )
        self._tasks = [
            asyncio.create_task(self._read(index, subscription))
            for index, subscription in enumerate(self._subscriptions)
        ]
        self._tasks.append(asyncio.create_task(self._flush_again_and_again()))
        for task in self._tasks:
            task.add_done_callback(self._task_ended)

    async def wait(self, timeout: float | None = None) -> bool:
        """Return True once it has `messages_max` or cannot go on (`close` tells why), False after `timeout` seconds."""
        try:
            async with asyncio.timeout(timeout):
                await self._ended.wait()
        except TimeoutError:
            return False
        return True

    async def close(self) -> None:
        """Stop, and finish the file. Raises what stopped the recording before, such as OSError for a full disk."""
        for subscription in self._subscriptions:
            await subscription.close()
        async with self._writing:  # a task that is cancelled does not wait for its thread, which would go on writing
            for task in self._tasks:
                task.cancel()
        outcomes = await asyncio.gather(*self._tasks, return_exceptions=True)
        async with self._writing:
            try:
                await asyncio.to_thread(self._write_and_close)
            finally:
                self._tasks, self._subscriptions = [], []
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            self._ended.set()

    # -- taking ----------------------------------------------------------------------------------

    async def _read(self, index: int, subscription: Subscription) -> None:
        earlier = self._patterns[:index]
        loop = asyncio.get_running_loop()
        signed: list[Batch] = []
        subscription.witness = signed.append
        async with aclosing(subscription.batches()) as batches:  # type: ignore[type-var]
            async for messages in batches:
                if earlier:
                    messages = [m for m in messages if not any(pattern.matches(m.topic) for pattern in earlier)]  # noqa: PLW2901
                self._take(messages, self._clock_s + loop.time(), signed[-1:])
                signed.clear()
                if self._taken_bytes - self._written_bytes >= self._config.capture_chunk_bytes:
                    await self._write()
                if self._left == 0:
                    self._ended.set()
                    return

    def _take(self, messages: list[Message], received: float, signed: list[Batch]) -> None:
        if self._left is not None:
            messages = messages[: self._left]
            self._left -= len(messages)
        batches = [_captured(run, received) for run in consecutive(messages)]
        if batches and signed and batches[0].source.id == signed[0].producer.hex():
            batches = [_whole(batches[0], messages[-1].seq, signed[0])]
        for batch in batches:
            self._pending.append(batch)
            self._taken_bytes += batch.nbytes
            self._taken += batch.count

    async def _flush_again_and_again(self) -> None:
        while True:
            await asyncio.sleep(self._config.capture_flush_s)
            await self._write()

    # -- writing, in a thread ----------------------------------------------------------------------

    async def _write(self) -> None:
        async with self._writing:
            await asyncio.to_thread(self._write_pending)

    def _write_pending(self) -> None:
        while self._pending:
            batch = self._pending.popleft()
            self._written_bytes += batch.nbytes
            self._add(batch)
        self._writer.flush()

    def _add(self, batch: CapturedBatch) -> None:
        try:
            self._writer.add(batch)
        except LimitExceeded:
            self.too_large += batch.count

    def _write_and_close(self) -> None:
        try:
            self._write_pending()
        finally:
            self._writer.close()


def consecutive(messages: list[Message]) -> Iterator[list[Message]]:
    """Messages of one topic whose numbers follow each other: where one expired or did not decode, a new run begins."""
    begin = 0
    for index in range(1, len(messages)):
        last, first = messages[-1], messages[begin]
        if last.seq - first.seq == len(messages) - 1 - begin and last.topic == first.topic:
            break
        before, message = messages[index - 1], messages[index]
        if message.seq != before.seq + 1 or message.topic != before.topic:
            yield messages[begin:index]
            begin = index
    if messages:
        yield messages[begin:]


def _whole(first: CapturedBatch, last: int, signed: Batch) -> CapturedBatch:
    """A signed batch up to message `last`, with what it was signed with; also what had expired is in there."""
    frames = [bytes(frame) for frame in (signed.frame, *signed.buffers)]
    # fmt: off
    return CapturedBatch(
        first.topic, first.source, first.base, last - first.base + 1, first.timestamp, first.received,
        pack_values([]), {}, {}, frames,
    )
    # fmt: on


def _captured(run: list[Message], received: float) -> CapturedBatch:
    first = run[0]
    return CapturedBatch(
        first.topic,
        first.source,
        first.seq,
        len(run),
        first.timestamp,
        received,
        pack_values([message.value for message in run]),
        {index: message.key for index, message in enumerate(run) if message.key is not None},
        {index: message.headers for index, message in enumerate(run) if message.headers is not None},
    )
