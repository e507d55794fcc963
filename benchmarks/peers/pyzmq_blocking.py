"""pyzmq with blocking sockets, one send per message: what its documentation shows, and what zfabric must beat.

High-water marks are 0 (unlimited), as the documentation advises where the number of messages is bounded and none may
be lost. PUB is an XPUB socket, so that it can wait for the subscription; the SUB side subscribes to everything, and no
topic is sent: the fastest way to use them. Dicts go through msgpack, with a `Packer` kept as its documentation advises,
structs through msgspec with typed encoder and decoder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import msgpack
import msgspec
import zmq

from benchmarks import payloads
from benchmarks.meter import Reception, Transmission
from benchmarks.model import Entry, Link, Run

__all__ = ["ENTRIES", "publish", "pull", "push", "subscribe"]

Socket = zmq.Socket[bytes]


def push(run: Run, link: Link) -> Mapping[str, Any]:
    """Connect a PUSH socket and send."""
    with _socket(zmq.PUSH) as socket:
        socket.connect(link.meet()["receiver"])
        return _send(socket, run, link)


def pull(run: Run, link: Link) -> Mapping[str, Any]:
    """Bind a PULL socket and receive."""
    with _socket(zmq.PULL) as socket:
        socket.bind(run.bind_address("pull"))
        link.meet(_endpoint(socket))
        return _receive(socket, run, link)


def publish(run: Run, link: Link) -> Mapping[str, Any]:
    """Bind a PUB socket, wait for the subscriptions, and send."""
    with _socket(zmq.XPUB) as socket:
        socket.xpub_verbose = True
        socket.bind(run.bind_address("pub"))
        link.meet(_endpoint(socket))
        for _ in range(run.receivers):
            socket.recv()
        return _send(socket, run, link)


def subscribe(run: Run, link: Link) -> Mapping[str, Any]:
    """Connect a SUB socket and receive."""
    with _socket(zmq.SUB) as socket:
        socket.subscribe(b"")
        socket.connect(link.meet()["sender"])
        return _receive(socket, run, link)


@contextmanager
def _socket(kind: int) -> Iterator[Socket]:
    """A socket without high-water mark, with a context of its own."""
    with zmq.Context() as context, context.socket(kind) as socket:
        socket.hwm = 0
        socket.linger = 0
        yield socket


def _endpoint(socket: Socket) -> str:
    """Where it was bound."""
    return bytes(socket.getsockopt(zmq.LAST_ENDPOINT)).decode().rstrip("\0")


def _send(socket: Socket, run: Run, link: Link) -> Mapping[str, Any]:
    """Send the warm-up, then the measured messages."""
    value = payloads.make(run.payload, run.size)
    for count in (run.warmup, run.messages):
        link.meet()
        clock = Transmission()
        if run.payload == "bytes":
            _send_bytes(socket, value, count)
        else:
            _send_encoded(socket, _encoder(run.payload), value, count)
        link.meet()
    return clock.result()


def _send_bytes(socket: Socket, value: bytes, count: int) -> None:
    send = socket.send
    for _ in range(count):
        send(value)


def _send_encoded(socket: Socket, encode: Callable[[Any], bytes], value: Any, count: int) -> None:
    send = socket.send
    for _ in range(count):
        send(encode(value))


def _receive(socket: Socket, run: Run, link: Link) -> Mapping[str, Any]:
    """Receive both; silence ends a phase."""
    socket.rcvtimeo = round(run.quiet_s * 1000)
    for expected in (run.warmup, run.messages):
        link.meet()
        clock = Reception()
        if run.payload == "bytes":
            count = _receive_bytes(socket, expected, clock)
        else:
            count = _receive_decoded(socket, _decoder(run.payload), expected, clock)
        result = clock.result(count, expected, run.quiet_s if count < expected else 0.0)
        link.meet()
    return result


def _receive_bytes(socket: Socket, expected: int, clock: Reception) -> int:
    recv, count = socket.recv, 0
    try:
        recv()
        clock.first(1)
        for count in range(1, expected):  # noqa: B007 - read when the wait ran out
            recv()
    except zmq.Again:
        return count
    return expected


def _receive_decoded(socket: Socket, decode: Callable[[bytes], Any], expected: int, clock: Reception) -> int:
    recv, count = socket.recv, 0
    try:
        decode(recv())
        clock.first(1)
        for count in range(1, expected):  # noqa: B007 - read when the wait ran out
            decode(recv())
    except zmq.Again:
        return count
    return expected


def _encoder(payload: str) -> Callable[[Any], bytes]:
    pack: Callable[[Any], bytes] = msgpack.Packer().pack if payload == "dict" else msgspec.msgpack.Encoder().encode
    return pack


def _decoder(payload: str) -> Callable[[bytes], Any]:
    unpack: Callable[[bytes], Any] = (
        msgpack.unpackb if payload == "dict" else msgspec.msgpack.Decoder(payloads.Reading).decode
    )
    return unpack


PATTERNS: dict[str, Mapping[str, Callable[[Run, Link], Mapping[str, Any]]]] = {
    "PUSH/PULL": {"sender": push, "receiver": pull},
    "PUB/SUB": {"sender": publish, "receiver": subscribe},
}

ENTRIES = [
    Entry(workload="throughput", peer=f"pyzmq {pattern}{codec}", roles=roles, payload=payload)
    for payload, codec in (("bytes", ""), ("dict", " + msgpack"), ("struct", " + msgspec"))
    for pattern, roles in PATTERNS.items()
]
ENTRIES.append(Entry(workload="fanout", peer="pyzmq PUB/SUB", roles=PATTERNS["PUB/SUB"]))
