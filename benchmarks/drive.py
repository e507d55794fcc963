"""The loops of the roles, the same for every peer: a peer file only opens its sockets and says how to send and receive.

A peer file gives functions that open one side of a connection, as context managers; `sending(open_side)` and the like
make roles of them. The roles meet the other processes, warm up, send at full speed or at a rate, and read the clocks.
"""

from __future__ import annotations

import asyncio
import struct
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice, repeat
from typing import Any

from benchmarks import payloads
from benchmarks.meter import Reception, Transmission
from benchmarks.model import Link, Role, Run
from benchmarks.ticker import Ticker

__all__ = [
    "AsyncReceiver",
    "Receiver",
    "Sender",
    "receiving",
    "receiving_async",
    "receiving_callbacks",
    "sending",
    "sending_async",
]

TICK_S = 100e-6
"How often a sender with a rate looks at the clock."
POLL_S = 0.02
"How often silence is looked for, where the peer does not tell."
DUE = struct.Struct("<d")


def _nothing() -> None:
    """What `flush` does where everything that was sent is on its way already."""


async def _nothing_async() -> None:
    """The same for asyncio."""


@dataclass(frozen=True, kw_only=True)
class Sender:
    """How a peer sends, once it is connected."""

    sends: Sequence[Callable[[Any], Any]]
    "One function for each of `Run.topic_names`; it sends one message. A coroutine function in asyncio."
    flush: Callable[[], Any] = _nothing
    "Called at the end of each phase: until everything is on its way, or confirmed. A coroutine function in asyncio."
    many: Callable[[Iterator[Any]], Any] | None = None
    "Sends all of them, where the peer has a call for that. A coroutine function in asyncio."
    turn: int = 0
    "In asyncio: `sends` are plain functions, and the event loop gets its turn after that many calls."


@dataclass(frozen=True, kw_only=True)
class Receiver:
    """How a peer receives with blocking calls."""

    receive: Callable[[], Any]
    "The next message, or a list of messages if `lists`; waits for `Run.quiet_s` at most."
    silence: type[Exception] = TimeoutError
    "What `receive` raises when nothing came; an empty list says the same."
    lists: bool = False
    payload: Callable[[Any], bytes] | None = None
    "Takes the bytes out of a message, where it is not bytes itself."
    many: Callable[[int], int] | None = None
    "Receives that many, if the peer loops by itself; returns how many came before silence."


@dataclass(frozen=True, kw_only=True)
class AsyncReceiver:
    """How a peer receives in asyncio."""

    messages: Callable[[], AsyncIterator[Any]]
    "Begins to iterate over messages, or over lists of messages if `lists`; called for each phase."
    lists: bool = False
    value: Callable[[Any], Any] | None = None
    "Takes the value out of a message; called for each, as a program would."
    progress: Callable[[], Any] | None = None
    """Something that changes while messages come, to notice silence without counting each; not needed for lists.
    Without it a lost message makes the run fail."""


OpenSender = Callable[[Run, Link], AbstractContextManager[Sender]]
OpenReceiver = Callable[[Run, Link], AbstractContextManager[Receiver]]
OpenCallbacks = Callable[[Run, Link, Callable[[bytes], None]], AbstractContextManager[None]]
OpenAsyncSender = Callable[[Run, Link], AbstractAsyncContextManager[Sender]]
OpenAsyncReceiver = Callable[[Run, Link], AbstractAsyncContextManager[AsyncReceiver]]


def sending(open_side: OpenSender) -> Role:
    """The role of a sender with blocking calls."""
    return partial(_send, open_side)


def sending_async(open_side: OpenAsyncSender) -> Role:
    """The role of a sender in asyncio."""
    return partial(_in_loop, _send_async, open_side)


def receiving(open_side: OpenReceiver) -> Role:
    """The role of a receiver with blocking calls."""
    return partial(_receive, open_side)


def receiving_callbacks(open_side: OpenCallbacks) -> Role:
    """The role of a receiver that is called for each message, in a thread of its library: the opener is given what to
    call.
    """
    return partial(_receive_callbacks, open_side)


def receiving_async(open_side: OpenAsyncReceiver) -> Role:
    """The role of a receiver in asyncio."""
    return partial(_in_loop, _receive_async, open_side)


def _in_loop(role: Callable[[Any, Run, Link], Awaitable[Mapping[str, Any]]], *arguments: Any) -> Mapping[str, Any]:
    return asyncio.run(role(*arguments))  # type: ignore[arg-type]


# -- sending ---------------------------------------------------------------------------------------


def _send(open_side: OpenSender, run: Run, link: Link) -> Mapping[str, Any]:
    with open_side(run, link) as sender:
        for count in (run.warmup, run.messages):
            link.meet()
            clock = Transmission()
            if run.rate:
                _pace(sender, run, count)
            else:
                _pour(sender, run, count)
            sender.flush()
            link.meet()
        return clock.result()


async def _send_async(open_side: OpenAsyncSender, run: Run, link: Link) -> Mapping[str, Any]:
    async with open_side(run, link) as sender:
        for count in (run.warmup, run.messages):
            await link.meet_async()
            clock = Transmission()
            if run.rate:
                await _pace_async(sender, run, count)
            else:
                await _pour_async(sender, run, count)
            await (_nothing_async if sender.flush is _nothing else sender.flush)()
            await link.meet_async()
        return clock.result()


def _pour(sender: Sender, run: Run, count: int) -> None:
    """Send as fast as possible."""
    value, codec = payloads.make(run.payload, run.size), payloads.codec(run.payload)
    if sender.many is not None:
        sender.many(repeat(value, count))
    elif codec is None:
        for send in _in_turn(sender, count):
            send(value)
    else:
        encode = codec[0]
        for send in _in_turn(sender, count):
            send(encode(value))


async def _pour_async(sender: Sender, run: Run, count: int) -> None:
    """Send as fast as possible; a peer in asyncio that takes bytes only gets no other payload."""
    value = payloads.make(run.payload, run.size)
    if sender.many is not None:
        await sender.many(repeat(value, count))
    elif sender.turn:
        turns = _in_turn(sender, count)
        for _ in range(0, count, sender.turn):
            for send in islice(turns, sender.turn):
                send(value)
            await asyncio.sleep(0)
    else:
        for send in _in_turn(sender, count):
            await send(value)


def _in_turn(sender: Sender, count: int) -> Iterator[Callable[[Any], Any]]:
    """The topics' functions in turn, `count` in all."""
    return repeat(sender.sends[0], count) if len(sender.sends) == 1 else islice(cycle(sender.sends), count)


def _pace(sender: Sender, run: Run, count: int) -> None:
    """Send each message when it is due, or as soon after as possible: a late sender does not shift the schedule."""
    send = sender.sends[0]
    with Ticker(TICK_S) as ticker:
        for due in _schedule(run, count):
            for value in due:
                send(value)
            ticker.wait()


async def _pace_async(sender: Sender, run: Run, count: int) -> None:
    """The same in asyncio."""
    send = sender.sends[0]
    with Ticker(TICK_S) as ticker:
        for due in _schedule(run, count):
            for value in due:
                if sender.turn:
                    send(value)
                else:
                    await send(value)
            await ticker.wait_async()


def _schedule(run: Run, count: int) -> Iterator[Iterator[bytes]]:
    """The messages that are due now, each with the time when it was due, until all are sent."""
    padding = bytes(max(0, run.size - payloads.STAMP))
    interval_s, pack, sent = 1 / run.rate, DUE.pack, 0
    start = time.perf_counter()
    while sent < count:
        due = min(count, int((time.perf_counter() - start) / interval_s))
        yield (pack(start + index * interval_s) + padding for index in range(sent, due))
        sent = due


# -- receiving -------------------------------------------------------------------------------------


def _receive(open_side: OpenReceiver, run: Run, link: Link) -> Mapping[str, Any]:
    """Receive both phases; silence ends a phase."""
    with open_side(run, link) as receiver:
        for expected in (run.warmup, run.messages):
            wanted = _wanted(run, expected)
            link.meet()
            clock = Reception()
            if run.rate:
                count = _take_timed(receiver, wanted, clock)
            elif receiver.many is not None:
                count = _take_many(receiver, receiver.many, wanted, clock)
            elif receiver.lists:
                count = _take_lists(receiver, wanted, clock)
            else:
                count = _take(receiver, run, wanted, clock)
            result = clock.result(count, expected, run.quiet_s if count < wanted else 0.0)
            link.meet()
        return result


def _wanted(run: Run, expected: int) -> int:
    """Who shares the messages with others asks for more until silence: only so is the last one acknowledged."""
    return expected + run.shared


def _take(receiver: Receiver, run: Run, expected: int, clock: Reception) -> int:
    receive, count, codec = receiver.receive, 0, payloads.codec(run.payload)
    try:
        if codec is None:
            receive()
            clock.first(1)
            for count in range(1, expected):  # noqa: B007 - read when the wait ran out
                receive()
        else:
            decode = codec[1]
            decode(receive())
            clock.first(1)
            for count in range(1, expected):  # noqa: B007 - as above
                decode(receive())
    except receiver.silence:
        return count
    return expected


def _take_many(receiver: Receiver, many: Callable[[int], int], expected: int, clock: Reception) -> int:
    try:
        receiver.receive()
    except receiver.silence:
        return 0
    clock.first(1)
    return 1 + many(expected - 1)


def _take_lists(receiver: Receiver, expected: int, clock: Reception) -> int:
    receive, count = receiver.receive, 0
    while count < expected:
        try:
            messages = receive()
        except receiver.silence:
            break
        if not messages:
            break
        if not count:
            clock.first(len(messages))
        count += len(messages)
    return count


def _take_timed(receiver: Receiver, expected: int, clock: Reception) -> int:
    """Note how long after its due time each message came."""
    receive, payload, note = receiver.receive, receiver.payload, clock.latencies.append
    now, due_of, count = time.perf_counter, DUE.unpack_from, 0
    try:
        while count < expected:
            received = receive()
            for message in received if receiver.lists else (received,):
                note(now() - due_of(payload(message) if payload else message)[0])
                count += 1
    except receiver.silence:
        pass
    return count


class _Tally:
    """Counts what a library's thread hands over."""

    def __init__(self, run: Run, expected: int, clock: Reception) -> None:
        self.count = 0
        self.done = threading.Event()
        self._expected = expected
        self._clock = clock
        codec = payloads.codec(run.payload)
        self.take = self._take_timed if run.rate else self._take_decoded if codec else self._take
        self._decode = codec[1] if codec else None

    def _take(self, _payload: bytes) -> None:
        self.count += 1
        if self.count == 1:
            self._clock.first(1)
        if self.count == self._expected:
            self.done.set()

    def _take_decoded(self, payload: bytes) -> None:
        assert self._decode is not None
        self._decode(payload)
        self._take(payload)

    def _take_timed(self, payload: bytes) -> None:
        self._clock.latencies.append(time.perf_counter() - DUE.unpack_from(payload)[0])
        self._take(payload)

    def wait(self, quiet_s: float) -> float:
        """Until all is there, or nothing came for `quiet_s`; returns how long nothing came."""
        seen, changed = -1, time.perf_counter()
        while not self.done.wait(POLL_S):
            if self.count != seen:
                seen, changed = self.count, time.perf_counter()
            elif time.perf_counter() - changed > quiet_s:
                return time.perf_counter() - changed
        return 0.0


class _Takes:
    """Where the library's thread finds the tally of the present phase."""

    def __init__(self) -> None:
        self.take: Callable[[bytes], None] = lambda _payload: None

    def hand_over(self, payload: bytes) -> None:
        """What the library calls."""
        self.take(payload)


def _receive_callbacks(open_side: OpenCallbacks, run: Run, link: Link) -> Mapping[str, Any]:
    takes = _Takes()
    with open_side(run, link, takes.hand_over):
        for expected in (run.warmup, run.messages):
            clock = Reception()
            tally = _Tally(run, _wanted(run, expected), clock)
            takes.take = tally.take
            link.meet()
            quiet_s = tally.wait(run.quiet_s)
            result = clock.result(tally.count, expected, quiet_s)
            link.meet()
        return result


async def _receive_async(open_side: OpenAsyncReceiver, run: Run, link: Link) -> Mapping[str, Any]:
    async with open_side(run, link) as receiver:
        take = _take_timed_async if run.rate else _take_lists_async if receiver.lists else _take_async
        for expected in (run.warmup, run.messages):
            await link.meet_async()
            clock = Reception()
            progress = partial(getattr, clock, "count") if receiver.lists else receiver.progress
            count, quiet_s = await _until_quiet(take(receiver, _wanted(run, expected), clock), progress, run.quiet_s)
            result = clock.result(count, expected, quiet_s)
            await link.meet_async()
        return result


async def _take_async(receiver: AsyncReceiver, expected: int, clock: Reception) -> int:
    value, count = receiver.value, 0
    try:
        async for message in receiver.messages():
            if not count:
                clock.first(1)
            if value is not None:
                value(message)
            count += 1
            if count >= expected:
                break
    except asyncio.CancelledError:
        pass
    return count


async def _take_lists_async(receiver: AsyncReceiver, expected: int, clock: Reception) -> int:
    value, count = receiver.value, 0
    try:
        async for messages in receiver.messages():
            if not count:
                clock.first(len(messages))
            if value is not None:
                for message in messages:
                    value(message)
            clock.count = count = count + len(messages)
            if count >= expected:
                break
    except asyncio.CancelledError:
        pass
    return count


async def _take_timed_async(receiver: AsyncReceiver, expected: int, clock: Reception) -> int:
    """Note how long after its due time each message came."""
    value, note, now, due_of, count = receiver.value, clock.latencies.append, time.perf_counter, DUE.unpack_from, 0
    try:
        async for received in receiver.messages():
            for message in received if receiver.lists else (received,):
                note(now() - due_of(value(message) if value else message)[0])
                count += 1
            clock.count = count
            if count >= expected:
                break
    except asyncio.CancelledError:
        pass
    return count


async def _until_quiet(take: Awaitable[int], progress: Callable[[], Any] | None, quiet_s: float) -> tuple[int, float]:
    """Wait for the loop, or stop it when nothing came for `quiet_s`; returns its count and how long it was quiet."""
    task = asyncio.ensure_future(take)
    if progress is None:
        return await task, 0.0
    seen, changed = progress(), time.perf_counter()
    while not (await asyncio.wait({task}, timeout=POLL_S))[0]:
        if (now := progress()) != seen:
            seen, changed = now, time.perf_counter()
        elif time.perf_counter() - changed > quiet_s:
            task.cancel()
            return await task, time.perf_counter() - changed
    return await task, 0.0
