"""Descriptors and the event loop: both ways of watching, and the choice between them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator

import pytest

from tests.waiting import wait_until_async
from zfabric.transport.readiness import LoopReadiness, Readiness, ThreadReadiness, readiness


@pytest.fixture(params=[False, True], ids=["loop", "thread"])
async def ready(request: pytest.FixtureRequest) -> Readiness:
    """Either way, closed by the test."""
    return readiness(asyncio.get_running_loop(), force_thread=request.param)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two ends of a line; the second never blocks."""
    near, far = socket.socketpair()
    far.setblocking(False)
    with near, far:
        yield near, far


async def test_the_loop_is_used_where_it_can(ready: Readiness) -> None:
    """A selector loop watches by itself; `force_waker_thread` takes a thread."""
    assert isinstance(ready, LoopReadiness | ThreadReadiness)
    ready.close()


async def test_a_loop_without_add_reader_gets_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows' Proactor cannot watch sockets."""
    loop = asyncio.get_running_loop()

    def cannot(*_: object) -> None:
        raise NotImplementedError

    monkeypatch.setattr(loop, "add_reader", cannot)
    ready = readiness(loop, force_thread=False)

    assert isinstance(ready, ThreadReadiness)
    ready.close()


async def test_no_wakeup_is_lost(ready: Readiness, pair: tuple[socket.socket, socket.socket]) -> None:
    """A thousand bytes, written at every phase of the watching, are all read."""
    near, far = pair
    got = 0

    def read() -> None:
        nonlocal got
        try:
            got += len(far.recv(3))
        except BlockingIOError:
            pass

    ready.watch(far.fileno(), read)

    near.setblocking(False)
    for number in range(1000):
        await wait_until_async(lambda: _sent(near), pause=0)
        if number % 3 == 0:
            await asyncio.sleep(0)
        if number % 7 == 0:
            await asyncio.to_thread(near.send, b"")

    await wait_until_async(lambda: got == 1000)
    ready.forget(far.fileno())
    ready.close()


def _sent(socket_: socket.socket) -> bool:
    try:
        return socket_.send(b"x") == 1
    except BlockingIOError:
        return False


async def test_what_is_forgotten_is_not_reported(ready: Readiness, pair: tuple[socket.socket, socket.socket]) -> None:
    """A report on its way when its descriptor is forgotten is dropped; others still come."""
    near, far = pair
    other_near, other_far = socket.socketpair()
    calls: list[str] = []
    ready.watch(far.fileno(), lambda: calls.append("forgotten"))
    ready.watch(other_far.fileno(), lambda: calls.append(other_far.recv(1).decode()))

    near.send(b"x")
    ready.forget(far.fileno())
    other_near.send(b"y")

    await wait_until_async(lambda: calls == ["y"])
    ready.forget(other_far.fileno())
    ready.close()
    other_near.close()
    other_far.close()


async def test_a_callback_that_fails_stops_nothing(pair: tuple[socket.socket, socket.socket]) -> None:
    """The thread goes on after an exception, which the event loop reports."""
    near, far = pair
    loop = asyncio.get_running_loop()
    errors: list[object] = []
    loop.set_exception_handler(lambda _, context: errors.append(context["exception"]))
    ready = ThreadReadiness(loop)
    got: list[bytes] = []

    def fail_once() -> None:
        got.append(far.recv(1))
        if len(got) == 1:
            raise ValueError

    ready.watch(far.fileno(), fail_once)
    near.send(b"ab")

    await wait_until_async(lambda: got == [b"a", b"b"])
    assert [type(error) for error in errors] == [ValueError]
    ready.close()
