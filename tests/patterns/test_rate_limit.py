"""The rate limit, in virtual time."""

from __future__ import annotations

import asyncio

import pytest
from zfabric.patterns.rate_limit import RateLimit

from zfabric.testing import Clock, run


def passed_at(limit: RateLimit, counts: list[int]) -> list[float]:
    """When each of these many passed, all of them asked for at once."""

    async def scenario() -> list[float]:
        loop = asyncio.get_running_loop()
        began = loop.time()

        async def one(count: int) -> float:
            await limit.wait(count)
            return round(loop.time() - began, 3)

        return await asyncio.gather(*map(one, counts))

    return run(scenario())


def test_rate_and_burst() -> None:
    """A burst passes at once, then one after the other at the rate, in the order in which they asked."""
    assert passed_at(RateLimit(10), [1] * 4) == [0, 0.1, 0.2, 0.3]
    assert passed_at(RateLimit(10, burst=3), [1] * 6) == [0, 0, 0, 0.1, 0.2, 0.3]
    assert passed_at(RateLimit(10, burst=3), [3, 2, 1]) == [0, 0.2, 0.3]


def test_a_pause_saves_no_more_than_a_burst() -> None:
    """However long nothing passed, no more than `burst` passes at once; `take` does not wait."""

    async def scenario() -> list[bool]:
        limit = RateLimit(100, burst=2)
        await limit.wait(2)
        await Clock().advance(1000)
        return [limit.take() for _ in range(3)] + [RateLimit(1, burst=2).take(3)]

    assert run(scenario()) == [True, True, False, False]


def test_nonsense_is_refused() -> None:
    """What could never pass is an error, not a wait for ever."""

    async def scenario() -> None:
        with pytest.raises(ValueError, match="can never pass"):
            await RateLimit(1, burst=2).wait(3)
        limit = RateLimit(1, burst=2)
        for count in (-1, float("nan")):  # would let any number pass afterwards
            with pytest.raises(ValueError, match="count must be 0 or more"):
                limit.take(count)  # type: ignore[arg-type]
            with pytest.raises(ValueError, match="count must be 0 or more"):
                await limit.wait(count)  # type: ignore[arg-type]
        assert [limit.take(2), limit.take(1)] == [True, False]

    run(scenario())
    for rate, burst in ((0, 1), (-1, 1), (1, 0), (float("nan"), 1)):
        with pytest.raises(ValueError, match="rate_hz"):
            RateLimit(rate, burst=burst)
