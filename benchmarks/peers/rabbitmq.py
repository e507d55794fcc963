"""RabbitMQ: pika, its asyncio connection to publish, its blocking one to consume with automatic acknowledgement.

Durable: persistent messages, whose confirms come as the server sends them, up to 1,000 unconfirmed.

Its server starts slowly: mind the time.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pika
from pika.adapters.asyncio_connection import AsyncioConnection

from benchmarks.drive import Receiver, Sender, receiving, sending_async
from benchmarks.model import Entry, Link, Run, program
from benchmarks.servers import accepts, free_port, running

__all__ = ["ENTRIES", "consume", "publish", "publish_confirmed", "publish_one"]

DEBIAN = "/usr/lib/rabbitmq/bin/rabbitmq-server"
"Debian's program on the PATH becomes another user, who may not write to the run's directory."
SERVER = DEBIAN if Path(DEBIAN).exists() else program("rabbitmq-server")
EPMD = program("epmd")
QUEUE = "benchmark"
PERSISTENT = pika.BasicProperties(delivery_mode=2)
PREFETCH = UNCONFIRMED = TURN = 1_000


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


@asynccontextmanager
async def publish(run: Run, link: Link) -> AsyncIterator[Sender]:
    """Publish to a queue, without confirms."""
    async with _channel(run.server) as channel:
        await _called(channel.queue_declare, QUEUE)
        await link.meet_async()
        yield Sender(sends=[partial(channel.basic_publish, "", QUEUE)], turn=TURN)


@asynccontextmanager
async def _channel(port: str) -> AsyncIterator[Any]:
    """A channel of a connection in asyncio, ended when all of it is written."""
    parameters = pika.ConnectionParameters("127.0.0.1", int(port), heartbeat=0)
    loop = asyncio.get_running_loop()
    opened, closed = loop.create_future(), loop.create_future()
    AsyncioConnection(parameters, opened.set_result, opened.set_exception, lambda *_: closed.set_result(None))
    connection = await opened
    channel = loop.create_future()
    connection.channel(on_open_callback=channel.set_result)
    yield await channel
    connection.close()
    await closed


async def _called(call: Any, *arguments: Any, **options: Any) -> None:
    """Call the server, and wait for its answer."""
    answered = asyncio.get_running_loop().create_future()
    call(*arguments, **options, callback=answered.set_result)
    await answered


class Unconfirmed:
    """The numbers of the messages that the server has not confirmed yet."""

    def __init__(self) -> None:
        self._numbers: set[int] = set()
        self._sent = 0
        self._fewer = asyncio.Event()

    def sent(self) -> None:
        """One more was published."""
        self._sent += 1
        self._numbers.add(self._sent)

    def on_confirm(self, frame: Any) -> None:
        """The server confirms one message, or all up to it."""
        method = frame.method
        if not isinstance(method, pika.spec.Basic.Ack):
            raise RuntimeError(f"the server refused a message: {method}")
        if method.multiple:
            self._numbers = {number for number in self._numbers if number > method.delivery_tag}
        else:
            self._numbers.discard(method.delivery_tag)
        self._fewer.set()

    async def at_most(self, count: int) -> None:
        """Wait until no more than that are unconfirmed."""
        while len(self._numbers) > count:
            self._fewer.clear()
            await self._fewer.wait()


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


@asynccontextmanager
async def publish_confirmed(run: Run, link: Link, most: int = UNCONFIRMED) -> AsyncIterator[Sender]:
    """Publish persistent messages to a durable queue; waits for confirms while more than `most` are missing."""
    unconfirmed = Unconfirmed()
    async with _channel(run.server) as channel:
        await _called(channel.queue_declare, "durable", durable=True)
        await _called(channel.confirm_delivery, unconfirmed.on_confirm)

        async def send(value: bytes) -> None:
            channel.basic_publish("", "durable", value, properties=PERSISTENT)
            unconfirmed.sent()
            await unconfirmed.at_most(most)

        yield Sender(sends=[send], flush=partial(unconfirmed.at_most, 0))


publish_one = partial(publish_confirmed, most=0)


ENTRIES = [
    Entry(
        workloads=("throughput", "queue"),
        peer="RabbitMQ, pika",
        roles={"sender": sending_async(publish), "receiver": receiving(consume)},
        server=server,
        messages_max=20_000,
    ),
    Entry(
        workloads=("durable",),
        peer="RabbitMQ, pika, confirmed",
        roles={"sender": sending_async(publish_confirmed)},
        server=server,
        messages_max=10_000,
    ),
    Entry(
        workloads=("confirm",),
        peer="RabbitMQ, pika, confirmed",
        roles={"sender": sending_async(publish_one)},
        server=server,
    ),
]
