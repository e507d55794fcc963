"""The receiving end of queues at-most-once: batches that arrived on one PULL socket, and what to tell their pushers."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container
from math import inf

from zfabric.config import Config
from zfabric.wire.batch import Batch
from zfabric.wire.plain_records import TAKEN_MAX, PlainEnd, PlainPull, PlainRecord, PlainTaken

__all__ = ["PlainSink"]

TAKEN_AT_ONCE = 32
"So many batches are told of at once; fewer when they have waited long enough."


class Origin:
    """One pusher's node, as one puller sees it."""

    __slots__ = ("before", "here", "mark", "mark_at", "taken", "tell_at")

    def __init__(self) -> None:
        self.here = 0
        "Batches that its reader is not through with."
        self.taken: list[tuple[int, int]] = []
        "Those that it is through with, and the pusher does not know."
        self.before = 0
        "The job after the last that the reader was through with; some before it may be in hand."
        self.tell_at = inf
        self.mark = 0
        "The pusher wants to know when this is reached."
        self.mark_at = inf


class PlainSink:
    """One puller."""

    def __init__(
        self,
        number: int,
        queue: str,
        endpoints: tuple[str, ...],
        config: Config,
        tell: Callable[[bytes, PlainRecord], None],
        wake: Callable[[], None],
    ) -> None:
        """`tell(peer_id, record)` says something to a pusher; `wake()` tells that `take` has something."""
        self.number = number
        self.queue = queue
        self.origins: dict[bytes, Origin] = {}
        self.nbytes = 0
        "Waiting for the reader."
        self.waiting = 0
        "Jobs that wait for the reader."
        self.closed = False
        self._endpoints = endpoints
        self._config = config
        self._tell = tell
        self._wake = wake
        self._waiting: deque[tuple[bytes, Origin, Batch]] = deque()
        self.newest = 0
        "The batch that was taken last."
        self._in_hand: dict[int, tuple[Origin, Batch]] = {}

    def __repr__(self) -> str:
        return f"<PlainSink {self.queue}/{self.number} waiting={self.waiting} origins={len(self.origins)}>"

    @property
    def full(self) -> bool:
        """Whether the socket should not be read for now."""
        return self.nbytes >= self._config.credit_bytes

    # -- pushers -------------------------------------------------------------------------------

    def offered(self, peer_id: bytes) -> None:
        """A node has this queue."""
        if peer_id not in self.origins and not self.closed:
            self.origins[peer_id] = Origin()
            self._tell(peer_id, PlainPull(self.number, self.queue, self._endpoints))

    def moved(self, endpoints: tuple[str, ...]) -> None:
        """The socket listens there from now on."""
        self._endpoints = endpoints
        for peer_id in self.origins:
            self._tell(peer_id, PlainPull(self.number, self.queue, endpoints))

    def lost(self, peer_id: bytes) -> None:
        """A pusher is gone. What came from it is still good."""
        self.origins.pop(peer_id, None)

    def received(self, peer_id: bytes, batch: Batch, now: float) -> bool:
        """A batch. False if its sender was not told of this puller."""
        origin = self.origins.get(peer_id)
        if origin is None:
            return False
        self._waiting.append((peer_id, origin, batch))
        self.nbytes += batch.nbytes
        self.waiting += batch.count
        origin.here += 1
        if origin.mark_at < inf:
            origin.mark_at = now + self._config.gap_settle_s
        self._wake()
        return True

    def marked(self, peer_id: bytes, before: int, now: float) -> None:
        """A pusher wants to know when we have come that far."""
        origin = self.origins.get(peer_id)
        if origin is not None:
            origin.mark, origin.mark_at = before, now + self._config.gap_settle_s

    # -- the reader ----------------------------------------------------------------------------

    def take(self, now: float) -> tuple[bytes, Batch] | None:
        """The next batch: (pusher's node, batch)."""
        if not self._waiting:
            return None
        peer_id, origin, batch = self._waiting.popleft()
        self.newest += 1
        self._in_hand[self.newest] = origin, batch
        was_full = self.full
        self.nbytes -= batch.nbytes
        self.waiting -= batch.count
        if was_full and not self.full:
            for origin in self.origins.values():
                if origin.mark_at < inf:  # what waits in the socket comes now
                    origin.mark_at = now + self._config.gap_settle_s
        return peer_id, batch

    def done(self, now: float, besides: Container[int] = ()) -> None:
        """The reader is through with what it took, or its handlers are with all but those batches."""
        for number in [number for number in self._in_hand if number not in besides]:
            origin, batch = self._in_hand.pop(number)  # the pusher of an origin that is no longer ours has given it up
            origin.here -= 1
            origin.before = max(origin.before, batch.end)
            if not origin.taken:
                origin.tell_at = now + self._config.ack_delay_s
            origin.taken.append((batch.base, batch.end))
            if len(origin.taken) >= TAKEN_AT_ONCE:
                origin.tell_at = now

    def close(self, now: float) -> None:
        """Take no more; what waits is lost, and its pushers count it."""
        if not self.closed:
            self.closed = True
            self._waiting.clear()
            self.nbytes = self.waiting = 0
            for peer_id, origin in self.origins.items():
                self._report(peer_id, origin)
                self._tell(peer_id, PlainEnd(self.number))
            self.origins.clear()

    # -- time, and what to say -----------------------------------------------------------------

    def timer(self) -> float:
        """When `handle_timer` has something to do."""
        return min((min(origin.tell_at, origin.mark_at) for origin in self.origins.values()), default=inf)

    def handle_timer(self, now: float) -> None:
        """Tell pushers what came of their jobs."""
        for peer_id, origin in self.origins.items():
            if origin.mark_at <= now and not origin.here and not self.full:
                origin.before, origin.mark_at = max(origin.before, origin.mark), inf
                self._report(peer_id, origin)
            elif origin.mark_at <= now:
                origin.mark_at = now + self._config.gap_settle_s
            if origin.tell_at <= now:
                self._report(peer_id, origin)

    def _report(self, peer_id: bytes, origin: Origin) -> None:
        in_hand = (batch.base for whose, batch in self._in_hand.values() if whose is origin)
        before = min(origin.before, min(in_hand, default=inf))
        taken, origin.taken, origin.tell_at = origin.taken, [], inf
        while len(taken) > TAKEN_MAX:
            some, taken = taken[:TAKEN_MAX], taken[TAKEN_MAX:]
            self._tell(peer_id, PlainTaken(self.number, some, int(min(some[-1][1], before))))
        self._tell(peer_id, PlainTaken(self.number, taken, int(before)))
