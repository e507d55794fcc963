"""Sets of sequence numbers as sorted, disjoint, half-open ranges: what acks, repairs and gaps speak."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator

__all__ = ["RangeSet"]


class RangeSet:
    """A set of integers that is mostly runs: `RangeSet([(0, 5), (7, 9)])` is {0, 1, 2, 3, 4, 7, 8}.

    Neighbouring and overlapping ranges are joined, so equal sets have equal ranges.
    """

    __slots__ = ("_starts", "_stops")

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        self._starts: list[int] = []
        self._stops: list[int] = []
        for start, stop in ranges:
            self.add(start, stop)

    def add(self, start: int, stop: int) -> None:
        """Add all numbers from `start` to before `stop`. Raises ValueError for an empty or backward range."""
        if start >= stop:
            raise ValueError(f"empty range {start} to {stop}")
        first = bisect_left(self._stops, start)
        last = bisect_right(self._starts, stop)
        if first < last:
            start = min(start, self._starts[first])
            stop = max(stop, self._stops[last - 1])
        self._starts[first:last] = [start]
        self._stops[first:last] = [stop]

    def remove(self, start: int, stop: int) -> None:
        """Take out all numbers from `start` to before `stop`."""
        if start >= stop:
            raise ValueError(f"empty range {start} to {stop}")
        first = bisect_right(self._stops, start)
        last = bisect_left(self._starts, stop)
        if first >= last:
            return
        kept = []
        if self._starts[first] < start:
            kept.append((self._starts[first], start))
        if self._stops[last - 1] > stop:
            kept.append((stop, self._stops[last - 1]))
        self._starts[first:last] = [range_[0] for range_ in kept]
        self._stops[first:last] = [range_[1] for range_ in kept]

    def missing(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """The ranges between `start` and `stop` that are not in the set."""
        index = bisect_right(self._stops, start)
        while start < stop:
            if index >= len(self._starts) or self._starts[index] >= stop:
                yield start, stop
                return
            if self._starts[index] > start:
                yield start, self._starts[index]
            start = self._stops[index]
            index += 1

    def __contains__(self, number: int) -> bool:
        index = bisect_right(self._starts, number) - 1
        return index >= 0 and number < self._stops[index]

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(zip(self._starts, self._stops, strict=True))

    def __len__(self) -> int:
        """The number of ranges."""
        return len(self._starts)

    def __bool__(self) -> bool:
        return bool(self._starts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RangeSet) and self._starts == other._starts and self._stops == other._stops

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"RangeSet({list(self)})"
