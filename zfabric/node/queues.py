"""The queues of a node: what `Node` says about them, and what its pushers and pullers share."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import msgspec

from zfabric.config import Config
from zfabric.errors import LocalProtocolError
from zfabric.events import JobsUnfinished
from zfabric.model import Delivery, QueueState, QueueStatistics, Topic
from zfabric.node.bindings import Binding
from zfabric.node.driver import Driver
from zfabric.node.handlers import Handlers
from zfabric.node.puller import Puller
from zfabric.node.pusher import OpenJobs, Pusher
from zfabric.node.subscription import Subscription
from zfabric.protocol.jobs import QueuePolicy
from zfabric.protocol.queues import DEAD_PREFIX
from zfabric.wire.codec import Codec
from zfabric.wire.queue_records import QueueFigures
from zfabric.wire.selectors import Selector
from zfabric.wire.topics import check_pattern, check_topic

__all__ = ["NodeQueues", "QueueMethods"]

log = logging.getLogger("zfabric")

Handler = TypeVar("Handler", bound=Callable[..., Any])


class NodeQueues:
    """Pushers and pullers of one node."""

    def __init__(self, driver: Driver, handlers: Handlers, config: Config) -> None:
        self._driver = driver
        self._handlers = handlers
        self._config = config
        self._open: dict[str, tuple[OpenJobs, Any, int]] = {}
        "For each queue: what is open, the options, and how many pushers share it."
        self._pullers: dict[Puller, None] = {}
        self._pulled: dict[str, int] = {}

    def pusher(self, queue: str | Topic[Any], policy: QueuePolicy) -> Pusher:
        """Another pusher of a queue."""
        name, value_type = (queue.name, queue.type) if isinstance(queue, Topic) else (queue, None)
        self._check(name)
        self._driver.rights.check("push", name)
        codec = Codec(value_type, inline_bytes=self._config.inline_bytes)
        options = codec.type, policy
        shared, known, users = self._open.get(name, (None, options, 0))
        if shared is None:
            dispatcher = self._driver.core.queues.dispatcher(name, policy)
            dispatcher.policy = policy
            shared = OpenJobs(self._driver, dispatcher, codec)
            self._driver.schedule_pump()
        elif known != options:
            raise LocalProtocolError(f"{name!r} is pushed to with other options already: {known}")
        self._open[name] = shared, options, users + 1
        return Pusher(self._driver, shared, self._config, self._release)

    def _release(self, name: str) -> None:
        shared, options, users = self._open.pop(name)
        if users > 1:
            self._open[name] = shared, options, users - 1

    def _check(self, name: str) -> None:
        check_topic(name, reserved=name.startswith(DEAD_PREFIX), bytes_max=self._config.topic_bytes_max)

    def puller(
        self, queue: str | Topic[Any], *, manual: bool, value_type: Any, selector: str, **options: Any
    ) -> Puller:
        """A new puller."""
        name, own_type = (queue.name, queue.type) if isinstance(queue, Topic) else (queue, None)
        self._check(name)
        self._driver.rights.check("pull", name)
        if selector:
            Selector(selector, self._config)
        codec = Codec(value_type if value_type is not None else own_type, inline_bytes=self._config.inline_bytes)
        puller = Puller(self._driver, codec, self._closed, manual=manual)
        puller.pull = self._driver.core.queues.pull(name, puller.wake, selector=selector, **options)
        self._pullers[puller] = None
        self._driver.schedule_pump()
        return puller

    def _closed(self, puller: Puller) -> None:
        del self._pullers[puller]
        self._pulled[puller.queue] = self._pulled.get(puller.queue, 0) + puller.handed

    def work(self, puller: Puller, handler: Callable[..., Any], concurrency: int) -> None:
        """Call a handler with every job."""
        self._handlers.work(puller, handler, concurrency)

    def stop_pulling(self) -> None:
        """The node closes: handlers finish what they have."""
        for puller in list(self._pullers):
            puller.end()

    def give_up(self) -> None:
        """Handlers have had their time: what they did not finish goes back."""
        self._driver.core.queues.give_up()
        self._driver.pump()

    async def finish(self, timeout: float) -> None:
        """Wait for jobs of this node that are not done, then report them."""
        unfinished = self._unfinished()
        if not unfinished:
            return
        try:
            await self._driver.wait_until(lambda: not self._unfinished(), max(0.0, timeout))
        except TimeoutError:
            for queue, jobs in self._unfinished().items():
                log.warning("%d jobs of %r are not done, and lost as this node closes", jobs, queue)
                self._driver.emit(JobsUnfinished(queue, jobs))

    def _unfinished(self) -> dict[str, int]:
        for shared, _, _ in self._open.values():
            shared.seal()
        dispatchers = self._driver.core.queues.dispatchers.values()
        return {d.queue: d.depth for d in dispatchers if d.depth and not d.queue.startswith(DEAD_PREFIX)}

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
        for name in sorted({*queues.dispatchers, *pulled}):
            dispatcher = queues.dispatchers.get(name)
            known: dict[str, int] = {}
            if dispatcher is not None:
                counters = dispatcher.counters
                known = {field: getattr(counters, field) for field in counters.__struct_fields__}
                known |= {"depth": dispatcher.depth, "in_flight": dispatcher.in_flight}
                known["workers"] = len(dispatcher.workers.all)
            told[name] = QueueStatistics(**known, pulled=pulled.get(name, 0), held=held.get(name, 0))
        return told


def _counters(figures: QueueFigures) -> dict[str, int]:
    counters = QueueStatistics.__struct_fields__
    return {field: getattr(figures, field) for field in figures.__struct_fields__ if field in counters}


class QueueMethods:
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
        max_attempts: int = 5,
        backoff_s: float = 0.1,
        backoff_s_max: float = 30.0,
        dedupe_window_s: float = 300.0,
        queue_bytes: int | None = None,
    ) -> Pusher:
        """Push jobs to a queue; any number of nodes may push to it and pull from it.

        `queue`: a name, or a `Topic` whose type every value is checked against.
        `max_attempts`: a job that failed that often becomes a dead letter, in the queue `$dead.<queue>`; 0: never.
        `backoff_s`, `backoff_s_max`: rest after a failure; doubles with each one.
        `dedupe_window_s`: how long a `dedupe_id` stands for the same job.
        `queue_bytes`: jobs kept until they are done, at which `push` waits (default Config.queue_bytes).
        Raises TopicError, LimitExceeded, ValueError, and LocalProtocolError if this node pushes to the queue with
        other options.
        """
        if Delivery(delivery) is not Delivery.AT_LEAST_ONCE:
            raise ValueError(f"a queue's delivery is 'at-least-once', not {delivery!r}")
        if max_attempts < 0 or not 0 <= backoff_s <= backoff_s_max or dedupe_window_s < 0:
            raise ValueError(
                "max_attempts, backoff_s and dedupe_window_s must be 0 or more, backoff_s_max not below backoff_s"
            )
        size = self._config.queue_bytes if queue_bytes is None else queue_bytes
        if size <= 0:
            raise ValueError(f"queue_bytes must be above 0, not {size}")
        return self._opened_queues().pusher(
            queue, QueuePolicy(max_attempts, backoff_s, backoff_s_max, dedupe_window_s, size)
        )

    def puller(
        self,
        queue: str | Topic[Any],
        *,
        credit: int | None = None,
        selector: str = "",
        lease_s: float | None = None,
        handler_timeout_s: float | None = None,
        ack: str = "auto",
        type: Any = None,  # noqa: A002 - the public name
    ) -> Puller:
        """Take jobs of a queue, from all nodes that push to it.

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
        return self._puller(queue, 1, credit, selector, lease_s, handler_timeout_s, ack, type)

    def _puller(
        self,
        queue: str | Topic[Any],
        concurrency: int,
        credit: int | None,
        selector: str,
        lease_s: float | None,
        handler_timeout_s: float | None,
        ack: str,
        value_type: Any,
    ) -> Puller:
        config = self._config
        if ack not in ("auto", "manual"):
            raise ValueError(f"ack must be 'auto' or 'manual', not {ack!r}")
        if credit is not None and credit < 1:
            raise ValueError(f"credit must be 1 or more, not {credit}")
        lease_s = config.lease_s if lease_s is None else lease_s
        handler_timeout_s = config.handler_timeout_s if handler_timeout_s is None else handler_timeout_s
        if lease_s <= 0 or handler_timeout_s <= 0:
            raise ValueError("lease_s and handler_timeout_s must be above 0")
        return self._opened_queues().puller(
            queue,
            manual=ack == "manual",
            value_type=value_type,
            selector=selector,
            credit=credit,
            concurrency=concurrency,
            lease_s=lease_s,
            handler_timeout_s=handler_timeout_s,
        )

    def bind(self, pattern: str, queue: str, *, selector: str = "", otherwise: str | None = None) -> Binding:
        """Make every message that is published on `pattern` a job of `queue`, kept by this node.

        One topic bound to several queues is a fan-out, several topics to one queue collect. The job has the message's
        value, key and headers, and the header `topic`.
        `selector`: only messages whose headers fulfil this condition; the others become jobs of `otherwise`, if given.
        Peers see the binding as a subscription, so a publisher with `mandatory=True` knows whether there is any.
        Raises TopicError, SelectorError and LimitExceeded.
        """
        check_pattern(pattern, bytes_max=self._config.topic_bytes_max)
        condition = Selector(selector, self._config) if selector else None
        target = self.pusher(queue)
        rest = None if otherwise is None else self.pusher(otherwise)
        return Binding(self.subscribe(pattern, type=msgspec.Raw), target, condition, rest)

    async def queues(self, timeout: float | None = 1.0) -> list[QueueState]:
        """Every queue of every node that answers within `timeout` seconds, this one included."""
        return await self._opened_queues().ask(timeout)

    def worker(
        self,
        queue: str | Topic[Any],
        *,
        concurrency: int = 1,
        credit: int | None = None,
        selector: str = "",
        lease_s: float | None = None,
        handler_timeout_s: float | None = None,
        type: Any = None,  # noqa: A002 - the public name
    ) -> Callable[[Handler], Handler]:
        """Decorator: call the function with every job, `concurrency` at a time; other options as for `puller`.

        A job is done when the function returns. An exception is logged, counted and reported, and the job is tried
        again as the queue's back-off says; `await job.reject(reason)` before it makes it a dead letter at once.
        An `async def` runs in the event loop, a `def` in one of Config.handler_threads_max threads.
        """
        if concurrency < 1:
            raise ValueError(f"concurrency must be 1 or more, not {concurrency}")
        queues = self._opened_queues()

        def register(handler: Handler) -> Handler:
            puller = self._puller(queue, concurrency, credit, selector, lease_s, handler_timeout_s, "manual", type)
            queues.work(puller, handler, concurrency)
            return handler

        return register
