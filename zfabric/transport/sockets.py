"""The four ZeroMQ sockets of a node, with every option that `docs/zeromq.md` asks for.

inbox    ROUTER, bound       control frames of those who dialled us, and our answers to them
dialler  ROUTER, connects    control frames to those whom we dialled; one socket for all peers, each
                             connection named by CONNECT_ROUTING_ID
outlet   XPUB, bound         our batches; its subscriptions come back as frames
feed     SUB, connects       our peers' batches
"""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from zlib import crc32

import zmq

from zfabric.config import Config
from zfabric.transport.base import Buffer, Credentials, Receiver, Route
from zfabric.transport.handshakes import (
    HANDSHAKE_FAILED,
    ZAP_DOMAIN,
    Doorkeeper,
    be_client,
    be_server,
    explain,
    monitor,
    occurrences,
)
from zfabric.transport.readiness import Readiness, readiness

__all__ = ["ZmqTransport"]

# Plain integers: pyzmq's enums cost a microsecond each time.
_EVENTS, _POLLIN, _RCVMORE = int(zmq.EVENTS), int(zmq.POLLIN), int(zmq.RCVMORE)
_NOBLOCK, _SNDMORE = int(zmq.NOBLOCK), int(zmq.SNDMORE)

LIBZMQ_MIN = (4, 3, 5)
IPC_PATH_MAX = 100
"Bytes of a socket's path: the kernel's limit is 107."
OUTLET_QUEUE_MIN, OUTLET_QUEUE_MAX = 8, 10_000
"Batches in one subscriber's queue: between these, as many as make Config.outlet_queue_bytes."
CALM_BATCHES = 1000
"The queue grows again after this many batches that would allow it."
DIALLER_LINGER_S = 0.25
"What was sent to peers that we dialled may take this long to leave when the node closes."
DESCRIPTORS_MIN = 40
"A node's sockets and libzmq's threads take about half of these."
BURST_BYTES = 256 * 1024
"Read from the feed in one turn: more would leave the processor's cache before the reader gets to it."
FEED_QUEUE = 64
"Batches waiting in the feed for one publisher; what is more waits at the publisher."


class ZmqTransport:
    """Implements `transport.base.Transport`."""

    def __init__(
        self,
        config: Config,
        addresses: tuple[str, ...],
        ipc_stem: Path | None,
        *,
        credentials: Credentials | None = None,
        with_crc: bool = False,
    ) -> None:
        """`addresses` are the IP addresses to listen on; `ipc_stem` the path that ipc names begin with.

        With `credentials` every connection is encrypted, and only the trusted get one. `with_crc` adds a checksum to
        control frames; one that is there is always checked.
        """
        if zmq.zmq_version_info() < LIBZMQ_MIN:
            raise OSError(f"libzmq {zmq.zmq_version()} has known security holes; install pyzmq >= 27 (libzmq 4.3.5)")
        self._config = config
        self._credentials = credentials
        self._with_crc = with_crc
        self._addresses = addresses
        self._ipc_stem = ipc_stem if config.ipc and zmq.has("ipc") else None
        if self._ipc_stem is not None and len(str(self._ipc_stem)) + 4 > IPC_PATH_MAX:
            self._ipc_stem = None
        self.inbox_endpoints: tuple[str, ...] = ()
        self.outlet_endpoints: tuple[str, ...] = ()
        self._tcp: dict[str, tuple[str, str]] = {}
        self._dialled: dict[int, str] = {}
        self._followed: Counter[str] = Counter()
        self._broken: dict[str, asyncio.TimerHandle] = {}
        self._touched: dict[zmq.Socket[bytes], Callable[[], None]] = {}
        self._outlet_queue = OUTLET_QUEUE_MAX
        self._calm = 0
        self._paused = False

    # -- opening -------------------------------------------------------------------------------

    def open(self, receiver: Receiver) -> None:
        """Bind and start to receive."""
        _check_descriptors()
        self._loop = asyncio.get_running_loop()
        self._receiver = receiver
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._context.set(zmq.MAX_SOCKETS, self._config.connections_max)
        try:
            if self._credentials is not None:  # libzmq asks it from the first connection on
                self._doorkeeper = Doorkeeper(self._context, self._credentials, receiver.on_handshake_failed)
            self._inbox = self._control_socket()
            self._inbox.set(zmq.RCVHWM, self._config.control_queue_frames)
            self._dialler = self._control_socket()
            self._dialler.set(zmq.RCVHWM, 0)  # a full queue and a reconnection abort the process (libzmq #4767)
            self._outlet = self._socket(zmq.XPUB)
            self._feed = self._socket(zmq.SUB)
            self._outlet.set(zmq.SNDHWM, self._outlet_queue)
            self._feed.set(zmq.RCVHWM, FEED_QUEUE)
            self._feed.set(zmq.SNDHWM, 0)  # else subscriptions beyond it vanish on reconnect (libzmq #4064)
            self._monitor()
            be_server(self._inbox, self._credentials)
            be_server(self._outlet, self._credentials)
            self._bind()
        except zmq.ZMQError as error:
            self._context.destroy(linger=0)
            raise OSError(error.errno or errno.EADDRNOTAVAIL, f"cannot open sockets: {error}") from error
        except BaseException:
            self._context.destroy(linger=0)
            raise
        self._readiness: Readiness = readiness(self._loop, force_thread=self._config.force_waker_thread)
        self._drains: dict[zmq.Socket[bytes], Callable[[], None]] = {
            self._inbox: partial(self._drain_control, self._inbox),
            self._dialler: partial(self._drain_control, self._dialler),
            self._outlet: self._drain_outlet,
            self._feed: self._drain_feed,
            **{events: partial(self._drain_events, events, socket) for socket, events in self._monitors.items()},
        }
        if self._credentials is not None:
            self._drains[self._doorkeeper.socket] = self._drain_doorkeeper
        for socket, drain in self._drains.items():
            self._readiness.watch(socket.fileno(), drain)
            self._touch(socket)

    def _socket(self, kind: int) -> zmq.Socket[bytes]:
        config = self._config
        socket: zmq.Socket[bytes] = self._context.socket(kind)
        socket.set(zmq.LINGER, 0)
        socket.set(zmq.MAXMSGSIZE, config.frame_bytes_max)
        socket.set(zmq.HANDSHAKE_IVL, _ms(config.handshake_timeout_s))
        socket.set(zmq.ZAP_DOMAIN, ZAP_DOMAIN)  # also without keys: ZMTP 1 and 2, which never time out, are off
        socket.set(zmq.RECONNECT_IVL, _ms(config.reconnect_interval_s))
        socket.set(zmq.RECONNECT_IVL_MAX, _ms(config.reconnect_interval_s_max))
        socket.set(zmq.BACKLOG, config.backlog)
        socket.set(zmq.TCP_KEEPALIVE, 1)
        socket.set(zmq.TCP_KEEPALIVE_IDLE, max(1, round(config.peer_timeout_s)))
        return socket

    def _monitor(self) -> None:
        self._monitors: dict[zmq.Socket[bytes], zmq.Socket[bytes]] = {}
        for name in ("inbox", "dialler", "outlet", "feed"):
            socket = getattr(self, f"_{name}")
            more = zmq.EVENT_DISCONNECTED | zmq.EVENT_CONNECT_RETRIED if name == "feed" else 0
            self._monitors[socket] = monitor(socket, name, HANDSHAKE_FAILED | more)

    def _control_socket(self) -> zmq.Socket[bytes]:
        socket = self._socket(zmq.ROUTER)
        socket.set(zmq.ROUTER_MANDATORY, 1)
        socket.set(zmq.SNDHWM, self._config.control_queue_frames)
        socket.set(zmq.TCP_MAXRT, _ms(2 * self._config.peer_timeout_s))  # HEARTBEAT_IVL can abort (libzmq #4364)
        return socket

    def _bind(self) -> None:
        if self._ipc_stem is not None:
            self._inbox.bind(f"ipc://{self._ipc_stem}.in")
            self._outlet.bind(f"ipc://{self._ipc_stem}.out")
        for address in self._addresses:
            self._bind_address(address)
        self._collect_endpoints()

    def _bind_address(self, address: str) -> None:
        host = f"[{address}]" if ":" in address else address
        port = self._config.port or "*"
        for socket in (self._inbox, self._outlet):
            socket.set(zmq.IPV6, ":" in address)
        try:
            self._inbox.bind(f"tcp://{host}:{port}")
            inbox = self._inbox.get_string(zmq.LAST_ENDPOINT)
            self._outlet.bind(f"tcp://{host}:*")
            outlet = self._outlet.get_string(zmq.LAST_ENDPOINT)
        except zmq.ZMQError as error:
            raise OSError(error.errno or errno.EADDRNOTAVAIL, f"cannot listen on {host}:{port}: {error}") from error
        self._tcp[address] = (inbox.rstrip("\0"), outlet.rstrip("\0"))

    def _collect_endpoints(self) -> None:
        ipc = self._ipc_stem is not None
        inbox, outlet = [i for i, _ in self._tcp.values()], [o for _, o in self._tcp.values()]
        self.inbox_endpoints = (*([f"ipc://{self._ipc_stem}.in"] if ipc else []), *inbox)
        self.outlet_endpoints = (*([f"ipc://{self._ipc_stem}.out"] if ipc else []), *outlet)

    def rebind(self, addresses: tuple[str, ...]) -> None:
        """Listen on these addresses from now on; what cannot be bound is left out."""
        for address in [a for a in self._tcp if a not in addresses]:
            for socket, endpoint in zip((self._inbox, self._outlet), self._tcp.pop(address), strict=True):
                with suppress(zmq.ZMQError):
                    socket.unbind(endpoint)
        for address in addresses:
            if address not in self._tcp:
                with suppress(OSError):
                    self._bind_address(address)
        self._touch(self._inbox)
        self._touch(self._outlet)
        self._collect_endpoints()

    def usable(self, endpoint: str) -> bool:
        """Whether an endpoint can work from here at all: ipc only where its socket file is."""
        if endpoint.startswith("ipc://"):
            return self._ipc_stem is not None and Path(endpoint[6:]).is_socket()
        return endpoint.startswith("tcp://")

    # -- sending -------------------------------------------------------------------------------

    def dial(self, route: int, endpoint: str) -> bool:
        """Open a connection named `route`."""
        self._touch(self._dialler)
        if not be_client(self._dialler, self._credentials, ""):
            return False
        try:
            self._dialler.set(zmq.CONNECT_ROUTING_ID, _routing_id(route))
            self._dialler.set(zmq.IPV6, "[" in endpoint)
            self._dialler.connect(endpoint)
        except zmq.ZMQError:
            return False
        self._dialled[route] = endpoint
        return True

    def hang_up(self, route: int) -> None:
        """Close a dialled connection."""
        endpoint = self._dialled.pop(route, None)
        # libzmq disconnects by endpoint, so all connections to one go together: redial what must stay.
        if endpoint is not None and endpoint not in self._dialled.values():
            with suppress(zmq.ZMQError):
                self._dialler.disconnect(endpoint)
            self._touch(self._dialler)

    def send(self, route: Route, frame: bytes) -> bool:
        """Send a control frame; False if the route is gone or its queue full."""
        socket, routing_id = (self._dialler, _routing_id(route)) if isinstance(route, int) else (self._inbox, route)
        parts = (routing_id, frame, _crc(frame)) if self._with_crc else (routing_id, frame)
        self._touch(socket)  # a call that fails swallows the edge as well
        try:
            socket.send_multipart(parts, _NOBLOCK)
        except zmq.ZMQError:
            return False
        return True

    def connect_feed(self, endpoint: str) -> None:
        """Receive batches from an outlet."""
        self._followed[endpoint] += 1
        if self._followed[endpoint] == 1:
            self._connect_feed(endpoint)

    def _connect_feed(self, endpoint: str) -> None:
        if be_client(self._feed, self._credentials, ""):
            with suppress(zmq.ZMQError):
                self._feed.set(zmq.IPV6, "[" in endpoint)
                self._feed.connect(endpoint)
            self._touch(self._feed)

    def disconnect_feed(self, endpoint: str) -> None:
        """Stop to receive batches from an outlet."""
        self._followed[endpoint] -= 1
        if self._followed[endpoint] <= 0:  # two peers may name one outlet, one of them wrongly
            del self._followed[endpoint]
            with suppress(zmq.ZMQError):
                self._feed.disconnect(endpoint)
            self._touch(self._feed)

    def add_filter(self, prefix: bytes) -> None:
        """Receive what begins with `prefix`."""
        self._feed.set(zmq.SUBSCRIBE, prefix)
        self._touch(self._feed)

    def remove_filter(self, prefix: bytes) -> None:
        """Undo one `add_filter`."""
        self._feed.set(zmq.UNSUBSCRIBE, prefix)
        self._touch(self._feed)

    def publish(self, frames: Sequence[Buffer]) -> None:
        """Send a batch to whoever subscribed to its beginning; never blocks."""
        self._fit_outlet_queue(sum(map(len, frames)))
        outlet = self._outlet
        if len(frames) == 1:
            outlet.send(frames[0], _NOBLOCK)
        else:
            outlet.send(frames[0], _NOBLOCK | _SNDMORE)
            for frame in frames[1:-1]:
                outlet.send(frame, _NOBLOCK | _SNDMORE, copy=False)
            outlet.send(frames[-1], _NOBLOCK, copy=False)
        self._touch(outlet)

    def _fit_outlet_queue(self, nbytes: int) -> None:
        """libzmq counts messages, memory is bytes: let the queue's length follow the size of batches."""
        fit = min(max(self._config.outlet_queue_bytes // max(nbytes, 1), OUTLET_QUEUE_MIN), OUTLET_QUEUE_MAX)
        if fit < self._outlet_queue:
            self._calm = 0
        elif fit == self._outlet_queue or self._calm < CALM_BATCHES:
            self._calm += 1
            return
        self._outlet_queue = fit
        self._outlet.set(zmq.SNDHWM, fit)

    # -- receiving -----------------------------------------------------------------------------

    def _touch(self, socket: zmq.Socket[bytes]) -> None:
        """The descriptor is edge-triggered, and any call may swallow the edge: look again this turn."""
        if not self._touched:
            self._loop.call_soon(self._look_again)
        self._touched[socket] = self._drains[socket]

    def _look_again(self) -> None:
        touched, self._touched = self._touched, {}
        for socket, drain in touched.items():
            if not socket.closed and int(socket.get(_EVENTS)) & _POLLIN:
                drain()

    def _drain_control(self, socket: zmq.Socket[bytes]) -> None:
        for _ in range(self._config.frames_per_turn_max):
            if not int(socket.get(_EVENTS)) & _POLLIN:  # cheaper than the exception
                break
            routing_id, frames = socket.recv(_NOBLOCK), [socket.recv(_NOBLOCK)]
            while socket.get(_RCVMORE):
                frames.append(socket.recv(_NOBLOCK))
            route = _route(routing_id) if socket is self._dialler else routing_id
            whole = len(frames) == 1 or (len(frames) == 2 and frames[1] == _crc(frames[0]))
            self._receiver.on_control(route, frames[0] if whole else b"")
        else:
            self._touch(socket)
        self._receiver.on_burst_end()

    def _drain_outlet(self) -> None:
        for _ in range(self._config.frames_per_turn_max):
            try:
                self._receiver.on_filter(self._outlet.recv(_NOBLOCK))
            except zmq.ZMQError:
                break
        else:
            self._touch(self._outlet)
        self._receiver.on_burst_end()

    def _drain_feed(self) -> None:
        feed, nbytes = self._feed, 0
        for _ in range(self._config.frames_per_turn_max):
            if self._paused:
                feed.get(_EVENTS)  # else its descriptor stays readable, and the event loop turns idly
                break
            try:
                frames: list[Buffer] = [feed.recv(_NOBLOCK)]
            except zmq.ZMQError:
                break
            while feed.get(_RCVMORE):
                frames.append(feed.recv(copy=False).buffer)
            self._receiver.on_batch(frames)
            nbytes += len(frames[0])
            if nbytes >= BURST_BYTES:
                self._touch(feed)
                break
        else:
            self._touch(feed)
        self._receiver.on_burst_end()

    def _drain_doorkeeper(self) -> None:
        if self._doorkeeper.answer():
            self._touch(self._doorkeeper.socket)
        self._receiver.on_burst_end()

    def _drain_events(self, events: zmq.Socket[bytes], socket: zmq.Socket[bytes]) -> None:
        dialled = socket in (self._dialler, self._feed)
        self._touch(events)  # there may be more than were read
        for event, value, endpoint in occurrences(events):
            if event & HANDSHAKE_FAILED:
                reason = explain(event, value, keyed=self._credentials is not None, dialled=dialled)
                if reason is not None:
                    address = endpoint if dialled else f"somebody at {endpoint}"
                    self._receiver.on_handshake_failed(address, reason)
            else:
                self._feed_event(event, endpoint)
        self._receiver.on_burst_end()

    def _feed_event(self, event: int, endpoint: str) -> None:
        """A connection that broke the rules of ZMTP is not tried again by libzmq: it has no RETRIED after the end."""
        timer = self._broken.pop(endpoint, None)
        if timer is not None:
            timer.cancel()
        if event == zmq.EVENT_DISCONNECTED and endpoint in self._followed:
            pause = self._config.reconnect_interval_s_max
            self._broken[endpoint] = self._loop.call_later(pause, self._mend_feed, endpoint)

    def _mend_feed(self, endpoint: str) -> None:
        del self._broken[endpoint]
        if endpoint in self._followed and not self._feed.closed:
            with suppress(zmq.ZMQError):
                self._feed.disconnect(endpoint)
            self._connect_feed(endpoint)
            self._receiver.on_feed_broken(endpoint)

    def pause_feed(self, paused: bool) -> None:
        """Stop or go on reading batches."""
        if self._paused and not paused:
            self._touch(self._feed)
        self._paused = paused

    # -- closing -------------------------------------------------------------------------------

    async def close(self, timeout: float) -> None:
        """Send what is queued for at most `timeout` seconds, then close."""
        for socket in self._drains:
            self._readiness.forget(socket.fileno())
        self._readiness.close()
        for timer in self._broken.values():
            timer.cancel()
        for socket, events in self._monitors.items():
            socket.monitor(None, 0)
            events.close(linger=0)
        self._feed.close(linger=0)  # its subscriptions to outlets that are gone would wait for nothing
        # Connections that we dialled may lead to peers that are gone: their goodbyes would wait for nobody.
        self._dialler.close(linger=_ms(min(timeout, DIALLER_LINGER_S)))
        for socket in (self._inbox, self._outlet):
            socket.close(linger=_ms(timeout))
        if self._credentials is not None:
            self._doorkeeper.socket.close(linger=0)
        done = asyncio.Event()
        loop = self._loop

        def terminate() -> None:
            self._context.term()
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(done.set)

        threading.Thread(target=terminate, name="zfabric-term", daemon=True).start()
        with suppress(TimeoutError):
            await asyncio.wait_for(done.wait(), timeout + 0.5)


def _check_descriptors() -> None:
    """Raise OSError unless enough files can be opened: libzmq aborts the process where they run out in between."""
    files: list[int] = []
    try:
        for _ in range(DESCRIPTORS_MIN):
            files.append(os.open(os.devnull, os.O_RDONLY))  # noqa: PERF401 - what was opened must be closed
    except OSError as error:
        reason = f"a node needs {DESCRIPTORS_MIN} free file descriptors, and more for its peers: raise `ulimit -n`"
        raise OSError(error.errno, reason) from error
    finally:
        for file in files:
            os.close(file)


def _crc(frame: bytes) -> bytes:
    return crc32(frame).to_bytes(4, "big")


def _ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))


def _routing_id(route: int) -> bytes:
    return b"o" + route.to_bytes(8, "big")


def _route(routing_id: bytes) -> int:
    return int.from_bytes(routing_id[1:], "big")
