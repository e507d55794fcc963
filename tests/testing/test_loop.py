"""Virtual time."""

from __future__ import annotations

import asyncio
import random
import time

import pytest

from zfabric.testing import Deadlock, VirtualClockLoop, eventually, run

DAY = 86_400.0


def test_waiting_takes_no_time() -> None:
    """A year of sleeping is over at once, and the clock shows it."""

    async def main() -> float:
        for _ in range(365):
            await asyncio.sleep(DAY)
        return asyncio.get_running_loop().time()

    before = time.monotonic()

    assert run(main()) == pytest.approx(365 * DAY, abs=1e-3)
    assert time.monotonic() - before < 5


def test_timers_fire_in_their_order() -> None:
    """Whatever the order they were set in, and with equal times in that order."""

    async def main() -> list[int]:
        fired: list[int] = []
        loop = asyncio.get_running_loop()
        for delay in (3, 1, 2, 1):
            loop.call_later(delay, fired.append, delay * 10 + len(fired))
        await asyncio.sleep(DAY)
        return fired

    assert run(main()) == [10, 10, 20, 30]


def test_timeouts_expire() -> None:
    """asyncio's own tools see the virtual clock."""

    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3600):
                await asyncio.Event().wait()
        assert asyncio.get_running_loop().time() == pytest.approx(3600)

    run(main())


def test_a_deadlock_is_an_error_that_names_the_tasks() -> None:
    """Where a real loop would hang, the error tells who waits where."""
    seen: list[str] = []

    async def stuck() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            seen.append("cleaned up")

    async def main() -> None:
        task = asyncio.create_task(stuck(), name="the-stuck-one")
        await task

    with pytest.raises(Deadlock) as caught:
        run(main())

    assert "the-stuck-one" in str(caught.value)
    assert "test_loop.py" in str(caught.value)
    assert seen == ["cleaned up"]


def test_results_and_exceptions_come_out() -> None:
    """`run` behaves like asyncio.run."""

    async def fail() -> None:
        await asyncio.sleep(DAY)
        raise KeyError("mine")

    async def answer() -> int:
        return 42

    assert run(answer()) == 42
    with pytest.raises(KeyError, match="mine"):
        run(fail())


def test_the_seed_decides_what_random_gives() -> None:
    """Same seed, same numbers; and the program's own generator is as it was."""

    async def draw() -> list[float]:
        return [random.random() for _ in range(3)]

    random.seed(5)
    expected = random.Random(5).random()

    assert run(draw(), seed=1) == run(draw(), seed=1) != run(draw(), seed=2)
    assert random.random() == expected


def test_threads_can_still_wake_the_loop() -> None:
    """With no timer set, the loop waits for the result of a thread that was started in it."""

    async def main() -> int:
        assert isinstance(asyncio.get_running_loop(), VirtualClockLoop)
        return await asyncio.to_thread(lambda: 7)

    assert run(main()) == 7


def test_timers_without_delay_fire_after_a_year() -> None:
    """Large clock readings have room for all that is due now."""

    async def main() -> None:
        await asyncio.sleep(365 * DAY)
        fired = asyncio.Event()
        asyncio.get_running_loop().call_later(0, fired.set)
        await fired.wait()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await asyncio.Event().wait()

    run(main())


def test_eventually_waits_in_virtual_time() -> None:
    """It returns what the condition returned, or raises TimeoutError."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        flag: list[str] = []
        loop.call_later(100, flag.append, "now")

        assert await eventually(lambda: flag, timeout=200) == ["now"]
        assert 99.99 <= loop.time() < 101
        with pytest.raises(TimeoutError, match="still False"):
            await eventually(lambda: False, timeout=50)
        assert 150 <= loop.time() < 152

    run(main())
