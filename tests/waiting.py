"""Waiting for a condition with a deadline, so that no test ever sleeps for a fixed time."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable
from typing import TypeVar

__all__ = ["SLACK_S", "wait_until", "wait_until_async"]

T = TypeVar("T")

SLACK_S = 4.0
"What a slow machine may add where something must end in time; without that bound it takes longer, or for ever."

_PAUSE_S = 0.005


def wait_until(predicate: Callable[[], T], timeout: float = 30.0, *, pause: float = _PAUSE_S) -> T:
    """Ask `predicate` until it returns something true, and return that; AssertionError after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        value = predicate()
        if value:
            return value
        if time.monotonic() >= deadline:
            raise AssertionError(_message(predicate, value, timeout))
        time.sleep(pause)


async def wait_until_async(predicate: Callable[[], T], timeout: float = 30.0, *, pause: float = _PAUSE_S) -> T:
    """`wait_until` for coroutines: the event loop runs on between two questions."""
    deadline = time.monotonic() + timeout
    while True:
        value = predicate()
        if value:
            return value
        if time.monotonic() >= deadline:
            raise AssertionError(_message(predicate, value, timeout))
        await asyncio.sleep(pause)


def _message(predicate: Callable[[], object], value: object, timeout: float) -> str:
    try:
        source = inspect.getsource(predicate).strip()
    except (OSError, TypeError):
        source = repr(predicate)
    return f"still {value!r} after {timeout} s: {source}"
