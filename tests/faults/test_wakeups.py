"""libzmq's descriptor is edge-triggered: a call that fails must not make a socket deaf."""

from __future__ import annotations

import select
from collections.abc import Callable, Sequence

import pytest
import zmq

from tests.waiting import wait_until_async
from zfabric.config import Config
from zfabric.transport.base import Buffer, Route
from zfabric.transport.sockets import ZmqTransport


class Receiver:
    """Counts control frames."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []

    def on_control(self, route: Route, frame: bytes, user: str = "") -> None:
        """A control frame arrived."""
        self.frames.append(frame)

    def on_batch(self, frames: Sequence[Buffer], user: str = "") -> None:
        """Never here."""

    def on_filter(self, data: bytes, user: str = "") -> None:
        """Never here."""

    def on_jobs(self, puller: int, frames: Sequence[Buffer], user: str = "") -> None:
        """Never here."""

    def on_room(self, queue: str) -> None:
        """Never here."""

    def on_unreachable(self, route: int) -> None:
        """Never here."""

    def on_interrupted(self, route: int) -> None:
        """Nothing to do."""

    def on_connection_ended(self) -> None:
        """Nothing to find out."""

    def on_violation(self, address: str, reason: str) -> None:
        """Never here."""

    def on_handshake_failed(self, address: str, reason: str) -> None:
        """Never here."""

    def on_burst_end(self) -> None:
        """Nothing to answer."""


CALLS: dict[str, Callable[[ZmqTransport], object]] = {
    "a send to a route that is gone": lambda transport: transport.send(b"nobody", b"x"),
    "a send that works": lambda transport: transport.send(b"client", b"x"),
    "a change of addresses": lambda transport: transport.rebind(("127.0.0.1",)),
}


@pytest.mark.parametrize("call", CALLS)
async def test_a_call_between_arrival_and_wakeup_loses_no_frame(call: str) -> None:
    """A frame has arrived, the event loop has not looked yet, and then the socket is used for something else."""
    transport, receiver = ZmqTransport(Config(), ("127.0.0.1",), None), Receiver()
    transport.open(receiver)
    with zmq.Context() as context, context.socket(zmq.DEALER) as client:
        client.linger = 0
        client.routing_id = b"client"
        client.connect(transport.inbox_endpoints[0])
        client.send(b"first")
        await wait_until_async(lambda: receiver.frames == [b"first"])

        client.send(b"second")
        assert select.select([transport._inbox.fileno()], [], [], 5)[0], "it arrived; the loop has not run since"
        CALLS[call](transport)

        await wait_until_async(lambda: receiver.frames == [b"first", b"second"], 3)
    await transport.close(1)
