"""A TCP proxy that does to connections what networks do, and worse.

    with Proxy("127.0.0.2") as proxy:
        inbox, outlet = (proxy.serve(endpoint) for endpoint in publisher.endpoints)
        outlet.delay_s = 0.1
        proxy.reset()

Each served endpoint has a `Line`: delay, jitter, corruption, a filter for ZMTP frames, and blackholes. The proxy
listens at the endpoint's port on another loopback address, so a program that connects `via` that address meets it.
It runs in a thread of its own: a busy test does not slow the network down.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from types import TracebackType
from typing import Any, TypeVar

__all__ = ["FrameFilter", "Frames", "Line", "Proxy", "can_serve"]

T = TypeVar("T")
CHUNK = 64 * 1024
GREETING = 64
"Bytes of ZMTP's greeting, before the first frame."
HANDSHAKE = 512
"Bytes that pass undamaged, so that a connection comes about at all."
POLL_S = 0.01

FrameFilter = Callable[[int, bytes], list[bytes]]
"""Gets (flags, body) of a ZMTP frame and returns the bodies to send instead: none, it, changed, or several."""


class Line:
    """What happens to the connections of one endpoint; attributes may be changed at any time."""

    def __init__(self, target: tuple[str, int], seed: int) -> None:
        self.target = target
        self.delay_s = 0.0
        "One way, from the listener to the one who connected; the other way is not delayed."
        self.jitter_s = 0.0
        "Added to the delay: between 0 and this."
        self.flip_every = 0
        "One byte in about so many changes, after the greeting."
        self.blackhole = False
        "Connections stay open and nothing comes through any more, in either direction; new ones get no answer."
        self.frames: FrameFilter | None = None
        "Applied to ZMTP frames from the listener to the one who connected."
        self.inward: FrameFilter | None = None
        "Applied to those in the other direction."
        self.flipped = 0
        self.accepted = 0
        self.random = random.Random(seed)

    def damage(self, data: bytes) -> bytes:
        """Flip a bit here and there."""
        if not self.flip_every:
            return data
        changed = bytearray(data)
        position = self.random.randrange(self.flip_every)
        while position < len(changed):
            changed[position] ^= 1 << self.random.randrange(8)
            self.flipped += 1
            position += 1 + self.random.randrange(2 * self.flip_every)
        return bytes(changed)


class Frames:
    """Splits a ZMTP stream into frames, applies a filter, and puts it together again."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._greeting = GREETING

    def feed(self, data: bytes, keep: FrameFilter) -> bytes:
        """The stream after the filter, as far as it can be told."""
        self._buffer += data
        out = bytearray()
        if self._greeting:
            greeting = self._take(min(self._greeting, len(self._buffer)))
            self._greeting -= len(greeting)
            out += greeting
        while (size := self._size()) is not None and len(self._buffer) >= sum(size):
            head, body = self._take(size[0]), self._take(size[1])
            flags = head[0]
            for changed in [body] if flags & 4 else keep(flags, body):
                long = len(changed) > 255
                kept = flags & 5
                out += struct.pack(">BQ", kept | 2, len(changed)) if long else struct.pack(">BB", kept, len(changed))
                out += changed
        return bytes(out)

    def _take(self, count: int) -> bytes:
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken

    def _size(self) -> tuple[int, int] | None:
        buffer = self._buffer
        if not buffer:
            return None
        if buffer[0] & 2:
            return (9, struct.unpack_from(">Q", buffer, 1)[0]) if len(buffer) >= 9 else None
        return (2, buffer[1]) if len(buffer) >= 2 else None


class Proxy:
    """All lines, and the thread that serves them."""

    def __init__(self, host: str = "127.0.0.2", seed: int = 1) -> None:
        self.host = host
        self.lines: list[Line] = []
        self._seed = seed
        self._pairs: dict[Line, set[tuple[asyncio.StreamWriter, asyncio.StreamWriter]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._servers: list[asyncio.Server] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy")

    def __enter__(self) -> Proxy:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._call(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)

    def serve(self, endpoint: str) -> Line:
        """Stand in front of an endpoint, at the same port."""
        host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
        line = Line((host, int(port)), self._seed + len(self.lines))
        self.lines.append(line)
        self._pairs[line] = set()
        self._call(self._listen(line))
        return line

    def reset(self, *lines: Line) -> int:
        """Break the connections of these lines (default: all) by RST. Returns how many there were."""
        return self._call(self._reset(lines or tuple(self.lines)))

    def connections(self, line: Line) -> int:
        """How many connections of a line are open."""
        return len(self._pairs[line])

    # -- in the proxy's thread -----------------------------------------------------------------

    async def _listen(self, line: Line) -> None:
        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._tasks.add(task)
            with suppress(asyncio.CancelledError):
                await self._serve(line, reader, writer)
            self._tasks.discard(task)

        server = await asyncio.start_server(accept, self.host, line.target[1])
        self._servers.append(server)

    async def _serve(self, line: Line, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line.accepted += 1
        try:
            there, back = await asyncio.open_connection(*line.target)
        except OSError:
            _abort(writer)
            return
        pair = writer, back
        self._pairs[line].add(pair)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(_pump(line, reader, back, outward=False))
                group.create_task(_pump(line, there, writer, outward=True))
        except* (OSError, EOFError):
            pass
        finally:
            self._pairs[line].discard(pair)
            for each in pair:
                each.close()

    async def _reset(self, lines: tuple[Line, ...]) -> int:
        pairs = [pair for line in lines for pair in self._pairs[line]]
        for pair in pairs:
            for writer in pair:
                _abort(writer)
        return len(pairs)

    async def _stop(self) -> None:
        for server in self._servers:
            server.close()
        await self._reset(tuple(self.lines))
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def _pump(line: Line, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, outward: bool) -> None:
    """Carry one direction of a connection until it ends; a delay holds everything back by the same time or more."""
    loop = asyncio.get_running_loop()
    frames, carried = Frames(), 0
    queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(256)

    async def write() -> None:
        while True:
            due, data = await queue.get()
            await asyncio.sleep(max(0.0, due - loop.time()))
            while line.blackhole:  # noqa: ASYNC110 - a plain attribute, set by the test's thread
                await asyncio.sleep(POLL_S)
            if not data:
                raise EOFError
            writer.write(data)
            await writer.drain()

    async with asyncio.TaskGroup() as group:
        group.create_task(write())
        data = b"unread"
        while data:
            data = await reader.read(CHUNK)
            sent = frames.feed(data, (line.frames if outward else line.inward) or _unchanged)
            if outward and carried > HANDSHAKE:
                sent = line.damage(sent)
            carried += len(data)
            late = line.delay_s + line.random.random() * line.jitter_s if outward else 0.0
            if sent or not data:
                await queue.put((loop.time() + late, sent if data else b""))


def _unchanged(flags: int, body: bytes) -> list[bytes]:
    return [body]


def _abort(writer: asyncio.StreamWriter) -> None:
    """Close with RST instead of FIN."""
    sock = writer.get_extra_info("socket")
    if sock is not None and sock.fileno() >= 0:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def can_serve(host: str = "127.0.0.2") -> bool:
    """Whether this machine has the proxy's address (macOS has only 127.0.0.1)."""
    try:
        with socket.create_server((host, 0)):
            return True
    except OSError:
        return False
