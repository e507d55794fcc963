"""`start=` of a subscription, in all its forms."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import TypeAlias

from zfabric.model import Delivery, Position
from zfabric.node.driver import Driver
from zfabric.node.options import real, whole
from zfabric.node.subscription import Subscription
from zfabric.protocol.lanes import Lane
from zfabric.wire.records import PatternRequest, Start
from zfabric.wire.topics import Pattern

__all__ = ["Beginning", "StartLike"]

StartLike: TypeAlias = str | int | datetime | timedelta | Position | Sequence[Position]


class Beginning:
    """Where a subscription begins, and so what it listens to."""

    def __init__(self, start: StartLike, replay_rate: float | None) -> None:
        """Raises ValueError."""
        if replay_rate is not None and real("replay_rate", replay_rate) <= 0:
            raise ValueError(f"replay_rate must be above 0, not {replay_rate}")
        self._start, self._offsets, self._store_id = _begin_at(start)
        self._rate = float(replay_rate or 0.0)
        self._live = not self._offsets and not self._rate

    def of_group(self) -> Start:
        """Where a new group begins. Raises ValueError for what only a subscription of one's own can do."""
        if not self._live:
            raise ValueError(
                "a group keeps its own positions and goes as fast as it can: leave out positions, replay_rate"
            )
        if self._start.kind == "last-per-key":
            raise ValueError("a group reads every message: `last-per-key` is for a subscription of one's own")
        return self._start

    def listen(
        self,
        driver: Driver,
        subscription: Subscription,
        pattern: Pattern,
        delivery: str,
        credit_bytes: int,
        *,
        signed: bool,
    ) -> None:
        """Give the subscription its lane, and its history if it has one."""
        core, start = driver.core, self._start
        if self._live:
            subscription.lane = core.interests.subscribe(pattern, delivery, start, subscription, signed=signed)
        else:
            request = PatternRequest(0, pattern.text, delivery, start)
            subscription.lane = Lane(request, pattern, subscription, signed=signed)
        if delivery != Delivery.AT_MOST_ONCE and (start.kind != "latest" or not self._live):
            subscription.history = core.histories.open(
                subscription.lane,
                driver.loop.time(),
                start=start,
                offsets=self._offsets,
                store_id=self._store_id,
                live=self._live,
                credit_bytes=credit_bytes,
                rate=self._rate,
            )

    def end(self, driver: Driver, subscription: Subscription) -> None:
        """It is closed."""
        driver.core.histories.close(subscription.lane)
        if self._live:
            driver.core.interests.unsubscribe(subscription.lane)
        driver.core.streams.forget()


def _begin_at(start: StartLike) -> tuple[Start, dict[str, int], bytes | None]:
    """`start=` as it travels, and the offsets of topics in the log of one store, if it is made of positions.

    Topics without a position begin with their oldest message. Raises ValueError.
    """
    if isinstance(start, Position):
        start = (start,)
    if isinstance(start, Sequence) and not isinstance(start, str):
        positions = list(start)
        if not positions or not all(isinstance(position, Position) for position in positions):
            raise ValueError(f"start must be made of positions, not {start!r}")
        stores = {position.store for position in positions}
        if len(stores) > 1:
            raise ValueError(f"start must be positions of one store, not of {len(stores)}")
        offsets: dict[str, int] = {}
        for position in positions:  # what one partition of a group has had, another may lack
            offsets[position.topic] = min(position.offset + 1, offsets.get(position.topic, position.offset + 1))
        return Start("earliest"), offsets, bytes.fromhex(stores.pop())
    return _begin(start), {}, None


def _begin(start: str | int | datetime | timedelta) -> Start:
    if isinstance(start, datetime):
        try:
            start = datetime.now(UTC) - start.astimezone(UTC)
        except (OverflowError, ValueError):
            raise ValueError(f"start must be a time that there is in UTC, not {start!r}") from None
    if isinstance(start, timedelta):
        return Start("since", max(0.0, start.total_seconds()))
    if isinstance(start, bool) or not isinstance(start, int):
        if start in ("latest", "earliest", "last-per-key"):
            return Start(start)  # type: ignore[arg-type] # one of the three
        kinds = "'latest', 'earliest', 'last-per-key', a number, datetime, timedelta or positions"
        raise ValueError(f"start must be {kinds}, not {start!r}")
    start = whole("start", start)
    return Start("seq", start) if start >= 0 else Start("last", -start)
