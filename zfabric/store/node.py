"""The persistence node: a log, its writer, and an ordinary node that makes them part of a fabric."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

from zfabric.config import Config
from zfabric.errors import LocalProtocolError, StoreFailed
from zfabric.node.driver import Driver
from zfabric.node.node import Node
from zfabric.node.options import texts
from zfabric.store.engines import open_log
from zfabric.store.log import Log, Retention
from zfabric.store.service import StoreService
from zfabric.store.writer import Writer

__all__ = ["Store"]

logger = logging.getLogger("zfabric.store")


class Store:
    """Keeps the durable topics of a fabric: `async with Store("./data", fabric="plant") as store: await store.wait()`.

    `url`: where the log is, see `open_log`; it is made if there is none.
    `topics`: patterns of the durable topics that it keeps.
    `retention`: how long it keeps topics that nothing was set for (`Log.retain`, `zfabric store retain`).
    `node`: an unopened node to be, or else options for one, as for `zfabric.Node`.
    """

    def __init__(
        self,
        url: str | Path,
        *,
        topics: Sequence[str] = ("#",),
        retention: Retention | None = None,
        node: Node | None = None,
        config: Config | None = None,
        name: str = "store",
        **options: Any,
    ) -> None:
        self._url = str(url)
        self._topics = texts("topics", topics)
        self._retention = retention or Retention()
        self.node = node or Node(name, config=config, **options)
        self._config = config or self.node._config  # noqa: SLF001 - the seam for this class
        self._service: StoreService | None = None
        self._failed: asyncio.Future[None] | None = None
        self._ending: Future[None] | None = None
        self._threads: ThreadPoolExecutor
        self.log: Log

    def __repr__(self) -> str:
        return f"<Store {self._url} of {self.node!r}>"

    async def open(self) -> None:
        """Open the log, then the node. Raises what `open_log` and `Node.open` raise; a store opens once."""
        if self._failed is not None:
            raise LocalProtocolError("a store opens once; make a new one")
        loop = asyncio.get_running_loop()
        failed = loop.create_future()

        def on_failure(error: StoreFailed) -> None:
            loop.call_soon_threadsafe(failed.set_exception, error)

        self._threads = ThreadPoolExecutor(self._config.store_threads_max, "zfabric-store")
        opening = self._threads.submit(open_log, self._url, self._config, create=True)
        try:
            self.log = await asyncio.wrap_future(opening)
        except BaseException:
            opening.add_done_callback(_close_opened)  # nobody waits for it any more
            self._threads.shutdown(wait=False)
            raise
        self._writer = Writer(self.log, self._config, on_failure=on_failure)
        self._failed = failed
        try:
            self.node._extensions.append(self._serve)  # noqa: SLF001 - the seam for this class
            await self.node.open()
        except BaseException:
            await self._end()
            raise
        logger.info("keeping %s in %s", ", ".join(self._topics), self._url)

    def _serve(self, driver: Driver) -> None:
        driver.rights.check_stores(self._topics)
        self._service = StoreService(driver, self.log, self._writer, self._threads, self._topics, self._config)
        self._service.start(self._retention)

    async def wait(self) -> None:
        """Return never; raises StoreFailed when nothing can be confirmed any more. Then close it, and mend the disk."""
        if self._failed is None:
            raise LocalProtocolError("open the store first: `async with store:` or `await store.open()`")
        await asyncio.shield(self._failed)

    async def close(self) -> None:
        """Leave the fabric, write what was accepted, let go of the log."""
        try:
            await self.node.close()
        finally:
            if self._failed is not None:
                await self._end()
                if self._failed.done():
                    self._failed.exception()

    async def _end(self) -> None:
        try:
            if self._service is not None:
                await self._service.close()
        finally:
            if self._ending is None:
                self._ending = self._threads.submit(self._close_log)
                self._threads.shutdown(wait=False)
            await asyncio.shield(asyncio.wrap_future(self._ending))

    def _close_log(self) -> None:
        self._writer.close()
        self.log.close()

    async def __aenter__(self) -> Store:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def _close_opened(opening: Future[Log]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()
