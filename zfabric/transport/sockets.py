"""The four ZeroMQ sockets that every node has, with every option that `docs/zeromq.md` asks for.

inbox    ROUTER, bound       control frames of those who dialled us, and our answers to them
dialler  ROUTER, connects    control frames to those whom we dialled; one socket for all peers, each
                             connection named by CONNECT_ROUTING_ID
outlet   XPUB, bound         our batches; its subscriptions come back as frames
feed     SUB, connects       our peers' batches
"""

from __future__ import annotations

import asyncio
import errno
import threading
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from zlib import crc32

import zmq

from zfabric.config import Config
from zfabric.transport.base import Buffer, Credentials, Receiver, Route
from zfabric.transport.handshakes import (
    CONNECTIONS,
    HANDSHAKE_FAILED,
    Doorkeeper,
    be_client,
    be_server,
    explain,
    monitor,
    occurrences,
)
from zfabric.transport.listening import check_descriptors, descriptors_max, fingerprint_of, ms, user_of
from zfabric.transport.pipes import BURST_BYTES, Pipes
from zfabric.transport.readiness import readiness
from zfabric.wire.bundle import is_address, tagged

__all__ = ["ZmqTransport"]

# Plain integers: pyzmq's enums cost a microsecond each time.
_EVENTS, _POLLIN = int(zmq.EVENTS), int(zmq.POLLIN)
_NOBLOCK, _AND_MORE = int(zmq.NOBLOCK), int(zmq.NOBLOCK | zmq.SNDMORE)
_send = zmq.backend.Socket.send  # the other one is for draft sockets, too, and calls this one

OUTLET_QUEUE_MIN, OUTLET_QUEUE_MAX = 8, 10_000
"Batches in one subscriber's queue: between these, as many as make Config.outlet_queue_bytes."
CALM_BATCHES = 1000
"The queue grows again after this many batches that would allow it."
DIALLER_LINGER_S = 0.25
"What was sent to peers that we dialled may take this long to leave when the node closes."
SUBSCRIPTION_BYTES = 1024
"What an outlet takes in beyond the length of a topic: a handshake's longest command has some 300."
FILTER_QUEUE = 64
"""Subscriptions of one connection that wait to be taken in. Each call takes in all that wait, while more come: with a
longer queue a flood keeps it busy for seconds."""
FILTERS_PER_TURN_MAX = 10_000
"libzmq has taken them in already, without any bound: what is not read is not counted, and grows."
MARKER = b"\xff"
"First byte of subscriptions that filter nothing: nodes tell each other with them that all the others are in place."
OUTLET_FLOODED = "it subscribed beyond Config.outlet_filter_bytes; all connections to the outlet were ended"
CROWDED = "more connections than Config.accepted_max; all that others had made to that socket were ended"
FEED_BROKEN = "it sent no ZMTP, or a frame over this node's Config.frame_bytes_max; it is connected again"
"What may be wrong with a connection, for people."
FEED_QUEUE = 64
"Batches waiting in the feed for one publisher; what is more waits at the publisher."


class ZmqTransport(Pipes):
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
        super().__init__(config, addresses, ipc_stem, credentials)
        self._with_crc = with_crc
        self._dialled: dict[int, str] = {}
        self._followed: Counter[str] = Counter()
        self._broken: dict[str, asyncio.TimerHandle] = {}
        self._feeds: dict[str, zmq.Socket[bytes]] = {}
        self._filters: Counter[bytes] = Counter()
        self._outlet_queue = OUTLET_QUEUE_MAX
        self._calm = 0
        self._filter_bytes = 0
        self._accepted_max = min(config.accepted_max, descriptors_max() // 3)
        self._paused = False
        self._draining: zmq.Socket[bytes] | None = None

    # -- opening -------------------------------------------------------------------------------

    def open(self, receiver: Receiver) -> None:
        """Bind and start to receive."""
        check_descriptors()
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
            self._outlet.set(zmq.SNDHWM, self._outlet_queue)
            self._outlet.set(zmq.RCVHWM, FILTER_QUEUE)
            self._outlet.set(zmq.MAXMSGSIZE, self._config.topic_bytes_max + SUBSCRIPTION_BYTES)
            if self._distinguishes:
                self._outlet.set(zmq.XPUB_MANUAL, 1)
            self._feed = self._feeds[""] = self._feed_socket()
            counted = CONNECTIONS if self._credentials is None else 0
            ends = (counted | zmq.EVENT_DISCONNECTED, int(zmq.EVENT_CLOSED | zmq.EVENT_DISCONNECTED), counted)
            for name, events in zip(("inbox", "dialler", "outlet"), ends, strict=True):
                socket = getattr(self, f"_{name}")
                self._monitors[socket] = monitor(socket, name, HANDSHAKE_FAILED | events)
            be_server(self._inbox, self._credentials)
            be_server(self._outlet, self._credentials)
            self._bind()
        except zmq.ZMQError as error:
            self._context.destroy(linger=0)
            raise OSError(error.errno or errno.EADDRNOTAVAIL, f"cannot open sockets: {error}") from error
        except BaseException:
            self._context.destroy(linger=0)
            raise
        self._readiness = readiness(self._loop, force_thread=self._config.force_waker_thread)
        self._watch(self._inbox, partial(self._drain_control, self._inbox))
        self._watch(self._dialler, partial(self._drain_control, self._dialler))
        self._watch(self._outlet, self._drain_outlet)
        self._watch(self._feed, partial(self._drain_feed, self._feed, ""))
        if self._credentials is not None:
            self._watch(self._doorkeeper.socket, self._drain_doorkeeper)

    def _feed_socket(self) -> zmq.Socket[bytes]:
        socket = self._socket(zmq.SUB)
        socket.set(zmq.RCVHWM, FEED_QUEUE)
        socket.set(zmq.SNDHWM, 0)  # else subscriptions beyond it vanish on reconnect (libzmq #4064)
        events = HANDSHAKE_FAILED | zmq.EVENT_DISCONNECTED | zmq.EVENT_CONNECT_RETRIED
        self._monitors[socket] = monitor(socket, f"feed{len(self._monitors)}", events)
        return socket

    def _feed_of(self, endpoint: str) -> zmq.Socket[bytes]:
        """The feed for an outlet. Each identity has its own, so that it is known whose batches come."""
        user = self._user_at(endpoint)
        if user not in self._feeds:
            feed = self._feeds[user] = self._feed_socket()
            for prefix in self._filters:
                feed.set(zmq.SUBSCRIBE, prefix)
            self._watch(feed, partial(self._drain_feed, feed, user))
        return self._feeds[user]

    def _user_at(self, endpoint: str) -> str:
        """Who must be listening on an endpoint, as its key says."""
        if self._credentials is None or not self._distinguishes:
            return ""
        key = self._credentials.server_key(fingerprint_of(endpoint))
        return "" if key is None else self._credentials.admit(key) or ""

    # -- sending -------------------------------------------------------------------------------

    def dial(self, route: int, endpoint: str) -> bool:
        """Open a connection named `route`."""
        self._touch(self._dialler)
        if not be_client(self._dialler, self._credentials, fingerprint_of(endpoint) if self._distinguishes else ""):
            return False
        try:
            self._dialler.set(zmq.CONNECT_ROUTING_ID, _routing_id(route))
            self._dialler.set(zmq.IPV6, "[" in endpoint)
            self._dialler.connect(self._plain(endpoint))
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
                self._dialler.disconnect(self._plain(endpoint))
            self._touch(self._dialler)

    def send(self, route: Route, frame: bytes) -> bool:
        """Send a control frame; False if the route is gone or its queue full."""
        socket, routing_id = (self._dialler, _routing_id(route)) if isinstance(route, int) else (self._inbox, route)
        try:
            _send(socket, routing_id, _AND_MORE)
            if self._with_crc:
                _send(socket, frame, _AND_MORE)
                frame = _crc(frame)
            _send(socket, frame, _NOBLOCK)
        except zmq.ZMQError:
            return False
        finally:  # a call that fails swallows the edge as well
            if socket is not self._draining:
                self._look(socket)
        return True

    def connect_feed(self, endpoint: str) -> None:
        """Receive batches from an outlet."""
        self._followed[endpoint] += 1
        if self._followed[endpoint] == 1:
            self._connect_feed(endpoint)

    def _connect_feed(self, endpoint: str) -> None:
        feed = self._feed_of(endpoint)
        if be_client(feed, self._credentials, fingerprint_of(endpoint) if self._distinguishes else ""):
            with suppress(zmq.ZMQError):
                feed.set(zmq.IPV6, "[" in endpoint)
                feed.connect(self._plain(endpoint))
            self._touch(feed)

    def disconnect_feed(self, endpoint: str) -> None:
        """Stop to receive batches from an outlet."""
        self._followed[endpoint] -= 1
        if self._followed[endpoint] <= 0:  # two peers may name one outlet, one of them wrongly
            del self._followed[endpoint]
            self._disconnect_feed(endpoint)

    def _disconnect_feed(self, endpoint: str) -> None:
        for feed in self._feeds.values():  # whose key it was may have been forgotten
            with suppress(zmq.ZMQError):
                feed.disconnect(self._plain(endpoint))
            self._touch(feed)

    def add_filter(self, prefix: bytes) -> None:
        """Receive what begins with `prefix`."""
        self._filters[prefix] += 1
        if self._filters[prefix] == 1:
            for feed in self._feeds.values():
                feed.set(zmq.SUBSCRIBE, prefix)
                self._touch(feed)

    def remove_filter(self, prefix: bytes) -> None:
        """Undo one `add_filter`."""
        self._filters[prefix] -= 1
        if not self._filters[prefix]:
            del self._filters[prefix]
            for feed in self._feeds.values():
                feed.set(zmq.UNSUBSCRIBE, prefix)
                self._touch(feed)

    def publish(self, frames: Sequence[Buffer]) -> None:
        """Send a batch to whoever subscribed to its beginning; never blocks."""
        self._fit_outlet_queue(sum(map(len, frames)))
        outlet = self._outlet
        if len(frames) == 1:
            _send(outlet, frames[0], _NOBLOCK)
        else:
            _send(outlet, frames[0], _AND_MORE)
            for frame in frames[1:-1]:
                _send(outlet, frame, _AND_MORE, copy=False)
            _send(outlet, frames[-1], _NOBLOCK, copy=False)
        self._look(outlet)

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

    def _drain_control(self, socket: zmq.Socket[bytes]) -> None:
        self._draining = socket
        try:
            for count in range(self._config.frames_per_turn_max):
                if count and not int(socket.get(_EVENTS)) & _POLLIN:  # cheaper than the exception
                    break
                try:
                    self._receive_control(socket)
                except zmq.Again:
                    break
                if not count:
                    self._receiver.on_burst_end()  # it is often the only one: then one look at the socket is enough
            else:
                self._touch(socket)
        except BaseException:  # a task that went on there ends the program
            self._touch(socket)
            raise
        finally:
            self._draining = None
        if count > 1:
            self._receiver.on_burst_end()

    def _receive_control(self, socket: zmq.Socket[bytes]) -> None:
        user = ""
        if self._distinguishes:
            first, *parts = socket.recv_multipart(_NOBLOCK, copy=False)
            routing_id, frames, user = first.bytes, [part.bytes for part in parts], user_of(parts[-1])
        else:
            routing_id, last = socket.recv(_NOBLOCK), socket.recv(_NOBLOCK, copy=False)
            frames = [last.bytes]
            while last.more:  # cheaper than the socket's own option
                last = socket.recv(_NOBLOCK, copy=False)
                frames.append(last.bytes)
        route: Route = routing_id
        if socket is self._dialler:
            route = _route(routing_id)
            if self._distinguishes:
                user = self._user_at(self._dialled.get(route, ""))
        whole = len(frames) == 1 or (len(frames) == 2 and frames[1] == _crc(frames[0]))
        self._receiver.on_control(route, frames[0] if whole else b"", user)

    def _drain_outlet(self) -> None:
        for _ in range(FILTERS_PER_TURN_MAX):
            if self._filter_bytes > self._config.outlet_filter_bytes:
                break
            try:
                frame = self._outlet.recv(_NOBLOCK, copy=False)
            except zmq.ZMQError:
                break
            data = frame.bytes
            self._filter_bytes = max(0, self._filter_bytes + (len(data) if data[:1] == b"\1" else -len(data)))
            if self._distinguishes:
                self._take_filter(data, user_of(frame))
            else:
                self._receiver.on_filter(data)
        else:
            self._touch(self._outlet)
        if self._filter_bytes > self._config.outlet_filter_bytes:
            self._filter_bytes = 0
            self._drop_links(self._outlet, self.outlet_endpoints)
            self._receiver.on_violation("somebody at the outlet", OUTLET_FLOODED)
        self._receiver.on_burst_end()

    def _take_filter(self, data: bytes, user: str) -> None:
        """Let an identity have what it may; libzmq waits for our word, which is about the connection it came from."""
        assert self._credentials is not None
        option = zmq.SUBSCRIBE if data[:1] == b"\1" else zmq.UNSUBSCRIBE
        if data[1:2] == MARKER:
            filters: tuple[bytes, ...] = (data[1:],)
        elif is_address(data[1:]):
            filters = (tagged(data[1:], user),)
        else:
            filters = self._credentials.filters(user, data[1:])
        for prefix in filters:
            with suppress(zmq.ZMQError):  # its connection may be gone
                self._outlet.set(option, prefix)
        self._receiver.on_filter(data, user)

    def _drain_feed(self, feed: zmq.Socket[bytes], user: str) -> None:
        nbytes = 0
        for count in range(self._config.frames_per_turn_max):
            if self._paused:
                feed.get(_EVENTS)  # else its descriptor stays readable, and the event loop turns idly
                break
            if count and not int(feed.get(_EVENTS)) & _POLLIN:  # cheaper than the exception
                break
            try:
                last = feed.recv(_NOBLOCK, copy=False)
            except zmq.ZMQError:
                break
            frames: list[Buffer] = [last.bytes]
            while last.more:  # cheaper than the socket's own option
                last = feed.recv(copy=False)
                frames.append(last.buffer)
            self._receiver.on_batch(frames, user)
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
        dialled = socket not in (self._inbox, self._outlet)
        self._touch(events)  # there may be more than were read
        for event, value, endpoint in occurrences(events):
            if event & HANDSHAKE_FAILED:
                reason = explain(event, value, keyed=self._credentials is not None, dialled=dialled)
                if reason is not None:
                    address = endpoint if dialled else f"somebody at {endpoint}"
                    self._receiver.on_handshake_failed(address, reason)
            elif not dialled:
                self._count_connection(socket, accepted=event == zmq.EVENT_ACCEPTED)
            elif socket is self._dialler:
                self._dialler_event(event, endpoint)
            else:
                self._feed_event(event, endpoint)
        self._receiver.on_burst_end()

    def _count_connection(self, socket: zmq.Socket[bytes], *, accepted: bool) -> None:
        """Strangers may connect and keep quiet, and libzmq cannot end just one: end all when they are too many."""
        self._accepted[socket] = max(0, self._accepted[socket] + (1 if accepted else -1))
        if self._accepted[socket] > self._accepted_max:
            self._drop_links(socket, self.inbox_endpoints if socket is self._inbox else self.outlet_endpoints)
            self._receiver.on_violation("somebody", CROWDED)
        if socket is self._inbox and not accepted:
            self._receiver.on_connection_ended()

    def _dialler_event(self, event: int, address: str) -> None:
        tell = self._receiver.on_interrupted if event == zmq.EVENT_DISCONNECTED else self._receiver.on_unreachable
        for route in [route for route, endpoint in self._dialled.items() if self._plain(endpoint) == address]:
            tell(route)

    def _feed_event(self, event: int, address: str) -> None:
        """A connection that broke the rules of ZMTP is not tried again by libzmq: it has no RETRIED after the end."""
        endpoint = next((each for each in self._followed if self._plain(each) == address), address)
        timer = self._broken.pop(endpoint, None)
        if timer is not None:
            timer.cancel()
        if event == zmq.EVENT_DISCONNECTED and endpoint in self._followed:
            pause = self._config.reconnect_interval_s_max
            self._broken[endpoint] = self._loop.call_later(pause, self._mend_feed, endpoint)

    def _mend_feed(self, endpoint: str) -> None:
        del self._broken[endpoint]
        if endpoint in self._followed and not self._feed.closed:
            self._disconnect_feed(endpoint)
            self._connect_feed(endpoint)
            self._receiver.on_violation(endpoint, FEED_BROKEN)

    def pause_feed(self, paused: bool) -> None:
        """Stop or go on reading batches."""
        if self._paused and not paused:
            for feed in self._feeds.values():
                self._touch(feed)
        self._paused = paused

    def drop_links(self) -> None:
        """End every connection that others made to us."""
        super().drop_links()
        self._drop_pull_links()

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
        self._close_pipes()
        for feed in self._feeds.values():
            feed.close(linger=0)  # its subscriptions to outlets that are gone would wait for nothing
        # Connections that we dialled may lead to peers that are gone: their goodbyes would wait for nobody.
        self._dialler.close(linger=ms(min(timeout, DIALLER_LINGER_S)))
        for socket in (self._inbox, self._outlet):
            socket.close(linger=ms(timeout))
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


def _crc(frame: bytes) -> bytes:
    return crc32(frame).to_bytes(4, "big")


def _routing_id(route: int) -> bytes:
    return b"o" + route.to_bytes(8, "big")


def _route(routing_id: bytes) -> int:
    return int.from_bytes(routing_id[1:], "big")
