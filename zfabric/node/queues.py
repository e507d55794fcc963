"""The queues of a node: what `Node` says about them, and what its pushers and pullers share."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import msgspec

from zfabric.config import Config
from zfabric.errors import FabricError, LimitExceeded, LocalProtocolError
from zfabric.events import HandlerError, JobsUnfinished
from zfabric.model import Delivery, QueueState, QueueStatistics, Source, Topic
from zfabric.node.bindings import Binding
from zfabric.node.driver import Driver
from zfabric.node.durablepusher import DurablePusher
from zfabric.node.handlers import Handlers
from zfabric.node.jobwriter import JobWriter
from zfabric.node.leasepuller import LeasePuller
from zfabric.node.options import seconds, whole
from zfabric.node.plainpuller import PlainPuller
from zfabric.node.puller import Puller
from zfabric.node.pusher import OpenJobs, Pusher
from zfabric.node.storemethods import StoreMethods
from zfabric.node.subscription import Subscription
from zfabric.protocol.dispatcher import Dispatcher
from zfabric.protocol.jobs import QueuePolicy
from zfabric.protocol.plainqueue import PlainQueue
from zfabric.protocol.plainsink import PlainSink
from zfabric.protocol.pulls import CLOSED
from zfabric.protocol.queues import DEAD_PREFIX
from zfabric.wire.codec import Codec
from zfabric.wire.durable_records import stream_of
from zfabric.wire.queue_records import QueueFigures
from zfabric.wire.selectors import Selector
from zfabric.wire.topics import check_pattern, check_topic

__all__ = ["NodeQueues", "QueueMethods"]

log = logging.getLogger("zfabric")

Handler = TypeVar("Handler", bound=Callable[..., Any])


class NodeQueues:
    """Pushers and pullers of one node."""

    def __init__(self, driver: Driver, handlers: Handlers, config: Config, *, with_crc: bool) -> None:
        self._driver = driver
        self._handlers = handlers
        self._config = config
        self._with_crc = with_crc
        self._open: dict[str, tuple[OpenJobs, Any, int]] = {}
        "For each queue: what is open, the options, and how many pushers share it."
        self._durable: dict[str, tuple[JobWriter, Any]] = {}
        "Durable queues that this node pushed to, and the options; for as long as it lives."
        self._pullers: dict[Puller, None] = {}
        self._pulled: dict[str, int] = {}
        self.bindings: dict[Binding, None] = {}

    def pusher(self, queue: str | Topic[Any], policy: QueuePolicy, delivery: Delivery) -> Pusher:
        """Another pusher of a queue."""
        name, value_type = (queue.name, queue.type) if isinstance(queue, Topic) else (queue, None)
        self._check(name)
        self._driver.rights.check("push", name)
        codec = Codec(value_type, inline_bytes=self._config.inline_bytes)
        options = codec.type, policy, delivery
        shared, known, users = self._open.get(name, (None, options, 0))
        if shared is None:
            shared = OpenJobs(self._driver, self._machine(name, policy, delivery), codec)
            self._driver.schedule_pump()
        elif known != options:
            raise LocalProtocolError(f"{name!r} is pushed to with other options already: {known}")
        self._open[name] = shared, options, users + 1
        return Pusher(self._driver, shared, self._config, self._release)

    def _machine(self, name: str, policy: QueuePolicy, delivery: Delivery) -> Dispatcher | PlainQueue:
        """What keeps this node's jobs of a queue."""
        queues, machine = self._driver.core.queues, Dispatcher if delivery is Delivery.AT_LEAST_ONCE else PlainQueue
        known = queues.dispatchers.get(name) or queues.plain.queues.get(name)
        if known is not None and known.durable:
            raise LocalProtocolError(f"this node is the store of the durable queue {name!r}: push to it elsewhere")
        if known is not None and known.depth and not isinstance(known, machine):
            raise LocalProtocolError(f"{name!r} has {known.depth} jobs that were pushed with another delivery")
        if delivery is Delivery.AT_LEAST_ONCE:
            found: Dispatcher | PlainQueue = queues.dispatcher(name, policy)
        else:
            self._driver.open_push(name)
            found = queues.plain.queue(name, policy, queues.own_id, with_crc=self._with_crc)
        found.policy = policy
        return found

    def durable_pusher(self, queue: str | Topic[Any], policy: QueuePolicy, *, buffers: bool) -> Pusher:
        """Another pusher of a durable queue."""
        name, value_type = (queue.name, queue.type) if isinstance(queue, Topic) else (queue, None)
        check_topic(name, bytes_max=self._config.topic_bytes_max)
        check_topic(stream_of(name), reserved=True, bytes_max=self._config.topic_bytes_max)
        self._driver.rights.check("push", name)
        codec = Codec(value_type, inline_bytes=self._config.inline_bytes)
        options = codec.type, policy, buffers
        writer, known = self._durable.get(name, (None, options))
        if writer is None:
            if len(self._durable) >= self._config.queues_max:
                raise LimitExceeded("queues_max", len(self._durable) + 1, self._config.queues_max)
            writer = JobWriter(self._driver, name, codec, policy, self._config, buffers=buffers)
            self._durable[name] = writer, options
            self._driver.schedule_pump()
        elif known != options:
            raise LocalProtocolError(f"{name!r} is pushed to with other options already: {known}")
        return DurablePusher(self._driver, writer, self._config, lambda _: None)

    def _release(self, name: str) -> None:
        shared, options, users = self._open.pop(name)
        if users > 1:
            self._open[name] = shared, options, users - 1

    def _check(self, name: str) -> None:
        reserved, bytes_max = str(name).startswith(DEAD_PREFIX), self._config.topic_bytes_max
        check_topic(name, reserved=reserved, bytes_max=bytes_max)
        if not reserved:  # its dead letters shall have a queue, too
            check_topic(f"{DEAD_PREFIX}{name}", reserved=True, bytes_max=bytes_max)

    def puller(
        self, queue: str | Topic[Any], *, manual: bool, value_type: Any, selector: str, **options: Any
    ) -> Puller:
        """A new puller."""
        name, codec = self._pulled_queue(queue, value_type)
        if selector:
            Selector(selector, self._config)
        puller = LeasePuller(self._driver, codec, name, self._closed, manual=manual)
        puller.pull = self._driver.core.queues.pull(name, puller.wake, selector=selector, **options)
        self._pullers[puller] = None
        self._driver.schedule_pump()
        return puller

    def plain_puller(self, queue: str | Topic[Any], value_type: Any) -> Puller:
        """A new puller at-most-once."""
        name, codec = self._pulled_queue(queue, value_type)
        driver, queues = self._driver, self._driver.core.queues
        puller = PlainPuller(driver, codec, name, self._closed, close_socket=self._close_socket)
        number = queues.plain.next_number()
        puller.sink = queues.plain_pull(number, name, driver.open_pull(number), puller.arrived)
        self._pullers[puller] = None
        driver.schedule_pump()
        return puller

    def _close_socket(self, sink: PlainSink) -> None:
        self._driver.core.queues.plain.close(sink, self._driver.loop.time())
        if self._driver.open_state == "open":  # else its sockets are gone
            self._driver.close_pull(sink.number)

    def _pulled_queue(self, queue: str | Topic[Any], value_type: Any) -> tuple[str, Codec]:
        name, own_type = (queue.name, queue.type) if isinstance(queue, Topic) else (queue, None)
        self._check(name)
        self._driver.rights.check("pull", name)
        return name, Codec(value_type if value_type is not None else own_type, inline_bytes=self._config.inline_bytes)

    def _closed(self, puller: Puller) -> None:
        del self._pullers[puller]
        self._pulled[puller.queue] = self._pulled.get(puller.queue, 0) + puller.handed

    def worker(self, queue: object, pull: Callable[[], Puller], concurrency: int) -> Callable[[Handler], Handler]:
        """The decorator for what is called with every job."""
        handlers = self._handlers
        return handlers.decorator(queue, lambda handler: handlers.work(pull(), handler, concurrency))

    def unroutable(self, source: Source, topic: str, count: int) -> None:
        """No binding took these messages."""
        self._driver.core.queues.unroutable(source, topic, count)
        self._driver.schedule_pump()

    def unbound(self, topic: str, queue: str, error: FabricError) -> None:
        """A binding could not push this message."""
        log.warning("a message on %r could not be pushed to %r: %s", topic, queue, error)
        self._driver.events.put(HandlerError(topic, f"binding to {queue}", f"{type(error).__name__}: {error}"))

    def stop_pulling(self) -> None:
        """The node closes: handlers finish what they have."""
        for puller in list(self._pullers):
            puller.end()

    def give_up(self) -> None:
        """Handlers have had their time: what they did not finish goes back."""
        self._driver.core.queues.give_up()
        self._driver.pump()

    async def finish(self, timeout: float) -> None:
        """Wait for jobs of this node that are not done, and for answers to acks; then report what is left."""
        pulls = self._driver.core.queues.pulls
        try:
            await self._driver.wait_until(
                lambda: not self._unfinished() and not any(pull.unanswered for pull in pulls.values()),
                max(0.0, timeout),
            )
        except TimeoutError:
            for queue, jobs in self._unfinished().items():
                log.warning("%d jobs of %r are not done, and lost as this node closes", jobs, queue)
                self._driver.events.put(JobsUnfinished(queue, jobs))
        for pull in pulls.values():
            pull.unkept.give_up(CLOSED)
        for writer, _ in self._durable.values():
            writer.close()

    def _unfinished(self) -> dict[str, int]:
        for shared, _, _ in self._open.values():
            shared.seal()
        for writer, _ in self._durable.values():
            writer.seal()
        machines = [machine for machine in self._driver.core.queues.machines() if not machine.durable]
        left = {each.queue: each.depth for each in machines if not each.queue.startswith(DEAD_PREFIX)}
        left |= {name: writer.pushed - writer.stored for name, (writer, _) in self._durable.items()}
        return {queue: jobs for queue, jobs in left.items() if jobs}

    async def ask(self, timeout: float | None) -> list[QueueState]:
        """What all nodes say of their queues."""
        queues = self._driver.core.queues
        queues.ask()
        self._driver.schedule_pump()
        with suppress(TimeoutError):
            await self._driver.wait_until(lambda: not queues.unanswered, timeout)
        states = [
            QueueState(
                name,
                queues.source(peer_id),
                QueueStatistics(**_counters(figures)),
                tuple(puller.hex() for puller in figures.pullers),
            )
            for peer_id, told in queues.reports.items()
            for name, figures in told.items()
        ]
        return sorted(states, key=lambda state: (state.queue, state.source.name, state.source.id))

    def statistics(self) -> dict[str, QueueStatistics]:
        """Counters of every queue."""
        queues = self._driver.core.queues
        pulled, held = dict(self._pulled), dict[str, int]()
        for puller in self._pullers:
            pulled[puller.queue] = pulled.get(puller.queue, 0) + puller.handed
            held[puller.queue] = held.get(puller.queue, 0) + puller.pending
        told: dict[str, QueueStatistics] = {}
        machines = {machine.queue: machine for machine in queues.machines()}
        for name in sorted({*machines, *pulled}):
            machine = machines.get(name)
            known: dict[str, int] = {}
            if machine is not None:
                counters = machine.counters
                known = {field: getattr(counters, field) for field in counters.__struct_fields__}
                known |= {"depth": machine.depth, "in_flight": machine.in_flight, "workers": len(machine.pullers)}
            told[name] = QueueStatistics(**known, pulled=pulled.get(name, 0), held=held.get(name, 0))
        return told


def _counters(figures: QueueFigures) -> dict[str, int]:
    counters = QueueStatistics.__struct_fields__
    return {field: getattr(figures, field) for field in figures.__struct_fields__ if field in counters}


def _delivery(delivery: str) -> Delivery:
    try:
        found = Delivery(delivery)
    except ValueError:
        found = Delivery.EXACTLY_ONCE
    if found is Delivery.EXACTLY_ONCE:
        raise ValueError(f"a queue's delivery is 'at-least-once' or 'at-most-once', not {delivery!r}")
    return found


def _manual(ack: str) -> bool:
    if ack not in ("auto", "manual"):
        raise ValueError(f"ack must be 'auto' or 'manual', not {ack!r}")
    return ack == "manual"


_DEFAULTS = (5, 0.1, 30.0, 300.0)


class QueueMethods(StoreMethods):
    """The methods of a node that are about queues."""

    _config: Config

    def _opened_queues(self) -> NodeQueues:
        raise NotImplementedError

    def subscribe(self, pattern: str, *, type: Any = None) -> Subscription:  # noqa: A002 - the public name
        """See Node."""
        raise NotImplementedError

    def pusher(
        self,
        queue: str | Topic[Any],
        *,
        delivery: str = Delivery.AT_LEAST_ONCE,
        durable: bool = False,
        without_store: str = "raise",
        max_attempts: int = 5,
        backoff_s: float = 0.1,
        backoff_s_max: float = 30.0,
        dedupe_window_s: float = 300.0,
        queue_bytes: int | None = None,
    ) -> Pusher:
        """Push jobs to a queue; any number of nodes may push to it and pull from it.

        `queue`: a name, or a `Topic` whose type every value is checked against.
        `delivery`: `"at-least-once"`, or `"at-most-once"`: faster, nothing is tried again, and what is lost is counted
        and reported (`JobsLost`). Its pullers must ask for the same, else both get IncompatibleDelivery events.
        `durable`: a store keeps the jobs; a push returns when it has them on its disk, and `flush` waits for that.
        `without_store`: what a durable push does while no store is in sight: `"raise"` NotStored, or `"buffer"`.
        `max_attempts`: a job that failed that often becomes a dead letter, in the queue `$dead.<queue>`; 0: never.
        `backoff_s`, `backoff_s_max`: rest after a failure; doubles with each one.
        `dedupe_window_s`: how long a `dedupe_id` stands for the same job.
        `queue_bytes`: jobs kept until they are done, or stored, at which `push` waits (default Config.queue_bytes).
        Raises TopicError, LimitExceeded, ValueError, and LocalProtocolError if this node pushes to the queue with
        other options.
        """
        delivery = _delivery(delivery)
        if delivery is Delivery.AT_MOST_ONCE and (max_attempts, backoff_s, backoff_s_max, dedupe_window_s) != _DEFAULTS:
            raise ValueError('max_attempts, backoff_s and dedupe_window_s need delivery="at-least-once"')
        max_attempts, dedupe_window_s = whole("max_attempts", max_attempts), seconds("dedupe_window_s", dedupe_window_s)
        backoff_s, backoff_s_max = seconds("backoff_s", backoff_s), seconds("backoff_s_max", backoff_s_max)
        if max_attempts < 0 or not 0 <= backoff_s <= backoff_s_max or dedupe_window_s < 0:
            raise ValueError(
                "max_attempts, backoff_s and dedupe_window_s must be 0 or more, backoff_s_max not below backoff_s"
            )
        size = self._config.queue_bytes if queue_bytes is None else whole("queue_bytes", queue_bytes)
        if size <= 0:
            raise ValueError(f"queue_bytes must be above 0, not {size}")
        if without_store not in ("raise", "buffer"):
            raise ValueError(f"without_store must be 'raise' or 'buffer', not {without_store!r}")
        policy = QueuePolicy(max_attempts, backoff_s, backoff_s_max, dedupe_window_s, size)
        if not durable:
            return self._opened_queues().pusher(queue, policy, delivery)
        if delivery is not Delivery.AT_LEAST_ONCE:
            raise ValueError("a durable queue's delivery is 'at-least-once'")
        return self._opened_queues().durable_pusher(queue, policy, buffers=without_store == "buffer")

    def puller(
        self,
        queue: str | Topic[Any],
        *,
        delivery: str = Delivery.AT_LEAST_ONCE,
        credit: int | None = None,
        selector: str = "",
        lease_s: float | None = None,
        handler_timeout_s: float | None = None,
        ack: str = "auto",
        type: Any = None,  # noqa: A002 - the public name
    ) -> Puller:
        """Take jobs of a queue, from all nodes that push to it.

        `delivery`: what its pushers have; with `"at-most-once"` jobs need no settling, and there are no options about
        leases, credit and selectors.
        `credit`: jobs that may be here and not done; default: as many as are done quickly.
        `selector`: take only jobs whose headers fulfil this condition, e.g. `"region = 'eu' AND size < 10"`.
        `lease_s`: jobs are given to others if this node does not tell in this time that it lives (default
        Config.lease_s; it tells three times as often, and a node that is lost loses its jobs at once).
        `handler_timeout_s`: jobs are given to others if they are in hand for longer, unless `job.renew()` is called
        in between (default Config.handler_timeout_s).
        `ack`: `"auto"`: done when the loop body ends; `"manual"`: on `await job.ack()`.
        `type`: what payloads must be; others become dead letters and are reported as DecodeError events.
        Raises TopicError, SelectorError, LimitExceeded, ValueError, or TypeError for a type that msgspec does not know.
        """
        options = {"credit": credit, "selector": selector, "lease_s": lease_s, "handler_timeout_s": handler_timeout_s}
        return self._puller(queue, delivery, type, manual=_manual(ack), options=options)

    def _puller(
        self,
        queue: str | Topic[Any],
        delivery: str,
        value_type: Any,
        *,
        manual: bool,
        options: dict[str, Any],
        concurrency: int = 1,
    ) -> Puller:
        config, queues = self._config, self._opened_queues()
        if _delivery(delivery) is Delivery.AT_MOST_ONCE:
            given = [name for name, value in options.items() if value]
            if given:
                raise ValueError(f'{", ".join(given)}: only with delivery="at-least-once"')
            return queues.plain_puller(queue, value_type)
        if options["credit"] is not None:
            options["credit"] = credit = whole("credit", options["credit"])
            if credit < 1:
                raise ValueError(f"credit must be 1 or more, not {credit}")
        for name, default in (("lease_s", config.lease_s), ("handler_timeout_s", config.handler_timeout_s)):
            options[name] = seconds(name, default if options[name] is None else options[name])
            if options[name] <= 0:
                raise ValueError("lease_s and handler_timeout_s must be above 0")
        return queues.puller(queue, manual=manual, value_type=value_type, concurrency=concurrency, **options)

    def bind(self, pattern: str, queue: str, *, selector: str = "", otherwise: str | None = None) -> Binding:
        """Make every message that is published on `pattern` a job of `queue`, kept by this node.

        One topic bound to several queues is a fan-out, several topics to one queue collect. The job has the message's
        value, key and headers, and the header `topic`.
        `selector`: only messages whose headers fulfil this condition; the others become jobs of `otherwise`, if given.
        Peers see the binding as a subscription, so a publisher with `mandatory=True` knows whether there is any. What
        then no binding of this node takes is reported to both nodes, as `Unroutable` events; what is too large for a
        job, as a HandlerError here.
        Raises TopicError, SelectorError and LimitExceeded.
        """
        check_pattern(pattern, bytes_max=self._config.topic_bytes_max)
        condition = Selector(selector, self._config) if selector else None
        target = self.pusher(queue)
        rest = None if otherwise is None else self.pusher(otherwise)
        queues = self._opened_queues()
        subscription = self.subscribe(pattern, type=msgspec.Raw)
        return Binding(subscription, target, condition, rest, queues.bindings, queues.unroutable, queues.unbound)

    async def queues(self, timeout: float | None = 1.0) -> list[QueueState]:
        """Every queue of every node that answers within `timeout` seconds, this one included."""
        return await self._opened_queues().ask(timeout)

    def worker(
        self,
        queue: str | Topic[Any],
        *,
        concurrency: int = 1,
        delivery: str = Delivery.AT_LEAST_ONCE,
        credit: int | None = None,
        selector: str = "",
        lease_s: float | None = None,
        handler_timeout_s: float | None = None,
        type: Any = None,  # noqa: A002 - the public name
    ) -> Callable[[Handler], Handler]:
        """Decorator: call the function with every job, `concurrency` at a time; other options as for `puller`.

        A job is done when the function returns. An exception is logged, counted and reported, and the job is tried
        again as the queue's back-off says; `await job.reject(reason)` before it makes it a dead letter at once.
        An `async def` runs in the event loop, a `def` in one of Config.handler_threads_max threads; the latter may
        `return job.reject(reason)`, or `job.nack(...)`. Raises what
        `puller` raises, and LimitExceeded for a concurrency beyond Config.credit_jobs_max.
        """
        concurrency = whole("concurrency", concurrency)
        if concurrency < 1:
            raise ValueError(f"concurrency must be 1 or more, not {concurrency}")
        if concurrency > self._config.credit_jobs_max:
            raise LimitExceeded("credit_jobs_max", concurrency, self._config.credit_jobs_max)
        queues = self._opened_queues()
        options = {"credit": credit, "selector": selector, "lease_s": lease_s, "handler_timeout_s": handler_timeout_s}

        def pull() -> Puller:
            return self._puller(queue, delivery, type, manual=True, options=dict(options), concurrency=concurrency)

        return queues.worker(queue, pull, concurrency)
