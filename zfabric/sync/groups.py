"""Looking at the groups of stores, and moving them, for threads."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from zfabric.model import GroupState
from zfabric.node import groups
from zfabric.node.storeclient import TIMEOUT_S
from zfabric.sync.loop import LoopThread

__all__ = ["Groups"]


class Groups:
    """The groups at all stores in sight; `node.groups` is one. Errors as for zfabric.Groups."""

    def __init__(self, thread: LoopThread, source: groups.Groups) -> None:
        self._run = thread.run
        self._groups = source

    def list(self, *, timeout: float | None = TIMEOUT_S) -> tuple[GroupState, ...]:
        """Every group that this node may read, by name."""
        return self._run(self._groups.list, timeout=timeout)

    def get(self, group: str, *, timeout: float | None = TIMEOUT_S) -> GroupState:
        """One group: its members, and how far it has come in every topic."""
        return self._run(self._groups.get, group, timeout=timeout)

    def lag(self, group: str, *, timeout: float | None = TIMEOUT_S) -> int:
        """How many messages a group is behind, in all its topics together."""
        return self._run(self._groups.lag, group, timeout=timeout)

    def seek(
        self,
        group: str,
        start: str | int | datetime | timedelta,
        *,
        topics: Sequence[str] = (),
        timeout: float | None = TIMEOUT_S,
    ) -> GroupState:
        """Let a group go on elsewhere, in all its topics or in these. Options as for zfabric.Groups.seek."""
        return self._run(self._groups.seek, group, start, topics=topics, timeout=timeout)

    def reset(self, group: str, *, topics: Sequence[str] = (), timeout: float | None = TIMEOUT_S) -> GroupState:
        """Let a group begin again with the oldest messages."""
        return self._run(self._groups.reset, group, topics=topics, timeout=timeout)

    def pause(self, group: str, *, timeout: float | None = TIMEOUT_S) -> GroupState:
        """Send its members nothing until `resume`, also over restarts of the store."""
        return self._run(self._groups.pause, group, timeout=timeout)

    def resume(self, group: str, *, timeout: float | None = TIMEOUT_S) -> GroupState:
        """Let a group go on."""
        return self._run(self._groups.resume, group, timeout=timeout)

    def forget(self, group: str, *, timeout: float | None = TIMEOUT_S) -> None:
        """Let a store know nothing of a group any more; refused while it has members."""
        self._run(self._groups.forget, group, timeout=timeout)
