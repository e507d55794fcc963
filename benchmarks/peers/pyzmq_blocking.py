"""pyzmq with blocking sockets, one send per message: what its documentation shows, and what zfabric must beat.

High-water marks are 0 (unlimited), as the documentation advises where the number of messages is bounded and none may
be lost. PUB is an XPUB socket, so that it can wait for the subscriptions. With one topic the SUB side subscribes to
everything and no topic is sent: the fastest way to use them. Several topics go as the documentation's envelope (a frame
for the topic), or in the same frame. Arrays go with `copy=False`, their type and shape in a frame before.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import msgspec
import zmq

from benchmarks.drive import Receiver, Sender, receiving, sending
from benchmarks.model import Entry, Link, Run, work_of

__all__ = ["ENTRIES", "bound", "publish", "pull", "push", "subscribe", "zmq_socket"]

Socket = zmq.Socket[bytes]


@contextmanager
def push(run: Run, link: Link) -> Iterator[Sender]:
    """Bind a PUSH socket, wait until every worker is connected, and send."""
    with zmq_socket(zmq.PUSH, run) as socket, socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED) as monitor:
        link.meet(bound(socket, run))
        for _ in range(run.receivers):
            monitor.recv_multipart()
        socket.disable_monitor()
        yield Sender(sends=[partial(_send_array, socket) if run.payload == "numpy" else socket.send])


@contextmanager
def pull(run: Run, link: Link) -> Iterator[Receiver]:
    """Connect a PULL socket and receive."""
    with zmq_socket(zmq.PULL, run) as socket:
        socket.connect(link.meet()["sender"])
        receive = partial(_receive_array, socket) if run.payload == "numpy" else socket.recv
        work_s = work_of(run, link)
        yield Receiver(receive=partial(_work, receive, work_s) if work_s else receive, silence=zmq.Again)


@contextmanager
def publish(run: Run, link: Link) -> Iterator[Sender]:
    """Bind a PUB socket, wait for the subscriptions, and send without a topic."""
    with _published(run, link) as socket:
        yield Sender(sends=[partial(_send_array, socket) if run.payload == "numpy" else socket.send])


@contextmanager
def publish_envelopes(run: Run, link: Link) -> Iterator[Sender]:
    """Send each topic as a frame before the message."""
    with _published(run, link) as socket:
        yield Sender(sends=[partial(_send_envelope, socket, name.encode()) for name in run.topic_names])


@contextmanager
def publish_prefixed(run: Run, link: Link) -> Iterator[Sender]:
    """Send each topic at the start of the message."""
    with _published(run, link) as socket:
        yield Sender(sends=[partial(_send_prefixed, socket.send, name.encode() + b"\0") for name in run.topic_names])


@contextmanager
def subscribe(run: Run, link: Link) -> Iterator[Receiver]:
    """Connect a SUB socket and receive."""
    with _subscribed(run, link) as socket:
        yield Receiver(
            receive=partial(_receive_array, socket) if run.payload == "numpy" else socket.recv, silence=zmq.Again
        )


@contextmanager
def subscribe_envelopes(run: Run, link: Link) -> Iterator[Receiver]:
    """Receive topic and message as two frames."""
    with _subscribed(run, link) as socket:
        yield Receiver(receive=socket.recv_multipart, silence=zmq.Again)


@contextmanager
def subscribe_prefixed(run: Run, link: Link) -> Iterator[Receiver]:
    """Receive, and part the topic from the message."""
    with _subscribed(run, link) as socket:
        yield Receiver(receive=partial(_receive_prefixed, socket.recv), silence=zmq.Again)


@contextmanager
def zmq_socket(kind: int, run: Run) -> Iterator[Socket]:
    """A socket with a context of its own, without high-water mark unless limits are wanted."""
    with zmq.Context() as context, context.socket(kind) as socket:
        if not run.bounded:
            socket.hwm = 0
        socket.linger = 0
        socket.rcvtimeo = round(run.quiet_s * 1000)
        yield socket


def bound(socket: Socket, run: Run) -> str:
    """Bind it; returns where."""
    socket.bind(f"ipc://{run.directory}/s" if run.transport == "ipc" else "tcp://127.0.0.1:*")
    return bytes(socket.getsockopt(zmq.LAST_ENDPOINT)).decode().rstrip("\0")


@contextmanager
def _published(run: Run, link: Link) -> Iterator[Socket]:
    with zmq_socket(zmq.XPUB, run) as socket:
        socket.xpub_verbose = True
        link.meet(bound(socket, run))
        for _ in range(run.receivers):
            socket.recv()
        yield socket


@contextmanager
def _subscribed(run: Run, link: Link) -> Iterator[Socket]:
    with zmq_socket(zmq.SUB, run) as socket:
        socket.subscribe(b"")
        socket.connect(link.meet()["sender"])
        yield socket


def _work(receive: Any, work_s: float) -> Any:
    value = receive()
    time.sleep(work_s)
    return value


def _send_envelope(socket: Socket, topic: bytes, value: bytes) -> None:
    socket.send(topic, zmq.SNDMORE)
    socket.send(value)


def _send_prefixed(send: Any, prefix: bytes, value: bytes) -> None:
    send(prefix + value)


def _receive_prefixed(receive: Any) -> list[bytes]:
    parts: list[bytes] = receive().split(b"\0", 1)
    return parts


def _send_array(socket: Socket, array: Any) -> None:
    """As pyzmq's documentation serialises numpy arrays, with msgspec instead of JSON for the header."""
    socket.send(msgspec.msgpack.encode((array.dtype.str, array.shape)), zmq.SNDMORE)
    socket.send(array, copy=False)


def _receive_array(socket: Socket) -> Any:
    import numpy as np

    dtype, shape = msgspec.msgpack.decode(socket.recv())
    return np.frombuffer(socket.recv(copy=False).buffer, dtype=dtype).reshape(shape)


_PUSH_PULL = {"sender": sending(push), "receiver": receiving(pull)}
_PUB_SUB = {"sender": sending(publish), "receiver": receiving(subscribe)}
_ENVELOPES = {"sender": sending(publish_envelopes), "receiver": receiving(subscribe_envelopes)}
_PREFIXED = {"sender": sending(publish_prefixed), "receiver": receiving(subscribe_prefixed)}
_BOTH = ("tcp", "ipc")

ENTRIES = [
    Entry(workloads=("throughput",), peer=f"pyzmq {pattern}{codec}", roles=roles, payload=payload, transports=_BOTH)
    for payload, codec in (("bytes", ""), ("dict", " + msgpack"), ("struct", " + msgspec"), ("numpy", ", copy=False"))
    for pattern, roles in (("PUSH/PULL", _PUSH_PULL), ("PUB/SUB", _PUB_SUB))
]
ENTRIES += [
    Entry(workloads=("fanout", "latency", "cost"), peer="pyzmq PUB/SUB", roles=_PUB_SUB, transports=_BOTH),
    Entry(workloads=("queue", "fairness", "cost"), peer="pyzmq PUSH/PULL", roles=_PUSH_PULL, transports=_BOTH),
    Entry(workloads=("frames",), peer="pyzmq PUB/SUB, copy=False", roles=_PUB_SUB, payload="numpy", transports=_BOTH),
    Entry(workloads=("topics",), peer="pyzmq PUB/SUB, topic in a frame", roles=_ENVELOPES, transports=_BOTH),
    Entry(workloads=("topics",), peer="pyzmq PUB/SUB, topic in the message", roles=_PREFIXED, transports=_BOTH),
]
