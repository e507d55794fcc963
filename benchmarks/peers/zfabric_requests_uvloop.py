"""zfabric's services with both processes on uvloop, everything else being the same."""

from __future__ import annotations

import uvloop

from benchmarks.ask import calling_async, serving_async
from benchmarks.model import Entry
from benchmarks.peers.zfabric_requests import ask, reply

__all__ = ["ENTRIES"]

ENTRIES = [
    Entry(
        workloads=("requests",),
        peer="zfabric request, uvloop",
        roles={"client": calling_async(ask, uvloop.run), "server": serving_async(reply, uvloop.run)},
        transports=("tcp", "ipc"),
    )
]
