"""The node: what users open, and what everything else hangs on."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from zfabric.config import Config
from zfabric.discovery.interfaces import AddressWatch, Scope
from zfabric.errors import InsecureInterface, LocalProtocolError
from zfabric.model import Delivery, Overflow, Peer, Statistics, Topic, TopicStatistics
from zfabric.node.driver import Driver
from zfabric.node.environment import Environment, Machine
from zfabric.node.eventhub import EventStream
from zfabric.node.forking import open_drivers
from zfabric.node.handlers import Handlers
from zfabric.node.naming import check_names, introduction, program_name
from zfabric.node.opentopics import OpenTopic, TopicOptions
from zfabric.node.options import text, whole
from zfabric.node.publisher import Publisher
from zfabric.node.queues import NodeQueues, QueueMethods
from zfabric.node.requests import Requests
from zfabric.node.rights import Rights
from zfabric.node.servicemethods import ServiceMethods
from zfabric.node.services import Services
from zfabric.node.shared import SharedSubscription
from zfabric.node.starts import Beginning, StartLike
from zfabric.node.subscription import Subscription
from zfabric.node.table import Snapshot, Table
from zfabric.protocol.core import Core
from zfabric.security.finding import find_credentials
from zfabric.wire.codec import Codec
from zfabric.wire.topics import Pattern, check_topic

__all__ = ["Node"]

log = logging.getLogger("zfabric")

Handler = TypeVar("Handler", bound=Callable[..., Any])


class Node(QueueMethods, ServiceMethods):
    """One member of a fabric. Use it as `async with Node("name") as node:`, or `open()` and `close()` it.

    `name`: for people; several nodes may share one. Default: the program's name and process id.
    `fabric`: only nodes of the same fabric see each other.
    `interface`: `"loopback"` (this machine only), `"lan"` (all its networks), an interface's name or an address.
    `seeds`: addresses of nodes to connect to, beside those that discovery finds, e.g. `tcp://10.0.0.7:7400`.
    `key`: the fabric's key, as text or as the Path of a key file. Default: the file that $ZFABRIC_KEY_FILE names, else
    the one of this fabric in the user's configuration (`zfabric keys init`), else none. With a key everything is
    encrypted, and only nodes with the same key become peers.
    `insecure=True` is needed to leave this machine without a key.
    `config`: limits and timeouts.

    Everything belongs to the event loop that `open()` ran in. From other threads use `zfabric.sync.Node`.
    """

    def __init__(
        self,
        name: str | None = None,
        *,
        fabric: str = "default",
        interface: str = "loopback",
        seeds: Sequence[str] = (),
        key: str | bytes | Path | None = None,
        insecure: bool = False,
        config: Config | None = None,
    ) -> None:
        self.name = name if name is not None else program_name()
        self.fabric = fabric
        self._interface = interface
        self._seeds = seeds
        self._key = key
        self._insecure = insecure
        self._config = config or Config()
        self._environment: Environment = Machine()
        self._driver: Driver | None = None
        self._handlers: Handlers | None = None
        self._queues: NodeQueues | None = None
        self._topics: dict[str, OpenTopic] = {}
        self._subscriptions: dict[Subscription, None] = {}
        self._ended: dict[str, tuple[int, int]] = {}
        self._extensions: list[Callable[[Driver], object]] = []
        self._watches: list[asyncio.Task[None]] = []
        self.id = ""

    def __repr__(self) -> str:
        state = "new" if self._driver is None else self._driver.open_state
        return f"<Node {self.name} {self.id[:8]} of fabric {self.fabric!r} [{state}]>"

    # -- life ----------------------------------------------------------------------------------

    async def open(self) -> None:
        """Bind, announce and start to look for peers; does not wait for any.

        Raises InterfaceNotFound, InsecureInterface, InvalidKey, LocalProtocolError for names that are too long, or
        OSError when an address cannot be bound.
        """
        if self._driver is not None:
            raise LocalProtocolError("a node opens once; make a new one")
        check_names(self.fabric, self.name)
        environment, config = self._environment, self._config
        scope = environment.scope(self._interface)
        credentials = find_credentials(self.fabric, self._key)
        if not scope.loopback and credentials is None and not self._insecure:
            raise InsecureInterface(self._interface)
        if credentials is not None:
            config = replace(config, dials_pending_max=max(1, config.dials_pending_max // 8))
        rights = Rights(credentials)
        node_id = rights.node_id(environment.random_bytes(16))
        loop = asyncio.get_running_loop()
        transport = environment.transport(node_id, scope, config, credentials)
        jitter = random.Random(environment.random_bytes(8))  # noqa: S311 - spreads requests, hides nothing
        memory, offset = environment.memory(node_id, config), environment.utc() - loop.time()
        core = Core(node_id, config, transport.usable, jitter, offset, rights.identities, credentials, memory)
        driver = Driver(core, transport, environment.ways(scope, config), config, environment.utc)
        driver.loop = loop
        driver.rights = rights
        for extend in self._extensions:  # what is more than a node hears of peers from the first one on
            extend(driver)
        token = environment.random_bytes(16)
        offer, longest = core.lending.offer, config.frame_bytes_max
        identity = introduction(token, self.fabric, self.name, longest, offer)
        driver.open(identity, credentials, driver.rights.located(self._seeds))
        self.id = node_id.hex()
        self._driver = driver
        self._with_crc = not scope.loopback and credentials is None
        self._handlers = Handlers(driver, config.handler_threads_max)
        self._services, self._requests = Services(driver, config), Requests(driver, config)
        self._queues = NodeQueues(driver, self._handlers, config, with_crc=self._with_crc)
        open_drivers.add(driver)
        if not scope.loopback:
            self._watches.append(loop.create_task(self._watch_addresses(scope), name="zfabric-addresses"))
        if rights.identities is not None:
            watch = driver.rights.watch(config.identities_poll_s, driver.trust_changed)
            self._watches.append(loop.create_task(watch, name="zfabric-identities"))

    async def _watch_addresses(self, scope: Scope) -> None:
        changed: asyncio.Queue[Scope] = asyncio.Queue()
        watch = AddressWatch(scope, self._config, changed.put_nowait)
        async with asyncio.TaskGroup() as group:
            group.create_task(watch.run())
            while True:
                await self._opened().readdress((await changed.get()).addresses)

    async def close(self, timeout: float | None = None) -> None:
        """Stop: handlers finish what has arrived, open batches leave, peers are told. Always returns.

        `timeout` in seconds, default `Config.close_timeout_s`, bounds all of it. A handler may call it, too.
        """
        driver, handlers, queues = self._driver, self._handlers, self._queues
        if driver is None or handlers is None or queues is None or driver.open_state != "open":
            return
        deadline = driver.loop.time() + (self._config.close_timeout_s if timeout is None else timeout)
        for watch in self._watches:
            watch.cancel()
        driver.flush()  # what was published to the node's own subscriptions is in the node already
        for subscription in list(self._subscriptions):
            subscription.end()
        queues.stop_pulling()
        if self._services is not None:
            await self._services.close((deadline - driver.loop.time()) / 2)
        await handlers.close((deadline - driver.loop.time()) / 2)
        queues.give_up()
        await self._confirm_all(driver, (deadline - driver.loop.time()) / 2)
        await queues.finish((deadline - driver.loop.time()) / 2)
        await driver.close(max(0.05, deadline - driver.loop.time()))
        if self._requests is not None:
            self._requests.close()  # not before: handlers that are at work may ask
        for topic in self._topics.values():
            topic.close()
        for subscription in list(self._subscriptions):
            subscription.end()
        open_drivers.discard(driver)

    async def _confirm_all(self, driver: Driver, timeout: float) -> None:
        """Reliable topics: wait for what subscribers have not confirmed yet, for at most `timeout` seconds."""
        driver.flush()
        waits = [
            driver.loop.create_task(driver.confirmed(topic.outbox, topic.outbox.base, level))
            for topic in self._topics.values()
            for level in ("received", "stored")
            if topic.outbox.confirmed(level) < topic.outbox.base
        ]
        if waits:
            done, late = await asyncio.wait(waits, timeout=timeout)
            for wait in late:
                wait.cancel()
            for topic in self._topics.values():
                missing = topic.outbox.base - topic.outbox.confirmed("stored")
                if missing:
                    log.warning("closing while %d messages of %s are not stored", missing, topic.outbox.topic)
            for wait in done:
                wait.exception()  # NotStored was said just now

    async def __aenter__(self) -> Node:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _opened_queues(self) -> NodeQueues:
        self._opened()
        assert self._queues is not None
        return self._queues

    def _opened(self) -> Driver:
        if self._driver is None:
            raise LocalProtocolError("open the node first: `async with node:` or `await node.open()`")
        self._driver.check_open()
        return self._driver

    # -- who is there --------------------------------------------------------------------------

    @property
    def endpoints(self) -> tuple[str, ...]:
        """Addresses that other nodes can give as `seeds`."""
        return self._opened().endpoints

    @property
    def peers(self) -> tuple[Peer, ...]:
        """The other nodes of this fabric, as of now."""
        core = self._opened().core
        return tuple(core.describe(peer) for peer in core.peers.up())

    async def wait_for_peers(self, count: int = 1, timeout: float | None = None) -> None:
        """Return once `count` peers are there. Raises TimeoutError after `timeout` seconds."""
        driver = self._opened()
        await driver.wait_until(lambda: len(driver.core.peers.up()) >= count, timeout)

    def events(self) -> EventStream:
        """An async iterator of what happens from now on: peers, gaps, errors. Bounded by Config.events_max."""
        return self._opened().events.stream()

    def statistics(self) -> Statistics:
        """Counters since the node opened, in one snapshot."""
        driver = self._driver
        if driver is None:
            raise LocalProtocolError("open the node first: `async with node:` or `await node.open()`")
        core, streams = driver.core, driver.core.streams
        names = {*self._topics, *self._ended, *streams.received, *streams.lost}
        names.update(driver.undecodable, driver.expired)
        return Statistics(
            peers=len(core.peers.up()),
            topics={name: self._topic_statistics(name, driver) for name in sorted(names)},
            batches_sent=driver.batches_sent,
            batches_received=driver.batches_received,
            bytes_sent=driver.bytes_sent,
            bytes_received=driver.bytes_received,
            protocol_errors=core.protocol_errors,
            handler_errors=sum(part.errors for part in (self._handlers, self._services) if part is not None),
            events_dropped=driver.events.dropped,
            strangers=core.strangers,
            denials=core.gate.denials,
            authentication_failures=core.authentication_failures,
            signatures_refused=core.signatures.refused,
            buffers_lent=core.lending.lent,
            buffers_not_lent=core.lending.not_lent,
            queues=self._queues.statistics() if self._queues is not None else {},
        )

    def _topic_statistics(self, name: str, driver: Driver) -> TopicStatistics:
        published, unmatched = self._ended.get(name, (0, 0))
        if name in self._topics:
            outbox = self._topics[name].outbox
            published, unmatched = published + outbox.next_seq, unmatched + outbox.skipped
        return TopicStatistics(
            published=published,
            unmatched=unmatched,
            received=driver.core.streams.received.get(name, 0),
            lost=driver.core.streams.lost.get(name, 0),
            undecodable=driver.undecodable[name],
            expired=driver.expired[name],
        )

    # -- publish / subscribe -------------------------------------------------------------------

    def publisher(
        self,
        topic: str | Topic[Any],
        *,
        delivery: str | None = None,
        durable: bool = False,
        history: int = 0,
        window_bytes: int | None = None,
        confirm: str | None = None,
        mandatory: bool = False,
        without_store: str = "raise",
        outbox: str | Path | None = None,
        sign: bool = False,
    ) -> Publisher:
        """Publish on a topic; publishers of the same topic share one sequence of messages.

        `topic`: a name, or a `Topic` whose type every value is checked against.
        `delivery`: `"at-most-once"`, or with acknowledgements and repair `"at-least-once"`, `"exactly-once"`. Default:
        at most once; at least once if durable.
        `durable`: stores keep the messages.
        `history`: acknowledged messages kept for subscriptions that start earlier (reliable delivery only).
        `window_bytes`: sent but unacknowledged bytes at which `publish` waits (default Config.window_bytes).
        `confirm`: what is true when `await publish(...)` returns: `"sent"`, `"received"` by every subscriber's
        node, `"processed"` by its reader, or `"stored"`: safe on the disk of a store.
        `without_store`: what publishing does where no store is in sight, or none stores: `"raise"` NotStored, or
        `"buffer"` in the window and wait when it is full. One that was here and left is waited for Config.grace_s.
        `outbox`: a file that keeps what is not stored when this process dies; the next one with it resends that first.
        `mandatory`: a message that nobody subscribes to raises NoSubscribers.
        `sign`: every batch carries this identity's signature, so that no store can change it. Needs a key, and with
        identities PyNaCl.
        Raises TopicError, LimitExceeded, ValueError for options that do not go together, and LocalProtocolError
        if the topic is open with other options.
        """
        driver = self._opened()
        options = TopicOptions.check(
            delivery=delivery,
            durable=durable,
            history=history,
            window_bytes=window_bytes,
            without_store=without_store,
            outbox=outbox,
            confirm=confirm,
            sign=sign,
        )
        name, value_type = (topic.name, topic.type) if isinstance(topic, Topic) else (topic, None)
        check_topic(name, bytes_max=self._config.topic_bytes_max)
        driver.rights.check("publish", name)
        shared = self._topics.get(name)
        if shared is None:
            codec = Codec(value_type, inline_bytes=self._config.inline_bytes)
            shared = OpenTopic(driver, name, codec, options, self._config, with_crc=self._with_crc)
            self._topics[name] = shared
        elif shared.codec.type != Codec(value_type, inline_bytes=self._config.inline_bytes).type:
            raise LocalProtocolError(f"{name!r} is published with another type already: {shared.codec.type}")
        elif shared.options != options:
            raise LocalProtocolError(f"{name!r} is published with other options already: {shared.options}")
        shared.publishers += 1
        confirm = None if confirm == "sent" else confirm
        return Publisher(
            driver,
            shared.outbox,
            shared.codec,
            self._config,
            self._release_topic,
            mandatory=mandatory,
            confirm=confirm,
        )

    def _release_topic(self, name: str) -> None:
        shared = self._topics[name]
        shared.publishers -= 1
        if shared.publishers:
            return
        shared.close()
        del self._topics[name]
        published, unmatched = self._ended.get(name, (0, 0))
        self._ended[name] = published + shared.outbox.next_seq, unmatched + shared.outbox.skipped
        if self._driver is not None and self._driver.open_state == "open":
            self._driver.core.interests.close_topic(name)
            self._driver.schedule_pump()

    def subscribe(
        self,
        pattern: str | Topic[Any],
        *,
        delivery: str | None = None,
        start: StartLike = "latest",
        replay_rate: float | None = None,
        group: str | None = None,
        member: str = "",
        ack: str = "auto",
        overflow: str | None = None,
        buffer_bytes: int | None = None,
        signed: bool = False,
        type: Any = None,  # noqa: A002 - the public name
    ) -> Subscription:
        """Receive what matches: `*` stands for one word, `#` for any number of words.

        `delivery`: what publishers must offer at least; a mismatch is an IncompatibleDelivery event on both sides.
        Default: whatever they offer. `"at-most-once"` takes a reliable topic without acknowledging it.
        `start`: `"latest"`, `"earliest"`, a sequence number (negative: that many last messages), a datetime or a
        timedelta into the past; older messages come from the publisher's window and `history`. Those of durable topics
        come from a store, which also knows offsets and `"last-per-key"`; a message's `position`, or several of
        different topics, go on from there, with whatever the store has and gets.
        `replay_rate`: read the store's log at the pace at which it was published, this much faster.
        `group`: take part in a group at the store: each message goes to one member, equal keys to the same one in
        order; `start` says where a group begins that is new. `delivery="exactly-once"` is for `transaction()`.
        `member`: a name within the group that keeps its partitions over a quick restart.
        `ack`: `"auto"` acknowledges after the handler or loop body, `"manual"` on `await message.ack()`.
        `overflow`: what happens when `buffer_bytes` (default Config.buffer_bytes) wait unread. Default: reliable
        streams wait, at-most-once streams drop their oldest.
        `signed`: what is not signed is not delivered, but reported as SignatureRefused and Gap events.
        `type`: what payloads must be; others are skipped and reported as DecodeError events.
        Raises TopicError, LimitExceeded, ValueError, or TypeError for a type that msgspec does not know.
        """
        driver = self._opened()
        beginning = Beginning(start, replay_rate)
        name, value_type = (pattern.name, pattern.type) if isinstance(pattern, Topic) else (pattern, None)
        compiled = Pattern(name, bytes_max=self._config.topic_bytes_max)
        driver.rights.check_subscribe(compiled, signed=signed)
        codec = Codec(type if type is not None else value_type, inline_bytes=self._config.inline_bytes)
        size = self._config.buffer_bytes if buffer_bytes is None else whole("buffer_bytes", buffer_bytes)
        _check_reading(size, ack, overflow, delivery, group, member)
        if group is not None:
            return self._share(
                compiled,
                codec,
                size,
                group=check_topic(group),
                member=text("member", member),
                start=beginning.of_group(),
                signed=signed,
                manual=ack == "manual",
                transactional=delivery == Delivery.EXACTLY_ONCE,
            )
        subscription = Subscription(
            driver,
            compiled,
            codec,
            None if overflow is None else Overflow(overflow),
            size,
            partial(self._forget, beginning),
            manual=ack == "manual",
            unsettled_max=self._config.unsettled_max,
        )
        beginning.listen(
            driver, subscription, compiled, "" if delivery is None else Delivery(delivery), size, signed=signed
        )
        self._subscriptions[subscription] = None
        driver.schedule_pump()
        return subscription

    def _forget(self, beginning: Beginning, subscription: Subscription) -> None:
        """A subscription was closed."""
        del self._subscriptions[subscription]
        driver = self._driver
        if driver is not None and driver.open_state == "open":
            beginning.end(driver, subscription)
            driver.schedule_pump()

    def _share(self, pattern: Pattern, codec: Codec, size: int, **options: Any) -> Subscription:
        """Subscribe as a member of a group."""
        if options["transactional"] and options["manual"]:
            raise ValueError('transactions acknowledge: leave out ack="manual"')
        subscription = SharedSubscription(
            self._opened(), pattern, codec, size, self._subscriptions.pop, self._config, **options
        )
        self._subscriptions[subscription] = None
        return subscription

    def table(
        self, topic: str | Topic[Any], *, snapshot: Snapshot | None = None, timeout: float | None = None
    ) -> Table:
        """A durable topic as a mapping of keys to their last values: `async with node.table("config") as config:`.

        It begins with what the store has, or with a `snapshot` and what came since, and follows the topic. `timeout`
        in seconds bounds the wait for the store. Raises TopicError.
        """
        name = check_topic(topic.name if isinstance(topic, Topic) else topic, bytes_max=self._config.topic_bytes_max)
        start: StartLike = "last-per-key"
        if snapshot is not None and snapshot.position is not None:
            start = snapshot.position
        subscribe = partial(self.subscribe, topic, start=start)
        return Table(self._opened(), subscribe, name, snapshot, timeout)

    def on(self, pattern: str | Topic[Any], **options: Any) -> Callable[[Handler], Handler]:
        """Decorator: call the function with every message that matches; options as for `subscribe`.

        An `async def` runs in the event loop, a `def` in one of Config.handler_threads_max threads; either handles
        one message at a time, in order. Its exceptions are logged, counted and reported, and never stop the node.
        """
        self._opened()
        handlers = self._handlers
        assert handlers is not None

        return handlers.decorator(pattern, lambda handler: handlers.start(self.subscribe(pattern, **options), handler))


def _check_reading(
    size: int, ack: str, overflow: str | None, delivery: str | None, group: str | None, member: str
) -> None:
    if size <= 0:
        raise ValueError(f"buffer_bytes must be above 0, not {size}")
    if ack not in ("auto", "manual"):
        raise ValueError(f"ack must be 'auto' or 'manual', not {ack!r}")
    if group is not None and (overflow is not None or delivery == Delivery.AT_MOST_ONCE):
        raise ValueError("groups lose nothing: leave out overflow=, and delivery= or ask for more")
    if group is None and member:
        raise ValueError("member= names a member of a group: give group= too")
