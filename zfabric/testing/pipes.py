"""PUSH and PULL in memory: connections from a queue's pusher to its pullers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from zfabric.testing.network import Channel, Network, Plane
from zfabric.transport.base import Buffer, Receiver
from zfabric.transport.pipes import PIPE_BATCHES

if TYPE_CHECKING:
    from zfabric.testing.links import MemoryTransport

__all__ = ["MemoryPipes", "PipeLink"]


Handshake: TypeAlias = "Callable[[MemoryTransport, MemoryTransport, str], bool]"


class PipeLink:
    """A connection from PUSH to PULL: batches go one way, as many as there is room for."""

    def __init__(self, pipes: MemoryPipes, queue: str, endpoint: str, handshake: Handshake) -> None:
        self._pipes = pipes
        self._network = pipes.network
        self._queue = queue
        self._endpoint = endpoint
        self._handshake = handshake
        self._channel: Channel | None = None
        self._puller: MemoryPipes | None = None
        self._closed = False
        self._network.add(self)
        self._network.loop.call_soon(self.kick)

    def kick(self) -> None:
        """Connect if somebody listens there and can be reached; else go on with what waits."""
        if self._channel is not None:
            self._channel.kick()
            return
        puller = self._pipes.listeners.get(self._endpoint)
        if puller is None or self._closed or self._network.separated(self._pipes.end.name, puller.end.name):
            return
        if not self._handshake(self._pipes.end, puller.end, self._endpoint):
            self._network.loop.call_later(self._pipes.end.config.reconnect_interval_s_max, self.kick)
            return
        self._puller = puller
        puller.incoming[self] = None
        self._channel = Channel(
            self._network,
            Plane.DATA,
            (self._pipes.end.name, puller.end.name),
            puller.end.burst_end,
            frames_per_turn_max=puller.end.config.frames_per_turn_max,
            blocked=lambda: self._endpoint in puller.paused,
        )
        self._pipes.room(self._queue)

    def offer(self, frames: Sequence[Buffer]) -> bool:
        """Send a batch, if there is room."""
        channel = self._channel
        if channel is None or len(channel) >= 2 * PIPE_BATCHES:
            return False
        channel.send(partial(self._arrive, frames))
        return True

    def _arrive(self, frames: Sequence[Buffer]) -> None:
        assert self._puller is not None
        self._puller.arrived(self._endpoint, frames)
        self._pipes.room(self._queue)

    def leads_to(self, endpoint: str) -> bool:
        """Whether it ends there."""
        return self._endpoint == endpoint

    def close(self) -> None:
        """The pusher's end closes; what is on the way is lost."""
        self._closed = True
        self._network.remove(self)
        self.break_off()

    def break_off(self) -> None:
        """The connection is lost, with everything that was on the way."""
        if self._channel is None:
            return
        self._channel.cut()
        self._channel = None
        if self._puller is not None:
            self._puller.incoming.pop(self, None)
        self._puller = None
        if not self._closed:
            self._network.loop.call_later(self._pipes.end.config.reconnect_interval_s, self.kick)

    def partitioned(self) -> None:
        """Nothing: like TCP without heartbeats, it waits for the network to heal."""


class MemoryPipes:
    """The PUSH and PULL sockets of one transport in memory."""

    def __init__(
        self,
        end: MemoryTransport,
        network: Network,
        listeners: dict[str, MemoryPipes],
        handshake: Handshake,
    ) -> None:
        self.end = end
        self.network = network
        self.listeners = listeners
        self.incoming: dict[PipeLink, None] = {}
        self.paused: set[str] = set()
        self.receiver: Receiver | None = None
        self._handshake = handshake
        self._links: dict[str, dict[str, PipeLink]] = {}
        self._blocked: set[str] = set()
        self._pulls: dict[str, int] = {}

    def open_push(self, queue: str) -> None:
        """Make a queue's PUSH socket, unless it is there."""
        self._links.setdefault(queue, {})

    def connect_push(self, queue: str, endpoint: str) -> None:
        """Let a puller have jobs of a queue."""
        self._links[queue][endpoint] = PipeLink(self, queue, endpoint, self._handshake)

    def disconnect_push(self, queue: str, endpoint: str) -> None:
        """Send no more to a puller; what is on the way is lost."""
        link = self._links[queue].pop(endpoint, None)
        if link is not None:
            link.close()

    def push(self, queue: str, frames: Sequence[Buffer]) -> bool:
        """Send a batch to the next puller that has room; False if none has."""
        frozen = [bytes(frame) for frame in frames]
        links = self._links[queue]
        for endpoint, link in list(links.items()):
            if link.offer(frozen):
                links[endpoint] = links.pop(endpoint)  # the others are served before it
                return True
        self._blocked.add(queue)
        return False

    def room(self, queue: str) -> None:
        """A puller of a queue has room."""
        if self.receiver is not None and queue in self._blocked:
            self._blocked.discard(queue)
            self.receiver.on_room(queue)
            self.receiver.on_burst_end()

    def open_pull(self, puller: int, base: str) -> tuple[str, ...]:
        """Make a PULL socket below an address; where pushers can connect to it."""
        endpoint = f"{base}:{puller}"
        self._pulls[endpoint] = puller
        self.listeners[endpoint] = self
        self.network.loop.call_soon(self.network.kick)
        return (endpoint,)

    def close_pull(self, puller: int) -> None:
        """Close a PULL socket with all that it has."""
        for endpoint in [endpoint for endpoint, number in self._pulls.items() if number == puller]:
            del self._pulls[endpoint], self.listeners[endpoint]
            self.paused.discard(endpoint)
            for link in [link for link in self.incoming if link.leads_to(endpoint)]:
                link.break_off()

    def pause_pull(self, puller: int, paused: bool) -> None:
        """Stop or go on reading a PULL socket."""
        for endpoint, number in self._pulls.items():
            if number == puller:
                (self.paused.add if paused else self.paused.discard)(endpoint)
        if not paused:
            for link in list(self.incoming):
                link.kick()

    def arrived(self, endpoint: str, frames: Sequence[Buffer]) -> None:
        """A batch arrived."""
        if self.receiver is not None and endpoint in self._pulls:
            self.receiver.on_jobs(self._pulls[endpoint], frames)

    def close(self) -> None:
        """End every connection; what is on the way is lost."""
        self.receiver = None
        for links in self._links.values():
            for link in links.values():
                link.close()
        for link in list(self.incoming):
            link.break_off()
        for endpoint in self._pulls:
            self.listeners.pop(endpoint, None)
        self._links.clear()
        self._pulls.clear()
