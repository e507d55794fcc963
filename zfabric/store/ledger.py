"""What became of the jobs of one durable queue, as positions of the log (`docs/adr/0017-durable-queues.md`).

    $queue/<queue>          [all jobs before this one are settled, the queue's policy]
    $queue/<queue>/<slot>   [chunk, ranges of it that are settled, failed attempts of others]

A chunk is 4,096 jobs. Slots of chunks that are settled as a whole are used for others.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from zfabric.protocol.jobs import QueuePolicy
from zfabric.store.log import Position, PositionUpdate
from zfabric.wire.ranges import RangeSet

__all__ = ["PREFIX", "Ledger"]

PREFIX = "$queue/"
CHUNK = 4096


class _State(msgspec.Struct, array_like=True, frozen=True):
    floor: int
    policy: QueuePolicy


class _Row(msgspec.Struct, array_like=True, frozen=True):
    chunk: int
    settled: list[tuple[int, int]]
    "By place in the chunk."
    attempts: dict[int, int]


_encode = msgspec.msgpack.Encoder().encode
_decode_state = msgspec.msgpack.Decoder(_State).decode
_decode_row = msgspec.msgpack.Decoder(_Row).decode


class Ledger:
    """Which jobs of a queue are settled, and how often others failed."""

    def __init__(self, queue: str, rows: Mapping[str, Position]) -> None:
        """`rows` are the positions of the log that begin with `PREFIX` and the queue's name."""
        self._name = f"{PREFIX}{queue}"
        self.policy = QueuePolicy()
        self._attempts: dict[int, dict[int, int]] = {}
        "Of jobs that failed: chunk -> place -> how often."
        self._settled = RangeSet()
        self._dirty: set[int] = set()
        "Chunks whose rows are to be written."
        self._taken: set[int] = set()
        "Those that are being written."
        self._state_is_dirty = False
        self._slots: dict[int, int] = {}
        "Of each chunk that has a row."
        self._free: list[int] = []
        self._slots_made = 0
        state = rows.get(self._name)
        if state is not None:
            known = _decode_state(state.value)
            self.policy = known.policy
            self._add(0, known.floor)
        for name, position in rows.items():
            if name.startswith(f"{self._name}/"):
                self._load(int(name.rpartition("/")[2]), _decode_row(position.value))

    def _load(self, slot: int, row: _Row) -> None:
        self._slots_made = max(self._slots_made, slot + 1)
        base = row.chunk * CHUNK
        if base + CHUNK <= self.floor or row.chunk in self._slots:
            self._free.append(slot)
            return
        self._slots[row.chunk] = slot
        for start, stop in row.settled:
            self._add(base + start, base + stop)
        if row.attempts:
            self._attempts[row.chunk] = dict(row.attempts)

    def _add(self, start: int, stop: int) -> None:
        if start < stop:
            self._settled.add(start, stop)

    @property
    def floor(self) -> int:
        """All jobs before this one are settled."""
        start, stop = next(iter(self._settled), (0, 0))
        return stop if start == 0 else 0

    def open(self, start: int, stop: int) -> list[tuple[int, int]]:
        """The ranges of jobs between these that are not settled."""
        return list(self._settled.missing(start, stop))

    def attempts(self, start: int, stop: int) -> dict[int, int]:
        """Those of the jobs between these that failed, and how often."""
        return {
            chunk * CHUNK + place: count
            for chunk in range(start // CHUNK, (stop - 1) // CHUNK + 1)
            for place, count in self._attempts.get(chunk, {}).items()
            if start <= chunk * CHUNK + place < stop
        }

    # -- changes -------------------------------------------------------------------------------

    def settle(self, start: int, stop: int) -> None:
        """Jobs are done, dead or expired."""
        self._add(start, stop)
        for number in self.attempts(start, stop):
            del self._attempts[number // CHUNK][number % CHUNK]
        self._touch(start, stop)

    def unsettle(self, number: int) -> None:
        """A job is not settled after all."""
        self._settled.remove(number, number + 1)
        self._touch(number, number + 1)

    def failed(self, number: int, attempts: int) -> None:
        """A job waits again, after so many failures."""
        known = self._attempts.setdefault(number // CHUNK, {})
        if known.get(number % CHUNK, 0) != attempts:
            known[number % CHUNK] = attempts
            self._touch(number, number + 1)

    def set_policy(self, policy: QueuePolicy) -> None:
        """How its jobs are treated from now on."""
        if policy != self.policy:
            self.policy = policy
            self._state_is_dirty = True

    def _touch(self, start: int, stop: int) -> None:
        self._dirty.update(range(start // CHUNK, (stop - 1) // CHUNK + 1))

    # -- rows ----------------------------------------------------------------------------------

    @property
    def dirty(self) -> bool:
        """Whether `take_updates` has something."""
        return bool(self._dirty) or self._state_is_dirty

    def take_updates(self) -> list[PositionUpdate]:
        """What has changed since the last time, to be written together; then call `written` or `refused`."""
        floor = self.floor
        updates = [PositionUpdate(self._name, _encode(_State(floor, self.policy)))]
        for chunk in sorted(self._dirty):
            base = chunk * CHUNK
            if base + CHUNK > floor:
                row = _Row(chunk, self._settled_in(base), self._attempts.get(chunk, {}))
                updates.append(PositionUpdate(f"{self._name}/{self._slot(chunk)}", _encode(row)))
        self._taken, self._dirty = self._dirty, set()
        self._state_is_dirty = False
        return updates

    def _settled_in(self, base: int) -> list[tuple[int, int]]:
        found, place = [], base
        for start, stop in self._settled.missing(base, base + CHUNK):
            if place < start:
                found.append((place - base, start - base))
            place = stop
        if place < base + CHUNK:
            found.append((place - base, CHUNK))
        return found

    def _slot(self, chunk: int) -> int:
        slot = self._slots.get(chunk)
        if slot is None:
            if self._free:
                slot = self._free.pop()
            else:
                slot, self._slots_made = self._slots_made, self._slots_made + 1
            self._slots[chunk] = slot
        return slot

    def written(self, floor: int) -> None:
        """The log has what was taken, and this floor: rows of chunks below it are free."""
        for chunk in [chunk for chunk in self._slots if chunk * CHUNK + CHUNK <= floor]:
            self._free.append(self._slots.pop(chunk))
            self._attempts.pop(chunk, None)

    def refused(self) -> None:
        """The log has nothing of it."""
        self._dirty |= self._taken
        self._state_is_dirty = True
