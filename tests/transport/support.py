"""What the transport tests share."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import zmq

from tests.waiting import wait_until_async
from zfabric import Config
from zfabric.transport.base import Buffer, Route
from zfabric.transport.sockets import ZmqTransport

LOOPBACK = ("127.0.0.1",)
BOTH = pytest.mark.parametrize("ipc", [False, True], ids=["tcp", "ipc"])
"The test runs over both."

Sockets = Callable[..., "zmq.Socket[bytes]"]


class Recorder:
    """A receiver that remembers what it was told."""

    def __init__(self) -> None:
        self.control: list[tuple[Route, bytes]] = []
        self.batches: list[list[bytes]] = []
        self.jobs: list[tuple[int, list[bytes]]] = []
        self.room: list[str] = []
        self.filters: list[bytes] = []
        self.broken: list[str] = []
        self.refused: list[tuple[str, str]] = []
        self.unreachable: list[int] = []
        self.interrupted: list[int] = []
        self.ends = 0
        self.bursts: list[int] = []
        self._burst = 0

    def on_control(self, route: Route, frame: bytes, user: str = "") -> None:
        """Remember a control frame."""
        self.control.append((route, frame))
        self._burst += 1

    def on_batch(self, frames: Sequence[Buffer], user: str = "") -> None:
        """Remember a batch."""
        self.batches.append([bytes(frame) for frame in frames])
        self._burst += 1

    def on_filter(self, data: bytes, user: str = "") -> None:
        """Remember a subscription."""
        self.filters.append(data)
        self._burst += 1

    def on_jobs(self, puller: int, frames: Sequence[Buffer], user: str = "") -> None:
        """Remember jobs."""
        self.jobs.append((puller, [bytes(frame) for frame in frames]))

    def on_room(self, queue: str) -> None:
        """Remember that there is room."""
        self.room.append(queue)

    def on_unreachable(self, route: int) -> None:
        """Remember a connection that was not made."""
        self.unreachable.append(route)

    def on_interrupted(self, route: int) -> None:
        """Remember a connection that ended."""
        self.interrupted.append(route)

    def on_connection_ended(self) -> None:
        """Remember an end."""
        self.ends += 1

    def on_violation(self, address: str, reason: str) -> None:
        """Remember somebody who broke the rules."""
        self.broken.append(address)

    def on_handshake_failed(self, address: str, reason: str) -> None:
        """Remember a handshake that failed."""
        self.refused.append((address, reason))

    def on_burst_end(self) -> None:
        """Remember how many came at once."""
        self.bursts.append(self._burst)
        self._burst = 0


class Line(ZmqTransport):
    """An open transport with its recorder."""

    def __init__(self, config: Config, addresses: tuple[str, ...], stem: Path | None) -> None:
        super().__init__(config, addresses, stem)
        self.got = Recorder()


Lines = Callable[..., Line]
_numbers = itertools.count()


@asynccontextmanager
async def lines(runtime_dir: Path) -> AsyncIterator[Lines]:
    """Opens transports, on ipc if asked for, and closes them."""
    made: list[Line] = []

    def make(*, addresses: tuple[str, ...] = LOOPBACK, ipc: bool = False, **limits: Any) -> Line:
        stem = runtime_dir / f"t{next(_numbers)}" if ipc else None
        line = Line(Config(mdns=False, **limits), addresses, stem)
        line.open(line.got)
        made.append(line)
        return line

    try:
        yield make
    finally:
        await asyncio.gather(*(line.close(0.05) for line in made if not line._context.closed))


@pytest.fixture
async def line(runtime_dir: Path) -> AsyncIterator[Lines]:
    """Opens transports."""
    async with lines(runtime_dir) as make:
        yield make


@pytest.fixture
def sockets() -> Iterator[Sockets]:
    """Makes plain sockets: `sockets(zmq.ROUTER, SNDHWM=1)`."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    made: list[zmq.Socket[bytes]] = []

    def make(kind: int, **options: Any) -> zmq.Socket[bytes]:
        socket = context.socket(kind)
        made.append(socket)
        socket.set(zmq.LINGER, 0)
        for name, value in options.items():
            socket.set(getattr(zmq, name), value)
        return socket

    yield make
    for socket in made:
        socket.close(linger=0)
    context.destroy(linger=0)


def bind(socket: zmq.Socket[bytes]) -> str:
    """Listen on a free port of the loopback interface."""
    return f"tcp://127.0.0.1:{socket.bind_to_random_port('tcp://127.0.0.1')}"


def drain(socket: zmq.Socket[bytes]) -> list[list[bytes]]:
    """Everything that waits in a socket."""
    got = []
    while socket.poll(0):
        got.append(socket.recv_multipart())
    return got


async def reached(near: Line, route: int, far: Line) -> bytes:
    """Send on a dialled route until it arrives; returns the far end's name for it."""
    assert near.send(route, b"to %d" % route)
    found = await wait_until_async(lambda: [r for r, frame in far.got.control if frame == b"to %d" % route])
    assert isinstance(found[0], bytes)
    return found[0]
