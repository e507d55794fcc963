"""The store's side of the protocol: keeps durable topics, writes what it is asked to, and serves readings."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sized
from concurrent.futures import Executor
from contextlib import suppress
from typing import Any

import msgspec

from zfabric.config import Config
from zfabric.errors import (
    FabricError,
    LimitExceeded,
    NotStored,
    OutOfSequence,
    ProducerFenced,
    RemoteProtocolError,
    StoreFailed,
)
from zfabric.model import Retention
from zfabric.node.driver import Driver
from zfabric.protocol.lanes import Lane
from zfabric.protocol.peers import PeerRecord
from zfabric.store.context import Context
from zfabric.store.grouphost import GroupHost
from zfabric.store.keeper import Keeper, append_of
from zfabric.store.log import Append, Appended, Commit, Log, StreamInfo
from zfabric.store.queuehost import QueueHost
from zfabric.store.readings import ENTRY_BYTES, Reading, Tail
from zfabric.store.schedulehost import ScheduleHost
from zfabric.store.writer import Writer
from zfabric.wire.batch import REPAIR_BYTES, Batch
from zfabric.wire.durable_records import SCHEDULES, KeepQueue, queue_of
from zfabric.wire.letters import LetterRecord
from zfabric.wire.records import Start, TopicOffer
from zfabric.wire.store_records import (
    STORE_NAME_BYTES,
    TOPICS_MAX,
    AskPositions,
    AskStreams,
    AskTopics,
    Keeps,
    NamedPosition,
    Purge,
    Read,
    ReadMore,
    ReadStop,
    StoreOffer,
    Storing,
    StreamTold,
    ToldPositions,
    ToldStreams,
    ToldTopics,
    TopicTold,
    Unwritten,
    Write,
    Written,
)
from zfabric.wire.topics import Pattern

__all__ = ["StoreService"]

logger = logging.getLogger("zfabric.store")

TIDY_S = 10.0
"How often topics that nobody publishes any more are let go, and retention is applied."


class StoreService:
    """A machine that talks over channels: `protocol.channels.Machine`."""

    def __init__(
        self,
        driver: Driver,
        log: Log,
        writer: Writer,
        threads: Executor,
        patterns: tuple[str, ...],
        config: Config,
    ) -> None:
        """`threads` are those that look into the log. Raises StoreDamaged."""
        self.records: dict[type[LetterRecord], Callable[[PeerRecord, Any, float], None]] = {
            Write: self._write,
            AskPositions: self._positions,
            AskStreams: self._streams,
            Read: self._read,
            ReadMore: self._more,
            ReadStop: self._stop,
            AskTopics: lambda peer, record, _: self._answer(peer, record.request, self._topics(peer, record)),
            Purge: lambda peer, record, _: self._answer(peer, record.request, self._purge(peer, record)),
        }
        self._context = Context(driver, log, writer, threads, config, self._appended)
        self._driver = driver
        self._core = driver.core
        self._log = log
        self._writer = writer
        self._config = config
        self._offer = StoreOffer(log.id, list(patterns))
        self._patterns = tuple(Pattern(pattern) for pattern in patterns)
        self._keepers: dict[str, Keeper] = {}
        self._tails: dict[str, Tail] = {}
        self._readings: dict[bytes, dict[int, tuple[Reading, asyncio.Task[None]]]] = {}
        self._watches: dict[bytes, dict[int, tuple[PeerRecord, Pattern]]] = {}
        self._known_streams = {info.name for info in log.streams()}
        self._tasks: set[asyncio.Task[None]] = set()
        self.queues = QueueHost(self._context)
        self.records[KeepQueue] = self.queues.keep
        self.schedules = ScheduleHost(self._context, self.queues.refusal)
        self._core.channels.register(self)
        self.groups = GroupHost(self._context)
        self._core.interests.on_durable = self._keep

    # -- life ----------------------------------------------------------------------------------

    def start(self, retention: Retention) -> None:
        """The node is open. `retention` is for topics that nothing was set for."""
        _ = self._spawn(self._tidy(retention))
        _ = self._spawn(self.schedules.work())

    async def close(self) -> None:
        """Serve nobody any more."""
        self._core.interests.on_durable = None
        for keeper in self._keepers.values():
            keeper.close()
        await self.groups.close()
        await self.queues.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _spawn(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = self._driver.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _tidy(self, retention: Retention) -> None:
        while True:
            await asyncio.sleep(TIDY_S)
            self._let_go()
            self._driver.schedule_pump()
            try:
                await self.queues.trim()
                await self._context.run(self._retain, retention)
            except StoreFailed:
                return  # the store ends
            except FabricError as error:
                logger.error("retention could not be applied, and is tried again: %s", error)

    def _let_go(self) -> None:
        """Keep topics no more that nobody publishes; others may have waited for the room."""
        remotes = self._core.interests.remote
        offered = {topic for remote in remotes.values() for topic in remote.topics}
        gone = [t for t, keeper in self._keepers.items() if t not in offered and not keeper.busy]
        for topic in gone:
            keeper = self._keepers.pop(topic)
            keeper.close()
            self._core.interests.unsubscribe(keeper.lane)
        for peer in list(self._core.peers.up()) if gone else ():
            self._keep_all(peer)

    def _retain(self, retention: Retention) -> None:
        """Let go of what topics need not keep. Runs in a thread."""
        nothing_set = Retention()
        for known in self._log.streams():
            if known.retention == nothing_set != retention and queue_of(known.name) is None:
                self._log.retain(known.name, retention)
        self._log.enforce()

    # -- peers ---------------------------------------------------------------------------------

    def peer_joined(self, peer: PeerRecord, now: float) -> None:
        """Say who we are, and what there is no room for."""
        self._core.channels.tell(peer, self._offer)
        self._keep_all(peer)

    def peer_left(self, peer: PeerRecord, now: float) -> None:
        """End what it read."""
        for _, task in self._readings.pop(peer.id, {}).values():
            task.cancel()
        self._watches.pop(peer.id, None)

    def has_room(self, peer: PeerRecord, now: float) -> None:
        """Its readings may go on."""
        for reading, _ in self._readings.get(peer.id, {}).values():
            reading.wake()

    def _tell(self, peer: PeerRecord, record: LetterRecord, nbytes: int = 256) -> None:
        """Say something later than in answer to a record: the peer may have left."""
        if self._core.peers.known.get(peer.id) is peer and self._driver.open_state == "open":
            with suppress(KeyError):  # a channel begins only when the peer is up
                self._core.channels.tell(peer, record, nbytes)
                self._driver.schedule_pump()

    # -- live topics ---------------------------------------------------------------------------

    def _keep_all(self, peer: PeerRecord) -> None:
        remote = self._core.interests.remote.get(peer.id)
        for offer in [] if remote is None else [offer for offer in remote.topics.values() if offer.durable]:
            self._keep(peer, offer)

    def _keep(self, peer: PeerRecord, offer: TopicOffer) -> None:
        """A peer offers a durable topic."""
        topic = offer.topic
        if topic in self._keepers or not any(pattern.matches(topic) for pattern in self._patterns):
            return
        keeper = Keeper(
            topic,
            self._writer,
            queue_bytes=self._config.store_queue_bytes // 2,
            done=self._kept,
            told=self._storing,
            has_room=self._driver.has_room,
            check=self._core.signatures.check,
        )
        pattern = Pattern(topic, bytes_max=self._config.topic_bytes_max)
        start = Start("earliest")
        try:
            keeper.lane = self._core.interests.subscribe(pattern, "at-least-once", start, keeper, store=True)
        except LimitExceeded as error:
            reason = f"the store keeps as many topics at one time as it may: {error}"
            logger.error("%s is not kept: %s", topic, reason)
            self._tell(peer, Storing(topic, offer.epoch, reason))
            return
        self._keepers[topic] = keeper
        self._driver.schedule_pump()

    def _kept(self, lane: Lane, batch: Batch, append: Append, appended: Appended) -> None:
        self._appended(append, appended)
        self._driver.processed(lane, batch.producer, batch.topic, batch.epoch, batch.end)

    def _storing(self, producer: bytes, topic: str, epoch: int, reason: str) -> None:
        peer = self._core.peers.known.get(producer)
        if peer is not None:
            self._tell(peer, Storing(topic, epoch, reason))

    def _appended(self, append: Append, appended: Appended) -> None:
        """Something is safe: those who read its stream get it."""
        if appended.offset is None:
            return
        self.groups.appended(append, appended)
        self.queues.appended(append, appended)
        if append.stream not in self._known_streams:
            self._known_streams.add(append.stream)
            told = [StreamTold(append.stream, 0, append.count)]
            for watches in self._watches.values():
                for reading, (peer, pattern) in watches.items():
                    if pattern.matches(append.stream):
                        self._tell(peer, ToldStreams(reading, told))
        tail = self._tails.get(append.stream)
        if tail is not None:
            tail.push(appended.offset, append)
            tail.wake()

    # -- writing -------------------------------------------------------------------------------

    def _write(self, peer: PeerRecord, record: Write, now: float) -> None:
        if any(position.name.startswith(SCHEDULES) for position in record.positions):
            _ = self._spawn(self._write_schedule(peer, record))
            return
        try:
            appends = tuple(append_of(self._allowed(peer, frames)) for frames in record.batches)
            if appends and record.gone is not None:
                appends = (msgspec.structs.replace(appends[0], gone=record.gone), *appends[1:])
            if record.positions:
                raise NotStored(f"positions belong to the store itself, but for those of {SCHEDULES}")
            future = self._writer.commit(Commit(appends))
        except RemoteProtocolError as error:
            self._tell(peer, Unwritten(record.request, "refused", error.reason))
            return
        except (LimitExceeded, NotStored, StoreFailed) as error:
            self._tell(peer, _unwritten(record.request, error))
            return
        future.add_done_callback(lambda done: self._written(peer, record.request, appends, done))

    async def _write_schedule(self, peer: PeerRecord, record: Write) -> None:
        try:
            await self.schedules.write(peer, record)
        except (FabricError, ValueError) as error:
            self._tell(peer, _unwritten(record.request, error))
        else:
            self._tell(peer, Written(record.request))

    def _written(
        self,
        peer: PeerRecord,
        request: int,
        appends: tuple[Append, ...],
        future: asyncio.Future[tuple[Appended, ...]],
    ) -> None:
        if future.cancelled():
            return
        error = future.exception()
        if error is not None:
            self._tell(peer, _unwritten(request, error))
            return
        for append, appended in zip(appends, future.result(), strict=True):
            self._appended(append, appended)
        self._tell(peer, Written(request, [appended.offset for appended in future.result()]))

    def _allowed(self, peer: PeerRecord, frames: list[bytes]) -> Batch:
        """A batch that this peer may have written. Raises RemoteProtocolError or NotStored."""
        batch = self._context.parse(frames)
        queue = queue_of(batch.topic)
        self._core.gate.check_writes(peer, batch, queue)
        refusal = "" if queue is None else self.queues.refusal(queue, batch)
        if refusal:
            raise NotStored(refusal, queue)
        if queue is None and not self._core.signatures.check(batch):
            raise NotStored(f"it was refused: {batch.refused}", batch.topic)
        return batch

    def _positions(self, peer: PeerRecord, record: AskPositions, now: float) -> None:
        _ = self._spawn(self._tell_positions(peer, record))

    async def _tell_positions(self, peer: PeerRecord, record: AskPositions) -> None:
        try:
            found = await self._context.run(self._log.positions, record.prefix)
        except FabricError as error:
            self._tell(peer, ToldPositions(record.request, [], str(error)[:STORE_NAME_BYTES]))
            return
        positions = [NamedPosition(name, position.value, position.epoch) for name, position in found.items()]
        positions = [position for position in positions if self.schedules.shows(peer, position)]
        nbytes = sum(64 + len(p.name) + len(p.value or b"") for p in positions)
        if nbytes > peer.identity.frame_bytes_max - REPAIR_BYTES:
            reason = f"{len(positions)} positions begin so, more than fit into one frame: ask for a longer prefix"
            self._tell(peer, ToldPositions(record.request, [], reason))
        else:
            self._tell(peer, ToldPositions(record.request, positions), nbytes)

    # -- looking after topics ------------------------------------------------------------------

    def _answer(self, peer: PeerRecord, request: int, work: Awaitable[list[StreamInfo]]) -> None:
        _ = self._spawn(self._tell_topics(peer, request, work))

    async def _tell_topics(self, peer: PeerRecord, request: int, work: Awaitable[list[StreamInfo]]) -> None:
        try:
            topics = [
                TopicTold(each.name, each.first, each.next, each.bytes, Keeps(*msgspec.structs.astuple(each.retention)))
                for each in await work
            ]
        except FabricError as error:
            self._tell(peer, ToldTopics(request, [], str(error)[:STORE_NAME_BYTES]))
        else:
            self._tell(peer, ToldTopics(request, topics), ENTRY_BYTES * (1 + len(topics)))

    async def _topics(self, peer: PeerRecord, record: AskTopics) -> list[StreamInfo]:
        pattern = Pattern(record.pattern, bytes_max=self._config.topic_bytes_max)
        found = [
            each
            for each in await self._context.run(self._log.streams)
            if each.name > record.after
            and pattern.matches(each.name)
            and queue_of(each.name) is None
            and self._core.gate.allows(peer, "subscribe", each.name)
        ]
        return sorted(found, key=lambda each: each.name)[:TOPICS_MAX]

    async def _purge(self, peer: PeerRecord, record: Purge) -> list[StreamInfo]:
        topic, before = record.topic, record.before
        if queue_of(topic) is not None or not self._core.gate.may(peer, "store", topic):
            raise NotStored("only who has the right to be a store of a topic may remove from it; a queue keeps its own")
        known = self._log.info(topic)
        if known is None:
            raise NotStored("it is not here")
        if before is None:
            await self._context.run(self._log.purge, topic)
        else:
            await self._context.run(self._log.trim, topic, min(before, known.next))
        return [found for found in [self._log.info(topic)] if found is not None]

    # -- reading -------------------------------------------------------------------------------

    def _has_place(self, peer: PeerRecord, taken: Sized) -> bool:
        most = self._config.store_readings_per_peer_max
        if len(taken) < most:
            return True
        reason = f"it reads more at once than Config.store_readings_per_peer_max = {most}"
        self._core.not_protocol(peer.address, RemoteProtocolError(reason))
        return False

    def _streams(self, peer: PeerRecord, record: AskStreams, now: float) -> None:
        try:
            pattern = Pattern(record.pattern, bytes_max=self._config.topic_bytes_max)
        except FabricError:
            return
        watches = self._watches.setdefault(peer.id, {})
        if record.reading not in watches and not self._has_place(peer, watches):
            return
        watches[record.reading] = peer, pattern
        streams = [
            StreamTold(info.name, info.first, info.next) for info in self._log.streams() if pattern.matches(info.name)
        ]
        self._tell(peer, ToldStreams(record.reading, streams), ENTRY_BYTES * (1 + len(streams)))

    def _read(self, peer: PeerRecord, record: Read, now: float) -> None:
        readings = self._readings.setdefault(peer.id, {})
        if record.reading in readings or not self._has_place(peer, readings):
            return
        tail = self._tails.setdefault(record.topic, Tail())
        longest = peer.identity.frame_bytes_max - REPAIR_BYTES
        reading = Reading(record, _PeerLink(self, peer), self._log, tail, self._context.run, longest)
        task = self._spawn(reading.serve())
        task.add_done_callback(lambda _: self._served(record.topic, reading))  # also of one that never began
        readings[record.reading] = reading, task

    def _served(self, topic: str, reading: Reading) -> None:
        tail = self._tails[topic]
        del tail.readings[reading]
        if not tail.readings:
            del self._tails[topic]

    def _more(self, peer: PeerRecord, record: ReadMore, now: float) -> None:
        reading, _ = self._readings.get(peer.id, {}).get(record.reading, (None, None))
        if reading is not None:
            reading.grant(record.nbytes)

    def _stop(self, peer: PeerRecord, record: ReadStop, now: float) -> None:
        self._watches.get(peer.id, {}).pop(record.reading, None)
        _, task = self._readings.get(peer.id, {}).pop(record.reading, (None, None))
        if task is not None:
            task.cancel()


class _PeerLink:
    """Implements `readings.Link`."""

    def __init__(self, service: StoreService, peer: PeerRecord) -> None:
        self._service = service
        self._peer = peer

    def tell(self, record: LetterRecord, nbytes: int) -> None:
        self._service._tell(self._peer, record, nbytes)  # noqa: SLF001 - one thing in two classes

    def has_room(self) -> bool:
        return self._service._core.channels.has_room(self._peer)  # noqa: SLF001 - one thing in two classes


def _unwritten(request: int, error: BaseException) -> Unwritten:
    if isinstance(error, ProducerFenced):
        origin = error.stream or "", error.producer, error.epoch, 0, error.current
        return Unwritten(request, "fenced", error.reason, *origin)
    if isinstance(error, OutOfSequence):
        origin = error.stream or "", error.producer, error.epoch, error.base, error.expected
        return Unwritten(request, "sequence", error.reason, *origin)
    if isinstance(error, NotStored):
        return Unwritten(request, "refused", error.reason, error.stream or "")
    if isinstance(error, ValueError):
        return Unwritten(request, "invalid", str(error))
    return Unwritten(request, "refused" if isinstance(error, LimitExceeded) else "unknown", str(error))
