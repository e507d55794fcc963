"""The blocking node."""

from __future__ import annotations

import atexit
import inspect
import logging
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, TypeVar
from weakref import WeakSet

from zfabric.errors import FabricError, LocalProtocolError
from zfabric.model import Peer, QueueState, Schedule, Statistics, Topic
from zfabric.node import node as asynchronous
from zfabric.sync.engine import Engine
from zfabric.sync.groups import Groups
from zfabric.sync.loop import LoopThread, refuse_in_loop
from zfabric.sync.publisher import Publisher
from zfabric.sync.queues import Binding, Puller, Pusher
from zfabric.sync.reader import EventStream, Reader, Subscription
from zfabric.sync.services import ServiceMethods
from zfabric.sync.stores import Stores
from zfabric.sync.tables import Table

__all__ = ["Node"]

log = logging.getLogger("zfabric")

P = ParamSpec("P")
R = TypeVar("R")
Handler = TypeVar("Handler", bound=Callable[..., Any])

STOP_S = 1.0
"How much longer than its timeout `close()` waits for a loop that something blocks."
EXIT_S = 1.0
"How long the end of the interpreter waits for a node that was not closed."


def _parameters_of(
    original: Callable[Concatenate[Any, P], object],
) -> Callable[[Callable[..., R]], Callable[Concatenate[Any, P], R]]:
    """Give a method the parameters of its asyncio twin, so that their options are listed once."""

    def give(method: Callable[..., R]) -> Callable[Concatenate[Any, P], R]:
        own = inspect.signature(method)
        signature = inspect.signature(original).replace(return_annotation=own.return_annotation)
        method.__signature__ = signature  # type: ignore[attr-defined]
        return method

    return give


class Node(ServiceMethods):
    """One member of a fabric, for threads. Use it as `with Node("name") as node:`, or `open()` and `close()` it.

    Options as for zfabric.Node. All methods may be called from any thread, but not from inside a running event loop:
    that raises LocalProtocolError. `async def` handlers run in such a loop, so they can do no more here than
    `publish_nowait`; use a `def` handler, which has a thread of its own.

    Do not hold a lock during calls that an `async def` handler takes as well: most calls wait for the handlers' loop.
    """

    @_parameters_of(asynchronous.Node.__init__)
    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._engine = Engine(*arguments, **options)
        self._thread: LoopThread | None = None
        self._readers: WeakSet[Reader[Any]] = WeakSet()
        self._lock = threading.Lock()
        self._closed = False

    def __repr__(self) -> str:
        return f"<sync.{repr(self._engine)[1:]}"

    @property
    def id(self) -> str:
        """32 hexadecimal digits, new for every incarnation; empty before `open()`."""
        return self._engine.id

    @property
    def name(self) -> str:
        """For people; several nodes may share one."""
        return self._engine.name

    @property
    def fabric(self) -> str:
        """Only nodes of the same fabric see each other."""
        return self._engine.fabric

    # -- life ----------------------------------------------------------------------------------

    def open(self) -> None:
        """Bind, announce and start to look for peers; does not wait for any.

        Raises InterfaceNotFound, InsecureInterface, or OSError when an address cannot be bound.
        """
        refuse_in_loop()
        with self._lock:
            if self._thread is not None:
                raise LocalProtocolError("a node opens once; make a new one")
            self._thread = thread = LoopThread(f"zfabric-{self.name}")
        _open_nodes.add(self)
        try:
            thread.run(self._engine.open)
        except BaseException:
            self.close()
            raise

    def close(self, timeout: float | None = None) -> None:
        """Stop: handlers finish what has arrived, open batches leave, peers are told. Always returns.

        `timeout` in seconds, default `Config.close_timeout_s`, bounds all of it.
        """
        refuse_in_loop()
        timeout = self._engine.close_timeout_s if timeout is None else timeout
        thread = self._thread
        if thread is None or thread.is_foreign:
            return
        with self._lock:  # a second caller returns when the first has closed the node
            if self._closed:
                return
            self._closed = True
            _open_nodes.discard(self)
            if not thread.finish(lambda: self._close(timeout), timeout + STOP_S):
                log.warning("the loop of %r has been blocked for %.1f s: it is left behind", self, timeout + STOP_S)
            for reader in list(self._readers):
                reader.abandon()

    async def _close(self, timeout: float) -> None:
        await self._engine.close(timeout)
        for reader in list(self._readers):
            await reader.finish()

    def __enter__(self) -> Node:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _opened(self) -> LoopThread:
        if self._thread is None:
            raise LocalProtocolError("open the node first: `with node:` or `node.open()`")
        return self._thread

    # -- who is there --------------------------------------------------------------------------

    @property
    def endpoints(self) -> tuple[str, ...]:
        """Addresses that other nodes can give as `seeds`."""
        return self._opened().call(lambda: self._engine.endpoints)

    @property
    def peers(self) -> tuple[Peer, ...]:
        """The other nodes of this fabric, as of now."""
        return self._opened().call(lambda: self._engine.peers)

    def wait_for_peers(self, count: int = 1, timeout: float | None = None) -> None:
        """Return once `count` peers are there. Raises TimeoutError after `timeout` seconds."""
        self._opened().run(self._engine.wait_for_peers, count, timeout)

    def events(self) -> EventStream:
        """An iterator of what happens from now on: peers, gaps, errors. Bounded by Config.events_max."""
        thread = self._opened()
        return self._watched(EventStream(thread, thread.call(self._engine.events)))

    def statistics(self) -> Statistics:
        """Counters since the node opened, in one snapshot; also after it was closed."""
        thread = self._opened()
        if self._closed:
            return self._engine.statistics()
        return thread.run(self._after_drain, self._engine.statistics)

    # -- publish / subscribe -------------------------------------------------------------------

    @_parameters_of(asynchronous.Node.publisher)
    def publisher(self, *arguments: Any, **options: Any) -> Publisher:
        """Publish on a topic. Options and errors as for zfabric.Node.publisher."""
        thread = self._opened()
        publisher, stage = thread.call(self._engine.staged, thread.post, *arguments, **options)
        confirm = options.get("confirm") not in (None, "sent")
        return Publisher(thread, publisher, stage, mandatory=options.get("mandatory", False), confirm=confirm)

    @_parameters_of(asynchronous.Node.subscribe)
    def subscribe(self, *arguments: Any, **options: Any) -> Subscription:
        """Receive what matches, from now on. Options and errors as for zfabric.Node.subscribe."""
        thread = self._opened()
        subscription = thread.run(self._after_drain, lambda: self._engine.subscribe(*arguments, **options))
        return self._watched(Subscription(thread, subscription))

    async def _after_drain(self, function: Callable[[], R]) -> R:
        await self._engine.drained()
        return function()

    @_parameters_of(asynchronous.Node.table)
    def table(self, *arguments: Any, **options: Any) -> Table:
        """A durable topic as a mapping. Options and errors as for zfabric.Node.table."""
        thread = self._opened()
        return Table(thread, thread.call(lambda: self._engine.table(*arguments, **options)), self._watched)

    def on(self, pattern: str | Topic[Any], **options: Any) -> Callable[[Handler], Handler]:
        """Decorator: call the function with every message that matches; options as for `subscribe`.

        A `def` runs in one of Config.handler_threads_max threads and may use this node; an `async def` runs in the
        node's own loop and may not. Either handles one message at a time, in order. Its exceptions are logged,
        counted and reported, and never stop the node.
        """
        thread = self._opened()

        decorate = thread.call(lambda: self._engine.on(pattern, **options))
        return lambda handler: thread.call(lambda: decorate(handler))

    # -- queues --------------------------------------------------------------------------------

    @_parameters_of(asynchronous.Node.pusher)
    def pusher(self, *arguments: Any, **options: Any) -> Pusher:
        """Push jobs to a queue. Options and errors as for zfabric.Node.pusher."""
        thread = self._opened()
        return Pusher(thread, thread.call(lambda: self._engine.pusher(*arguments, **options)))

    @_parameters_of(asynchronous.Node.puller)
    def puller(self, *arguments: Any, **options: Any) -> Puller:
        """Take jobs of a queue. Options and errors as for zfabric.Node.puller."""
        thread = self._opened()
        return Puller(thread, thread.call(lambda: self._engine.puller(*arguments, **options)))

    @_parameters_of(asynchronous.Node.bind)
    def bind(self, *arguments: Any, **options: Any) -> Binding:
        """Make jobs of what is published. Options and errors as for zfabric.Node.bind."""
        thread = self._opened()
        return Binding(thread, thread.call(lambda: self._engine.bind(*arguments, **options)))

    def queues(self, timeout: float | None = 1.0) -> list[QueueState]:
        """Every queue of every node that answers within `timeout` seconds, this one included."""
        return self._opened().run(self._engine.queues, timeout)

    @_parameters_of(asynchronous.Node.schedule)
    def schedule(self, *arguments: Any, **options: Any) -> None:
        """Have a store push a job at each tick. Options and errors as for zfabric.Node.schedule."""
        self._opened().run(lambda: self._engine.schedule(*arguments, **options))

    @property
    def groups(self) -> Groups:
        """The groups of the stores in sight: how far they are behind, seek, reset, pause and resume."""
        thread = self._opened()
        return Groups(thread, thread.call(lambda: self._engine.groups))

    @property
    def stores(self) -> Stores:
        """The stores in sight: which topics they hold, how large, how long; purge."""
        thread = self._opened()
        return Stores(thread, thread.call(lambda: self._engine.stores))

    def unschedule(self, name: str, *, timeout: float | None = 5.0) -> bool:
        """Make no more jobs of a schedule; returns whether there was one. Errors as for zfabric.Node.unschedule."""
        return self._opened().run(lambda: self._engine.unschedule(name, timeout=timeout))

    def schedules(self, *, timeout: float | None = 5.0) -> list[Schedule]:
        """All schedules of all stores in sight. Errors as for zfabric.Node.schedules."""
        return self._opened().run(lambda: self._engine.schedules(timeout=timeout))

    def worker(self, queue: str | Topic[Any], **options: Any) -> Callable[[Handler], Handler]:
        """Decorator: call the function with every job; options as for zfabric.Node.worker.

        A `def` runs in one of Config.handler_threads_max threads and may use this node.
        """
        thread = self._opened()

        decorate = thread.call(lambda: self._engine.worker(queue, **options))
        return lambda handler: thread.call(lambda: decorate(handler))

    def _watched(self, reader: _R) -> _R:
        self._readers.add(reader)
        return reader


_R = TypeVar("_R", bound=Reader[Any])

_open_nodes: set[Node] = set()


def _close_at_exit() -> None:
    """Let what was published leave, and tell the peers; a node that does not answer is given up."""
    for node in list(_open_nodes):
        with suppress(FabricError, RuntimeError):
            node.close(EXIT_S)


atexit.register(_close_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_open_nodes.clear)
