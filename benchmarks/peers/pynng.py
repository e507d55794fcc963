"""pynng, the Python binding of nanomsg's successor NNG: blocking sockets, one send per message."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pynng

from benchmarks.ask import Caller, calling, serving
from benchmarks.drive import Receiver, Sender, receiving, sending
from benchmarks.model import Entry, Link, Run
from benchmarks.servers import free_port

__all__ = ["ENTRIES", "ask", "pull", "push", "reply"]

QUEUE = 8192
"Messages that a socket holds, the most that NNG allows."


@contextmanager
def push(run: Run, link: Link) -> Iterator[Sender]:
    """Listen with a Push0 socket and send."""
    where = _address(run)
    with pynng.Push0(listen=where, send_buffer_size=QUEUE) as socket:
        link.meet(where)
        link.meet()
        yield Sender(sends=[socket.send])


@contextmanager
def pull(run: Run, link: Link) -> Iterator[Receiver]:
    """Dial with a Pull0 socket and receive."""
    where = link.meet()["sender"]
    with pynng.Pull0(dial=where, recv_timeout=round(run.quiet_s * 1000), recv_buffer_size=QUEUE) as socket:
        link.meet()
        yield Receiver(receive=socket.recv, silence=pynng.Timeout)


@contextmanager
def ask(run: Run, link: Link) -> Iterator[Caller]:
    """A Req0 socket."""
    with pynng.Req0(dial=link.meet()["server"]) as socket:
        yield Caller(send=socket.send, receive=socket.recv)


@contextmanager
def reply(run: Run, link: Link) -> Iterator[Callable[[], Any]]:
    """A Rep0 socket that echoes."""
    where = _address(run)
    with pynng.Rep0(listen=where) as socket:
        link.meet(where)
        yield lambda: socket.send(socket.recv())


def _address(run: Run) -> str:
    return f"ipc://{run.directory}/n" if run.transport == "ipc" else f"tcp://127.0.0.1:{free_port()}"


_BOTH = ("tcp", "ipc")

ENTRIES = [
    Entry(
        workloads=("throughput", "queue"),
        peer="pynng Push0/Pull0",
        roles={"sender": sending(push), "receiver": receiving(pull)},
        transports=_BOTH,
        messages_max=50_000,
    ),
    Entry(
        workloads=("requests",),
        peer="pynng Req0/Rep0",
        roles={"client": calling(ask), "server": serving(reply)},
        transports=_BOTH,
        in_flight_max=1,
    ),
]
