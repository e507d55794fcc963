"""libzmq's own speed: the loops of `pyzmq_blocking.py` in C, one zmq_send and one zmq_recv per message.

The two loops are compiled against the very libzmq that pyzmq uses; the sockets are pyzmq's, opened and connected there.
"""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from operator import length_hint
from pathlib import Path
from typing import Any

from zmq.backend.cython import _zmq

from benchmarks import payloads
from benchmarks.drive import Receiver, Sender, receiving, sending
from benchmarks.model import Entry, Link, Run, program
from benchmarks.peers import pyzmq_blocking

__all__ = ["ENTRIES", "publish", "pull", "push", "subscribe"]

CC = program("cc")
SOURCE = """
#include <stddef.h>
typedef int (*send_function) (void *socket, const void *data, size_t size, int flags);
typedef int (*receive_function) (void *socket, void *buffer, size_t size, int flags);

int send_many (send_function zmq_send, void *socket, const void *data, size_t size, int count)
{
    for (int sent = 0; sent < count; ++sent)
        if (zmq_send (socket, data, size, 0) < 0)
            return sent;
    return count;
}

int receive_many (receive_function zmq_recv, void *socket, void *buffer, size_t size, int count)
{
    for (int received = 0; received < count; ++received)
        if (zmq_recv (socket, buffer, size, 0) < 0)
            return received;
    return count;
}
"""


@contextmanager
def push(run: Run, link: Link) -> Iterator[Sender]:
    """PUSH."""
    with pyzmq_blocking.push(run, link) as sender:
        yield _sender(sender, run)


@contextmanager
def pull(run: Run, link: Link) -> Iterator[Receiver]:
    """PULL."""
    with pyzmq_blocking.pull(run, link) as receiver:
        yield _receiver(receiver, run, link)


@contextmanager
def publish(run: Run, link: Link) -> Iterator[Sender]:
    """PUB."""
    with pyzmq_blocking.publish(run, link) as sender:
        yield _sender(sender, run)


@contextmanager
def subscribe(run: Run, link: Link) -> Iterator[Receiver]:
    """SUB."""
    with pyzmq_blocking.subscribe(run, link) as receiver:
        yield _receiver(receiver, run, link)


def _sender(sender: Sender, run: Run) -> Sender:
    """The same socket, with the loop in C."""
    socket: Any = sender.sends[0].__self__  # type: ignore[attr-defined]
    loop, data = _compiled(run, "send").send_many, payloads.make(run.payload, run.size)
    arguments = (_libzmq().zmq_send, ctypes.c_void_p(socket.underlying), data, ctypes.c_size_t(run.size))

    def many(messages: Iterator[Any]) -> None:
        loop(*arguments, length_hint(messages))

    return replace(sender, many=many)


def _receiver(receiver: Receiver, run: Run, link: Link) -> Receiver:
    socket: Any = receiver.receive.__self__  # type: ignore[attr-defined]
    loop, buffer = _compiled(run, link.name).receive_many, ctypes.create_string_buffer(run.size)
    arguments = (_libzmq().zmq_recv, ctypes.c_void_p(socket.underlying), buffer, ctypes.c_size_t(run.size))
    return replace(receiver, many=partial(loop, *arguments))


def _libzmq() -> ctypes.CDLL:
    """The libzmq that pyzmq has loaded: a search in its extension finds the symbols of what that was linked with."""
    return ctypes.CDLL(_zmq.__file__)


def _compiled(run: Run, name: str) -> ctypes.CDLL:
    """The two loops, compiled into the run's directory."""
    source, library = Path(run.directory, f"{name}.c"), Path(run.directory, f"{name}.so")
    source.write_text(SOURCE)
    subprocess.run([CC, "-O2", "-shared", "-fPIC", "-o", library, source], check=True)
    return ctypes.CDLL(str(library))


ENTRIES = [
    Entry(workloads=("throughput",), peer=f"libzmq in C, {pattern}", roles=roles, transports=("tcp", "ipc"))
    for pattern, roles in (
        ("PUSH/PULL", {"sender": sending(push), "receiver": receiving(pull)}),
        ("PUB/SUB", {"sender": sending(publish), "receiver": receiving(subscribe)}),
    )
]
