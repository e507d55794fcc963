"""What stores have of one durable topic, as its publisher knows it."""

from __future__ import annotations

from collections.abc import Callable
from math import inf

__all__ = ["NO_STORE", "Keeping"]

LOGS_MAX = 100
"Logs that are remembered; of an older one it is not said again what it lacks."
MEET_S = 0.1
"Pause before it is asked again which log a store keeps."

NO_STORE = "no store is in sight: start one with `zfabric store run`, or wait for it with wait_for(stores=1)"


class Keeping:
    """Which stores are attached to an outbox, what they confirmed, and whether they take more."""

    # fmt: off
    __slots__ = (
        "_away_s", "_left", "_log_of", "_logs", "_meet_at", "_new", "_present", "_refusals", "alone_since", "broken",
        "buffers", "lacking", "stored", "trouble",
    )
    # fmt: on

    def __init__(
        self, *, buffers: bool, away_s: float, log_of: Callable[[bytes], bytes | None] = lambda _: None
    ) -> None:
        """`buffers`: without a store messages wait in the window. `away_s`: one that was here is waited for so long.

        `log_of` tells the log of a store, once that is known.
        """
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
        self.lacking: list[tuple[bytes, int, int, bool]] = []
        """Stores whose log lacks messages that another confirmed: the first, the one after the last, and whether an
        attached store has them. Whoever tells of it clears it."""
        self._log_of = log_of
        self._logs: dict[bytes, int] = {}
        "The logs of the stores that were attached, and the message that each began with."
        self._left: dict[bytes, tuple[bytes, int, int]] = {}
        "Of those that left: the store, and the messages before which it had received, and stored, everything."
        self._new: dict[bytes, int] = {}
        "Attached stores whose log is not known yet, and the messages that they began with."
        self._present: dict[bytes, bytes] = {}
        "The logs of the others."
        self._meet_at = inf

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

    def attached(self, store: bytes, position: int, now: float) -> None:
        """A store gets everything from this message on."""
        if store not in self._refusals:
            self._new[store] = position
            self._meet_at = now
        self._refusals.setdefault(store, "")
        self.alone_since = inf
        self._judge()

    def detached(self, store: bytes, now: float, had: tuple[int, int] | None = None) -> None:
        """A store is gone, perhaps to come back; it `had` received, and stored, everything before these messages."""
        if self._refusals.pop(store, None) is not None:
            self._new.pop(store, None)
            log = self._present.pop(store, None)
            if log in self._logs and had is not None:
                self._left[log] = store, *had
            self._meet_at = self._meet_at if self._new else inf
            if not self._refusals:
                self.alone_since = now
            self._judge()

    def _meet(self, now: float) -> None:
        for store, position in list(self._new.items()):
            log = self._log_of(store)
            if log is not None:
                del self._new[store]
                self._met(store, log, position)
        self._meet_at = now + MEET_S if self._new else inf

    def _met(self, store: bytes, log: bytes, position: int) -> None:
        """A log that was here before has what it had, and gets what was kept for it."""
        others = [self._logs[other] for other in self._present.values()]
        self._present[store] = log
        if log in self._logs:
            same, received, stored = self._left.pop(log, (store, position, position))
            end = received if same == store else stored
            if end < position:
                self.lacking.append((store, end, position, any(began <= end for began in others)))
            return
        first = min(self._logs.values(), default=position)
        self._logs[log] = position
        if len(self._logs) > LOGS_MAX:
            oldest = next(iter(self._logs))
            del self._logs[oldest]
            self._left.pop(oldest, None)
        known = max(first, min(others, default=position))
        for start, stop, elsewhere in ((first, min(known, position), False), (known, position, True)):
            if start < stop:
                self.lacking.append((store, start, stop, elsewhere))

    def says(self, store: bytes, reason: str) -> None:
        """A store stores no more, or has no room for this topic, for a reason; or does again (empty)."""
        if store in self._refusals:
            self._refusals[store] = reason
            self._judge()
        elif reason and not self._refusals:
            self.alone_since = inf
            self.trouble = reason

    def refuses(self, store: bytes) -> bool:
        """Whether an attached store stores no more."""
        return bool(self._refusals.get(store))

    def _judge(self) -> None:
        if self._refusals:
            self.trouble = "" if "" in self._refusals.values() else next(iter(self._refusals.values()))
        elif self.alone_since < inf:
            self.trouble = ""

    def timer(self) -> float:
        """When a store is no longer waited for, or the log of one is to be known."""
        return min(self.alone_since + self._away_s, self._meet_at)

    def handle_timer(self, now: float) -> None:
        """Time has passed."""
        if now >= self._meet_at:
            self._meet(now)
        if now >= self.alone_since + self._away_s:
            self.alone_since = inf
            self.trouble = NO_STORE
