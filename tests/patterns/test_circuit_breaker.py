"""The circuit breaker, in virtual time."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import pytest
from zfabric.patterns.circuit_breaker import CircuitBreaker, CircuitOpen

from zfabric import FabricError
from zfabric.testing import Clock, run


def fail(breaker: CircuitBreaker, error: BaseException | None = None) -> None:
    """One attempt that fails."""
    with suppress(type(error) if error else FabricError), breaker.attempt():
        raise error or FabricError("no")


def test_it_opens_and_closes() -> None:
    """Failures in a row open it, the cooldown lets one try through, and that one decides."""

    async def scenario() -> None:
        breaker = CircuitBreaker(failures=3, cooldown_s=10)
        for _ in range(2):
            fail(breaker)
        with breaker.attempt():
            pass
        for _ in range(3):
            assert breaker.state == "closed"
            fail(breaker)
        assert breaker.state == "open"
        await Clock().advance(4)
        with pytest.raises(CircuitOpen) as refused, breaker.attempt():
            raise AssertionError("it was let through")
        assert refused.value.retry_after == pytest.approx(6)

        await Clock().advance(6)
        assert breaker.state == "half-open"
        fail(breaker)
        assert breaker.state == "open"
        await Clock().advance(10)
        with breaker.attempt():
            assert breaker.state == "open"
            with pytest.raises(CircuitOpen), breaker.attempt():
                raise AssertionError("a second try at the same time")
        assert breaker.state == "closed"

    run(scenario())


def test_what_counts() -> None:
    """Other errors than those of `failure`, and a cancelled call, are no failures; a cancelled try decides nothing."""

    async def scenario() -> None:
        breaker = CircuitBreaker(failures=1, cooldown_s=1)
        fail(breaker, KeyError())
        fail(breaker, asyncio.CancelledError())
        assert breaker.state == "closed"
        fail(breaker, OSError())
        await Clock().advance(1)
        fail(breaker, asyncio.CancelledError())
        assert breaker.state == "half-open"

    run(scenario())


def test_old_calls_do_not_decide() -> None:
    """A call that began before it opened neither closes it nor makes it stay open longer."""

    async def scenario() -> None:
        breaker = CircuitBreaker(failures=1, cooldown_s=10)
        good, bad = breaker.attempt(), breaker.attempt()
        good.__enter__()
        bad.__enter__()
        fail(breaker)
        await Clock().advance(9)
        good.__exit__(None, None, None)
        assert breaker.state == "open"
        error = FabricError("late")
        assert not bad.__exit__(FabricError, error, None)
        await Clock().advance(1)
        assert breaker.state == "half-open"

    run(scenario())


def test_nonsense_is_refused() -> None:
    """A breaker that never closes, or never opens, is refused."""
    with pytest.raises(ValueError, match="failures"):
        CircuitBreaker(failures=0)
    with pytest.raises(ValueError, match="cooldown_s"):
        CircuitBreaker(cooldown_s=0)
    wrong: list[Any] = [[ValueError], "ValueError", (ValueError, "OSError")]
    for failure in wrong:
        with pytest.raises(TypeError, match="tuple of exceptions"):
            CircuitBreaker(failure=failure)
