"""A publisher or subscriber in a process of its own, which writes all that it does and sees to a history file.

    python -m tests.faults.program '{"role": "publish", "name": "p", "count": 1000, "history": "/tmp/p.jsonl"}'

Reads commands from stdin, one a line: `stop` and `go` (a subscriber stops reading, goes on; a publisher flushes and
is done), `mark` (latencies from here on), `close`. SIGTERM closes as well; SIGUSR1 blocks the event loop until SIGUSR2.
"""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zlib import crc32

import msgspec

from tests.faults import jobs
from tests.faults.options import Options
from zfabric import Config, DeliveryFailed, FabricError, Message, Node, NodeClosed
from zfabric.discovery.interfaces import Scope
from zfabric.node.environment import Machine
from zfabric.node.publisher import Publisher
from zfabric.protocol import inbox, sending
from zfabric.protocol import outbox as outboxes
from zfabric.transport import sockets
from zfabric.transport.base import Credentials
from zfabric.transport.sockets import ZmqTransport
from zfabric.wire import batch as batches

__all__ = ["HANDICAPS", "payload"]

LATENCIES_MAX = 200_000
DEBT_S = 0.1
"Time behind its rate that a publisher makes up for; after a longer stall it goes on at its rate."


def payload(name: str, incarnation: int, topic: str, number: int, pad: bytes) -> list[Any]:
    """What message `number` of a stream carries: it is unique, and it shows damage."""
    return [name, incarnation, number, time.time(), crc32(f"{name} {incarnation} {topic} {number}".encode()), pad]


class History:
    """Appends JSON lines; each is in the file when the call returns, whatever happens to the process."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644) if path else 1

    def write(self, **line: Any) -> None:
        """Append one line."""
        os.write(self._fd, msgspec.json.encode({"at": time.time(), **line}) + b"\n")


class FaultyTransport(ZmqTransport):
    """Connects through a proxy, and can bind its outlet to a fixed port."""

    def __init__(self, config: Config, addresses: tuple[str, ...], options: Options) -> None:
        super().__init__(config, addresses, None, with_crc=options.checksums)
        self._via = options.via
        self._outlet_port = options.outlet_port

    def _through(self, endpoint: str) -> str:
        return endpoint.replace("//127.0.0.1:", f"//{self._via}:") if self._via else endpoint

    def dial(self, route: int, endpoint: str) -> bool:
        """Dial the proxy."""
        return super().dial(route, self._through(endpoint))

    def connect_feed(self, endpoint: str) -> None:
        """Follow the proxy."""
        super().connect_feed(self._through(endpoint))

    def disconnect_feed(self, endpoint: str) -> None:
        """Leave the proxy."""
        super().disconnect_feed(self._through(endpoint))

    def _bind_address(self, address: str) -> None:
        if not self._outlet_port:
            super()._bind_address(address)
            return
        ports = self._config.port, self._outlet_port
        inbox, outlet = (f"tcp://{address}:{port}" for port in ports)
        self._inbox.bind(inbox)
        self._outlet.bind(outlet)
        self._tcp[address] = inbox, outlet


class FaultyMachine(Machine):
    """The real machine with the transport above."""

    def __init__(self, options: Options) -> None:
        self._options = options

    def scope(self, interface: str) -> Scope:
        """The interface's addresses; what asks for checksums must not look like loopback."""
        scope = super().scope(interface)
        addresses = tuple(address for address in scope.addresses if ":" not in address)
        return Scope(scope.spec, addresses, scope.loopback and not self._options.checksums)

    def transport(self, node_id: bytes, scope: Scope, config: Config, credentials: Credentials | None) -> ZmqTransport:
        """ZeroMQ over TCP."""
        return FaultyTransport(config, scope.addresses, self._options)


def _no_acks() -> None:
    inbox.ReliableInbox.take_ack = lambda self, now: None  # type: ignore[method-assign]


def _no_repair() -> None:
    sending.Sending.repair = lambda self, peer, repair, now: None  # type: ignore[method-assign]


def _no_positions() -> None:
    def none(self: sending.Sending, outbox: outboxes.Outbox, now: float) -> None:
        outbox.position_at = float("inf")

    sending.Sending._tell_positions = none  # type: ignore[method-assign]


def _no_deduplication() -> None:
    original = inbox.ReliableInbox.accept

    def accept(self: inbox.ReliableInbox, batch: Any, now: float) -> None:
        if self.expected is not None and batch.end <= self.expected:
            self.expected = batch.base
            self._have.remove(batch.base, batch.end)
        original(self, batch, now)

    inbox.ReliableInbox.accept = accept  # type: ignore[method-assign]


def _no_checksums() -> None:
    batches._checksum = lambda frame, body_start, buffers: 0
    sockets._crc = lambda frame: b""


def _no_retention() -> None:
    original = outboxes.Outbox.received_by_all

    def received(self: outboxes.Outbox, *, processed: bool = False) -> int:
        return original(self)

    outboxes.Outbox.received_by_all = received  # type: ignore[method-assign]


HANDICAPS = {
    "no acks": _no_acks,
    "no repair": _no_repair,
    "no positions": _no_positions,
    "no deduplication": _no_deduplication,
    "no checksums": _no_checksums,
    "no retention": _no_retention,
}
"Mechanisms that can be switched off, to see that the tests notice."


class Program:
    """One node that publishes or subscribes until it is told to close."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.history = History(options.history)
        self.closing = asyncio.Event()
        self.reading = asyncio.Event()
        self.reading.set()
        self.latencies: list[float] = []
        self._reliable = set(options.reliable)

    async def run(self) -> None:
        """Open, do the work, close."""
        options, loop = self.options, asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self.closing.set)
        defaults = {"mdns": False, "registry": False, "ipc": False}
        config = Config(**{**defaults, **options.config})
        node = Node(
            options.name,
            fabric=options.fabric,
            interface=options.interface,
            seeds=options.seeds,
            insecure=True,
            config=config,
        )
        node._environment = FaultyMachine(options)
        async with node:
            assert node._driver is not None
            outlets = node._driver._transport.outlet_endpoints
            events = loop.create_task(self._watch(node))
            # What the history needs to be read stands in its first line.
            who = {"name": options.name, "incarnation": options.incarnation, "role": options.role}
            endpoints = [*node.endpoints, *outlets]
            self.history.write(opened=node.id, **who, endpoints=endpoints, streams=options.streams())
            commands = loop.create_task(self._obey())
            work = [loop.create_task(job) for job in self._jobs(node)]
            await self.closing.wait()
            statistics = node.statistics()
        counters = {n: getattr(statistics, n) for n in ("protocol_errors", "strangers", "batches_sent", "bytes_sent")}
        totals = {n: statistics.total(n) for n in ("received", "lost", "undecodable")}
        core = node._driver.core.streams
        self.history.write(closed={**counters, **totals, "repaired": core.repaired, "duplicates": core.duplicates})
        for task in (*work, commands, events):
            task.cancel()
        await asyncio.gather(*work, commands, events, return_exceptions=True)

    def _jobs(self, node: Node) -> Iterator[Any]:
        options = self.options
        if options.role == "publish":
            yield self._publish(node)
        elif options.role == "subscribe":
            patterns = options.streams() if options.topics else [f"{options.topic}.#"]
            yield from (self._subscribe(node, pattern) for pattern in patterns)
        elif options.role == "push":
            yield jobs.push(node, options, self.history.write, self.reading)
        elif options.role == "work":
            yield jobs.work(node, options, self.history.write, self.reading)

    async def _watch(self, node: Node) -> None:
        async for event in node.events():
            fields = msgspec.to_builtins(event)
            self.history.write(event=type(event).__name__, **fields)

    async def _obey(self) -> None:
        reader = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while line := (await reader.readline()).decode().strip():
            if line == "stop":
                self.reading.clear()
            elif line == "go":
                self.reading.set()
            elif line == "mark":
                self._report()
            elif line == "close":
                break
            self.history.write(did=line)
        self.closing.set()

    def _report(self) -> None:
        ordered, self.latencies = sorted(self.latencies), []
        if ordered:
            p50, p99 = (ordered[int(len(ordered) * q)] for q in (0.5, 0.99))
            self.history.write(latency={"count": len(ordered), "p50": p50, "p99": p99, "max": ordered[-1]})

    # -- publishing ----------------------------------------------------------------------------

    async def _publish(self, node: Node) -> None:
        options = self.options
        publishers = [
            node.publisher(
                topic,
                delivery=delivery,
                window_bytes=options.window_bytes or None,
                history=options.kept if delivery != "at-most-once" else 0,
            )
            for topic, delivery in options.streams().items()
        ]
        for publisher in publishers:
            await publisher.wait_for(options.subscribers)
        self.history.write(began=len(publishers))
        began, pad, done, flushed = time.monotonic(), bytes(options.pad), 0, 0
        try:
            while done < options.count and self.reading.is_set():
                numbers = range(done, min(done + options.chunk, options.count))
                for publisher in publishers:
                    await self._say(publisher, numbers, pad)
                done = numbers.stop
                if options.flush_every and done - flushed >= options.flush_every:
                    await self._flush(publishers, done)
                    flushed = done
                pause = began + done * len(publishers) / options.rate - time.monotonic() if options.rate else 0.0
                began += max(0.0, -pause - DEBT_S)
                await asyncio.sleep(max(0.0, pause))
            await self._flush(publishers, done)
        except NodeClosed:
            self.history.write(cut=done)
            return
        self.history.write(done=done)

    async def _say(self, publisher: Publisher, numbers: range, pad: bytes) -> None:
        options, topic = self.options, publisher.topic
        self.history.write(tried=[topic, numbers[-1]])
        await publisher.publish_many(
            payload(options.name, options.incarnation, topic, number, pad) for number in numbers
        )
        self.history.write(sent=[topic, numbers[-1]])

    async def _flush(self, publishers: list[Publisher], done: int) -> None:
        await asyncio.gather(*(self._flush_one(publisher, done) for publisher in publishers))

    async def _flush_one(self, publisher: Publisher, done: int) -> None:
        try:
            await publisher.flush()
        except DeliveryFailed as error:
            self.history.write(failed=[publisher.topic, error.failures])
        else:
            if publisher.topic in self._reliable:
                self.history.write(ok=[publisher.topic, done - 1])

    # -- subscribing ---------------------------------------------------------------------------

    async def _subscribe(self, node: Node, pattern: str) -> None:
        options = self.options
        subscription = node.subscribe(
            pattern,
            start=options.start,
            ack=options.ack,
            overflow=options.overflow or None,
            buffer_bytes=options.buffer_bytes or None,
        )
        async for batch in subscription.batches():
            await self.reading.wait()
            if options.pause_s:
                await asyncio.sleep(options.pause_s)
            self._take(batch)
            if options.ack == "manual":
                for message in batch:
                    await message.ack()

    def _take(self, batch: list[Message]) -> None:
        now = time.time()
        runs: list[list[Any]] = []
        for message in batch:
            name, incarnation, number, _, check, _ = value = message.value
            topic = message.topic
            if check != crc32(f"{name} {incarnation} {topic} {number}".encode()) or number != message.seq:
                self.history.write(damaged=repr(value), topic=topic, seq=message.seq)
                continue
            run = runs[-1] if runs else None
            if (
                run is not None
                and run[3] + 1 == number
                and run[0] == name
                and run[4] == topic
                and run[1] == incarnation
            ):
                run[3] = number
            else:
                runs.append([name, incarnation, number, number, topic])
        if len(self.latencies) < LATENCIES_MAX:
            self.latencies.append(now - batch[0].value[3])
        for name, incarnation, first, last, topic in runs:
            self.history.write(got=[name, incarnation, topic, first, last])


def _hang(number: int, frame: object) -> None:
    """Block the event loop (this runs in its thread) until SIGUSR2; libzmq's own threads go on."""
    signal.sigwait({signal.SIGUSR2})


async def _main(options: Options) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    signal.signal(signal.SIGUSR1, _hang)
    await Program(options).run()


def main(argument: str) -> int:
    """Run one program; exit 3 on an error that zfabric raised on purpose."""
    options = msgspec.json.decode(argument, type=Options)
    if options.handicap:
        HANDICAPS[options.handicap]()
    if options.files_max:
        resource.setrlimit(resource.RLIMIT_NOFILE, (options.files_max, options.files_max))
    try:
        asyncio.run(_main(options))
    except (FabricError, OSError) as error:
        History(options.history).write(error=type(error).__name__, text=str(error))
        return 3
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: {Path(__file__).stem} OPTIONS-AS-JSON")
    sys.exit(main(sys.argv[1]))
