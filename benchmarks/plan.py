"""What the report runs, by scale: everything that the targets need, and in a full report the rest too."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence

from benchmarks.harness import TIME_IS_OVER
from benchmarks.model import Part, Results, Row

__all__ = ["MINUTES", "commands", "run"]

MINUTES = {"full": 25, "quick": 4, "tiny": 2}
"How long a report may take."

_PLANS = {
    "tiny": """
        throughput --payload bytes,dict,struct --peers 'pyzmq PUB,zfabric publish_many'
        latency --load 50 --peers 'pyzmq PUB,zfabric async'
    """,
    "quick": """
        throughput --payload bytes --peers 'PUB/SUB,Zenoh,NATS,zfabric publish_many'
        throughput --payload dict,struct --peers 'pyzmq PUB,zfabric publish_many -> a'
        fanout --subscribers 8 --peers pyzmq,Zenoh,NATS,zfabric
        topics --topics 10000 --peers pyzmq,zfabric
        latency --load 50 --peers 'pyzmq PUB,zfabric async'
        requests --in-flight 1,1000 --peers 'pyzmq ROUTER,NATS,zfabric'
        queue --workers 1 --peers pyzmq,zfabric
        frames --size 1000000 --transport ipc
        durable --peers JetStream,zfabric
        confirm --peers zfabric,disk
        cost --peers zfabric
    """,
    "full": """
        throughput --payload bytes --repeat 3 --peers 'PUB/SUB,Zenoh,NATS,zfabric publish_many'
        throughput --payload dict,struct --repeat 3 --peers 'PUB/SUB,zfabric publish_many -> async for'
        throughput --payload bytes --repeat 3 --secure --peers 'zfabric publish_many -> batches'
        fanout --subscribers 8 --repeat 3 --peers pyzmq,Zenoh,NATS,zfabric
        topics --topics 10000 --repeat 3 --peers pyzmq,zfabric
        latency --load 50 --repeat 3 --peers 'pyzmq PUB,zfabric'
        requests --in-flight 1,128,1000 --repeat 3 --peers 'pyzmq ROUTER,NATS,Zenoh,zfabric'
        queue --workers 1 --repeat 3 --peers pyzmq,zfabric
        fairness --repeat 3 --peers zfabric
        frames --size 1000000 --transport ipc --repeat 3
        durable --repeat 3 --peers 'NATS JetStream,zfabric'
        confirm --repeat 3 --peers disk,zfabric
        replay --repeat 3
        storelog --repeat 1
        cost --repeat 3 --peers zfabric
        startup --repeat 5
        discovery --case pair,idle --repeat 3 --seconds 3 --peers zfabric
        discovery --case mesh --nodes 50 --repeat 1 --secure --peers zfabric
        throughput --payload bytes --repeat 1
            --peers 'PUSH/PULL,pynng,Cyclone,Kafka,RabbitMQ,Redis,zfabric publish_nowait'
        throughput --payload dict,struct --repeat 1 --peers 'PUSH/PULL,Zenoh,-> batches,nowait'
        throughput --payload numpy --repeat 1
        throughput --payload bytes --repeat 1 --size 16,1000,10000,100000,1000000
            --peers 'pyzmq PUB/SUB,Zenoh,zfabric publish_many -> batches'
        throughput --payload bytes --repeat 1 --growing 10000,100000,1000000
            --peers 'pyzmq PUB/SUB,Zenoh,zfabric publish_many -> batches'
        fanout --subscribers 1,32 --repeat 1
        fanout --subscribers 100 --repeat 1 --peers pyzmq,NATS,zfabric
        topics --topics 1,100 --repeat 1
        latency --load 10,90 --repeat 1 --peers 'pyzmq PUB,Zenoh,zfabric'
        requests --in-flight 10,100 --repeat 1 --peers 'pyzmq ROUTER,NATS,Zenoh,zfabric'
        requests --in-flight 1,10,100 --repeat 1 --peers asyncio,pynng,zerorpc
        queue --workers 4,16 --repeat 1
        queue --workers 1 --repeat 1 --peers RabbitMQ,Redis,NATS,pynng
        fairness --repeat 1 --messages 500 --peers pyzmq
        frames --size 8000000 --transport ipc --repeat 1
        frames --transport tcp --repeat 1
        durable --repeat 1 --peers Redis,RabbitMQ
        durable --growing 5000,50000,500000 --repeat 1 --peers zfabric
        replay --growing 10000,100000,1000000 --repeat 1
        queue --workers 4 --growing 2000,20000,200000 --repeat 1 --peers pyzmq,zfabric
        confirm --repeat 1 --peers NATS,Redis,RabbitMQ
        cost --repeat 1 --peers pyzmq,Zenoh,NATS
        cost --growing 30000,300000,3000000 --repeat 1 --peers 'pyzmq PUB/SUB,zfabric'
        discovery --case pair --repeat 3 --peers alone
        discovery --case mesh --nodes 2,10,100 --repeat 1 --peers zfabric
    """,
}
"""Commands of `python -m benchmarks`; an indented line goes on with the one before. A later command may repeat a
workload with other options."""


def commands(scale: str) -> list[str]:
    """The commands of a scale, in order."""
    text = _PLANS[scale].replace("\n            ", " ")
    given = "" if scale == "full" else f" --{scale}"
    return [line.strip() + given for line in text.splitlines() if line.strip()]


def run(
    plan: Sequence[str], results: Results, measure: Callable[[Sequence[str], float], list[Row]], seconds: float
) -> Iterator[None]:
    """Run each command that the results have not, until the time is over; yields when its rows are in the results.

    Nothing that goes wrong in one of them ends the others.
    """
    start = time.monotonic()
    done = {part.command for part in results.parts if not part.failure}
    results.parts[:] = [part for part in results.parts if not part.failure]
    for number, command in enumerate(plan, start=1):
        began, failure = time.monotonic(), ""
        if command in done:
            continue
        print(f"== {number} of {len(plan)}, {began - start:.0f} s: {command}", file=sys.stderr, flush=True)
        if began > start + seconds:
            failure = TIME_IS_OVER
        else:
            try:
                results.rows.extend(measure(shlex.split(command), start + seconds))
            except Exception as error:  # noqa: BLE001 - the other commands can still be measured
                failure = f"{type(error).__name__}: {error}"
        results.parts.append(Part(command=command, seconds=time.monotonic() - began, failure=failure))
        yield
    print(f"== all in {time.monotonic() - start:.0f} s", file=sys.stderr)
