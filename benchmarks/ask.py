"""The loops of requests and replies, the same for every peer; see `drive.py` for the idea."""

from __future__ import annotations

import asyncio
import threading
import time
from array import array
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

from benchmarks import payloads
from benchmarks.model import Link, Role, Run

__all__ = ["Caller", "calling", "calling_async", "calling_back", "serving", "serving_async"]


@dataclass(frozen=True, kw_only=True)
class Caller:
    """A blocking client that may have several requests on the way; replies come in order."""

    send: Callable[[Any], Any]
    receive: Callable[[], Any]


Call = Callable[[Any], Awaitable[Any]]
"""Sends a request and waits for the reply."""
RunLoop = Callable[[Coroutine[Any, Any, Mapping[str, Any]]], Mapping[str, Any]]
Start = Callable[[Any, Callable[[], None]], Any]
"""Sends a request; the second argument is to be called when the reply is there."""


def calling(open_side: Callable[[Run, Link], AbstractContextManager[Caller]]) -> Role:
    """The role of a client with blocking calls."""
    return partial(_call, open_side)


def calling_async(
    open_side: Callable[[Run, Link], AbstractAsyncContextManager[Call]], run_loop: RunLoop = asyncio.run
) -> Role:
    """The role of a client in asyncio: as many tasks as requests in flight. `uvloop.run` is another `run_loop`."""
    return partial(_in_loop, run_loop, _call_async, open_side)


def calling_back(open_side: Callable[[Run, Link], AbstractContextManager[Start]]) -> Role:
    """The role of a client whose library calls back in a thread of its own."""
    return partial(_call_back, open_side)


def serving(open_side: Callable[[Run, Link], AbstractContextManager[Callable[[], Any] | None]]) -> Role:
    """The role of a server: the opener gives what serves one request, or None if a thread of the library does."""
    return partial(_serve, open_side)


def serving_async(
    open_side: Callable[[Run, Link], AbstractAsyncContextManager[None]], run_loop: RunLoop = asyncio.run
) -> Role:
    """The role of a server in asyncio, whose handler echoes the request."""
    return partial(_in_loop, run_loop, _serve_async, open_side)


def _in_loop(
    run_loop: RunLoop, role: Callable[..., Coroutine[Any, Any, Mapping[str, Any]]], *arguments: Any
) -> Mapping[str, Any]:
    return run_loop(role(*arguments))


class _Clock:
    """What a client returns."""

    def __init__(self) -> None:
        self.latencies = array("d")
        self._cpu = time.process_time()
        self._start = time.perf_counter()

    def result(self) -> Mapping[str, Any]:
        """Time, CPU time and the latency of every request."""
        seconds = time.perf_counter() - self._start
        return {"seconds": seconds, "cpu_s": time.process_time() - self._cpu, "latencies": self.latencies.tobytes()}


def _call(open_side: Any, run: Run, link: Link) -> Mapping[str, Any]:
    value, now = payloads.make(run.payload, run.size), time.perf_counter
    with open_side(run, link) as caller:
        send, receive = caller.send, caller.receive
        for count in (run.warmup, run.messages):
            link.meet()
            clock, started = _Clock(), deque[float]()
            for _ in range(min(run.in_flight, count)):
                started.append(now())
                send(value)
            for sent in range(count):
                receive()
                clock.latencies.append(now() - started.popleft())
                if sent + run.in_flight < count:
                    started.append(now())
                    send(value)
            result = clock.result()
            link.meet()
        return result


async def _call_async(open_side: Any, run: Run, link: Link) -> Mapping[str, Any]:
    value = payloads.make(run.payload, run.size)
    async with open_side(run, link) as call:
        for count in (run.warmup, run.messages):
            await link.meet_async()
            clock, numbers = _Clock(), iter(range(count))
            await asyncio.gather(*(_call_in_turn(call, value, numbers, clock) for _ in range(run.in_flight)))
            result = clock.result()
            await link.meet_async()
        return result


async def _call_in_turn(call: Call, value: Any, numbers: Any, clock: _Clock) -> None:
    now, note = time.perf_counter, clock.latencies.append
    for _ in numbers:
        start = now()
        await call(value)
        note(now() - start)


def _call_back(open_side: Any, run: Run, link: Link) -> Mapping[str, Any]:
    value, now = payloads.make(run.payload, run.size), time.perf_counter
    with open_side(run, link) as start:
        for count in (run.warmup, run.messages):
            link.meet()
            clock, slots = _Clock(), threading.Semaphore(run.in_flight)
            for _ in range(count):
                slots.acquire()
                start(value, partial(_note_reply, clock, now(), slots))
            for _ in range(run.in_flight):
                slots.acquire()
            result = clock.result()
            link.meet()
        return result


def _note_reply(clock: _Clock, started: float, slots: threading.Semaphore) -> None:
    clock.latencies.append(time.perf_counter() - started)
    slots.release()


def _serve(open_side: Any, run: Run, link: Link) -> Mapping[str, Any]:
    with open_side(run, link) as serve:
        for count in (run.warmup, run.messages):
            link.meet()
            cpu = time.process_time()
            for _ in range(count if serve else 0):
                serve()
            link.meet()
        return {"cpu_s": time.process_time() - cpu}


async def _serve_async(open_side: Any, run: Run, link: Link) -> Mapping[str, Any]:
    async with open_side(run, link):
        for _ in (run.warmup, run.messages):
            await link.meet_async()
            cpu = time.process_time()
            await link.meet_async()
        return {"cpu_s": time.process_time() - cpu}
