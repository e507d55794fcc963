"""The schedules that this node has declared: whether the log that has them is still there."""

from __future__ import annotations

import asyncio

from zfabric.config import Config
from zfabric.events import ScheduleLost
from zfabric.node.driver import Driver

__all__ = ["Declared"]


class Declared:
    """Tells of schedules whose store has stayed away for Config.grace_s."""

    def __init__(self, driver: Driver, config: Config) -> None:
        self._driver = driver
        self._grace_s = config.grace_s
        self._stores = driver.core.stores
        self._logs: dict[str, tuple[str, bytes]] = {}
        "Each schedule's queue and log."
        self._away: dict[bytes, asyncio.TimerHandle] = {}
        self._stores.watch(self._changed)

    def put(self, name: str, queue: str, log: bytes) -> None:
        """A schedule is in this log now."""
        self._logs[name] = queue, log
        self._changed(0.0)

    def remove(self, name: str) -> None:
        """A schedule is no more."""
        self._logs.pop(name, None)

    def _changed(self, _now: float) -> None:
        for log in {log for _, log in self._logs.values()}:
            there = self._stores.named(log) is not None
            if there and log in self._away:
                self._away.pop(log).cancel()
            elif not there and log not in self._away:
                self._away[log] = self._driver.loop.call_later(self._grace_s, self._lost, log)

    def _lost(self, lost: bytes) -> None:
        del self._away[lost]
        if self._driver.open_state != "open":
            return
        for name, (queue, log) in list(self._logs.items()):
            if log == lost:
                del self._logs[name]
                self._driver.events.put(ScheduleLost(name, queue, log.hex()))
