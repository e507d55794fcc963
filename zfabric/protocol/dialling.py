"""Which addresses to connect to, when, and how often: parallel, rate-limited, with back-off.

A target is a peer that discovery told of, or a seed. All its addresses are tried at once (one on this host alone first,
ipc where it can work: it answers in a millisecond, and the others lead to the same node); the first that answers
WELCOME wins and the others are hung up. Discovered targets are given up after a while, seeds never. What is done costs
the same however many targets there are: forged announcements can make thousands. When no more are kept, a newcomer
takes the place of whoever failed longest ago; those that nobody has tried yet keep theirs, as do peers that were here.
Every other turn is that of the newest: in a flood it would be given up before those in front of it were tried.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from itertools import count
from math import inf

from zfabric.config import Config
from zfabric.protocol.effects import Dial, Effects
from zfabric.wire.records import Hello

__all__ = ["Dialler", "is_local"]

ROOM_S = 0.05
"Pause until those who wait for `dials_per_s_max` and `dials_pending_max` are looked at again."
TRIES_MAX, TRIES_PER_S = 256, 1000
"So many targets are looked at in one go, and in a second: thousands may name one address, which is dialled once."

REFUSALS = 3
"""After so many in a row nobody is there. A node that changes its addresses ends its connections, too, and must have
the time to dial from the new ones."""
PLAN_MAX = 4
"Looks that are planned for each target, at most, most of them for nothing."


_LOCAL = ("ipc:", "tcp://127.", "tcp://[::1]")


def is_local(endpoint: str) -> bool:
    """Whether an endpoint never leaves this host."""
    return endpoint.startswith(_LOCAL)


class Target:
    """Somebody we want to reach."""

    # fmt: off
    __slots__ = (
        "attempts", "deadline", "endpoints", "expires", "holder", "id", "key", "next_try", "planned", "refusals",
        "routes", "told",
    )
    # fmt: on

    def __init__(self, peer_id: bytes | None, endpoints: tuple[str, ...], now: float, expires: float) -> None:
        self.id = peer_id
        self.key: bytes | str = endpoints[0] if peer_id is None else peer_id
        self.endpoints = endpoints
        self.told = endpoints
        "Where it was last said to be, whether or not that can work from here."
        self.expires = expires
        self.next_try = now
        self.attempts = 0
        self.refusals = 0
        "Attempts in a row at which all of its addresses refused."
        self.routes: dict[int, str] = {}
        self.deadline = inf
        self.holder: bytes | None = None
        self.planned = inf
        "When it is looked at: never after something about it is due."


class Dialler:
    """Decides on connections; the peer table tells it what became of them."""

    def __init__(
        self,
        config: Config,
        effects: Effects,
        hello: Callable[[bytes | None], Hello],
        holder: Callable[[str], bytes | None],
        usable: Callable[[str], bool],
    ) -> None:
        """`hello` makes the greeting; `holder` tells which peer an address is connected to already.

        `usable` tells whether an address can work from here.
        """
        self._config = config
        self._hello = hello
        self._holder = holder
        self._usable = usable
        self._effects = effects
        self._targets: dict[bytes | str, Target] = {}
        self._plan: list[tuple[float, int, bytes | str]] = []
        "A heap; what is not as its target's `planned` says counts for nothing."
        self._number = count()
        self._waiting: OrderedDict[bytes | str, Target] = OrderedDict()
        "Those whose turn it is, as soon as there is room."
        self._untried: OrderedDict[bytes | str, Target] = OrderedDict()
        "Those of them that were never tried."
        self._failed: OrderedDict[bytes | str, Target] = OrderedDict()
        "Those that back off and will be given up soon: a newcomer may have their place."
        self._newest_next = False
        self._room_at = inf
        self._by_route: dict[int, bytes | str] = {}
        self._dialling: set[str] = set()
        self._next_route = 1
        self._budget_max = max(1.0, config.dials_per_s_max)
        self._budget = self._budget_max
        self._budget_at = 0.0
        self._tries = float(TRIES_MAX)
        self._dials_at_once = min(config.dials_pending_max, int(self._budget_max))

    def seek_seed(self, endpoint: str, now: float) -> None:
        """Try this address for ever."""
        self._targets[endpoint] = target = Target(None, (endpoint,), now, inf)
        self._wait(target, now)

    def seek_peer(self, peer_id: bytes, endpoints: tuple[str, ...], now: float, keep_s: float) -> None:
        """Try a peer's addresses, for `keep_s` seconds at most. Known addresses keep their back-off."""
        target = self._targets.get(peer_id)
        if target is not None:
            target.expires = max(target.expires, now + keep_s)
            if target.told == endpoints:  # in a mesh every peer tells of every other
                return
            target.told = endpoints
        usable = tuple(filter(self._usable, endpoints))[: self._config.endpoints_per_peer_max]
        if not usable:
            return
        if target is None:
            if len(self._targets) >= self._config.discovery_records_max:
                if not self._failed:
                    return
                self._remove(next(iter(self._failed.values())))
            self._targets[peer_id] = target = Target(peer_id, usable, now, now + keep_s)
            target.told = endpoints
            self._wait(target, now)
        elif not set(target.endpoints).issuperset(usable):  # mDNS knows fewer than the registry
            target.endpoints = usable
            target.attempts = 0
            if not target.routes:
                target.next_try = now
                self._wait(target, now)

    def need_not(self, peer_id: bytes) -> None:
        """A peer came by itself: do not dial it, unless that has begun."""
        target = self._targets.get(peer_id)
        if target is not None and not target.routes:
            self._remove(target)

    def forget_peer(self, peer_id: bytes) -> None:
        """Stop trying a peer."""
        target = self._targets.get(peer_id)
        if target is not None:
            self._remove(target)

    def stop(self) -> None:
        """Try nobody any more: connections that never answered would hold the closing up."""
        for target in self._targets.values():
            self._drop_routes(target)
        self._targets.clear()
        self._waiting.clear()
        self._untried.clear()
        self._failed.clear()

    def release(self, peer_id: bytes, now: float) -> None:
        """The peer behind a seed left, or cannot be reached there any more: try the seed again."""
        for target in self._targets.values():
            if target.holder == peer_id:
                target.holder = None
                target.next_try = now + self._config.reconnect_interval_s
                self._look_later(target)

    def expected(self, route: int) -> bytes | None:
        """The peer id that a dialled route should lead to, if known."""
        key = self._by_route.get(route)
        return self._targets[key].id if key is not None else None

    def endpoint(self, route: int) -> str | None:
        """Where a dialled route that has not answered yet leads to."""
        key = self._by_route.get(route)
        return self._targets[key].routes[route] if key is not None else None

    def pending(self, route: int) -> bool:
        """Whether a dialled route still waits for its answer."""
        return route in self._by_route

    def answered(self, route: int, peer_id: bytes) -> str | None:
        """A dialled route said WELCOME: hand it over, hang up its rivals. Returns its endpoint."""
        key = self._by_route.pop(route, None)
        if key is None:
            return None
        target = self._targets[key]
        endpoint = target.routes.pop(route)
        self._dialling.discard(endpoint)
        self._drop_routes(target)
        if target.id is None:
            target.holder = peer_id
            target.attempts = 0
        else:
            self._remove(target)
        return endpoint

    def refused(self, route: int, *, final: bool) -> None:
        """A dialled route will not do; with `final` its whole target will not."""
        key = self._by_route.get(route)
        if key is None:
            return
        target = self._targets[key]
        if final:
            self._remove(target)
            return
        self._hang_up(target, route)
        if not target.routes:
            self._back_off(target, target.deadline)

    def not_made(self, route: int, now: float) -> bool:
        """A dialled route got no connection. Whether all addresses of its target have failed so, again and again."""
        target = self._targets[self._by_route[route]]
        self._hang_up(target, route)
        if target.routes:
            return False
        self._back_off(target, now)
        target.refusals += 1
        return target.refusals >= REFUSALS

    def timer(self) -> float:
        """When `handle_timer` has something to do."""
        plan = self._plan
        while plan and not self._is_planned(*plan[0]):
            heappop(plan)
        due = plan[0][0] if plan else inf
        return min(due, self._room_at) if self._waiting else due

    def handle_timer(self, now: float) -> None:
        """Give up what is overdue, try what is due, in turn, while there is room."""
        passed_s, self._budget_at = now - self._budget_at, now
        self._budget = min(self._budget_max, self._budget + passed_s * self._config.dials_per_s_max)
        self._tries = min(TRIES_MAX, self._tries + passed_s * TRIES_PER_S)
        plan = self._plan
        while plan and plan[0][0] <= now:
            look = heappop(plan)
            if self._is_planned(*look):
                target = self._targets[look[2]]
                target.planned = inf
                self._look_at(target, now)
        while self._tries >= 1 and self._waiting and self._try(self._whose_turn(), now):
            self._tries -= 1
            self._newest_next = not self._newest_next
        self._room_at = now + ROOM_S

    def _whose_turn(self) -> Target:
        if self._newest_next and self._untried:
            return next(reversed(self._untried.values()))
        return next(iter(self._waiting.values()))

    def _is_planned(self, when: float, _: int, key: bytes | str) -> bool:
        target = self._targets.get(key)
        return target is not None and target.planned == when

    def _look_at(self, target: Target, now: float) -> None:
        if target.holder is not None:
            return
        if target.routes and now >= target.deadline:
            target.refusals = 0
            self._drop_routes(target)
            self._back_off(target, now)
        if now >= target.expires:
            self._remove(target)
        elif not target.routes and now >= target.next_try:
            self._wait(target, now)
        else:
            self._look_later(target)

    def _wait(self, target: Target, now: float) -> None:
        """It is its turn."""
        self._failed.pop(target.key, None)
        self._waiting[target.key] = target
        if target.attempts == 0:
            self._untried[target.key] = target
        self._room_at = now
        self._look_later(target)

    def _leave(self, target: Target) -> None:
        """It has had its turn."""
        del self._waiting[target.key]
        self._untried.pop(target.key, None)

    def _look_later(self, target: Target) -> None:
        """Plan to look at it when something about it is due."""
        waits = target.key in self._waiting
        due = target.expires if waits else min(target.deadline if target.routes else target.next_try, target.expires)
        if due < target.planned:
            target.planned = due
            heappush(self._plan, (due, next(self._number), target.key))
            if len(self._plan) > PLAN_MAX * len(self._targets):
                self._plan[:] = [look for look in self._plan if self._is_planned(*look)]
                heapify(self._plan)

    def _remove(self, target: Target) -> None:
        self._drop_routes(target)
        self._waiting.pop(target.key, None)
        self._untried.pop(target.key, None)
        self._failed.pop(target.key, None)
        del self._targets[target.key]

    def _try(self, target: Target, now: float) -> bool:
        """Dial it, or let it back off where that is not possible; False if there is no room yet."""
        endpoints = target.endpoints
        if target.attempts == 0:
            endpoints = tuple(filter(is_local, endpoints))[:1] or endpoints
        # Several connections to one address cannot be told apart when one of them must end.
        endpoints = tuple(e for e in dict.fromkeys(endpoints) if e not in self._dialling)
        taken = {endpoint: peer for endpoint in endpoints if (peer := self._holder(endpoint)) is not None}
        endpoints = tuple(e for e in endpoints if e not in taken)[: self._dials_at_once]
        if not endpoints:
            self._leave(target)
            target.attempts += 1
            self._back_off(target, now)
            if target.id is None:
                target.holder = next(iter(taken.values()), None)
            return True
        if self._budget < len(endpoints) or len(self._by_route) + len(endpoints) > self._config.dials_pending_max:
            return False
        self._leave(target)
        self._budget -= len(endpoints)
        for endpoint in endpoints:
            route = self._next_route
            self._next_route += 1
            target.routes[route] = endpoint
            self._by_route[route] = target.key
            self._dialling.add(endpoint)
            self._effects.do(Dial(route, endpoint))
            self._effects.tell(route, self._hello(target.id))
        target.attempts += 1
        target.deadline = now + self._config.handshake_timeout_s
        self._look_later(target)
        return True

    def _back_off(self, target: Target, now: float) -> None:
        pause = self._config.reconnect_interval_s * 2 ** min(target.attempts, 10)
        target.next_try = now + min(pause, self._config.reconnect_interval_s_max)
        target.deadline = inf
        if target.expires <= now + self._config.dial_keep_s:
            self._failed[target.key] = target
        self._look_later(target)

    def _hang_up(self, target: Target, route: int) -> None:
        self._dialling.discard(target.routes.pop(route))
        del self._by_route[route]
        self._effects.hang_up(route)

    def _drop_routes(self, target: Target) -> None:
        for route in list(target.routes):
            self._hang_up(target, route)
        target.deadline = inf
