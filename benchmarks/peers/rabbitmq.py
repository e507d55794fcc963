"""RabbitMQ: pika's blocking connection, automatic acknowledgement; durable with persistent messages and confirms.

pika's blocking connection confirms one message at a time. Its server starts slowly: mind the time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pika

from benchmarks.drive import Receiver, Sender, receiving, sending
from benchmarks.model import Entry, Link, Run, program
from benchmarks.servers import accepts, free_port, running

__all__ = ["ENTRIES", "consume", "publish", "publish_confirmed"]

DEBIAN = "/usr/lib/rabbitmq/bin/rabbitmq-server"
"Debian's program on the PATH becomes another user, who may not write to the run's directory."
SERVER = DEBIAN if Path(DEBIAN).exists() else program("rabbitmq-server")
EPMD = program("epmd")
QUEUE = "benchmark"
PERSISTENT = pika.BasicProperties(delivery_mode=2)
PREFETCH = 1_000


@contextmanager
def server(run: Run) -> Iterator[str]:
    """A rabbitmq-server and the port mapper that it needs, both on loopback."""
    port, mapper, distribution = free_port(), free_port(), free_port()
    plugins = Path(run.directory, "plugins")
    plugins.write_text("[].")
    environment = {
        "HOME": run.directory,
        "ERL_EPMD_PORT": str(mapper),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODENAME": "benchmark@localhost",
        "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODE_PORT": str(port),
        "RABBITMQ_DIST_PORT": str(distribution),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
        "RABBITMQ_MNESIA_BASE": run.directory,
        "RABBITMQ_LOG_BASE": run.directory,
        "RABBITMQ_PID_FILE": f"{run.directory}/pid",
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(plugins),
    }
    map_ports = [EPMD, "-port", str(mapper), "-address", "127.0.0.1"]
    with (
        running(map_ports, run, partial(accepts, mapper), environment),
        running([SERVER], run, partial(_answers, port), environment, start_s=60.0),
    ):
        yield str(port)


def _answers(port: int) -> bool:
    if not accepts(port):
        return False
    try:
        _connect(str(port)).close()
    except pika.exceptions.AMQPError:
        return False
    return True


def _connect(port: str) -> Any:
    return pika.BlockingConnection(pika.ConnectionParameters("127.0.0.1", int(port), heartbeat=0))


@contextmanager
def publish(run: Run, link: Link) -> Iterator[Sender]:
    """Publish to a queue, without confirms."""
    connection = _connect(run.server)
    channel = connection.channel()
    channel.queue_declare(QUEUE)
    link.meet()
    yield Sender(sends=[partial(channel.basic_publish, "", QUEUE)], flush=connection.process_data_events)
    connection.close()


@contextmanager
def consume(run: Run, link: Link) -> Iterator[Receiver]:
    """Iterate over the queue."""
    connection = _connect(run.server)
    channel = connection.channel()
    channel.basic_qos(prefetch_count=PREFETCH)
    link.meet()
    messages = channel.consume(QUEUE, auto_ack=True, inactivity_timeout=run.quiet_s)

    def receive() -> bytes:
        body: bytes | None = next(messages)[2]
        if body is None:
            raise TimeoutError
        return body

    yield Receiver(receive=receive)
    connection.close()


@contextmanager
def publish_confirmed(run: Run, link: Link) -> Iterator[Sender]:
    """Publish persistent messages to a durable queue; each call waits for its confirm."""
    connection = _connect(run.server)
    channel = connection.channel()
    channel.queue_declare("durable", durable=True)
    channel.confirm_delivery()
    yield Sender(sends=[partial(channel.basic_publish, "", "durable", properties=PERSISTENT)])
    connection.close()


ENTRIES = [
    Entry(
        workloads=("throughput", "queue"),
        peer="RabbitMQ, pika",
        roles={"sender": sending(publish), "receiver": receiving(consume)},
        server=server,
        messages_max=20_000,
    ),
    Entry(
        workloads=("durable", "confirm"),
        peer="RabbitMQ, pika, confirmed",
        roles={"sender": sending(publish_confirmed)},
        server=server,
        messages_max=3_000,
    ),
]
