"""Says records about services to peers over their channels, and to this very node without any."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from zfabric.protocol.channels import Channels, Machine
from zfabric.protocol.peers import PeerRecord
from zfabric.wire.letters import LetterRecord
from zfabric.wire.records import Identity

__all__ = ["Loopback"]


class Loopback:
    """A channel to everybody, this node included (`own`)."""

    def __init__(self, me: bytes, channels: Channels) -> None:
        self.own = PeerRecord(me, Identity(bytes(16), "", "", "", 0, (), ()), 0.0)
        self._channels = channels
        self._dispatch: dict[type[Any], Callable[[PeerRecord, Any, float], None]] = {}
        self._waiting: deque[LetterRecord] = deque()
        self._busy = False

    def register(self, machine: Machine) -> None:
        """Let a machine hear its records from peers and from this node."""
        self._channels.register(machine)
        self._dispatch.update(machine.records)

    def tell(self, peer: PeerRecord, record: LetterRecord, nbytes: int, now: float) -> None:
        """Say something. This node hears itself at once, but not in the middle of what it is hearing.

        So callers must have finished whatever the answer may change.
        """
        if peer is not self.own:
            self._channels.tell(peer, record, nbytes)
            return
        self._waiting.append(record)
        if self._busy:
            return
        self._busy = True
        try:
            while self._waiting:
                record = self._waiting.popleft()
                self._dispatch[type(record)](peer, record, now)
        finally:
            self._busy = False

    def has_room(self, peer: PeerRecord) -> bool:
        """Whether the peer takes more than answers now."""
        return peer is self.own or self._channels.has_room(peer)
