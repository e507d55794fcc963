"""Redis streams: redis-py (with hiredis, its parser in C) and a redis-server, XADD in pipelines of 500 and XREAD of up
to 1,000 entries.

Not persistent where nothing must be stored; in the durable workload the append-only file is synced once a second (the
default) or before every reply (`always`: once per pipeline).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any

import redis

from benchmarks.drive import Receiver, Sender, receiving, sending
from benchmarks.model import Entry, Link, Run, program
from benchmarks.servers import accepts, free_port, running

__all__ = ["ENTRIES", "add", "read", "read_group"]

SERVER = program("redis-server")
PIPELINE, COUNT = 500, 1_000
STREAM = "benchmark"


@contextmanager
def server(run: Run, sync: str = "") -> Iterator[str]:
    """A redis-server, with an append-only file if `sync` says when to sync it."""
    port = free_port()
    command = [SERVER, "--port", str(port), "--bind", "127.0.0.1", "--dir", run.directory, "--save", ""]
    if sync:
        command += ["--appendonly", "yes", "--appendfsync", sync]
    with running(command, run, partial(accepts, port)):
        yield f"redis://127.0.0.1:{port}"


@contextmanager
def add(run: Run, link: Link) -> Iterator[Sender]:
    """Append to the stream."""
    client = redis.Redis.from_url(run.server)
    if run.shared:
        client.xgroup_create(STREAM, "workers", "$", mkstream=True)
    link.meet()

    def many(values: Iterator[Any]) -> None:
        while chunk := list(islice(values, PIPELINE)):
            pipeline = client.pipeline(transaction=False)
            for value in chunk:
                pipeline.xadd(STREAM, {"v": value})
            pipeline.execute()

    yield Sender(sends=[], many=many)
    client.close()


@contextmanager
def add_one(run: Run, link: Link) -> Iterator[Sender]:
    """Append one message at a time."""
    client = redis.Redis.from_url(run.server)
    yield Sender(sends=[lambda value: client.xadd(STREAM, {"v": value})])
    client.close()


@contextmanager
def read(run: Run, link: Link) -> Iterator[Receiver]:
    """Read the stream."""
    client = redis.Redis.from_url(run.server)
    link.meet()
    last = b"0"

    def receive() -> list[Any]:
        nonlocal last
        found: Any = client.xread({STREAM: last}, count=COUNT, block=round(run.quiet_s * 1000))
        entries = _entries(found)
        last = entries[-1][0] if entries else last
        return entries

    yield Receiver(receive=receive, lists=True)
    client.close()


@contextmanager
def read_group(run: Run, link: Link) -> Iterator[Receiver]:
    """Read as one of a group of consumers, and acknowledge."""
    client = redis.Redis.from_url(run.server)
    link.meet()

    def receive() -> list[Any]:
        wait_ms = round(run.quiet_s * 1000)
        entries = _entries(client.xreadgroup("workers", link.name, {STREAM: ">"}, count=100, block=wait_ms))
        if entries:
            client.xack(STREAM, "workers", *(entry[0] for entry in entries))
        return entries

    yield Receiver(receive=receive, lists=True)
    client.close()


def _entries(found: Any) -> list[Any]:
    """The entries of the only stream; the client says it as a list or, with RESP3, as a dictionary."""
    if not found:
        return []
    entries = found[STREAM.encode()][0] if isinstance(found, dict) else found[0][1]
    return list(entries)


_READ = {"sender": sending(add), "receiver": receiving(read)}
_GROUP = {"sender": sending(add), "receiver": receiving(read_group)}
_STORED = {"sender": sending(add)}

ENTRIES = [
    Entry(workloads=("throughput", "fanout"), peer="Redis streams", roles=_READ, server=server, messages_max=50_000),
    Entry(workloads=("queue",), peer="Redis streams, group", roles=_GROUP, server=server, messages_max=50_000),
]
ENTRIES += [
    Entry(
        workloads=("durable",),
        peer=f"Redis streams, {sync}",
        roles=_STORED,
        server=partial(server, sync=sync),
        messages_max=50_000,
    )
    for sync in ("everysec", "always")
]
ENTRIES += [
    Entry(
        workloads=("confirm",),
        peer="Redis streams, always",
        roles={"sender": sending(add_one)},
        server=partial(server, sync="always"),
    )
]
