"""The schedules of a store: which there are, and what is due. No I/O and no clock."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from math import inf

import msgspec

from zfabric.config import Config
from zfabric.errors import LimitExceeded, NotStored
from zfabric.store.log import Position, PositionUpdate
from zfabric.store.ticks import Ticks
from zfabric.wire.durable_records import SCHEDULES, Declaration, ScheduleState

__all__ = ["Due", "Schedules"]

logger = logging.getLogger("zfabric.store")

LATE_S = 60
"A tick that the store comes to later than this is missed, as those are during which it did not run."

_encode = msgspec.msgpack.Encoder().encode
_decode_state = msgspec.msgpack.Decoder(ScheduleState).decode
_decode_declaration = msgspec.msgpack.Decoder(Declaration).decode


class Due(msgspec.Struct, frozen=True):
    """What is to be written now: a job for this tick (none if it is None), and with it the schedule's new state."""

    name: str
    state: ScheduleState
    tick: int | None

    @property
    def update(self) -> PositionUpdate:
        """The state, for the log."""
        return PositionUpdate(SCHEDULES + self.name, _encode(self.state))


class Schedules:
    """All schedules of one store. A change counts when the log has it and `put` is called."""

    def __init__(self, rows: Mapping[str, Position], config: Config, now: float) -> None:
        """`rows` are the positions of the log that begin with `SCHEDULES`; `now` is the time of day, as everywhere."""
        self._config = config
        self._states: dict[str, ScheduleState] = {}
        self._ticks: dict[str, Ticks] = {}
        "Of those that this store can tell."
        self._overdue: set[str] = set()
        "Those whose ticks came while the store did not run."
        for name, position in rows.items():
            self.put(name.removeprefix(SCHEDULES), _decode_state(position.value))
        self._overdue |= {name for name, state in self._states.items() if state.next <= now}

    def get(self, name: str) -> ScheduleState | None:
        """A schedule, if there is one."""
        return self._states.get(name)

    def put(self, name: str, state: ScheduleState | None) -> None:
        """The log has it; None for no more."""
        self._ticks.pop(name, None)
        self._overdue.discard(name)
        if state is None:
            self._states.pop(name, None)
            return
        self._states[name] = state
        try:
            self._ticks[name] = _ticks(state.declaration)
        except (ValueError, NotStored) as error:
            logger.error("the schedule %r makes no jobs: %s", name, error)

    def declare(self, name: str, value: bytes, now: float) -> Due | None:
        """What is to be written for a declaration; None when it changes nothing.

        Raises ValueError, LimitExceeded, and NotStored where cron expressions cannot be read.
        """
        try:
            declaration = _decode_declaration(value)
        except msgspec.DecodeError as error:
            raise ValueError(f"no schedule: {error}") from None
        known = self._states.get(name)
        if known is not None and known.declaration == declaration:
            return None
        if known is None and len(self._states) >= self._config.store_schedules_max:
            raise LimitExceeded("store_schedules_max", len(self._states) + 1, self._config.store_schedules_max)
        if len(value) > self._config.store_schedule_bytes:
            raise LimitExceeded("store_schedule_bytes", len(value), self._config.store_schedule_bytes)
        last = 0 if known is None else known.last
        return Due(name, ScheduleState(declaration, _ticks(declaration).after(max(int(now), last)), last), None)

    @property
    def next(self) -> float:
        """When something is due; infinite if nothing ever is."""
        return min((self._states[name].next for name in self._ticks), default=inf)

    def due(self, now: float) -> Iterator[Due]:
        """What is due, at most one job of each schedule: look again when that is written."""
        for name, ticks in self._ticks.items():
            state = self._states[name]
            if state.next > now:
                continue
            tick: int | None = state.next
            if name in self._overdue or now - state.next > LATE_S:
                tick = ticks.last(state.next - 1, int(now)) if state.declaration.missed == "one" else None
            following = ticks.after(int(now) if tick is None else tick)
            last = state.last if tick is None else tick
            yield Due(name, ScheduleState(state.declaration, following, last), tick)

    def done(self, due: Due) -> None:
        """It is written."""
        self._overdue.discard(due.name)
        self._states[due.name] = due.state


def _ticks(declaration: Declaration) -> Ticks:
    return Ticks(declaration.cron, declaration.every_s, declaration.timezone)
