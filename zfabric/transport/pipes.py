"""PUSH and PULL sockets of queues at-most-once: a PUSH for each queue, a PULL for each puller, which listens.

Pushers connect, so they choose who gets their jobs, and pullers see whose key each batch came by.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import zmq

from zfabric.config import Config
from zfabric.errors import LimitExceeded
from zfabric.transport.base import Buffer, Credentials, Receiver
from zfabric.transport.handshakes import be_client, be_server
from zfabric.transport.listening import Listening, fingerprint_of, user_of

__all__ = ["BURST_BYTES", "Pipes"]

# Plain integers: pyzmq's enums cost a microsecond each time.
_EVENTS, _POLLOUT = int(zmq.EVENTS), int(zmq.POLLOUT)
_NOBLOCK, _SNDMORE = int(zmq.NOBLOCK), int(zmq.SNDMORE)

BURST_BYTES = 256 * 1024
"Read from the feed or a PULL in one turn: more would leave the processor's cache before the reader gets to it."
IPC = "ipc"
"Stands for an address."
PIPE_BATCHES = 8
"Batches that wait on each side of a connection from PUSH to PULL: what is more goes to others, or waits at the pusher."


class Pipes(Listening):
    """The part of `ZmqTransport` that is about queues at-most-once."""

    _receiver: Receiver

    def __init__(
        self, config: Config, addresses: tuple[str, ...], ipc_stem: Path | None, credentials: Credentials | None
    ) -> None:
        super().__init__(config, addresses, ipc_stem, credentials)
        self._pushes: dict[str, zmq.Socket[bytes]] = {}
        self._pulls: dict[int, zmq.Socket[bytes]] = {}
        self._bound: dict[int, dict[str, str]] = {}
        "Where each PULL socket listens, by address."
        self._blocked: set[str] = set()
        self._paused_pulls: set[int] = set()

    def _pipe(self, kind: int) -> zmq.Socket[bytes]:
        try:
            socket = self._socket(kind)
        except zmq.ZMQError as error:
            if error.errno != errno.EMFILE:
                raise
            used = len(self._pushes) + len(self._pulls)
            raise LimitExceeded("connections_max", used, self._config.connections_max) from error
        socket.set(zmq.SNDHWM, PIPE_BATCHES)
        socket.set(zmq.RCVHWM, PIPE_BATCHES)
        return socket

    # -- pushing -------------------------------------------------------------------------------

    def open_push(self, queue: str) -> None:
        """Make a queue's PUSH socket, unless it is there. Raises LimitExceeded."""
        if queue not in self._pushes:
            socket = self._pushes[queue] = self._pipe(zmq.PUSH)
            socket.set(zmq.IMMEDIATE, 1)  # nothing waits for a connection that may never be made
            self._watch(socket, partial(self._look_for_room, queue))

    def connect_push(self, queue: str, endpoint: str) -> None:
        """Let a puller have jobs of a queue."""
        socket = self._pushes[queue]
        key = fingerprint_of(endpoint) if self._distinguishes else ""
        if be_client(socket, self._credentials, key):
            with suppress(zmq.ZMQError):
                socket.set(zmq.IPV6, "[" in endpoint)
                socket.connect(self._plain(endpoint))
        self._loop.call_soon(self._look_for_room, queue)

    def disconnect_push(self, queue: str, endpoint: str) -> None:
        """Send no more to a puller; what is on the way is lost."""
        with suppress(zmq.ZMQError):
            self._pushes[queue].disconnect(self._plain(endpoint))
        self._loop.call_soon(self._look_for_room, queue)

    def push(self, queue: str, frames: Sequence[Buffer]) -> bool:
        """Send a batch to one of the queue's pullers; False if none has room: `Receiver.on_room` tells when."""
        socket = self._pushes[queue]
        try:
            socket.send(frames[0], _NOBLOCK | (_SNDMORE if len(frames) > 1 else 0))
        except zmq.ZMQError:
            self._blocked.add(queue)
            return False
        for frame in frames[1:-1]:
            socket.send(frame, _NOBLOCK | _SNDMORE, copy=False)
        if len(frames) > 1:
            socket.send(frames[-1], _NOBLOCK, copy=False)
        return True

    def _look_for_room(self, queue: str) -> None:
        socket = self._pushes[queue]
        if not socket.closed and int(socket.get(_EVENTS)) & _POLLOUT and queue in self._blocked:
            self._blocked.discard(queue)
            self._receiver.on_room(queue)
            self._receiver.on_burst_end()

    # -- pulling -------------------------------------------------------------------------------

    def open_pull(self, puller: int) -> tuple[str, ...]:
        """Make a PULL socket; where pushers can connect to it. Raises LimitExceeded, or OSError."""
        socket = self._pulls[puller] = self._pipe(zmq.PULL)
        be_server(socket, self._credentials)
        bound = self._bound[puller] = {}
        try:
            if self._ipc_stem is not None:
                bound[IPC] = f"ipc://{self._ipc_stem}.{puller}"
                socket.bind(bound[IPC])
            for address in self._tcp:
                bound[address] = _bind(socket, address)
        except zmq.ZMQError as error:
            del self._pulls[puller], self._bound[puller]
            socket.close(linger=0)
            raise OSError(error.errno or errno.EADDRNOTAVAIL, f"cannot open a puller's socket: {error}") from error
        self._watch(socket, partial(self._drain_pull, puller))
        return self._pull_endpoints(puller)

    def _pull_endpoints(self, puller: int) -> tuple[str, ...]:
        return tuple(f"{endpoint}{self._key_suffix}" for endpoint in self._bound[puller].values())

    def rebind(self, addresses: tuple[str, ...]) -> dict[int, tuple[str, ...]]:
        """As of the other sockets; where each PULL socket listens now."""
        super().rebind(addresses)
        for puller, bound in self._bound.items():
            socket = self._pulls[puller]
            for address in bound.keys() - self._tcp.keys() - {IPC}:
                with suppress(zmq.ZMQError):
                    socket.unbind(bound.pop(address))
            for address in self._tcp:
                if address not in bound:
                    with suppress(zmq.ZMQError):
                        bound[address] = _bind(socket, address)
            self._touch(socket)
        return {puller: self._pull_endpoints(puller) for puller in self._bound}

    def close_pull(self, puller: int) -> None:
        """Close a PULL socket with all that it has."""
        socket = self._pulls.pop(puller)
        del self._bound[puller]
        self._paused_pulls.discard(puller)
        self._forget(socket)

    def pause_pull(self, puller: int, paused: bool) -> None:
        """Stop or go on reading a PULL socket; batches wait in the sockets and then at their pushers."""
        if paused:
            self._paused_pulls.add(puller)
        else:
            self._paused_pulls.discard(puller)
            self._touch(self._pulls[puller])

    def _drain_pull(self, puller: int) -> None:
        socket, nbytes = self._pulls[puller], 0
        for _ in range(self._config.frames_per_turn_max):
            if puller in self._paused_pulls:
                socket.get(_EVENTS)  # else its descriptor stays readable, and the event loop turns idly
                break
            try:
                last = socket.recv(_NOBLOCK, copy=False)
            except zmq.ZMQError:
                break
            user = user_of(last) if self._distinguishes else ""
            frames: list[Buffer] = [last.bytes]
            while last.more:  # cheaper than the socket's own option
                last = socket.recv(copy=False)
                frames.append(last.buffer)
            self._receiver.on_jobs(puller, frames, user)
            nbytes += len(frames[0])
            if nbytes >= BURST_BYTES:
                self._touch(socket)
                break
        else:
            self._touch(socket)
        self._receiver.on_burst_end()

    def _drop_pull_links(self) -> None:
        """End every connection to a PULL socket; pushers that are still trusted make it again."""
        for puller, socket in self._pulls.items():
            self._drop_links(socket, self._pull_endpoints(puller))

    def _close_pipes(self) -> None:
        for socket in (*self._pushes.values(), *self._pulls.values()):
            socket.close(linger=0)


def _bind(socket: zmq.Socket[bytes], address: str) -> str:
    socket.set(zmq.IPV6, ":" in address)
    socket.bind(f"tcp://[{address}]:*" if ":" in address else f"tcp://{address}:*")
    return socket.get_string(zmq.LAST_ENDPOINT).rstrip("\0")
