"""The asyncio node behind a blocking one: everything here runs in the loop's thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from zfabric.node.driver import Driver
from zfabric.node.node import Node
from zfabric.node.publisher import Publisher
from zfabric.sync.stage import Stage

__all__ = ["Engine"]


class Engine(Node):
    """A node whose topics have stages."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._stages: dict[str, Stage] = {}

    def staged(
        self, post: Callable[[Callable[[], object]], None], *arguments: Any, **options: Any
    ) -> tuple[Publisher, Stage]:
        """`publisher(...)`, and the stage of its topic."""
        publisher = self.publisher(*arguments, **options)
        shared = self._topics[publisher.topic]
        stage = self._stages.get(publisher.topic)
        if stage is None or stage.outbox is not shared.outbox:
            stage = self._stages[publisher.topic] = Stage(
                self._opened(), shared.outbox, shared.codec, self._config, post
            )
        return publisher, stage

    async def close(self, timeout: float | None = None) -> None:
        """As zfabric.Node."""
        timeout = self.close_timeout_s if timeout is None else timeout
        await self._drained_within(timeout / 2)  # this node's own handlers still get it
        await super().close(timeout)

    async def _confirm_all(self, driver: Driver, timeout: float) -> None:
        await self._drained_within(timeout)  # what the handlers published last
        await super()._confirm_all(driver, timeout)

    async def _drained_within(self, timeout: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self.drained()

    async def drained(self) -> None:
        """Return once everything was sent that had been published before the call."""
        for stage in list(self._stages.values()):
            await stage.drained()

    @property
    def close_timeout_s(self) -> float:
        """How long `close()` may take by default."""
        return self._config.close_timeout_s
