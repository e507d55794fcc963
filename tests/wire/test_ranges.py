"""RangeSet is a set of integers: whatever happens to it happens to a plain set as well."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from zfabric.wire.ranges import RangeSet

LAST = 40
Range = tuple[int, int]
ranges = st.tuples(st.integers(0, LAST), st.integers(0, LAST)).filter(lambda pair: pair[0] < pair[1])
empty_ranges = st.tuples(st.integers(0, LAST), st.integers(0, LAST)).filter(lambda pair: pair[0] >= pair[1])


def numbers(pairs: list[Range]) -> set[int]:
    """The integers of some ranges."""
    return {number for start, stop in pairs for number in range(start, stop)}


class SameAsSet(RuleBasedStateMachine):
    """A RangeSet beside a set of integers."""

    def __init__(self) -> None:
        super().__init__()
        self.ranges = RangeSet()
        self.model: set[int] = set()

    @rule(pair=ranges)
    def add(self, pair: Range) -> None:
        """Put a range in."""
        self.ranges.add(*pair)
        self.model.update(range(*pair))

    @rule(pair=ranges)
    def remove(self, pair: Range) -> None:
        """Take a range out."""
        self.ranges.remove(*pair)
        self.model.difference_update(range(*pair))

    @rule(start=st.integers(0, LAST), stop=st.integers(0, LAST))
    def missing(self, start: int, stop: int) -> None:
        """What a window lacks, as disjoint ranges in order that do not touch."""
        holes = list(self.ranges.missing(start, stop))
        assert numbers(holes) == set(range(start, stop)) - self.model
        assert all(one[1] < other[0] for one, other in pairwise(holes))

    @invariant()
    def holds_the_same(self) -> None:
        """Members are the same, and ranges are sorted, not empty and apart."""
        pairs = list(self.ranges)
        assert numbers(pairs) == self.model
        assert all(start < stop for start, stop in pairs)
        assert all(one[1] < other[0] for one, other in pairwise(pairs))
        assert {number for number in range(-1, LAST + 2) if number in self.ranges} == self.model
        assert len(self.ranges) == len(pairs)
        assert bool(self.ranges) is bool(self.model)


TestSameAsSet = SameAsSet.TestCase


@given(st.lists(ranges))
def test_equal_sets_have_equal_ranges(pairs: list[Range]) -> None:
    """The order in which ranges come does not matter, nor whether they come whole or number by number."""
    one, other = RangeSet(pairs), RangeSet(reversed(pairs))
    by_number = RangeSet((number, number + 1) for number in numbers(pairs))

    assert one == other == by_number
    assert list(one) == list(by_number)
    assert repr(one) == repr(other)


@given(empty_ranges)
def test_empty_ranges_are_refused(pair: Range) -> None:
    """A range without numbers is a mistake of the caller, and changes nothing."""
    found = RangeSet([(3, 5)])

    with pytest.raises(ValueError, match="empty range"):
        found.add(*pair)
    with pytest.raises(ValueError, match="empty range"):
        found.remove(*pair)

    assert list(found) == [(3, 5)]


def test_neighbours_become_one() -> None:
    """Ranges that touch are one range; a hole of one number keeps them apart."""
    assert list(RangeSet([(0, 2), (2, 4)])) == [(0, 4)]
    assert list(RangeSet([(0, 2), (3, 4)])) == [(0, 2), (3, 4)]
    assert list(RangeSet([(0, 2), (3, 4), (2, 3)])) == [(0, 4)]


def test_removing_from_the_middle_leaves_both_ends() -> None:
    """A range may be cut in two."""
    found = RangeSet([(0, 10)])

    found.remove(4, 6)

    assert list(found) == [(0, 4), (6, 10)]


def test_range_sets_are_not_keys() -> None:
    """They change, so they have no hash; and they are equal to range sets only."""
    with pytest.raises(TypeError):
        hash(RangeSet())
    assert RangeSet() != []
