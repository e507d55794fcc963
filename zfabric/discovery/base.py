"""The small interface behind which every way of finding peers stands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import msgspec

__all__ = ["Announcement", "Discovery", "Found"]


class Announcement(msgspec.Struct, frozen=True, array_like=True):
    """What a node tells the world before anybody has spoken to it. A hint, never trusted."""

    node_id: bytes
    "16 random bytes, new for every incarnation."
    fabric: str
    "Only nodes of the same fabric talk to each other."
    endpoints: tuple[str, ...]
    "The inbox's addresses, best first: `ipc://...`, `tcp://127.0.0.1:port`, `tcp://[::1]:port`."
    fingerprint: str = ""
    "Short fingerprint of the fabric's public key; empty without one."


Found = Callable[[Announcement], None]
"""Called in the node's event loop for every announcement seen, again whenever it changes."""


class Discovery(Protocol):
    """One way of finding peers. All of them run at once; a node works when any of them does."""

    name: str
    "Short name for statistics, events and `zfabric doctor`."

    async def start(self, announcement: Announcement, found: Found) -> None:
        """Announce ourselves and report others, without waiting for any of them.

        Own announcements and those of other fabrics are not reported. Raises OSError where this way
        does not work on this machine: the node then goes on with the others and says so.
        """

    async def update(self, announcement: Announcement) -> None:
        """Replace what is announced (addresses changed)."""

    async def close(self) -> None:
        """Withdraw the announcement and stop; never raises, never takes longer than a second."""
