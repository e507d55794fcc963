"""pyzmq's own asyncio sockets, one awaited send per message, without high-water mark."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import zmq
import zmq.asyncio

from benchmarks.ask import Call, calling_async, serving_async
from benchmarks.drive import AsyncReceiver, Sender, receiving_async, sending_async
from benchmarks.model import Entry, Link, Run

__all__ = ["ENTRIES", "ask", "pull", "push", "reply"]


@asynccontextmanager
async def push(run: Run, link: Link) -> AsyncIterator[Sender]:
    """Bind a PUSH socket and send."""
    with _socket(zmq.PUSH) as socket:
        socket.bind("tcp://127.0.0.1:*")
        await link.meet_async(socket.last_endpoint.decode())
        yield Sender(sends=[socket.send])


@asynccontextmanager
async def pull(run: Run, link: Link) -> AsyncIterator[AsyncReceiver]:
    """Connect a PULL socket and receive."""
    with _socket(zmq.PULL) as socket:
        socket.connect((await link.meet_async())["sender"])
        yield AsyncReceiver(messages=lambda: _messages(socket))


async def _messages(socket: Any) -> AsyncIterator[bytes]:
    while True:
        yield await socket.recv()


@asynccontextmanager
async def ask(run: Run, link: Link) -> AsyncIterator[Call]:
    """A DEALER; replies come in order, so the oldest waiting call gets the next one."""
    with _socket(zmq.DEALER) as socket:
        socket.connect((await link.meet_async())["server"])

        async def call(value: bytes) -> bytes:
            await socket.send(value)
            reply: bytes = await socket.recv()
            return reply

        yield call


@asynccontextmanager
async def reply(run: Run, link: Link) -> AsyncIterator[None]:
    """A ROUTER that echoes."""
    with _socket(zmq.ROUTER) as socket:
        socket.bind("tcp://127.0.0.1:*")
        await link.meet_async(socket.last_endpoint.decode())
        echo = asyncio.ensure_future(_echo(socket))
        yield
        echo.cancel()


async def _echo(socket: Any) -> None:
    while True:
        await socket.send_multipart(await socket.recv_multipart())


def _socket(kind: int) -> Any:
    socket = zmq.asyncio.Context.instance().socket(kind)
    socket.hwm = 0
    socket.linger = 0
    return socket


ENTRIES = [
    Entry(
        workloads=("throughput", "latency"),
        peer="pyzmq asyncio PUSH/PULL",
        roles={"sender": sending_async(push), "receiver": receiving_async(pull)},
        messages_max=200_000,
    ),
    Entry(
        workloads=("requests",),
        peer="pyzmq asyncio ROUTER/DEALER",
        roles={"client": calling_async(ask), "server": serving_async(reply)},
    ),
]
