"""Tables, for threads."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any

from zfabric.errors import NodeClosed, NodeForked
from zfabric.node import table
from zfabric.node.table import Change, Snapshot
from zfabric.sync.loop import LoopThread
from zfabric.sync.reader import Reader

__all__ = ["Table", "Watch"]


class Table(Mapping[Any, Any]):
    """A durable topic as a mapping of keys to last values; `with node.table(topic) as config:` opens it."""

    def __init__(self, thread: LoopThread, source: table.Table, watched: Callable[[Watch], Watch]) -> None:
        self._thread = thread
        self._table = source
        self._watched = watched

    def __repr__(self) -> str:
        return f"<sync.{repr(self._table)[1:]}"

    def __enter__(self) -> Table:
        """Return once everything is there that the store had. Raises TimeoutError, NodeClosed."""
        self._thread.run(self._table.__aenter__)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Follow the topic no more; what is known stays."""
        with suppress(NodeClosed, NodeForked):
            self._thread.run(self._table.close)

    @property
    def topic(self) -> str:
        """The topic's name."""
        return self._table.topic

    def __getitem__(self, key: Any) -> Any:
        return self._table[key]

    def __iter__(self) -> Iterator[Any]:
        """The keys as of now."""
        return iter(self.snapshot().values)

    def __len__(self) -> int:
        return len(self._table)

    def snapshot(self) -> Snapshot:
        """The table as of now, to be kept anywhere."""
        try:
            return self._thread.call(self._table.snapshot)
        except NodeClosed:
            return self._table.snapshot()

    def watch(self) -> Watch:
        """A blocking iterator of every change from now on."""
        return self._watched(Watch(self._thread, self._thread.call(self._table.watch)))


class Watch(Reader[Change]):
    """A blocking iterator of a table's changes; it ends when it, its table or its node is closed."""

    def __init__(self, thread: LoopThread, source: table.Watch) -> None:
        super().__init__(thread, "the watch of a table")
        self._watch = source

    def close(self) -> None:
        """End the iteration after what is waiting."""
        with suppress(NodeClosed, NodeForked):
            self._thread.call(self._watch.end)

    async def _source(self) -> AsyncGenerator[list[Change], None]:
        async for change in self._watch:
            yield [change]

    def _has_more(self) -> bool:
        return False
