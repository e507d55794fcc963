"""The groups of a running store: joins the arbiter to the node's channels and clock, and to the log."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from math import inf

from zfabric.errors import FabricError, LimitExceeded, StoreFailed
from zfabric.protocol.peers import PeerRecord
from zfabric.store.context import Context
from zfabric.store.group import Group, Read
from zfabric.store.groups import Done, Groups
from zfabric.store.log import Append, Appended, Commit
from zfabric.wire.group_records import GroupRecord

__all__ = ["GroupHost"]

logger = logging.getLogger("zfabric.store")


class GroupHost:
    """Drives `Groups`; implements `store.group.Voice`."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._driver = context.driver
        self._soon = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = inf
        self._reads: set[asyncio.Task[None]] = set()
        core = context.driver.core
        self.groups = Groups(context.log, context.config, self, self._commit, self._wake, core.gate)
        core.channels.register(self.groups)

    def appended(self, append: Append, appended: Appended) -> None:
        """Something is safe: groups may have readers for it."""
        if appended.offset is not None:
            self.groups.appended(append.stream, appended.offset + appended.count)

    async def close(self) -> None:
        """Send nothing any more."""
        if self._timer is not None:
            self._timer.cancel()
        for task in self._reads:
            task.cancel()
        await asyncio.gather(*self._reads, return_exceptions=True)

    # -- what the groups ask for ---------------------------------------------------------------

    def tell(self, peer: PeerRecord, record: GroupRecord, nbytes: int, now: float) -> None:
        """Say something; a peer that has just left needs it no more."""
        with suppress(KeyError):
            self._driver.core.channels.tell(peer, record, nbytes)
            self._driver.schedule_pump()

    def has_room(self, peer: PeerRecord) -> bool:
        """Whether the peer takes more."""
        return self._driver.core.channels.has_room(peer)

    def _commit(self, commit: Commit, done: Done) -> None:
        try:
            future = self._context.writer.commit(commit)
        except (LimitExceeded, StoreFailed) as error:
            refusal = error
            self._driver.loop.call_soon(lambda: done(refusal))
            return
        future.add_done_callback(lambda future: self._committed(commit, future, done))

    def _committed(self, commit: Commit, future: asyncio.Future[tuple[Appended, ...]], done: Done) -> None:
        if future.cancelled() or self._driver.open_state != "open":
            return
        error = future.exception()
        if error is None:
            for append, appended in zip(commit.appends, future.result(), strict=True):
                self._context.stored(append, appended)
            done(None)
        else:
            logger.warning("a commit of groups was not stored: %s", error)
            done(error if isinstance(error, FabricError) else StoreFailed(str(error)))

    # -- turns ---------------------------------------------------------------------------------

    def _wake(self) -> None:
        if not self._soon:
            self._soon = True
            self._driver.loop.call_soon(self._turn)

    def _turn(self) -> None:
        """Whatever has become possible since the last time."""
        self._soon = False
        if self._driver.open_state != "open":
            return
        now = self._driver.loop.time()
        if self.groups.timer() <= now:
            self.groups.handle_timer(now)
        self.groups.flush(now)
        for group, read in self.groups.reads():
            task = self._driver.loop.create_task(self._read(group, read))
            self._reads.add(task)
            task.add_done_callback(self._reads.discard)
        self._rearm(self.groups.timer())

    def _rearm(self, due: float) -> None:
        if due == self._timer_at:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = due
        self._timer = self._driver.loop.call_at(due, self._timed) if due < inf else None

    def _timed(self) -> None:
        self._timer_at = inf
        self._timer = None
        self._turn()

    async def _read(self, group: Group, read: Read) -> None:
        try:
            items = await self._context.run(self._context.log.read, read.stream, read.offset, read.max_bytes)
        except FabricError as error:
            logger.error("group %s cannot read %s at %d: %s", group.name, read.stream, read.offset, error)
            await asyncio.sleep(1.0)
            read.seat.reading = False
            read.seat.behind[read.stream] = None
            self._wake()
            return
        self.groups.serve(group, read, items, self._driver.loop.time())
