"""What the parts of a running store share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Any

from zfabric.config import Config
from zfabric.errors import FabricError, StoreDamaged
from zfabric.node.driver import Driver
from zfabric.store.log import Append, Appended, Log
from zfabric.store.writer import Writer
from zfabric.wire.batch import Batch, Buffer, parse_batch

__all__ = ["Context"]


class Context:
    """The node, the log, and the threads that look into it."""

    def __init__(
        self,
        driver: Driver,
        log: Log,
        writer: Writer,
        threads: Executor,
        config: Config,
        stored: Callable[[Append, Appended], None],
    ) -> None:
        """`stored` hears of everything that is safe."""
        self.driver = driver
        self.log = log
        self.writer = writer
        self.threads = threads
        self.config = config
        self.stored = stored

    async def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function that blocks, in a thread. Raises FabricError, whatever the engine of the log may raise."""
        try:
            return await self.driver.loop.run_in_executor(self.threads, function, *arguments)
        except FabricError:
            raise
        except Exception as error:
            raise StoreDamaged("the log", f"{type(error).__name__}: {error}") from error

    def parse(self, frames: Sequence[Buffer]) -> Batch:
        """A batch of a peer, or of the log. Raises RemoteProtocolError."""
        config = self.config
        return parse_batch(
            frames,
            messages_max=config.batch_messages_max,
            buffers_max=config.buffers_per_batch_max,
            topic_bytes_max=config.topic_bytes_max,
        )
