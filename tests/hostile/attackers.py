"""Attackers: raw connections that speak ZMTP badly or not at all, and nodes that speak our protocol badly."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import zmq

from tests.waiting import wait_until_async
from zfabric import Node
from zfabric.security.keys import FabricKey
from zfabric.transport.handshakes import be_client, be_server
from zfabric.wire.batch import BatchWriter, Buffer
from zfabric.wire.bundle import BundleWriter, address, tagged
from zfabric.wire.records import (
    Hello,
    Identity,
    Interest,
    PatternRequest,
    Record,
    TopicOffer,
    Welcome,
    decode_envelope,
    encode_envelope,
)

R = TypeVar("R")

GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(16) + b"\x00" + bytes(31)
"ZMTP 3.0, mechanism NULL, as a client."
PORTS = ("inbox-tcp", "inbox-ipc", "outlet-tcp", "outlet-ipc")


def port(node: Node, name: str) -> str:
    """One of the four addresses of a node: `inbox-tcp`, `inbox-ipc`, `outlet-tcp` or `outlet-ipc`."""
    driver = node._driver
    assert driver is not None
    kind, transport = name.split("-")
    endpoints: tuple[str, ...] = getattr(driver._transport, f"{kind}_endpoints")
    return next(endpoint for endpoint in endpoints if endpoint.startswith(transport))


def command(name: bytes, body: bytes) -> bytes:
    """A short ZMTP command."""
    content = bytes([len(name)]) + name + body
    return b"\x04" + bytes([len(content)]) + content


def ready(socket_type: bytes) -> bytes:
    """The command that ends the handshake."""
    return command(b"READY", b"\x0bSocket-Type" + struct.pack(">I", len(socket_type)) + socket_type)


def message(body: bytes) -> bytes:
    """A single-frame ZMTP message."""
    if len(body) < 256:
        return b"\x00" + bytes([len(body)]) + body
    return b"\x02" + struct.pack(">Q", len(body)) + body


class Raw:
    """A plain socket to any port of a node; never blocks."""

    def __init__(self, endpoint: str) -> None:
        if endpoint.startswith("ipc://"):
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.connect(endpoint[6:])
        else:
            host, _, number = endpoint[6:].rpartition(":")
            self.socket = socket.create_connection((host, int(number)))
        self.socket.setblocking(False)
        self.received = b""
        self.closed = False

    def send(self, data: bytes) -> bool:
        """Send; False if the other end has closed the connection."""
        try:
            self.socket.send(data)
        except BlockingIOError:
            pass
        except OSError:
            self.closed = True
        return not self.closed

    def gone(self) -> bool:
        """Whether the other end has closed the connection; takes in what it sent."""
        while not self.closed:
            try:
                data = self.socket.recv(65_536)
            except BlockingIOError:
                return False
            except OSError:
                data = b""
            self.closed = not data
            self.received += data
        return True

    async def shake_hands(self, socket_type: bytes) -> None:
        """Become an ordinary ZeroMQ peer."""
        self.send(GREETING + ready(socket_type))
        await wait_until_async(lambda: self.gone() or b"READY" in self.received)
        assert not self.closed

    def close(self) -> None:
        """Hang up."""
        self.socket.close()


@contextmanager
def raws(endpoint: str, count: int) -> Iterator[list[Raw]]:
    """Several raw connections."""
    opened = [Raw(endpoint) for _ in range(count)]
    try:
        yield opened
    finally:
        for raw in opened:
            raw.close()


class Impostor:
    """Speaks our protocol to a node's inbox, from a DEALER of its own, and says what it likes.

    With `outlet` it is a publisher, too: nodes on this host follow it by ipc. With `key` it is a member.
    """

    def __init__(
        self,
        fabric: str,
        *,
        node_id: bytes | None = None,
        outlet: Path | None = None,
        key: FabricKey | None = None,
        routing_id: bytes | None = None,
    ) -> None:
        self.id = node_id or os.urandom(16)
        self._key = key
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.context.set(zmq.BLOCKY, False)
        self.dealer = self.context.socket(zmq.DEALER)
        self.dealer.set(zmq.SNDHWM, 0)
        self._serial = 0
        self.dealer.set(zmq.RCVHWM, 0)
        be_client(self.dealer, key, "")
        if routing_id is not None:
            self.dealer.set(zmq.ROUTING_ID, routing_id)
        self.heard: list[Record] = []
        outlets: tuple[str, ...] = ()
        if outlet is not None:
            self.outlet = self.context.socket(zmq.XPUB)
            self.outlet.set(zmq.SNDHWM, 0)
            be_server(self.outlet, key)
            self.outlet.bind(f"ipc://{outlet}")
            outlets = (f"ipc://{outlet}",)
        self.identity = Identity(os.urandom(16), fabric, "impostor", "host", 1, (), outlets)

    def client(self, kind: int) -> zmq.Socket[bytes]:
        """Another socket of the same context, with the same key."""
        socket = self.context.socket(kind)
        be_client(socket, self._key, "")
        return socket

    def dial(self, endpoint: str) -> None:
        """Connect to an inbox."""
        self.dealer.connect(endpoint)

    def send(self, *frames: bytes) -> None:
        """Send a control message as it is."""
        self.dealer.send_multipart(frames, zmq.NOBLOCK)

    def say(self, *records: Record, sender: bytes | None = None) -> None:
        """Send records in one frame."""
        self.send(encode_envelope(sender or self.id, [self._number(record) for record in records]))

    def _number(self, record: Record) -> Record:
        """Changes of interests are numbered without holes, else nobody looks at them."""
        if not isinstance(record, Interest) or record.full:
            return record
        self._serial += 1
        return msgspec.structs.replace(record, serial=self._serial)

    def listen(self) -> list[Record]:
        """Everything heard so far."""
        with suppress(zmq.Again):
            while True:
                _, records = decode_envelope(self.dealer.recv(zmq.NOBLOCK), 1_000_000)
                self.heard += records
        return self.heard

    async def hear(self, kind: type[R], accept: Callable[[R], bool] = lambda _: True) -> R:
        """The first record of a kind that is acceptable, heard already or yet to come."""

        def found() -> list[R]:
            return [record for record in self.listen() if isinstance(record, kind) and accept(record)]

        return (await wait_until_async(found))[0]

    async def join(self, endpoint: str) -> Welcome:
        """Greet a node and become its peer."""
        self.dial(endpoint)
        self.say(Hello(None, self.identity))
        welcome = await self.hear(Welcome)
        self.say(Interest(True, False, 0, 0))
        await self.hear(Interest)
        return welcome

    async def offer(self, *topics: str, delivery: str = "at-most-once") -> None:
        """Publish topics, and wait until the node's feed subscribes."""
        self.say(Interest(False, False, 0, 0, [TopicOffer(topic, 1, delivery) for topic in topics]))
        await wait_until_async(lambda: self.outlet.poll(0))

    def subscribe(self, lane: int, pattern: str, delivery: str = "") -> None:
        """Ask for a pattern; without a marker on its outlet the node does not believe it yet."""
        self.say(Interest(False, False, 1, 0, patterns=[PatternRequest(lane, pattern, delivery)]))

    def batch(self, topic: str, *bodies: bytes, base: int = 0, crc: bool = False, epoch: int = 1) -> list[Buffer]:
        """The frames of a batch of encoded values."""
        writer = BatchWriter(topic, self.id, epoch, with_crc=crc)
        for body in bodies:
            writer.buffer += body
            writer.count += 1
        return writer.seal(base, 1)

    def bundle(self, *streams: tuple[str, int, bytes], to: str, counts: Sequence[int] = ()) -> bytes:
        """A bundle for one node: topics with their base numbers and encoded values."""
        writer = BundleWriter()
        for topic, base, body in streams:
            writer.topics.append(topic)
            writer.epochs.append(1)
            writer.bases.append(base)
            writer.bodies.append(body)
        writer.counts += counts or [1] * len(streams)
        writer.count = sum(writer.counts)
        return tagged(address(bytes.fromhex(to)), "") + writer.seal(self.id, 1, with_crc=False)

    def publish(self, *frames: Any) -> None:
        """Send a batch to everybody who subscribed."""
        self.outlet.send_multipart([bytes(frame) for frame in frames], zmq.NOBLOCK)

    def close(self) -> None:
        """Hang up."""
        self.context.destroy(linger=0)


MakeImpostor = Callable[..., Impostor]
