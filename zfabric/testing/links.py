"""The two kinds of connection between nodes in memory, and the transport that holds a node's ends of them."""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

from zfabric.config import Config
from zfabric.testing.network import Channel, Network, Plane
from zfabric.testing.pipes import MemoryPipes
from zfabric.transport.base import Buffer, Credentials, Receiver, Route

__all__ = ["MemoryTransport", "Switchboard"]

SCHEME = "memory://"
_OUTLET_QUEUE_MAX = 10_000


class Switchboard:
    """Which transport listens where."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self._ports = 0
        self._inboxes: dict[str, MemoryTransport] = {}
        self._outlets: dict[str, MemoryTransport] = {}
        self.pulls: dict[str, MemoryPipes] = {}
        "Which PULL sockets listen where."

    def bind(self, transport: MemoryTransport, port: int) -> tuple[str, str]:
        """Take an address (any free one if `port` is 0) and return the endpoints of inbox and outlet."""
        while not port:
            self._ports += 1
            port = self._ports if f"{SCHEME}{self._ports}:in" not in self._inboxes else 0
        inbox, outlet = f"{SCHEME}{port}:in", f"{SCHEME}{port}:out"
        if inbox in self._inboxes:
            raise OSError(errno.EADDRINUSE, f"cannot listen on {inbox}: address in use")
        self._inboxes[inbox], self._outlets[outlet] = transport, transport
        self.network.loop.call_soon(self.network.kick)
        return inbox, outlet

    def unbind(self, endpoint: str) -> None:
        """Free an address."""
        self._inboxes.pop(endpoint, None)
        self._outlets.pop(endpoint, None)

    def inbox(self, endpoint: str) -> MemoryTransport | None:
        """Who listens on an inbox's endpoint."""
        return self._inboxes.get(endpoint)

    def outlet(self, endpoint: str) -> MemoryTransport | None:
        """Who listens on an outlet's endpoint."""
        return self._outlets.get(endpoint)


class ControlLink:
    """A dialled connection: `route` names it for the dialler for ever, `accepted` for the listener until it breaks."""

    _out: Channel
    _back: Channel

    def __init__(self, board: Switchboard, dialler: MemoryTransport, route: int, endpoint: str) -> None:
        self._board = board
        self._network = board.network
        self._dialler = dialler
        self._route = route
        self._endpoint = endpoint
        self._listener: MemoryTransport | None = None
        self._accepted = b""
        self._waiting: deque[bytes] = deque()
        self._closed = self._closed_by_listener = False
        self._partitions = 0
        self._network.add(self)
        self._network.loop.call_soon(self.kick)

    def kick(self) -> None:
        """Connect if somebody listens there and can be reached; else go on with what waits."""
        if self._listener is not None:
            self._out.kick()
            self._back.kick()
            return
        listener = self._board.inbox(self._endpoint)
        if listener is None and not self._closed:
            self._dialler.hear(lambda receiver: receiver.on_unreachable(self._route))
        if listener is None or self._closed or self._network.separated(self._dialler.name, listener.name):
            return
        if not _handshake(self._dialler, listener, self._endpoint):
            self._network.loop.call_later(self._dialler.config.reconnect_interval_s_max, self.kick)
            return
        self._listener = listener
        self._accepted = self._network.next_routing_id()
        listener.accepted[self._accepted] = self
        self._out = _channel(self._network, Plane.CONTROL, self._dialler, listener)
        self._back = _channel(self._network, Plane.CONTROL, listener, self._dialler)
        while self._waiting:
            self.send_out(self._waiting.popleft())

    def send_out(self, frame: bytes) -> bool:
        """From the dialler to the listener; waits in a bounded queue while there is no connection."""
        listener = self._listener
        queue: deque[bytes] | Channel = self._waiting if listener is None else self._out
        if len(queue) >= self._dialler.config.control_queue_frames:
            return False
        if listener is None:
            self._waiting.append(frame)
        else:
            self._out.send(partial(listener.receive_control, self._accepted, frame))
        return True

    def send_back(self, frame: bytes) -> bool:
        """From the listener to the dialler."""
        assert self._listener is not None
        if len(self._back) >= self._listener.config.control_queue_frames:
            return False
        self._back.send(partial(self._dialler.receive_control, self._route, frame))
        return True

    def close_by_dialler(self) -> None:
        """Close after what was sent."""
        self._closed = True
        if self._listener is None:
            self._network.remove(self)
        elif self._closed_by_listener:
            self.break_off()
        else:
            self._back.cut()
            self._out.send(self.break_off, reliable=True)

    def close_by_listener(self) -> None:
        """Close after what was sent; the dialler goes on trying."""
        self._closed_by_listener = True
        if self._closed:
            self.break_off()
        else:
            self._out.cut()
            self._back.send(self.break_off, reliable=True)

    def abandon(self) -> None:
        """The dialler crashed."""
        self._closed = True
        self._network.remove(self)
        self.break_off()

    def break_off(self) -> None:
        """Both sides lose the connection, with everything that was on the way."""
        if self._listener is None:
            return
        self._out.cut()
        self._back.cut()
        del self._listener.accepted[self._accepted]
        self._listener.hear(lambda receiver: receiver.on_connection_ended())
        self._listener = None
        if not self._closed:
            self._dialler.hear(lambda receiver: receiver.on_interrupted(self._route))
        self._closed_by_listener = False
        if self._closed:
            self._network.remove(self)
        else:
            self._network.loop.call_later(self._dialler.config.reconnect_interval_s, self.kick)

    def partitioned(self) -> None:
        """The kernel ends the connection when a partition lasts."""
        self._partitions += 1
        if self._cut_in_two():
            patience = 2 * self._dialler.config.peer_timeout_s
            self._network.loop.call_later(patience, self._give_up, self._partitions)

    def _give_up(self, partitions: int) -> None:
        if partitions == self._partitions and self._cut_in_two():
            self.break_off()

    def _cut_in_two(self) -> bool:
        return self._listener is not None and self._network.separated(self._dialler.name, self._listener.name)


class DataLink:
    """A feed's connection to an outlet: filters go up, batches come down."""

    _up: Channel
    _down: Channel

    def __init__(self, board: Switchboard, feed: MemoryTransport, endpoint: str) -> None:
        self._board = board
        self._network = board.network
        self._feed = feed
        self._endpoint = endpoint
        self._outlet: MemoryTransport | None = None
        self._filters: dict[bytes, None] = {}
        self._muted = False
        self._closed = self._closed_by_outlet = False
        self._network.add(self)
        self._network.loop.call_soon(self.kick)

    def kick(self) -> None:
        """Connect if somebody listens there and can be reached; else go on with what waits."""
        if self._outlet is not None:
            self._up.kick()
            self._down.kick()
            return
        outlet = self._board.outlet(self._endpoint)
        if outlet is None or self._closed or self._network.separated(self._feed.name, outlet.name):
            return
        if not _handshake(self._feed, outlet, self._endpoint):
            self._network.loop.call_later(self._feed.config.reconnect_interval_s_max, self.kick)
            return
        self._outlet = outlet
        outlet.subscribers[self] = None
        self._up = _channel(self._network, Plane.DATA, self._feed, outlet)
        self._down = _channel(self._network, Plane.DATA, outlet, self._feed, data=True)
        for prefix in sorted(self._feed.filters):
            self.send_filter(prefix, on=True)

    def send_filter(self, prefix: bytes, *, on: bool) -> None:
        """Tell the outlet of a filter or its end."""
        if self._outlet is not None:
            self._up.send(partial(self._filter, prefix, on=on), reliable=True)

    def _filter(self, prefix: bytes, *, on: bool) -> None:
        assert self._outlet is not None
        if on and prefix not in self._filters:
            self._filters[prefix] = None
            self._outlet.count_filter(prefix, 1)
        elif not on and prefix in self._filters:
            del self._filters[prefix]
            self._outlet.count_filter(prefix, -1)

    def offer(self, frames: Sequence[Buffer], nbytes: int) -> None:
        """Send a batch down if a filter lets it pass; without a word it is dropped where there is no room."""
        assert self._outlet is not None
        limit = self._outlet.config.outlet_queue_bytes
        if self._muted and self._down.nbytes <= limit // 2:
            self._muted = False
        if self._muted or not bytes(frames[0]).startswith(tuple(self._filters)):
            return
        self._down.send(partial(self._feed.receive_batch, self, frames), nbytes)
        self._muted = self._down.nbytes >= limit or len(self._down) >= _OUTLET_QUEUE_MAX

    def close_by_feed(self) -> None:
        """Close; what is on the way down is lost."""
        self._closed = True
        if self._outlet is None:
            self._network.remove(self)
        elif self._closed_by_outlet:
            self.break_off()
        else:
            self._down.cut()
            self._up.send(self.break_off, reliable=True)

    def close_by_outlet(self) -> None:
        """Close after what was sent; the feed goes on trying."""
        self._closed_by_outlet = True
        if self._closed:
            self.break_off()
        else:
            self._up.cut()
            self._down.send(self.break_off, reliable=True)

    def abandon(self) -> None:
        """The feed's node crashed."""
        self._closed = True
        self._network.remove(self)
        self.break_off()

    def break_off(self) -> None:
        """Both sides lose the connection, with everything that was on the way."""
        outlet = self._outlet
        if outlet is None:
            return
        self._up.cut()
        self._down.cut()
        self._outlet = None
        self._closed_by_outlet = False
        outlet.subscribers.pop(self, None)
        for prefix in sorted(self._filters):
            outlet.count_filter(prefix, -1)
        self._filters.clear()
        outlet.burst_end()
        if self._closed:
            self._network.remove(self)
        else:
            self._network.loop.call_later(self._feed.config.reconnect_interval_s, self.kick)

    def partitioned(self) -> None:
        """Nothing: like TCP without heartbeats, it waits for the network to heal."""


def _handshake(client: MemoryTransport, server: MemoryTransport, endpoint: str) -> bool:
    """Whether two nodes trust each other's keys, or both have none; else both hear of it."""
    mine, theirs = client.credentials, server.credentials
    if mine is None or theirs is None:
        trusted = mine is theirs
    else:
        trusted = mine.server_key("") == theirs.public and theirs.admit(mine.public) is not None
    if trusted:
        return True
    reason = "it has another key, or none"
    client.hear(lambda receiver: receiver.on_handshake_failed(endpoint, f"it ended the handshake: {reason}"))
    server.hear(lambda receiver: receiver.on_handshake_failed(f"somebody at {endpoint}", reason))
    return False


def _channel(
    network: Network, plane: Plane, source: MemoryTransport, target: MemoryTransport, *, data: bool = False
) -> Channel:
    return Channel(
        network,
        plane,
        (source.name, target.name),
        target.burst_end,
        frames_per_turn_max=target.config.frames_per_turn_max,
        blocked=target.is_paused if data else lambda: False,
    )


class MemoryTransport:
    """Implements `transport.base.Transport`."""

    def __init__(self, board: Switchboard, name: str, config: Config, credentials: Credentials | None) -> None:
        self.name = name
        self.config = config
        self.credentials = credentials
        self.accepted: dict[bytes, ControlLink] = {}
        self.subscribers: dict[DataLink, None] = {}
        self.filters: dict[bytes, int] = {}
        self.inbox_endpoints: tuple[str, ...] = ()
        self.outlet_endpoints: tuple[str, ...] = ()
        self._board = board
        self._receiver: Receiver | None = None
        self._dialled: dict[int, ControlLink] = {}
        self._feeds: dict[str, DataLink] = {}
        self._prefixes: dict[bytes, int] = {}
        self._paused = False
        self.pipes = MemoryPipes(self, board.network, board.pulls, _handshake)
        self.open_push, self.connect_push = self.pipes.open_push, self.pipes.connect_push
        self.disconnect_push, self.push = self.pipes.disconnect_push, self.pipes.push
        self.close_pull, self.pause_pull = self.pipes.close_pull, self.pipes.pause_pull

    def open(self, receiver: Receiver) -> None:
        """Take an address and start to receive."""
        self._board.network.attach()
        inbox, outlet = self._board.bind(self, self.config.port)
        self.inbox_endpoints, self.outlet_endpoints = (inbox,), (outlet,)
        self._receiver = self.pipes.receiver = receiver

    def open_pull(self, puller: int) -> tuple[str, ...]:
        """Make a PULL socket; where pushers can connect to it."""
        return self.pipes.open_pull(puller, self.inbox_endpoints[0].removesuffix(":in"))

    def rebind(self, addresses: tuple[str, ...]) -> dict[int, tuple[str, ...]]:
        """Addresses in memory never change."""
        return {}

    def drop_links(self) -> None:
        """Nobody is ever revoked in memory."""

    def usable(self, endpoint: str) -> bool:
        """Whether it is an address in memory."""
        return endpoint.startswith(SCHEME)

    # -- sending -------------------------------------------------------------------------------

    def dial(self, route: int, endpoint: str) -> bool:
        """Open a connection named `route`."""
        if self._receiver is None or not self.usable(endpoint):
            return False
        self._dialled[route] = ControlLink(self._board, self, route, endpoint)
        return True

    def hang_up(self, route: int) -> None:
        """Close a dialled connection after what was sent on it."""
        link = self._dialled.pop(route, None)
        if link is not None:
            link.close_by_dialler()

    def send(self, route: Route, frame: bytes) -> bool:
        """Send a control frame; False if the route is gone or its queue full."""
        if isinstance(route, int):
            dialled = self._dialled.get(route)
            return dialled is not None and dialled.send_out(frame)
        accepted = self.accepted.get(route)
        return accepted is not None and accepted.send_back(frame)

    def connect_feed(self, endpoint: str) -> None:
        """Receive batches from an outlet."""
        if self._receiver is not None and endpoint not in self._feeds:
            self._feeds[endpoint] = DataLink(self._board, self, endpoint)

    def disconnect_feed(self, endpoint: str) -> None:
        """Stop to receive batches from an outlet."""
        link = self._feeds.pop(endpoint, None)
        if link is not None:
            link.close_by_feed()

    def add_filter(self, prefix: bytes) -> None:
        """Receive what begins with `prefix`."""
        self.filters[prefix] = self.filters.get(prefix, 0) + 1
        if self.filters[prefix] == 1:
            for link in self._feeds.values():
                link.send_filter(prefix, on=True)

    def remove_filter(self, prefix: bytes) -> None:
        """Undo one `add_filter`."""
        if prefix not in self.filters:
            return
        self.filters[prefix] -= 1
        if not self.filters[prefix]:
            del self.filters[prefix]
            for link in self._feeds.values():
                link.send_filter(prefix, on=False)

    def publish(self, frames: Sequence[Buffer]) -> None:
        """Send a batch to whoever subscribed to its beginning."""
        first, *others = frames
        frozen: list[Buffer] = [bytes(first), *(memoryview(other).cast("B").toreadonly() for other in others)]
        nbytes = sum(map(len, frozen))
        for link in list(self.subscribers):
            link.offer(frozen, nbytes)

    # -- what links call -----------------------------------------------------------------------

    def receive_control(self, route: Route, frame: bytes) -> None:
        """A control frame arrived, perhaps on a route that was closed meanwhile."""
        if self._receiver is not None and (route in self._dialled or route in self.accepted):
            self._receiver.on_control(route, frame)

    def receive_batch(self, link: DataLink, frames: Sequence[Buffer]) -> None:
        """A batch arrived; like libzmq, check the filters again: they may have changed on the way."""
        wanted = link in self._feeds.values() and bytes(frames[0]).startswith(tuple(self.filters))
        if self._receiver is not None and wanted:
            self._receiver.on_batch(frames)

    def count_filter(self, prefix: bytes, change: int) -> None:
        """A subscriber's filter came or went: tell of the first and of the last."""
        before = self._prefixes.get(prefix, 0)
        after = self._prefixes[prefix] = before + change
        if not after:
            del self._prefixes[prefix]
        if self._receiver is not None and not (before and after):
            self._receiver.on_filter((b"\x01" if after else b"\x00") + prefix)

    def hear(self, news: Callable[[Receiver], None]) -> None:
        """Something happened to a connection."""
        if self._receiver is not None:
            news(self._receiver)
            self._receiver.on_burst_end()

    def burst_end(self) -> None:
        """Frames arrived, and no more for now."""
        if self._receiver is not None:
            self._receiver.on_burst_end()

    def is_paused(self) -> bool:
        """Whether batches have to wait."""
        return self._paused

    def pause_feed(self, paused: bool) -> None:
        """Stop or go on reading batches."""
        self._paused = paused
        if not paused:
            for link in self._feeds.values():
                link.kick()

    # -- the end -------------------------------------------------------------------------------

    async def close(self, timeout: float) -> None:
        """Close every connection after what was sent on it; a network in memory needs no waiting for that."""
        self._leave()
        dialled, self._dialled = self._dialled, {}
        feeds, self._feeds = self._feeds, {}
        for accepted in list(self.accepted.values()):
            accepted.close_by_listener()
        for control in dialled.values():
            control.close_by_dialler()
        for subscriber in list(self.subscribers):
            subscriber.close_by_outlet()
        for feed in feeds.values():
            feed.close_by_feed()

    def crash(self) -> None:
        """Vanish: connections break, what is on the way is lost, and nothing is said."""
        self._leave()
        dialled, self._dialled = self._dialled, {}
        feeds, self._feeds = self._feeds, {}
        mine: list[ControlLink | DataLink] = [*dialled.values(), *feeds.values()]
        for link in mine:
            link.abandon()
        theirs: list[ControlLink | DataLink] = [*self.accepted.values(), *self.subscribers]
        for link in theirs:
            link.break_off()

    def _leave(self) -> None:
        self._receiver = None
        self.pipes.close()
        for endpoint in (*self.inbox_endpoints, *self.outlet_endpoints):
            self._board.unbind(endpoint)
