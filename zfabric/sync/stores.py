"""Looking at what stores hold, and removing from it, for threads."""

from __future__ import annotations

from zfabric.model import StoredTopic
from zfabric.node import stores
from zfabric.node.storeclient import TIMEOUT_S
from zfabric.sync.loop import LoopThread

__all__ = ["Stores"]


class Stores:
    """All stores in sight; `node.stores` is one. Options and errors as for zfabric.Stores."""

    def __init__(self, thread: LoopThread, source: stores.Stores) -> None:
        self._run = thread.run
        self._stores = source

    def topics(self, pattern: str = "#", *, timeout: float | None = TIMEOUT_S) -> tuple[StoredTopic, ...]:
        """The topics that stores hold and this node may read, by name; once for each store that has it."""
        return self._run(self._stores.topics, pattern, timeout=timeout)

    def purge(
        self, topic: str, *, before: int | None = None, store: str | None = None, timeout: float | None = TIMEOUT_S
    ) -> tuple[StoredTopic, ...]:
        """Remove the messages of a topic, or those before an offset; returns how it is then."""
        return self._run(self._stores.purge, topic, before=before, store=store, timeout=timeout)
