"""Things that are gathered for one deferred call."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

import pytest

from zfabric.node.deferred import CALLS_PER_TURN, Gathered


def test_one_call_deals_with_as_many_as_a_turn_has_room_for() -> None:
    """In the order in which they came; what is left, or came meanwhile, waits for one more call."""
    calls: deque[Callable[[], object]] = deque()
    turns: list[list[int]] = []

    def deal(things: Iterable[int]) -> None:
        turns.append(list(things))
        if len(turns) == 1:
            gathered.add(CALLS_PER_TURN + 1)

    gathered = Gathered[int](calls.append, deal)
    for number in range(CALLS_PER_TURN + 1):
        gathered.add(number)
    assert len(calls) == 1
    while calls:
        calls.popleft()()

    assert turns == [list(range(CALLS_PER_TURN)), [CALLS_PER_TURN, CALLS_PER_TURN + 1]]


def test_what_ends_one_of_them_does_not_end_the_others() -> None:
    """Those that come after it have another call."""
    calls: deque[Callable[[], object]] = deque()
    dealt: list[int] = []

    def deal(things: Iterable[int]) -> None:
        for thing in things:
            dealt.append(thing)
            if thing == 1:
                raise KeyboardInterrupt

    gathered = Gathered[int](calls.append, deal)
    for number in range(3):
        gathered.add(number)
    with pytest.raises(KeyboardInterrupt):
        calls.popleft()()
    calls.popleft()()

    assert dealt == [0, 1, 2]
    assert not calls
