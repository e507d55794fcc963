"""Joins the protocol core to a transport, discovery and the event loop. It moves things and decides nothing.

transport --frames--> core --actions--> transport
publishers --open batches--> flush(), once a turn --> transport (and the node's own subscriptions)
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from heapq import heappop, heappush
from math import inf
from typing import Any

import msgspec

from zfabric.config import Config
from zfabric.discovery.base import Announcement, Discovery
from zfabric.errors import NodeClosed, NodeForked, NotStored, RemoteProtocolError
from zfabric.events import DiscoveryFailed
from zfabric.model import Source
from zfabric.node.alarm import Alarm
from zfabric.node.deferred import Deferred
from zfabric.node.eager import resume
from zfabric.node.eventhub import EventHub
from zfabric.node.jobsockets import JobSockets
from zfabric.node.kept import Kept
from zfabric.node.rights import Rights, mismatch
from zfabric.protocol.bundling import BUNDLED_MIN
from zfabric.protocol.core import Core
from zfabric.protocol.effects import (
    Action,
    AddFilter,
    ConnectFeed,
    ConnectPush,
    Dial,
    DisconnectFeed,
    DisconnectPush,
    Emit,
    HangUp,
    RemoveFilter,
    Send,
    SendJobs,
)
from zfabric.protocol.lanes import Lane, Sink
from zfabric.protocol.outbox import Outbox
from zfabric.transport.base import Buffer, Credentials, Route, Transport
from zfabric.wire.records import Identity

__all__ = ["Driver"]

log = logging.getLogger("zfabric")


class Driver(JobSockets):
    """One node's engine room; implements `transport.base.Receiver`."""

    def __init__(
        self,
        core: Core,
        transport: Transport,
        ways: Sequence[Discovery],
        config: Config,
        utc: Callable[[], float],
    ) -> None:
        self.core = core
        self.utc = utc
        self.events = EventHub(config.events_max)
        self.batches_sent = self.batches_received = self.bytes_sent = self.bytes_received = 0
        self.undecodable: Counter[str] = Counter()
        self.expired: Counter[str] = Counter()
        self._transport = transport
        self._ways = ways
        self._config = config
        self._dirty: list[Outbox] = []
        self._waiters: dict[asyncio.Future[None], None] = {}
        self._alarm = Alarm(core.timer, self._on_alarm)
        self._pump_soon = self._pump_at_end = False
        self.deferred = Deferred(self.pump)
        self.resume: Callable[[tuple[Any, Any]], object] = self.deferred.kind(resume)
        "Gives a future (first) its result in the next pump; the task that waits for it goes on there."
        self._holding: set[Sink] = set()
        self._confirming: dict[tuple[Outbox, str], list[tuple[int, int, asyncio.Future[None]]]] = {}
        "Heaps of (message after the one that is waited for, a number, who waits), by level."
        self._waits = 0
        self.files: dict[Outbox, Kept] = {}
        "Where publishers keep what is not stored."
        self._tasks: set[asyncio.Task[None]] = set()
        self._source = Source(core.me.hex(), "")
        self.rights = Rights(None)
        self.open_state = "new"

    # -- life ----------------------------------------------------------------------------------

    def open(self, identity: Identity, credentials: Credentials | None, seeds: Sequence[str]) -> None:
        """Bind, introduce ourselves and start to look for others. Raises OSError if an address is taken."""
        self.loop = asyncio.get_running_loop()
        self._transport.open(self)
        self.open_state = "open"
        self.core.lending.wake = self._returned
        self._source = Source(self.core.me.hex(), identity.name)
        self._credentials = credentials
        self._identity = identity
        self._introduce()
        for seed in seeds:
            self.core.seek(seed, self.loop.time())
        for way in self._ways:
            task = self.loop.create_task(self._start(way), name=f"zfabric-{way.name}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        self.pump()

    def _introduce(self) -> None:
        inbox, outlet = self._transport.inbox_endpoints, self._transport.outlet_endpoints
        self._identity = msgspec.structs.replace(self._identity, inbox=inbox, outlet=outlet)
        self.core.introduce(self._identity)

    @property
    def endpoints(self) -> tuple[str, ...]:
        """Where other nodes can dial this one."""
        return self._transport.inbox_endpoints

    def _announcement(self) -> Announcement:
        fingerprint = "" if self._credentials is None else self._credentials.fingerprint
        endpoints = tuple(endpoint.removesuffix(f"#{fingerprint}") for endpoint in self.endpoints)
        return Announcement(self.core.me, self._identity.fabric, endpoints, fingerprint)

    async def _start(self, way: Discovery) -> None:
        try:
            await way.start(self._announcement(), self._found)
        except Exception as error:  # noqa: BLE001 - ways may be plugins, and the others go on
            log.warning("discovery by %s does not work here: %s", way.name, error)
            self.events.put(DiscoveryFailed(way.name, str(error)))

    def _found(self, announcement: Announcement) -> None:
        if self.open_state != "open":
            return
        now, key, credentials = self.loop.time(), announcement.fingerprint, self._credentials
        if not key if credentials is None else key and credentials.server_key(key) is not None:
            suffix = f"#{key}" if credentials is not None and credentials.distinguishes else ""
            self.core.found(announcement.node_id, [f"{each}{suffix}" for each in announcement.endpoints], now)
        else:
            address = next(iter(announcement.endpoints), announcement.node_id.hex())
            self.core.not_authenticated(address, mismatch(key, credentials), now)
        self.schedule_pump()

    def trust_changed(self) -> None:
        """Identities were revoked or may do other things: begin with everybody anew."""
        self.core.trust_changed(self.loop.time())
        self.pump()
        self._transport.drop_links()

    async def readdress(self, addresses: tuple[str, ...]) -> None:
        """The machine's addresses changed: listen there, and tell everybody."""
        pullers = self._transport.rebind(addresses)
        self._introduce()
        self.core.reintroduce(self.loop.time())
        self.core.queues.plain.moved(pullers)
        self.pump()
        for way in self._ways:
            try:
                await way.update(self._announcement())
            except Exception as error:  # noqa: BLE001 - ways may be plugins, and the others go on
                log.warning("discovery by %s cannot announce the new addresses: %s", way.name, error)
                self.events.put(DiscoveryFailed(way.name, str(error)))

    async def close(self, timeout: float) -> None:
        """Send what is open, say goodbye, stop. Always returns within about `timeout` seconds."""
        if self.deferred.running:
            await asyncio.sleep(0)  # the task that closes the node was let go on by `pump`, which is to end before
        deadline = self.loop.time() + timeout
        self.flush()
        self.pump()  # what machines have to say is heard before the goodbye, if anybody hears
        with suppress(TimeoutError, NodeClosed):
            await self.wait_until(lambda: not self.core.lending.unseen, timeout)
            await self.wait_until(lambda: self.core.channels.quiet, min(timeout, self._config.channel_retry_s))
        if self.open_state != "open":
            return  # another call has closed it meanwhile
        self.core.goodbye()
        self.pump()
        self.open_state = "closed"
        for outbox in self.core.interests.outboxes.values():
            outbox.ready = False  # publishers look there first
        self._alarm.cancel()
        for task in self._tasks:
            task.cancel()
        timeout = max(0.0, deadline - self.loop.time())
        closing = [self._transport.close(timeout), *(way.close() for way in self._ways)]
        try:
            async with asyncio.timeout(timeout + 1):
                await asyncio.gather(*closing, return_exceptions=True)
        except TimeoutError:
            log.warning("closing took longer than %.1f s: what was left is given up", timeout)
        finally:
            self.core.lending.close()
            self.events.close()
            self._confirm()
            self._wake()
            self.schedule_pump()  # who waited goes on

    def check_open(self) -> None:
        """Raise NodeClosed or NodeForked unless the node can be used."""
        if self.open_state == "forked":
            raise NodeForked("this node was opened before fork(): its sockets belong to the parent; open a new node")
        if self.open_state != "open":
            raise NodeClosed(f"the node is {'closed' if self.open_state == 'closed' else 'not open yet'}")

    # -- publishing ----------------------------------------------------------------------------

    def dirty(self, outbox: Outbox) -> None:
        """An outbox has its first message of a batch: send the batch at the end of this turn of the loop."""
        if not self._dirty:
            self.loop.call_soon(self.flush)
        self._dirty.append(outbox)

    def flush(self) -> None:
        """Send every open batch."""
        dirty, self._dirty = self._dirty, []
        if len(dirty) >= BUNDLED_MIN and self.open_state == "open":
            dirty = self._send_bundles(dirty)
        self._send_all(dirty)

    def _send_bundles(self, outboxes: list[Outbox]) -> list[Outbox]:
        """Send what can travel together. Returns the other outboxes."""
        now = self.loop.time()
        if self._pump_soon or self._pump_at_end:
            self._carry_out(now)  # who listens may be about to change
        bundles, alone = self.core.bundle(outboxes, int(self.utc() * 1e9), now)
        for bundle in bundles:
            self.batches_sent += 1
            self.bytes_sent += len(bundle)
            self._transport.publish([bundle])
        return alone

    def send(self, outbox: Outbox) -> None:
        """Seal and send the open batch of one outbox, if there is one."""
        self._send_all([outbox])

    def _send_all(self, outboxes: list[Outbox]) -> None:
        """Unless this node's own subscriptions get something, streams alone may have something to say later."""
        for outbox in outboxes:
            self._send(outbox)
        if any(outbox.local for outbox in outboxes):
            self.schedule_pump()
        else:
            self._alarm.by(self.loop, self.core.streams.timer())

    def _send(self, outbox: Outbox) -> None:
        if not outbox.writer.count or self.open_state != "open":
            return
        now = self.loop.time()
        if self._pump_soon or self._pump_at_end:
            self._carry_out(now)  # who listens may be about to change
        count = outbox.writer.count
        frames = self.core.seal(outbox, int(self.utc() * 1e9), now)
        if outbox in self.files:
            self._keep(outbox, count, frames)
        self.batches_sent += 1
        self.bytes_sent += sum(map(len, frames))
        if outbox.remote:
            self._transport.publish(self.core.lending.lend(outbox, frames, now) if len(frames) > 1 else frames)
        if outbox.local:
            self.core.loop_back(outbox, frames, self._source, now)

    def _keep(self, outbox: Outbox, count: int, frames: Sequence[Buffer]) -> None:
        """Write a batch to the publisher's own file before it leaves."""
        file, keeping = self.files[outbox], outbox.keeping
        file.keep(outbox.epoch, outbox.base - count, outbox.base, frames)
        if file.failure and keeping is not None:
            keeping.broken = file.failure
            outbox.judge()
            self._check_kept(outbox, "stored")

    # -- what the transport calls --------------------------------------------------------------

    def on_control(self, route: Route, frame: bytes, user: str = "") -> None:
        """A control frame arrived."""
        if not self.core.receive(route, frame, self.loop.time(), user):
            self._pump_at_end = True

    def on_filter(self, data: bytes, user: str = "") -> None:
        """A subscription arrived at the outlet."""
        self._pump_at_end = True
        self.core.receive_filter(data, self.loop.time(), user)

    def on_batch(self, frames: Sequence[Buffer], user: str = "") -> None:
        """A batch arrived on the feed."""
        self.batches_received += 1
        self.bytes_received += sum(map(len, frames))
        if not self.core.receive_batch(frames, self.loop.time(), user):
            self._pump_at_end = True

    def _returned(self) -> None:
        """Something borrowed is not referred to any more. Called in any thread."""
        if self.open_state == "open":
            with suppress(RuntimeError):  # the event loop was closed before its node
                self.loop.call_soon_threadsafe(self.schedule_pump)

    def on_unreachable(self, route: int) -> None:
        """A dialled connection was not made."""
        self._pump_at_end = True
        self.core.unreachable(route, self.loop.time())

    def on_interrupted(self, route: int) -> None:
        """A dialled connection ended."""
        self._pump_at_end = True
        self.core.peers.interrupted(route)

    def on_connection_ended(self) -> None:
        """Somebody's connection to the inbox ended."""
        self._pump_at_end = True
        self.core.peers.connection_ended(self.loop.time())

    def on_violation(self, address: str, reason: str) -> None:
        """Somebody broke the rules of a connection, or a limit."""
        self.core.not_protocol(address, RemoteProtocolError(reason))
        self.schedule_pump()

    def on_handshake_failed(self, address: str, reason: str) -> None:
        """A connection was not made, because of its keys."""
        self._pump_at_end = True
        self.core.not_authenticated(address, reason, self.loop.time())

    def on_burst_end(self) -> None:
        """Answer everything that came in this burst at once."""
        if not self._pump_at_end and self._streams_can_wait():
            self._make_calls()
            if not self._pump_at_end:
                return
        self.pump()

    def _streams_can_wait(self) -> bool:
        """Whether streams, which alone may have changed, have nothing to say yet; the alarm is set then."""
        due = self.core.streams_due()
        if due <= self.loop.time():
            return False
        self._alarm.by(self.loop, due)
        return True

    def hold_feed(self, sink: Sink, *, full: bool) -> None:
        """A blocking subscription is full, or has room again."""
        (self._holding.add if full else self._holding.discard)(sink)
        self._transport.pause_feed(bool(self._holding))

    # -- doing what the core says --------------------------------------------------------------

    def schedule_pump(self) -> None:
        """Carry out the core's actions later in this turn of the loop."""
        if self.deferred.running:
            self._pump_at_end = True
        elif not self._pump_soon:
            self._pump_soon = True
            self.loop.call_soon(self.pump)

    def pump_by(self, due: float) -> None:
        """Carry out the core's actions at that time, which its timer tells as well."""
        self._alarm.by(self.loop, due)

    def pump(self) -> None:
        """Carry out the core's actions until there are none."""
        if self.deferred.running:
            self._pump_at_end = True  # of these calls
            return
        self._pump_soon = False
        if self.open_state != "open":
            self._make_calls()
            return
        if self._confirming:
            self._confirm()
        self._make_calls()
        self._pump_at_end = False
        self._carry_out(self.loop.time())
        self._alarm.set(self.loop)
        for outbox, file in self.files.items():
            file.forget(outbox.epoch, outbox.confirmed("stored"))
        if self._confirming:
            self._confirm()  # what was due may have changed something
        if self._waiters:
            self._wake()
        if self.deferred.waiting():
            self.schedule_pump()

    def _make_calls(self) -> None:
        """Let users' code run, and send at once what it publishes: it may be waiting for that."""
        if self.deferred.waiting():
            self.deferred.run(self.loop)
            if self._dirty:
                self.flush()

    def _carry_out(self, now: float) -> None:
        while actions := self.core.actions(now):
            again = False
            for action in actions:
                again |= self._act(action, now)
            if not again:
                return

    def _act(self, action: Action, now: float) -> bool:
        """Do one thing. Returns whether the core was told that it cannot be done."""
        transport = self._transport
        match action:
            case Send(route, frame):
                if not transport.send(route, frame):
                    self.core.route_lost(route, now)
                    return True
            case Emit(event):
                self.events.put(event)
            case Dial(route, endpoint):
                if not transport.dial(route, endpoint):
                    self.core.route_lost(route, now)
                    return True
            case HangUp(route):
                transport.hang_up(route)
            case AddFilter(prefix):
                transport.add_filter(prefix)
            case RemoveFilter(prefix):
                transport.remove_filter(prefix)
            case ConnectFeed(endpoint):
                transport.connect_feed(endpoint)
            case DisconnectFeed(endpoint):
                transport.disconnect_feed(endpoint)
            case ConnectPush() | DisconnectPush() | SendJobs():
                self._act_on_jobs(action, now)
        return False

    def has_room(self, lane: Lane) -> None:
        """A full subscription was read."""
        self.core.streams.has_room(lane, self.loop.time())
        self.schedule_pump()

    def processed(self, lane: Lane, producer: bytes, topic: str, epoch: int, before: int) -> None:
        """A subscription is done with the messages before this one."""
        self.core.streams.processed(lane, producer, topic, epoch, before, self.loop.time())
        if not self._streams_can_wait():
            self.schedule_pump()

    def _on_alarm(self, now: float) -> None:
        self.core.handle_timer(now)
        self.pump()

    async def confirmed(self, outbox: Outbox, before: int, level: str) -> None:
        """Return once all messages before this one are confirmed at that level, or the node closes.

        Raises NotStored when no store takes them and the publisher does not want to wait.
        """
        if outbox.confirmed(level) >= before:
            return
        outbox.ack_now = True
        waiter: asyncio.Future[None] = self.loop.create_future()
        self._waits += 1
        heappush(self._confirming.setdefault((outbox, level), []), (before, self._waits, waiter))
        self._check_kept(outbox, level)
        await waiter

    def _confirm(self) -> None:
        """Wake those whose messages have been confirmed."""
        for (outbox, level), waiting in list(self._confirming.items()):
            confirmed = outbox.confirmed(level) if self.open_state == "open" else inf
            while waiting and waiting[0][0] <= confirmed:
                _, _, waiter = heappop(waiting)
                self.resume((waiter, None))
            self._check_kept(outbox, level)
            if not waiting:
                del self._confirming[outbox, level]

    def _check_kept(self, outbox: Outbox, level: str) -> None:
        """Tell those who wait for a store that none stores."""
        keeping = outbox.keeping
        if level == "stored" and keeping is not None and keeping.stops:
            while waiting := self._confirming.get((outbox, level)):
                _, _, waiter = waiting.pop()
                if not waiter.done():
                    waiter.set_exception(NotStored(keeping.reason, outbox.topic))

    # -- waiting -------------------------------------------------------------------------------

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()

    async def wait_until(self, condition: Callable[[], bool], timeout: float | None) -> None:
        """Return once `condition()` holds. Raises TimeoutError, or NodeClosed if the node closes meanwhile."""
        async with asyncio.timeout(timeout):
            while True:
                self.check_open()
                if condition():
                    return
                waiter: asyncio.Future[None] = self.loop.create_future()
                self._waiters[waiter] = None
                try:
                    await waiter
                finally:
                    self._waiters.pop(waiter, None)
