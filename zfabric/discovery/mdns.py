"""Finding nodes on the network by multicast DNS (RFC 6762, 6763), through python-zeroconf.

All nodes of a process that use the same interfaces share one zeroconf instance, on one thread that the
first of them starts and the last one stops: importing zeroconf and opening its sockets holds no event loop
up. IPv6-only networks work, but `::1` does not: on loopback mDNS uses 127.0.0.1, and a machine
without IPv4 loopback has the registry.

What is heard is a hint that anybody may have forged: it is checked, capped and otherwise only dialled.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from zfabric.config import Config
from zfabric.discovery.base import Announcement, Found
from zfabric.discovery.interfaces import Scope, resolve
from zfabric.errors import InterfaceNotFound

if TYPE_CHECKING:
    from zfabric.discovery._hub import Hub

__all__ = ["MdnsDiscovery"]

logger = logging.getLogger("zfabric.discovery")

T = TypeVar("T")

_CLOSE_S_MAX = 0.9
_FOUND_PER_TURN = 64
"Announcements handed to the node before other tasks of its event loop get their turn."


class MdnsDiscovery:
    """Announces and browses by mDNS on the interfaces of a scope."""

    name = "mdns"

    def __init__(self, scope: Scope, config: Config, *, resolver: Callable[[str], Scope] = resolve) -> None:
        self._scope = scope
        self._config = config
        self._resolve = resolver
        self._shared: _SharedThread | None = None
        self._mailbox: _Mailbox | None = None
        self._announcement: Announcement | None = None
        self._ignored: Callable[[], int] = int

    @property
    def ignored(self) -> int:
        """Malformed or forged announcements that came in on these interfaces."""
        return self._ignored()

    async def start(self, announcement: Announcement, found: Found) -> None:
        """Announce and browse. The first node of a process waits some 0.1 s here, without blocking its loop."""
        self._announcement = announcement
        self._mailbox = _Mailbox(announcement, found, self._config.discovery_records_max)
        self._shared = shared = _acquire()
        try:
            hub = await shared.call(shared.join(self._scope, self._config, announcement, self._mailbox.put))
        except BaseException:
            await self.close()
            raise
        self._ignored = lambda: hub.ignored

    async def update(self, announcement: Announcement) -> None:
        """Announce something else, on the interfaces that the scope has now.

        The same announcement again means that the network was away: its multicast groups are joined anew.
        """
        shared, same = self._shared, announcement == self._announcement
        if shared is None:
            return
        self._announcement = announcement
        try:
            self._scope = self._resolve(self._scope.spec)
        except InterfaceNotFound as error:
            logger.debug("mDNS stays on the old addresses: %s", error)
        await shared.call(shared.update(self._scope, announcement, rejoin=same))

    async def close(self) -> None:
        """Say goodbye and stop reporting; the last node of the process on these interfaces closes the sockets."""
        shared, self._shared = self._shared, None
        if shared is None or self._mailbox is None or self._announcement is None:
            return
        self._mailbox.close()
        left = shared.submit(shared.leave(self._scope.spec, self._announcement.node_id))
        left.add_done_callback(lambda _: _release(shared))
        await asyncio.wait({asyncio.wrap_future(left)}, timeout=_CLOSE_S_MAX)


class _Mailbox:
    """Carries announcements from the mDNS thread into the node's event loop: bounded, and a few per turn."""

    def __init__(self, own: Announcement, found: Found, announcements_max: int) -> None:
        self._own = own
        self._found: Found | None = found
        self._max = announcements_max
        self._loop = asyncio.get_running_loop()
        self._guard = threading.Lock()
        self._waiting: OrderedDict[bytes, Announcement] = OrderedDict()
        self._scheduled = False

    def put(self, announcement: Announcement) -> None:
        """Called on the mDNS thread."""
        if announcement.fabric != self._own.fabric or announcement.node_id == self._own.node_id:
            return
        with self._guard:
            self._waiting[announcement.node_id] = announcement
            if len(self._waiting) > self._max:
                self._waiting.popitem(last=False)
            schedule, self._scheduled = not self._scheduled, True
        if schedule:
            try:
                self._loop.call_soon_threadsafe(self._deliver)
            except RuntimeError:
                logger.debug("the event loop of node %s is gone", self._own.node_id.hex())

    def close(self) -> None:
        """Deliver nothing more; called in the node's event loop."""
        self._found = None

    def _deliver(self) -> None:
        with self._guard:
            batch = [self._waiting.popitem(last=False)[1] for _ in range(min(len(self._waiting), _FOUND_PER_TURN))]
            self._scheduled = bool(self._waiting)
            if self._scheduled:
                self._loop.call_soon(self._deliver)
        for announcement in batch:
            if self._found is not None:
                self._found(announcement)


class _SharedThread:
    """The thread with an event loop that runs this process's hubs, one per interface spec."""

    def __init__(self) -> None:
        self.users = 0
        self._loop = asyncio.SelectorEventLoop()
        self._hubs: dict[str, Hub] = {}
        self._one_at_a_time = asyncio.Lock()
        threading.Thread(target=self._run, name="zfabric-mdns", daemon=True).start()

    def submit(self, operation: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Start an operation; operations run one at a time, in the order of their submission."""
        return asyncio.run_coroutine_threadsafe(operation, self._loop)

    async def call(self, operation: Coroutine[Any, Any, T]) -> T:
        """Run an operation to its end, even when the caller does not wait for it any more."""
        return await asyncio.shield(asyncio.wrap_future(self.submit(operation)))

    async def join(
        self, scope: Scope, config: Config, announcement: Announcement, sink: Callable[[Announcement], None]
    ) -> Hub:
        """Announce a node and report others to `sink`, on this thread."""
        async with self._one_at_a_time:
            hub = self._hubs.get(scope.spec)
            if hub is None:
                hub = await self._open(scope, config)
            try:
                await hub.join(announcement, scope.addresses, sink)
            finally:
                await self._close_unused(scope.spec)
            return hub

    async def update(self, scope: Scope, announcement: Announcement, *, rejoin: bool) -> None:
        """Replace what is announced for a node that joined."""
        async with self._one_at_a_time:
            hub = self._hubs[scope.spec]
            await hub.update(announcement, scope.addresses, rejoin=rejoin)

    async def leave(self, spec: str, node_id: bytes) -> None:
        """Withdraw a node, whether or not its join succeeded."""
        async with self._one_at_a_time:
            if spec in self._hubs:
                self._hubs[spec].leave(node_id)
                await self._close_unused(spec)

    def stop(self) -> None:
        """End the thread; nothing may be submitted any more."""
        self._loop.call_soon_threadsafe(self._loop.stop)

    async def _open(self, scope: Scope, config: Config) -> Hub:
        from zfabric.discovery._hub import Hub

        hub = Hub(scope, config)
        await hub.open()
        self._hubs[scope.spec] = hub
        return hub

    async def _close_unused(self, spec: str) -> None:
        if self._hubs[spec].is_unused:
            await self._hubs.pop(spec).close()

    def _run(self) -> None:
        try:
            self._loop.run_forever()
            self._loop.run_until_complete(_cancel_all())
        finally:
            self._loop.close()


async def _cancel_all() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


_guard = threading.Lock()
_current: _SharedThread | None = None


def _acquire() -> _SharedThread:
    global _current  # noqa: PLW0603 - one thread per process is the point
    with _guard:
        if _current is None:
            _current = _SharedThread()
        _current.users += 1
        return _current


def _release(shared: _SharedThread) -> None:
    global _current  # noqa: PLW0603
    with _guard:
        shared.users -= 1
        if shared.users == 0:
            _current = None
            shared.stop()


def _forget_in_child() -> None:
    global _guard, _current
    _guard, _current = threading.Lock(), None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
