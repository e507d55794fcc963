"""zerorpc: remote calls over ZeroMQ with gevent, the best known such package for Python. As many
greenlets as calls in flight.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import gevent
import zerorpc

from benchmarks.ask import Caller, calling
from benchmarks.model import Entry, Link, Run
from benchmarks.servers import free_port

__all__ = ["ENTRIES", "ask", "reply"]


ASYNC = {"async": True}
"An argument whose name became a keyword of Python."


class Echo:
    """What is served."""

    def echo(self, value: bytes) -> bytes:
        """The same."""
        return value


@contextmanager
def ask(run: Run, link: Link) -> Iterator[Caller]:
    """Start a call in a greenlet; the oldest call is waited for first."""
    client = zerorpc.Client(link.meet()["server"], timeout=60, heartbeat=None)
    calls = deque[Any]()
    yield Caller(
        send=lambda value: calls.append(client.echo(value, **ASYNC)),
        receive=lambda: calls.popleft().get(),
    )
    client.close()


def reply(run: Run, link: Link) -> Mapping[str, Any]:
    """Serve; meetings wait in a thread, so that gevent's loop goes on."""
    where = f"tcp://127.0.0.1:{free_port()}"
    server = zerorpc.Server(Echo(), heartbeat=None)
    server.bind(where)
    serving = gevent.spawn(server.run)
    link.meet(where)
    meet = partial(gevent.get_hub().threadpool.apply, link.meet)
    for _ in (run.warmup, run.messages):
        meet()
        cpu = time.process_time()
        meet()
    serving.kill()
    return {"cpu_s": time.process_time() - cpu}


ENTRIES = [
    Entry(
        workloads=("requests",),
        peer="zerorpc",
        roles={"client": calling(ask), "server": reply},
        messages_max=2_000,
        in_flight_max=100,
    )
]
