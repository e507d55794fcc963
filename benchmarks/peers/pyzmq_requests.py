"""pyzmq's DEALER and ROUTER with blocking sockets: the least that a request over ZeroMQ can cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import zmq

from benchmarks.ask import Caller, calling, serving
from benchmarks.model import Entry, Link, Run
from benchmarks.peers.pyzmq_blocking import bound, zmq_socket

__all__ = ["ENTRIES", "dealer", "router"]


@contextmanager
def dealer(run: Run, link: Link) -> Iterator[Caller]:
    """Connect a DEALER."""
    with zmq_socket(zmq.DEALER, run) as socket:
        socket.connect(link.meet()["server"])
        yield Caller(send=socket.send, receive=socket.recv)


@contextmanager
def router(run: Run, link: Link) -> Iterator[Callable[[], Any]]:
    """Bind a ROUTER and echo."""
    with zmq_socket(zmq.ROUTER, run) as socket:
        link.meet(bound(socket, run))
        socket.rcvtimeo = -1
        yield lambda: socket.send_multipart(socket.recv_multipart())


ENTRIES = [
    Entry(
        workloads=("requests",),
        peer="pyzmq ROUTER/DEALER",
        roles={"client": calling(dealer), "server": serving(router)},
        transports=("tcp", "ipc"),
    )
]
