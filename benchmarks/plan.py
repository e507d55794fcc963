"""What the report runs, by scale: everything that the targets need, and in a full report the rest too."""

from __future__ import annotations

__all__ = ["PLANS"]

_CORE = "pyzmq P,libzmq,Zenoh,NATS,zfabric publish_many -> b,zfabric publish_many -> a"
_BYTES = ["throughput", "--payload", "bytes", "--repeat", "2"]

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
        ["throughput", "--payload", "bytes"],
        ["throughput", "--payload", "dict,struct,numpy", "--repeat", "3"],
        [*_BYTES, "--size", "16,1000,10000,100000,1000000", "--peers", "pyzmq PUB,Zenoh,zfabric publish_many -> b"],
        [*_BYTES, "--growing", "10000,100000,1000000", "--peers", "pyzmq PUB,zfabric publish_many -> b"],
        ["fanout", "--subscribers", "1,8", "--repeat", "3"],
        ["fanout", "--subscribers", "32,100", "--repeat", "1", "--peers", "pyzmq,NATS,zfabric"],
        ["topics", "--topics", "1,100,10000", "--repeat", "3", "--peers", "pyzmq,Zenoh,zfabric"],
        ["latency", "--load", "10,50,90", "--repeat", "3", "--peers", "pyzmq PUB,Zenoh,zfabric"],
        ["requests", "--in-flight", "1,10,100,1000", "--repeat", "3"],
        ["queue", "--workers", "1,4,16", "--repeat", "2"],
        ["frames", "--transport", "ipc", "--repeat", "3"],
        ["frames", "--transport", "tcp", "--repeat", "2"],
        ["durable", "--repeat", "3"],
        ["cost", "--repeat", "3"],
        ["startup", "--repeat", "5"],
        ["discovery", "--case", "pair,idle", "--repeat", "3", "--seconds", "3"],
        ["discovery", "--case", "mesh", "--nodes", "2,10,50,100", "--repeat", "1"],
    ],
}
"""Arguments of `python -m benchmarks`, one line for each run; a later line may repeat a workload with other options."""
