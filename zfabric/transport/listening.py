"""What all four sockets of a node have in common: their options, their addresses, and how the loop hears of them."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import zmq

from zfabric.config import Config
from zfabric.transport.base import Credentials
from zfabric.transport.handshakes import ZAP_DOMAIN
from zfabric.transport.readiness import Readiness

__all__ = [
    "IPC_PATH_MAX",
    "LIBZMQ_MIN",
    "Listening",
    "check_descriptors",
    "descriptors_max",
    "fingerprint_of",
    "ms",
    "user_of",
    "without_key",
]

log = logging.getLogger("zfabric")

_EVENTS, _POLLIN = int(zmq.EVENTS), int(zmq.POLLIN)

LIBZMQ_MIN = (4, 3, 5)
IPC_PATH_MAX = 100
"Bytes of a socket's path: the kernel's limit is 107."
REBINDS_MAX, REBIND_PAUSE_S = 200, 0.01
"How often, and after which pause, an address is bound again that is not free yet."
DESCRIPTORS_MIN = 40
"A node's sockets and libzmq's threads take about half of these."


class Listening:
    """Makes sockets, binds inbox and outlet, and reads what is readable."""

    _context: zmq.Context[zmq.Socket[bytes]]
    _loop: asyncio.AbstractEventLoop
    _readiness: Readiness
    _inbox: zmq.Socket[bytes]
    _outlet: zmq.Socket[bytes]

    def __init__(
        self, config: Config, addresses: tuple[str, ...], ipc_stem: Path | None, credentials: Credentials | None
    ) -> None:
        if zmq.zmq_version_info() < LIBZMQ_MIN:
            raise OSError(f"libzmq {zmq.zmq_version()} has known security holes; install pyzmq >= 27 (libzmq 4.3.5)")
        self._config = config
        self._credentials = credentials
        self._distinguishes = credentials is not None and credentials.distinguishes
        self._addresses = addresses
        self._ipc_stem = ipc_stem if config.ipc and zmq.has("ipc") else None
        if self._ipc_stem is not None and len(str(self._ipc_stem)) + 4 > IPC_PATH_MAX:
            self._ipc_stem = None
        self.inbox_endpoints: tuple[str, ...] = ()
        self.outlet_endpoints: tuple[str, ...] = ()
        self._tcp: dict[str, tuple[str, str]] = {}
        self._monitors: dict[zmq.Socket[bytes], zmq.Socket[bytes]] = {}
        self._accepted: Counter[zmq.Socket[bytes]] = Counter()
        self._drains: dict[zmq.Socket[bytes], Callable[[], None]] = {}
        self._touched: dict[zmq.Socket[bytes], Callable[[], None]] = {}

    def _drain_events(self, events: zmq.Socket[bytes], socket: zmq.Socket[bytes]) -> None:
        raise NotImplementedError

    # -- making and reading --------------------------------------------------------------------

    def _socket(self, kind: int) -> zmq.Socket[bytes]:
        config = self._config
        socket: zmq.Socket[bytes] = self._context.socket(kind)
        socket.set(zmq.LINGER, 0)
        socket.set(zmq.MAXMSGSIZE, config.frame_bytes_max)
        socket.set(zmq.HANDSHAKE_IVL, ms(config.handshake_timeout_s))
        socket.set(zmq.ZAP_DOMAIN, ZAP_DOMAIN)  # also without keys: ZMTP 1 and 2, which never time out, are off
        socket.set(zmq.RECONNECT_IVL, ms(config.reconnect_interval_s))
        socket.set(zmq.RECONNECT_IVL_MAX, ms(config.reconnect_interval_s_max))
        socket.set(zmq.BACKLOG, config.backlog)
        socket.set(zmq.TCP_KEEPALIVE, 1)
        socket.set(zmq.TCP_KEEPALIVE_IDLE, max(1, round(config.peer_timeout_s)))
        return socket

    def _control_socket(self) -> zmq.Socket[bytes]:
        socket = self._socket(zmq.ROUTER)
        socket.set(zmq.ROUTER_MANDATORY, 1)
        socket.set(zmq.SNDHWM, self._config.control_queue_frames)
        socket.set(zmq.TCP_MAXRT, ms(2 * self._config.peer_timeout_s))  # HEARTBEAT_IVL can abort (libzmq #4364)
        return socket

    def _watch(self, socket: zmq.Socket[bytes], drain: Callable[[], None]) -> None:
        events = self._monitors.get(socket)
        if events is not None:
            self._watch(events, partial(self._drain_events, events, socket))
        self._drains[socket] = drain
        self._readiness.watch(socket.fileno(), drain)
        self._touch(socket)

    def _forget(self, socket: zmq.Socket[bytes]) -> None:
        """Close a socket that was watched."""
        self._drains.pop(socket, None)
        self._touched.pop(socket, None)
        self._readiness.forget(socket.fileno())
        socket.close(linger=0)

    def _touch(self, socket: zmq.Socket[bytes]) -> None:
        """The descriptor is edge-triggered, and any call may swallow the edge: look again this turn."""
        if not self._touched:
            self._loop.call_soon(self._look_again)
        self._touched[socket] = self._drains[socket]

    def _look(self, socket: zmq.Socket[bytes]) -> None:
        """The same where little was done: a look at once costs less than another turn of the event loop."""
        if socket not in self._touched and int(socket.get(_EVENTS)) & _POLLIN:
            self._touch(socket)

    def _look_again(self) -> None:
        touched, self._touched = self._touched, {}
        for socket, drain in touched.items():
            if not socket.closed and int(socket.get(_EVENTS)) & _POLLIN:
                drain()

    # -- addresses -----------------------------------------------------------------------------

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
        key = self._key_suffix
        inboxes = (*([f"ipc://{self._ipc_stem}.in"] if ipc else []), *inbox)
        outlets = (*([f"ipc://{self._ipc_stem}.out"] if ipc else []), *outlet)
        self.inbox_endpoints = tuple(endpoint + key for endpoint in inboxes)
        self.outlet_endpoints = tuple(endpoint + key for endpoint in outlets)

    @property
    def _key_suffix(self) -> str:
        """What this node's endpoints end with."""
        return f"#{self._credentials.fingerprint}" if self._credentials is not None and self._distinguishes else ""

    def rebind(self, addresses: tuple[str, ...]) -> dict[int, tuple[str, ...]]:
        """Listen on these addresses from now on; what cannot be bound is left out."""
        self._accepted.clear()  # how many of them remain nobody tells; each that ends counts for nothing then
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
        return {}

    def drop_links(self) -> None:
        """End every connection that others made to us."""
        self._drop_links(self._inbox, self.inbox_endpoints)
        self._drop_links(self._outlet, self.outlet_endpoints)

    def _drop_links(self, socket: zmq.Socket[bytes], endpoints: tuple[str, ...]) -> None:
        """`unbind` ends the connections that came that way, and the address is free a moment later."""
        self._accepted[socket] = 0
        for endpoint in endpoints:
            with suppress(zmq.ZMQError):
                socket.unbind(self._plain(endpoint))
            self._bind_again(socket, self._plain(endpoint), REBINDS_MAX)

    def _bind_again(self, socket: zmq.Socket[bytes], address: str, tries: int) -> None:
        if socket.closed:
            return
        try:
            socket.set(zmq.IPV6, "[" in address)
            socket.bind(address)
        except zmq.ZMQError as error:
            if tries:
                self._loop.call_later(REBIND_PAUSE_S, self._bind_again, socket, address, tries - 1)
            else:
                log.error("cannot listen on %s again: %s", address, error)
        self._touch(socket)

    def usable(self, endpoint: str) -> bool:
        """Whether an endpoint can work from here at all: ipc only where its socket file is."""
        if endpoint.startswith("ipc://"):
            return self._ipc_stem is not None and Path(self._plain(endpoint)[6:]).is_socket()
        return endpoint.startswith("tcp://")

    def _plain(self, endpoint: str) -> str:
        """The endpoint as libzmq knows it."""
        return without_key(endpoint) if self._distinguishes else endpoint


def check_descriptors() -> None:
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


def descriptors_max() -> int:
    """How many files this process may have open; a high number where that has no limit."""
    try:
        import resource
    except ImportError:  # Windows
        return 1 << 20
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1 << 20 if soft == resource.RLIM_INFINITY else soft


def ms(seconds: float) -> int:
    """Whole milliseconds, at least one."""
    return max(1, round(seconds * 1000))


def fingerprint_of(endpoint: str) -> str:
    """The fingerprint of who listens on an endpoint."""
    return endpoint.rpartition("#")[2]


def user_of(frame: zmq.Frame) -> str:
    """Whose connection a frame came from; nobody's where libzmq made it itself."""
    try:
        return str(frame.get("User-Id"))
    except zmq.ZMQError:
        return ""


def without_key(endpoint: str) -> str:
    """An endpoint without the fingerprint of who listens there."""
    return endpoint.rpartition("#")[0] or endpoint
