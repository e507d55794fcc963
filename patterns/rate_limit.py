"""Rate limit: at most so many messages a second, with bursts (a token bucket).

ZeroMQ Guide, chapter 5, "Slow Subscriber Detection" lists what to do with a publisher that is too fast for its
subscribers; this is "tell the publisher to slow down", decided beforehand. For pressure that follows what subscribers
really manage, use `delivery="at-least-once"` instead.

    limit = RateLimit(100, burst=20)
    async for reading in readings:
        await limit.wait()
        temps.publish_nowait(reading)

What can fail: the limit is this process's own, so N publishers make N times the rate. It says nothing about
subscribers: a slow one still loses, or holds an at-least-once publisher up. Time is the event loop's clock; after the
process was stopped (SIGSTOP, sleep of the machine) no more than `burst` goes out at once.
"""

from __future__ import annotations

import asyncio

__all__ = ["RateLimit"]


class RateLimit:
    """Lets `rate_hz` pass in a second, and after a pause up to `burst` at once."""

    def __init__(self, rate_hz: float, *, burst: int = 1) -> None:
        if not rate_hz > 0 or burst < 1:
            raise ValueError(f"rate_hz must be above 0 and burst 1 or more, not {rate_hz!r} and {burst!r}")
        self.rate_hz = rate_hz
        self.burst = burst
        self._tokens = float(burst)
        self._counted_s: float | None = None

    def __repr__(self) -> str:
        return f"<RateLimit {self.rate_hz:g} Hz, burst {self.burst}>"

    def take(self, count: int = 1) -> bool:
        """Whether `count` may pass now; if so, they are counted. Who waits goes first. Raises ValueError below 0."""
        _check(count)
        self._refill()
        if self._tokens < count - 1e-9:
            return False
        self._tokens -= count
        return True

    async def wait(self, count: int = 1) -> None:
        """Return when `count` may pass; who came first goes first. Raises ValueError below 0, and above `burst`."""
        _check(count)
        if count > self.burst:
            raise ValueError(f"{count} can never pass at once: burst is {self.burst}")
        self._refill()
        self._tokens -= count
        if self._tokens < 0:
            try:
                await asyncio.sleep(-self._tokens / self.rate_hz)
            except asyncio.CancelledError:
                self._tokens += count
                raise

    def _refill(self) -> None:
        """What is waited for makes the tokens negative."""
        now = asyncio.get_running_loop().time()
        if self._counted_s is not None:
            self._tokens = min(self.burst, self._tokens + (now - self._counted_s) * self.rate_hz)
        self._counted_s = now


def _check(count: int) -> None:
    if not count >= 0:
        raise ValueError(f"count must be 0 or more, not {count}")
