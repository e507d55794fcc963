"""What the report runs, by scale: everything that the targets need, and in a full report the rest too."""

from __future__ import annotations

__all__ = ["PLANS"]

_CORE = "PUB/SUB,Zenoh,NATS,zfabric publish_many"
_BYTES = ["throughput", "--payload", "bytes"]
_ONCE = ["--repeat", "1"]
_LINE = "pyzmq PUB,Zenoh,zfabric publish_many -> batches"

PLANS: dict[str, list[list[str]]] = {
    "tiny": [
        ["throughput", "--payload", "bytes,dict,struct", "--peers", "pyzmq PUB,zfabric publish_many"],
        ["latency", "--load", "50", "--peers", "pyzmq PUB,zfabric async"],
    ],
    "quick": [
        ["throughput", "--payload", "bytes", "--peers", _CORE],
        ["throughput", "--payload", "dict,struct", "--peers", "pyzmq PUB,zfabric publish_many -> a"],
        ["fanout", "--subscribers", "8", "--peers", "pyzmq,Zenoh,NATS,zfabric"],
        ["topics", "--topics", "10000", "--peers", "pyzmq,zfabric"],
        ["latency", "--load", "50", "--peers", "pyzmq PUB,zfabric async"],
        ["requests", "--in-flight", "1,1000", "--peers", "pyzmq ROUTER,NATS,zfabric"],
        ["frames", "--size", "1000000", "--transport", "ipc"],
        ["durable", "--peers", "JetStream,zfabric"],
        ["cost", "--peers", "zfabric"],
    ],
    "full": [
        [*_BYTES, "--repeat", "3"],
        ["throughput", "--payload", "dict,struct,numpy", "--repeat", "3"],
        [*_BYTES, *_ONCE, "--size", "16,1000,10000,100000,1000000", "--peers", _LINE],
        [*_BYTES, *_ONCE, "--growing", "10000,100000,1000000", "--peers", _LINE],
        ["fanout", "--subscribers", "1", *_ONCE],
        ["fanout", "--subscribers", "8", "--repeat", "3", "--peers", "pyzmq,Zenoh,NATS,zfabric"],
        ["fanout", "--subscribers", "32,100", *_ONCE, "--peers", "pyzmq,zfabric"],
        ["topics", "--topics", "1,100", *_ONCE],
        ["topics", "--topics", "10000", "--repeat", "3", "--peers", "pyzmq,zfabric"],
        ["latency", "--load", "10,90", *_ONCE, "--peers", "pyzmq PUB,Zenoh,zfabric"],
        ["latency", "--load", "50", "--repeat", "3", "--peers", "pyzmq PUB,zfabric"],
        ["requests", "--in-flight", "1,1000", "--repeat", "3", "--peers", "pyzmq ROUTER,NATS,Zenoh,zfabric"],
        ["requests", "--in-flight", "10,100", *_ONCE],
        ["queue", "--workers", "1,4,16", *_ONCE],
        ["frames", "--transport", "ipc", "--repeat", "3"],
        ["frames", "--transport", "tcp", *_ONCE],
        ["durable", "--repeat", "3"],
        ["cost", "--repeat", "3"],
        ["startup", "--repeat", "5"],
        ["discovery", "--case", "pair,idle", "--repeat", "3", "--seconds", "3"],
        ["discovery", "--case", "mesh", "--nodes", "2,10,50,100", *_ONCE],
    ],
}
"""Arguments of `python -m benchmarks`, one line for each run; a later line may repeat a workload with other options."""
