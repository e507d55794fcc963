"""What is dealt with once the core is done, as much as one turn of the loop has room for."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from zfabric.node.deferred import THINGS_PER_TURN, Deferred


async def test_one_turn_deals_with_as_many_as_it_has_room_for() -> None:
    """In the order in which they came, each kind together; what is left, or came meanwhile, waits for the next turn."""
    loop = asyncio.get_running_loop()
    turns: list[list[int]] = []

    def deal(things: Iterator[int]) -> None:
        turns.append(list(things))
        if len(turns) == 1:
            add(THINGS_PER_TURN + 1)

    deferred = Deferred(lambda: deferred.run(loop))
    add, add_other = deferred.kind(deal), deferred.kind(deal)
    for number in range(THINGS_PER_TURN + 1):
        add(number)
    add_other(-1)
    deferred.run(loop)

    assert turns == [list(range(THINGS_PER_TURN)), [-1]]
    assert not deferred.waiting()
    await asyncio.sleep(0)
    later = turns[2:]
    assert later == [[THINGS_PER_TURN, THINGS_PER_TURN + 1]]
    assert not deferred.waiting()


async def test_what_ends_one_of_them_does_not_end_the_others() -> None:
    """Those that come after it are dealt with in the next turn."""
    loop = asyncio.get_running_loop()
    dealt: list[int] = []

    def deal(things: Iterator[int]) -> None:
        for thing in things:
            dealt.append(thing)
            if thing == 1:
                raise KeyboardInterrupt

    deferred = Deferred(lambda: deferred.run(loop))
    add = deferred.kind(deal)
    for number in range(3):
        add(number)
    with pytest.raises(KeyboardInterrupt):
        deferred.run(loop)
    await asyncio.sleep(0)

    assert dealt == [0, 1, 2]
