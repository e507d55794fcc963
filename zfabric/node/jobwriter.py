"""Jobs on their way from this node to the store that keeps their queue.

They leave in batches, numbered like those of a durable topic, and stay here until the store has confirmed them. A store
that comes back gets what it has not confirmed again, and recognises what it had.
"""

from __future__ import annotations

import asyncio
from collections import deque
from functools import partial

from zfabric.config import Config
from zfabric.errors import NodeClosed, NotStored
from zfabric.events import StoreLacks
from zfabric.node.driver import Driver
from zfabric.protocol.jobs import QueuePolicy
from zfabric.protocol.keeping import Keeping
from zfabric.protocol.stores import Answer, KnownStore
from zfabric.wire.batch import FLAG_DURABLE, FLAG_RELIABLE, BatchWriter, Buffer, parse_batch
from zfabric.wire.codec import Codec
from zfabric.wire.durable_records import KeepQueue, stream_of
from zfabric.wire.store_records import Unwritten, Write, Written

__all__ = ["JobWriter"]

RETRY_S = 0.2
"Pause before a store gets again what it refused."


class _Sent:
    """A batch that is not confirmed."""

    __slots__ = ("count", "done", "frames", "nbytes", "offset", "sent", "tried")

    def __init__(self, frames: list[Buffer], count: int) -> None:
        self.frames = frames
        self.count = count
        self.nbytes = sum(map(len, frames))
        self.sent = False
        self.tried = False
        "A store may have it."
        self.done = False
        self.offset: int | None = None


class JobWriter:
    """One durable queue of one node; its pushers share it."""

    def __init__(self, driver: Driver, queue: str, codec: Codec, policy: QueuePolicy, config: Config, *, buffers: bool):
        self.queue = queue
        self.codec = codec
        self.policy = policy
        self.pushed = 0
        self.stored = 0
        self.nbytes = 0
        "Of jobs that are not confirmed."
        self.keeping = Keeping(buffers=buffers, away_s=config.grace_s)
        self._driver = driver
        self._config = config
        self._stores = driver.core.stores
        self._stream = stream_of(queue)
        self._store: KnownStore | None = None
        self._log = b""
        self._stored_before = 0
        "Jobs that were stored when that log began to get them."
        self._given_up = False
        "The store of that log is not waited for any more."
        self._epoch = 1
        self._next = 0
        "Number of the first job of the open batch, in this epoch."
        self._waiting: deque[_Sent] = deque()
        self._waiters: deque[tuple[int, asyncio.Future[int]]] = deque()
        "(jobs that must be stored before, who waits), in order."
        self._turns = 0
        "Stores it was attached to, one after the other: answers of earlier ones count for nothing."
        self._asked = 0
        self._asked_bytes = 0
        self._stumbled: Unwritten | None = None
        "What went wrong first; nothing more is sent until all is answered."
        self.open = BatchWriter(self._stream, driver.core.me, self._epoch)
        self._stores.watch(self._look)
        self._look(driver.loop.time())

    def __repr__(self) -> str:
        return f"<JobWriter {self.queue} stored={self.stored} of {self.pushed} {self.keeping.trouble}>"

    @property
    def full(self) -> bool:
        """Whether pushers must wait."""
        return self.nbytes >= self.policy.queue_bytes

    # -- jobs in -------------------------------------------------------------------------------

    def begun(self) -> None:
        """There is a first job in the open batch: it leaves at the end of this turn."""
        self._driver.loop.call_soon(self.seal)

    def seal(self) -> None:
        """The open batch leaves."""
        writer = self.open
        if writer.count and self._driver.open_state == "open":
            count = writer.count
            sent = _Sent(self._sealed(writer, int(self._driver.utc() * 1e9)), count)
            self._waiting.append(sent)
            self.nbytes += sent.nbytes
            self._send()

    def _sealed(self, writer: BatchWriter, published_ns: int) -> list[Buffer]:
        base, self._next = self._next, self._next + writer.count
        return writer.seal(base, published_ns, FLAG_RELIABLE | FLAG_DURABLE)

    async def confirmed(self, before: int) -> int:
        """Return once the first `before` jobs of this node are stored; the number of the last one of them.

        Raises NotStored when no store takes them and the pusher does not want to wait, NodeClosed.
        """
        if self.stored >= before:
            return -1
        future: asyncio.Future[int] = self._driver.loop.create_future()
        self._waiters.append((before, future))
        self._check()
        return await future

    def _check(self) -> None:
        """Tell those who wait that nothing is stored now."""
        if self.keeping.stops:
            self._fail(NotStored(self.keeping.reason, self.queue))

    def _fail(self, error: Exception) -> None:
        waiters, self._waiters = self._waiters, deque()
        for _, future in waiters:
            if not future.done():
                future.set_exception(error)

    # -- the store -----------------------------------------------------------------------------

    def _look(self, now: float) -> None:
        """Stores have come or gone."""
        tried = any(sent.tried for sent in self._waiting) and not self._given_up
        found = self._stores.of_queue(self.queue, self._log if tried else b"")
        if found is self._store:
            return
        if self._store is not None:
            self.keeping.detached(self._store.peer.id, now)
        self._store = found
        if found is None:
            self._driver.loop.call_at(self.keeping.timer(), self._alone)
            return
        self._turns += 1
        self._asked = self._asked_bytes = 0
        self._stumbled = None
        for sent in self._waiting:
            sent.sent = sent.done
        if found.id != self._log and self._log:
            self._tell_of(found)
            self._begin_anew(self._epoch + 1)
        self._log, self._given_up = found.id, False
        self.keeping.attached(found.peer.id, 0, self._driver.loop.time())
        wanted = _keep(self.queue, self.policy)
        if wanted != _keep(self.queue, QueuePolicy()):  # who does not care changes nothing
            self._driver.core.channels.tell(found.peer, wanted, 64)
        self._send()

    def _tell_of(self, found: KnownStore) -> None:
        """Another log gets the jobs now, and that of the last ones is not in sight."""
        first, self._stored_before = self._stored_before, self.stored
        if first < self.stored and self._stores.named(self._log) is None:
            event = StoreLacks(found.peer.source, self.queue, first, self.stored - 1, elsewhere=False)
            self._driver.events.put(event)

    def _alone(self) -> None:
        """The store has not come back in time: what it has not confirmed goes to another, if there is one."""
        now = self._driver.loop.time()
        self.keeping.handle_timer(now)
        if self._store is None and self.keeping.trouble:
            self._given_up = True
            self._look(now)
        self._check()

    def _send(self) -> None:
        store = self._store
        if store is None or self._stumbled is not None or self._driver.open_state != "open":
            return
        for sent in self._waiting:
            if not sent.sent:
                if self._asked and self._asked_bytes + sent.nbytes > self._config.channel_bytes:
                    return
                sent.sent = sent.tried = True
                self._asked += 1
                self._asked_bytes += sent.nbytes
                frames = [bytes(frame) for frame in sent.frames]
                self._stores.ask(
                    store, partial(_write, frames), partial(self._answered, self._turns, sent), sent.nbytes + 64
                )
                self._driver.schedule_pump()

    def _answered(self, turn: int, sent: _Sent, answer: Answer | None) -> None:
        if turn != self._turns:
            return
        self._asked -= 1
        self._asked_bytes -= sent.nbytes
        if isinstance(answer, Written):
            sent.done, sent.offset = True, answer.offsets[0]
            self._settle()
        elif isinstance(answer, Unwritten):
            sent.sent = False
            self._stumbled = self._stumbled or answer
        else:
            sent.sent = False
        if self._stumbled is None:
            if answer is not None:  # one that left has nothing to be sent to
                self._send()
        elif not self._asked:
            self._get_up(self._stumbled)

    def _settle(self) -> None:
        """Tell those whose jobs are stored."""
        if self._store is not None and self.keeping.refuses(self._store.peer.id):
            self.keeping.says(self._store.peer.id, "")
        while self._waiting and self._waiting[0].done:
            sent = self._waiting.popleft()
            first, self.stored = self.stored, self.stored + sent.count
            self.nbytes -= sent.nbytes
            while self._waiters and self._waiters[0][0] <= self.stored:
                before, future = self._waiters.popleft()
                if not future.done():
                    future.set_result(-1 if sent.offset is None else sent.offset + before - 1 - first)
        self._driver.schedule_pump()  # somebody may wait for room

    def _get_up(self, reason: Unwritten) -> None:
        """Go on after a refusal: by the first batch that is not stored."""
        if reason.kind in ("sequence", "fenced"):
            # The store knows nothing of this node's jobs, or of others: they are numbered anew.
            self._begin_anew(max(self._epoch, reason.current if reason.kind == "fenced" else 0) + 1)
            self._resume()
            return
        if self._store is not None:
            self.keeping.says(self._store.peer.id, reason.reason)
            self._check()
        self._driver.loop.call_later(RETRY_S, self._resume)

    def _resume(self) -> None:
        self._stumbled = None
        self._send()

    def _begin_anew(self, epoch: int) -> None:
        """Number what is not stored, and what follows, from 0 on in a new epoch."""
        self._epoch, self._next = epoch, 0
        for sent in self._waiting:
            batch = parse_batch(
                sent.frames, messages_max=sent.count, buffers_max=len(sent.frames), topic_bytes_max=len(self._stream)
            )
            writer = BatchWriter(self._stream, self._driver.core.me, epoch)
            writer.buffer += memoryview(batch.body)[5:]
            writer.buffers += batch.buffers
            writer.meta, writer.count = batch.meta, batch.count
            sent.frames = self._sealed(writer, batch.published_ns)
        self.open.begin_epoch(epoch)

    def close(self) -> None:
        """The node closes."""
        self._stores.unwatch(self._look)
        self._fail(NodeClosed("the node closed before a store had these jobs"))


def _keep(queue: str, policy: QueuePolicy) -> KeepQueue:
    times = (round(s * 1000) for s in (policy.backoff_s, policy.backoff_s_max, policy.dedupe_window_s))
    return KeepQueue(queue, policy.max_attempts, *times)


def _write(frames: list[bytes], number: int) -> Write:
    return Write(number, [frames])
