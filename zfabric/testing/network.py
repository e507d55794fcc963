"""A network in memory that behaves like ZeroMQ over TCP, and breaks when told to.

A `Channel` is one direction of one connection. Above it stand the two kinds of connection that a node has, with
the habits of libzmq that the fabric relies on: a dialled connection exists at once, queues until somebody answers
at its address and comes back by itself after a break, under the same route on the dialling side and a new one on
the other; a feed sends its filters again after each reconnection, in byte order; a publisher's outlet tells of the
first subscriber of each prefix and of its last, and drops what a slow subscriber has no room for.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

__all__ = ["Channel", "Faults", "Link", "Network", "Plane"]

_CLOCK_RESOLUTION_S = 1e-6
"Timers may fire this much early."


class Plane(StrEnum):
    """What a connection carries."""

    CONTROL = "control"
    "Greetings, interests, heartbeats."
    DATA = "data"
    "Batches of messages."


@dataclass(frozen=True, kw_only=True, slots=True)
class Faults:
    """Probabilities, from 0 to 1 and for each frame on its own, of what a disturbed connection does."""

    drop: float = 0.0
    "The frame is lost, as on a connection that broke while it was on the way."
    duplicate: float = 0.0
    "The frame arrives twice."
    delay: float = 0.0
    "The frame, and with it all behind it, arrives late: by up to `delay_s`."
    reorder: float = 0.0
    "The frame is overtaken by those behind it, by up to `delay_s`."
    delay_s: float = 0.05
    "The longest delay."

    def __post_init__(self) -> None:
        """Refuse nonsense early."""
        for name in ("drop", "duplicate", "delay", "reorder"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"Faults.{name} is a probability, not {getattr(self, name)!r}")
        if self.delay_s < 0:
            raise ValueError(f"Faults.delay_s must not be negative, not {self.delay_s!r}")


class Link(Protocol):
    """A connection, as the network sees it."""

    def kick(self) -> None:
        """Something changed: connect or go on."""

    def partitioned(self) -> None:
        """The network was just divided."""


class Network:
    """Who can reach whom, and how well."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._islands: tuple[frozenset[str], ...] = ()
        self._faults: list[tuple[frozenset[str] | None, Plane | None, Faults]] = []
        self._links: dict[Link, None] = {}
        self._routing_ids = 0
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop that everything here happens in."""
        assert self._loop is not None
        return self._loop

    def attach(self) -> None:
        """Use the running event loop from now on."""
        self._loop = asyncio.get_running_loop()

    def next_routing_id(self) -> bytes:
        """A fresh name for a connection on its accepting side."""
        self._routing_ids += 1
        return self._routing_ids.to_bytes(5, "big")

    def add(self, link: Link) -> None:
        """Tell this connection of changes."""
        self._links[link] = None

    def remove(self, link: Link) -> None:
        """Forget a connection."""
        self._links.pop(link, None)

    def kick(self) -> None:
        """Let every connection see what changed."""
        for link in list(self._links):
            link.kick()

    # -- partitions ----------------------------------------------------------------------------

    def divide(self, islands: Iterable[Collection[str]]) -> None:
        """Nothing passes between two of these groups any more; whoever is in none reaches all."""
        self._islands = tuple(frozenset(island) for island in islands)
        for link in list(self._links):
            link.partitioned()
            link.kick()

    def separated(self, one: str, other: str) -> bool:
        """Whether a partition stands between two nodes."""
        home = next((island for island in self._islands if one in island), None)
        return home is not None and other not in home and any(other in island for island in self._islands)

    # -- faults --------------------------------------------------------------------------------

    def disturb(self, faults: Faults, names: frozenset[str] | None, plane: Plane | None) -> None:
        """Faults for the connections among `names` (None: all) on a plane (None: both); the newest rule counts."""
        self._faults.insert(0, (names, plane, faults))

    def calm(self) -> None:
        """No more faults."""
        self._faults.clear()

    def fate(self, plane: Plane, source: str, target: str) -> Iterator[tuple[float, bool]]:
        """For each copy of a frame that arrives: its delay, and whether it keeps its place in the order."""
        faults = self._faults_for(plane, source, target)
        if faults is None:
            yield 0.0, True
            return
        chance = self._rng.random
        if chance() < faults.drop:
            return
        for _ in range(2 if chance() < faults.duplicate else 1):
            if chance() < faults.reorder:
                yield chance() * faults.delay_s, False
            else:
                yield chance() * faults.delay_s if chance() < faults.delay else 0.0, True

    def _faults_for(self, plane: Plane, source: str, target: str) -> Faults | None:
        for names, rule_plane, faults in self._faults:
            if (names is None or {source, target} <= names) and rule_plane in (None, plane):
                return faults
        return None


class Channel:
    """One direction of a connection. What is sent is a callable, which runs when it arrives."""

    def __init__(
        self,
        network: Network,
        plane: Plane,
        ends: tuple[str, str],
        burst_end: Callable[[], None],
        *,
        frames_per_turn_max: int,
        blocked: Callable[[], bool] = lambda: False,
    ) -> None:
        self._network = network
        self._plane = plane
        self._ends = ends
        self._burst_end = burst_end
        self._frames_per_turn_max = frames_per_turn_max
        self._blocked = blocked
        self._queue: deque[tuple[float, int, Callable[[], None]]] = deque()
        self._handle: asyncio.Handle | None = None
        self._due = 0.0
        self._cut = False
        self.nbytes = 0

    def __len__(self) -> int:
        """Frames on the way."""
        return len(self._queue)

    def send(self, arrive: Callable[[], None], nbytes: int = 0, *, reliable: bool = False) -> None:
        """Send a frame; `reliable` ones are part of the connection itself and know no faults."""
        loop = self._network.loop
        now = loop.time()
        for delay, in_order in [(0.0, True)] if reliable else self._network.fate(self._plane, *self._ends):
            if in_order:
                self._due = max(self._due, now + delay)
                self._append(self._due, nbytes, arrive)
            else:
                loop.call_later(delay, self._append, now + delay, nbytes, arrive)

    def _append(self, due: float, nbytes: int, arrive: Callable[[], None]) -> None:
        if self._cut:
            return
        self._queue.append((due, nbytes, arrive))
        self.nbytes += nbytes
        self.kick()

    def kick(self) -> None:
        """Go on, if something waits and nothing stands in the way."""
        if self._handle is not None or not self._queue or self._stalled():
            return
        loop, due = self._network.loop, self._queue[0][0]
        self._handle = loop.call_soon(self._arrive) if due <= loop.time() else loop.call_at(due, self._arrive)

    def _stalled(self) -> bool:
        return self._blocked() or self._network.separated(*self._ends)

    def _arrive(self) -> None:
        self._handle = None
        now = self._network.loop.time() + _CLOCK_RESOLUTION_S
        try:
            for _ in range(self._frames_per_turn_max):
                if not self._queue or self._queue[0][0] > now or self._stalled():
                    break
                _, nbytes, arrive = self._queue.popleft()
                self.nbytes -= nbytes
                arrive()
            self._burst_end()
        finally:
            self.kick()

    def cut(self) -> None:
        """Lose everything that is on the way."""
        self._cut = True
        self._queue.clear()
        self.nbytes = 0
        if self._handle is not None:
            self._handle.cancel()
