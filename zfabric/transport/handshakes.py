"""Who is let in, and what became of handshakes: ZAP (RFC 27) and libzmq's monitors."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from contextlib import suppress

import zmq
from zmq.utils import z85

from zfabric.transport.base import Credentials

__all__ = [
    "CONNECTIONS",
    "HANDSHAKE_FAILED",
    "ZAP_DOMAIN",
    "Doorkeeper",
    "be_client",
    "be_server",
    "explain",
    "monitor",
    "occurrences",
]

ZAP_ADDRESS = "inproc://zeromq.zap.01"
ZAP_DOMAIN = b"zfabric"
_ZAP_VERSION = b"1.0"
_CURVE_FRAMES = 9
"Peer of the ROUTER, empty, version, request id, domain, address, routing id, mechanism, public key."
REPLIES_PER_TURN_MAX = 256
EVENTS_PER_TURN_MAX = 128

_EVENT = struct.Struct("=Hi")
"The first frame of libzmq's event: pyzmq's parser takes several times as long, and floods make thousands a second."
HANDSHAKE_FAILED = int(
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)
CONNECTIONS = int(zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED)
"That a listening socket has one more, or one less."
_MECHANISM_MISMATCH = int(zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH)
_CRYPTOGRAPHIC = int(zmq.PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC)


class Doorkeeper:
    """Answers libzmq's question, once per connection, whether the holder of a key may come in.

    libzmq asks after the caller has proved that it holds the key. Nobody waits but that one connection.
    """

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], credentials: Credentials, refused: Callable[[str, str], None]
    ) -> None:
        """`refused(address, reason)` hears of everybody who is turned away."""
        self._credentials = credentials
        self._refused = refused
        self.socket: zmq.Socket[bytes] = context.socket(zmq.ROUTER)
        self.socket.set(zmq.LINGER, 0)
        self.socket.set(zmq.SNDHWM, 0)
        self.socket.set(zmq.RCVHWM, 0)
        self.socket.bind(ZAP_ADDRESS)

    def answer(self) -> bool:
        """Answer the questions that wait; whether there may be more."""
        for _ in range(REPLIES_PER_TURN_MAX):
            try:
                request = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.ZMQError:
                return False
            with suppress(zmq.ZMQError):  # the one who asked may be gone
                self.socket.send_multipart(self._reply(request), zmq.NOBLOCK)
        return True

    def _reply(self, request: list[bytes]) -> list[bytes]:
        head = [*request[:2], _ZAP_VERSION, *request[3:4]]
        user = None
        if len(request) == _CURVE_FRAMES and request[4] == ZAP_DOMAIN and request[7] == b"CURVE":
            public = z85.encode(request[8])
            user = self._credentials.admit(public)
            if user is None:
                self._refused(request[5].decode(errors="replace"), "its key is not trusted here")
        if user is None:
            return [*head, b"400", b"not trusted", b"", b""]
        return [*head, b"200", b"", user.encode(), b""]


def be_server(socket: zmq.Socket[bytes], credentials: Credentials | None) -> None:
    """Let only the trusted connect to this socket. Call it before binding."""
    if credentials is not None:
        socket.set(zmq.CURVE_SERVER, 1)
        socket.set(zmq.CURVE_SECRETKEY, credentials.secret)


def be_client(socket: zmq.Socket[bytes], credentials: Credentials | None, peer: str) -> bool:
    """Make the next connection of this socket to a holder of the peer's key only; False if that is not known."""
    if credentials is None:
        return True
    server_key = credentials.server_key(peer)
    if server_key is None:
        return False
    socket.set(zmq.CURVE_PUBLICKEY, credentials.public)
    socket.set(zmq.CURVE_SECRETKEY, credentials.secret)
    socket.set(zmq.CURVE_SERVERKEY, server_key)
    return True


def monitor(socket: zmq.Socket[bytes], name: str, events: int) -> zmq.Socket[bytes]:
    """A socket that tells of events. It is read without bound: else libzmq's I/O thread could wait for us."""
    address = f"inproc://monitor.{name}"
    socket.monitor(address, events)
    monitoring: zmq.Socket[bytes] = socket.context.socket(zmq.PAIR)
    monitoring.set(zmq.LINGER, 0)
    monitoring.set(zmq.RCVHWM, 0)
    monitoring.connect(address)
    return monitoring


def occurrences(monitoring: zmq.Socket[bytes]) -> Iterator[tuple[int, int, str]]:
    """(event, value, endpoint) of what has happened since the last time, EVENTS_PER_TURN_MAX at most."""
    receive = monitoring.recv
    for _ in range(EVENTS_PER_TURN_MAX):
        try:
            event, value = _EVENT.unpack(receive(zmq.NOBLOCK))
        except zmq.Again:
            return
        yield event, value, receive().decode(errors="replace")


def explain(event: int, value: int, *, keyed: bool, dialled: bool) -> str | None:
    """Why a handshake failed, for people; None where it says nothing about keys, or the doorkeeper told it already."""
    if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
        return "it does not trust this node's key" if dialled else None
    if event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
        if value == _MECHANISM_MISMATCH:
            return "it has no key, and this node has one" if keyed else "it has a key, and this node has none"
        return "it has another key" if keyed and value == _CRYPTOGRAPHIC else None
    if keyed:
        return "it ended the handshake: it has another key, or none"
    return "it ended the handshake: it has a key, or is no node" if dialled else None
