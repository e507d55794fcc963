"""What every engine decides alike: what becomes of a commit, what retention lets go, what compaction supersedes.

Pure functions of values; the engines only carry out what they say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from zfabric.errors import NotStored, OutOfSequence, PositionFenced, ProducerFenced, TopicError
from zfabric.store.log import Append, Appended, Commit, Key, Mark, PositionUpdate, Retention
from zfabric.wire.topics import check_topic

__all__ = ["Judge", "may_go", "ranges_of", "superseded"]

PRODUCER_BYTES = 16
NUMBER_MAX = 2**62
"Of epochs, sequence numbers and times: every engine can keep it, and the sum of two."
FLAGS_MAX = 2**31 - 1


class Judge:
    """Decides the commits of one group in order; each sees what those before it changed.

    `marks`, `positions` and `nexts` hold what the group changes, to be written with its batches.
    """

    def __init__(
        self,
        mark: Callable[[bytes, str], Mark | None],
        epoch: Callable[[str], int],
        next_offset: Callable[[str], int | None],
        new_streams_max: int,
        forgot: Callable[[], bool] = lambda: False,
    ) -> None:
        """The log as it is: a producer's mark, a position's epoch (-1 if it is not there), a stream's next offset.

        `forgot` tells whether it ever forgot marks, and so may not know a producer that it had.
        """
        self._mark = mark
        self._epoch = epoch
        self._next = next_offset
        self._new_streams_max = new_streams_max
        self._forgot = forgot
        self.marks: dict[tuple[bytes, str], Mark] = {}
        self.positions: dict[str, PositionUpdate] = {}
        self.nexts: dict[str, int] = {}
        self.new_streams: set[str] = set()

    def decide(self, commit: Commit) -> tuple[Appended, ...]:
        """What becomes of its appends. Raises NotStored, having changed nothing."""
        marks: dict[tuple[bytes, str], Mark] = {}
        nexts: dict[str, int] = {}
        positions: dict[str, PositionUpdate] = {}
        new_streams: set[str] = set()
        for update in commit.positions:
            known = positions.get(update.name) or self.positions.get(update.name)
            current = self._epoch(update.name) if known is None else -1 if known.value is None else known.epoch
            if update.epoch < current:
                raise PositionFenced(update.name, update.epoch, current)
            positions[update.name] = update
        for told in commit.marks:
            marks[told.producer, told.stream] = told.mark
            nexts[told.stream] = self._next_of(told.stream, nexts, new_streams)
        outcome = []
        for append in commit.appends:
            origin = append.producer, append.stream
            mark = marks.get(origin) or self.marks.get(origin) or self._mark(*origin)
            if not _is_new(self._honest(append, mark), mark):
                outcome.append(Appended(None, append.count))
                continue
            marks[origin] = Mark(append.epoch, append.base + append.count)
            offset = self._next_of(append.stream, nexts, new_streams)
            nexts[append.stream] = offset + append.count
            outcome.append(Appended(offset, append.count))
        self.marks.update(marks)
        self.nexts.update(nexts)
        self.positions.update(positions)
        self.new_streams |= new_streams
        return tuple(outcome)

    def _honest(self, append: Append, mark: Mark | None) -> Append:
        """A batch that claims to be its producer's first, unless its producer may be known and forgotten."""
        known = mark is not None and mark.epoch == append.epoch
        return (
            append if append.gone is None or known or not self._forgot() else msgspec.structs.replace(append, gone=None)
        )

    def _next_of(self, stream: str, nexts: dict[str, int], new_streams: set[str]) -> int:
        """The next offset of a stream, in the light of a commit under way. Raises NotStored for what can be none."""
        offset = nexts.get(stream, self.nexts.get(stream))
        if offset is None:
            offset = self._next(stream)
        if offset is None:
            offset = 0
            new_streams.add(stream)
            self._check_new_stream(stream, len(new_streams))
        return offset

    def _check_new_stream(self, name: str, more: int) -> None:
        try:
            check_topic(name, reserved=True)
        except TopicError as error:
            raise NotStored(error.reason, name) from None
        if len(self.new_streams) + more > self._new_streams_max:
            raise NotStored("the store has as many streams as Config.store_streams_max allows", name)


def _is_new(append: Append, mark: Mark | None) -> bool:
    """Whether a batch is the next one of its producer; False when it is there already. Raises NotStored."""
    numbers = append.base, append.epoch, append.count - 1, append.published_ns, append.stored_ns
    if min(numbers) < 0 or max(numbers) > NUMBER_MAX or not 0 <= append.flags <= FLAGS_MAX:
        raise NotStored("not a batch: a number in it is out of range", append.stream)
    if len(append.producer) != PRODUCER_BYTES:
        raise NotStored(f"not a batch: its producer has {len(append.producer)} bytes", append.stream)
    expected = 0
    if mark is not None:
        if append.epoch < mark.epoch:
            raise ProducerFenced(append.stream, append.producer, append.epoch, mark.epoch)
        if append.epoch == mark.epoch:
            if append.base + append.count <= mark.next:
                return False
            expected = mark.next
    gone = append.gone is not None and append.gone <= expected < append.base
    if append.base != expected and not gone:
        raise OutOfSequence(append.stream, append.producer, append.epoch, append.base, expected)
    return True


def may_go(
    retention: Retention, *, end: int, nbytes: int, stored_ns: int, next_offset: int, total: int, now_ns: int
) -> bool:
    """Whether retention lets the oldest piece of a stream go: it ends at `end` and was last stored at `stored_ns`.

    `total` is the stream's bytes with this piece. The caller goes on with the next piece until one must stay.
    """
    if retention.age_s is not None and stored_ns < now_ns - round(retention.age_s * 1e9):
        return True
    if retention.bytes is not None and total - nbytes >= retention.bytes:
        return True
    return retention.messages is not None and next_offset - end >= retention.messages


def superseded(
    seen: set[bytes],
    keys: Sequence[Key],
    dropped: Sequence[tuple[int, int]],
    *,
    stored_ns: int,
    tombstones_before_ns: int,
) -> set[int]:
    """The places in a batch whose messages a later one replaces; `seen` are the keys of all that came later.

    To be called from the newest batch to the oldest; adds the batch's own keys to `seen`. A tombstone goes when it
    is older than `tombstones_before_ns`. What was dropped before stays dropped.
    """
    gone = {place for start, stop in dropped for place in range(start, stop)}
    for key in reversed(keys):
        if key.index in gone:
            continue
        if key.key in seen or (key.tombstone and stored_ns < tombstones_before_ns):
            gone.add(key.index)
        seen.add(key.key)
    return gone


def ranges_of(places: set[int]) -> tuple[tuple[int, int], ...]:
    """Places as ranges [start, stop), in order."""
    ranges: list[tuple[int, int]] = []
    for place in sorted(places):
        if ranges and ranges[-1][1] == place:
            ranges[-1] = ranges[-1][0], place + 1
        else:
            ranges.append((place, place + 1))
    return tuple(ranges)
