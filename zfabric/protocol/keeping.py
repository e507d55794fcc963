"""What stores have of one durable topic, as its publisher knows it."""

from __future__ import annotations

from math import inf

__all__ = ["Keeping"]

NO_STORE = "no store is in sight: start one with `zfabric store run`, or wait for it with wait_for(stores=1)"


class Keeping:
    """Which stores are attached to an outbox, what they confirmed, and whether they take more."""

    __slots__ = ("_away_s", "_refusals", "alone_since", "broken", "buffers", "stored", "trouble")

    def __init__(self, *, buffers: bool, away_s: float) -> None:
        """`buffers`: without a store messages wait in the window. `away_s`: one that was here is waited for so long."""
        self.buffers = buffers
        self.stored = 0
        "A store has everything before this message on its disk."
        self.trouble = NO_STORE
        "Why a message published now would not be stored; empty if it would."
        self.alone_since = inf
        "Since when a store is waited for that left, or is about to come."
        self.broken = ""
        "Why nothing can be published any more."
        self._away_s = away_s
        self._refusals: dict[bytes, str] = {}

    def __repr__(self) -> str:
        return f"<Keeping stored={self.stored} stores={self.stores} {self.trouble}>"

    @property
    def stores(self) -> int:
        """How many are attached."""
        return len(self._refusals)

    @property
    def stops(self) -> bool:
        """Whether publishers are to be told now that there is no storing."""
        return bool(self.trouble and not self.buffers) or bool(self.broken)

    @property
    def reason(self) -> str:
        """Why, if `stops`."""
        return self.broken or self.trouble

    def expect(self, now: float) -> None:
        """A store of this topic is in sight, and about to attach: wait for it as for one that left."""
        self.alone_since = now
        self._judge()

    def attached(self, store: bytes) -> None:
        """A store gets everything from now on."""
        self._refusals.setdefault(store, "")
        self.alone_since = inf
        self._judge()

    def detached(self, store: bytes, now: float) -> None:
        """A store is gone, perhaps to come back."""
        if self._refusals.pop(store, None) is not None:
            if not self._refusals:
                self.alone_since = now
            self._judge()

    def says(self, store: bytes, reason: str) -> None:
        """An attached store stores no more, for a reason, or does again (empty)."""
        if store in self._refusals:
            self._refusals[store] = reason
            self._judge()

    def refuses(self, store: bytes) -> bool:
        """Whether an attached store stores no more."""
        return bool(self._refusals.get(store))

    def _judge(self) -> None:
        if self._refusals:
            self.trouble = "" if "" in self._refusals.values() else next(iter(self._refusals.values()))
        elif self.alone_since < inf:
            self.trouble = ""

    def timer(self) -> float:
        """When a store is no longer waited for."""
        return self.alone_since + self._away_s

    def handle_timer(self, now: float) -> None:
        """Time has passed."""
        if now >= self.timer():
            self.alone_since = inf
            self.trouble = NO_STORE
