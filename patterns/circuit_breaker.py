"""Circuit breaker: when something failed again and again, leave it alone for a while.

ZeroMQ Guide, chapter 4, "Client-Side Reliability (Lazy Pirate Pattern)": a client that tries again and again, and then
abandons. The breaker is the abandoning: it spares the caller the wait, and the other side the load.

    breaker = CircuitBreaker(failures=5, cooldown_s=10)
    try:
        with breaker.attempt():
            total = await node.request("shop.total", order, timeout=1)
    except CircuitOpen as refused:
        total = None  # at once; again in refused.retry_after

While closed, everything passes, and `failures` failures in a row open it. While open, everything is refused with
CircuitOpen. After `cooldown_s` it is half open: one try passes, and decides.

What can fail: the breaker is this process's own and learns by failing, so N clients make N times the attempts. A
failure that is the request's own fault (`failure=`) must not count, or one bad caller opens it for all. It does not
bound how long a call takes: give calls a timeout.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from zfabric import FabricError

__all__ = ["CircuitBreaker", "CircuitOpen"]


class CircuitOpen(FabricError):
    """The circuit breaker refused the call: try again in `retry_after` seconds."""

    def __init__(self, retry_after: float) -> None:
        super().__init__(f"it failed too often: not tried again for {retry_after:.3g} s")
        self.retry_after = retry_after


class CircuitBreaker:
    """`with breaker.attempt():` around a call counts its failures, or refuses it by CircuitOpen.

    `failure` are the exceptions that count: by default those of the fabric, of time and of the operating system.
    """

    def __init__(
        self,
        *,
        failures: int = 5,
        cooldown_s: float = 10.0,
        failure: tuple[type[Exception], ...] = (FabricError, TimeoutError, OSError),
    ) -> None:
        if failures < 1 or not cooldown_s > 0:
            raise ValueError(f"failures must be 1 or more and cooldown_s above 0, not {failures!r} and {cooldown_s!r}")
        self._failures_max = failures
        self._cooldown_s = cooldown_s
        self._failure = _checked(failure)
        self._failures = 0
        self._opened_s: float | None = None
        self._probing = False

    def __repr__(self) -> str:
        return f"<CircuitBreaker {self.state}, {self._failures} failures>"

    @property
    def state(self) -> str:
        """What happens to the next call: `"closed"` it passes, `"open"` it is refused, `"half-open"` it decides."""
        if self._opened_s is None:
            return "closed"
        return "open" if self._probing or self._cooling_s() > 0 else "half-open"

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Around one call. Raises CircuitOpen in its place while the circuit is open."""
        probe = self._opened_s is not None
        if probe:
            if self.state == "open":
                raise CircuitOpen(max(0.0, self._cooling_s()))
            self._probing = True
        try:
            yield
        except self._failure:
            self._failed(probe=probe)
            raise
        else:
            self._succeeded(probe=probe)
        finally:
            if probe:
                self._probing = False

    def _failed(self, *, probe: bool) -> None:
        """What began before the circuit opened is no news any more."""
        if not probe and self._opened_s is not None:
            return
        self._failures += 1
        if probe or self._failures >= self._failures_max:
            self._opened_s = asyncio.get_running_loop().time()

    def _succeeded(self, *, probe: bool) -> None:
        if probe or self._opened_s is None:
            self._failures, self._opened_s = 0, None

    def _cooling_s(self) -> float:
        assert self._opened_s is not None
        return self._opened_s + self._cooldown_s - asyncio.get_running_loop().time()


def _checked(failure: Any) -> tuple[type[Exception], ...]:
    kinds = failure if isinstance(failure, tuple) else (failure,)
    if not all(isinstance(kind, type) and issubclass(kind, BaseException) for kind in kinds):
        raise TypeError(f"failure must be a tuple of exceptions, not {failure!r}")
    return kinds
