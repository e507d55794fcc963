"""Zenoh in peer mode: declared publishers, callbacks, queryables; shared memory for arrays where asked.

Its own multicast scouting is off, the two sides connect directly. Congestion control is `BLOCK`, because the default
drops. Zenoh itself batches messages, except where their latency is measured and in requests one at a time: these go
`express`, as in its own examples.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import zenoh

from benchmarks.ask import Start, calling_back, serving
from benchmarks.drive import Receiver, Sender, receiving, receiving_callbacks, sending
from benchmarks.model import Entry, Link, Run
from benchmarks.servers import free_port
from benchmarks.started import starting

__all__ = ["ENTRIES", "ask", "publish", "reply", "subscribe"]

START = """
import threading
import zenoh

config = zenoh.Config()
config.insert_json5("scouting/multicast/enabled", "false")
config.insert_json5("listen/endpoints", '["tcp/127.0.0.1:0"]')
with zenoh.open(config) as session:
    came = threading.Event()
    subscriber = session.declare_subscriber("hello", lambda sample: came.set())
    session.put("hello", b"hello")
    came.wait()
    print("hello", flush=True)
"""


@contextmanager
def publish(run: Run, link: Link) -> Iterator[Sender]:
    """Declare a publisher for each topic, wait until the subscribers match, and put."""
    with _listening(run, link) as session:
        publishers = [
            session.declare_publisher(
                _key(name), congestion_control=zenoh.CongestionControl.BLOCK, express=run.rate > 0
            )
            for name in run.topic_names
        ]
        link.meet()
        for publisher in publishers:
            _wait_for_match(publisher)
        yield Sender(sends=[publisher.put for publisher in publishers])


@contextmanager
def subscribe(run: Run, link: Link, take: Callable[[bytes], None]) -> Iterator[None]:
    """Declare a subscriber with a callback."""
    with _connected(run, link) as session:
        subscriber = session.declare_subscriber("benchmark/*", lambda sample: take(sample.payload.to_bytes()))
        link.meet()
        yield
        subscriber.undeclare()


@contextmanager
def publish_arrays(run: Run, link: Link) -> Iterator[Sender]:
    """Put the bytes of arrays; Zenoh copies them."""
    with publish(run, link) as sender:
        yield Sender(sends=[lambda array: sender.sends[0](array.tobytes())])


@contextmanager
def publish_shared(run: Run, link: Link) -> Iterator[Sender]:
    """Copy arrays into Zenoh's shared memory and put that."""
    with publish(run, link) as sender:
        provider = zenoh.shm.ShmProvider.default_backend(max(64 << 20, run.size * 8))

        def send(array: Any) -> None:
            buffer = provider.alloc(array.nbytes, policy=zenoh.shm.BlockOn(zenoh.shm.GarbageCollect()))
            buffer[:] = array.tobytes()  # The only way in from Python; it knows no buffer protocol.
            sender.sends[0](buffer)

        yield Sender(sends=[send])


@contextmanager
def subscribe_arrays(run: Run, link: Link) -> Iterator[Receiver]:
    """Make arrays of the received bytes."""
    import numpy as np

    with _connected(run, link) as session:
        subscriber = session.declare_subscriber("benchmark/*", zenoh.handlers.FifoChannel(8))
        link.meet()
        yield Receiver(receive=lambda: np.frombuffer(subscriber.recv().payload.to_bytes(), dtype=np.float32))
        subscriber.undeclare()


@contextmanager
def ask(run: Run, link: Link) -> Iterator[Start]:
    """Get, with a callback for the reply."""
    with _connected(run, link) as session:
        querier = session.declare_querier("benchmark/echo", express=run.in_flight == 1)
        link.meet()
        _wait_for_match(querier)

        def start(value: bytes, done: Callable[[], None]) -> None:
            querier.get(payload=value, handler=lambda _reply: done())

        yield start


@contextmanager
def reply(run: Run, link: Link) -> Iterator[None]:
    """Declare a queryable that echoes."""
    with _listening(run, link) as session:
        queryable = session.declare_queryable(
            "benchmark/echo",
            lambda query: query.reply("benchmark/echo", query.payload.to_bytes(), express=run.in_flight == 1),
        )
        link.meet()
        yield
        queryable.undeclare()


def _wait_for_match(declared: Any) -> None:
    """Until the other side's declaration has come, too: what is sent before is lost."""
    while not declared.matching_status.matching:
        time.sleep(0.001)


def _key(name: str) -> str:
    return name.replace(".", "/")


@contextmanager
def _listening(run: Run, link: Link) -> Iterator[Any]:
    where = f"tcp/127.0.0.1:{free_port()}" if run.transport == "tcp" else f"unixsock-stream/{run.directory}/z"
    with zenoh.open(_config({"listen/endpoints": [where]})) as session:
        link.meet(where)
        yield session


@contextmanager
def _connected(run: Run, link: Link) -> Iterator[Any]:
    where = next(value for value in link.meet().values() if value)
    with zenoh.open(_config({"connect/endpoints": [where], "listen/endpoints": []})) as session:
        yield session


def _config(settings: dict[str, Any]) -> zenoh.Config:
    config = zenoh.Config()
    for name, value in {"mode": "peer", "scouting/multicast/enabled": False, **settings}.items():
        config.insert_json5(name, json.dumps(value))
    return config


_PUT = {"sender": sending(publish), "receiver": receiving_callbacks(subscribe)}
_ARRAYS = {"sender": sending(publish_arrays), "receiver": receiving(subscribe_arrays)}
_SHARED = {"sender": sending(publish_shared), "receiver": receiving(subscribe_arrays)}
_BOTH = ("tcp", "ipc")

ENTRIES = [
    Entry(workloads=("throughput", "fanout", "topics", "latency", "cost"), peer="Zenoh", roles=_PUT, transports=_BOTH),
    Entry(workloads=("throughput",), peer="Zenoh + msgpack", roles=_PUT, payload="dict", transports=_BOTH),
    Entry(workloads=("frames",), peer="Zenoh", roles=_ARRAYS, payload="numpy", transports=_BOTH),
    Entry(workloads=("frames",), peer="Zenoh, shared memory", roles=_SHARED, payload="numpy", transports=_BOTH),
    Entry(workloads=("requests",), peer="Zenoh get", roles={"client": calling_back(ask), "server": serving(reply)}),
    Entry(workloads=("startup",), peer="Zenoh, one session", roles={"start": starting(START)}),
]
