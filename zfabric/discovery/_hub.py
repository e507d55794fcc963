"""One zeroconf instance on one set of interfaces, shared by the nodes that use them.

The only module that imports zeroconf; everything in it runs on the mDNS thread. It listens to records
itself, not through zeroconf's ServiceBrowser: a TXT record is all that we need, so nobody has to be asked
back, and the browser's schedule of queries would grow with every forged name.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import logging
import random
import re
import socket
import sys
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from zeroconf import (  # type: ignore[attr-defined]  # public, but not in zeroconf's __all__
    DNSOutgoing,
    DNSQuestion,
    IPVersion,
    RecordUpdate,
    RecordUpdateListener,
    ServiceInfo,
    Zeroconf,
    current_time_millis,
)
from zeroconf.asyncio import AsyncZeroconf

from zfabric.config import Config
from zfabric.discovery import _txt
from zfabric.discovery._endpoints import TcpEndpoint, parse_tcp
from zfabric.discovery.base import Announcement
from zfabric.discovery.interfaces import Scope, multicast_interfaces

__all__ = ["Hub"]

logger = logging.getLogger("zfabric.discovery")

_PTR, _TXT, _IN = 12, 16, 1
"Types and class of DNS records."
_QUERY_FLAGS = 0
_PORT = 5353

_RECORD_TTL_S = 1125
"Other zeroconf instances keep pointers for at least this long; a node that crashed is forgotten after it."
_SECOND_GOODBYE_S = 1.5
"Answers that zeroconf had queued may follow the goodbye within this time."
_QUERY_PAUSE_S, _QUERY_PAUSE_S_MAX = 1.2, 300.0
"First and longest pause between questions; more than the second in which a question counts as asked already."
_FIRST_QUERY_DELAY_S = (0.02, 0.12)
"RFC 6762 section 5.2: machines that were switched on together do not all ask at once."
_MISSING_TEXTS_MAX = 32
_MISSING_TEXTS_DELAY_S = 0.1
_KNOWN_ANSWERS_MAX = 200
_CLOSE_S_MAX = 0.5

_IP_MULTICAST_ALL, _IPV6_MULTICAST_ALL = 49, 29
"Linux only, and without names in the socket module."

_INSTANCE = re.compile(r"[0-9a-f]{32}\." + re.escape(_txt.SERVICE_TYPE))


@dataclass(slots=True)
class _Member:
    """A node of this process."""

    announcement: Announcement
    sink: Callable[[Announcement], None]
    info: ServiceInfo | None = None
    broadcast: asyncio.Future[Any] | None = None

    def stop_broadcast(self) -> None:
        """The announcements still to be repeated must not follow newer ones, or a goodbye."""
        if self.broadcast is not None:
            self.broadcast.cancel()
            self.broadcast = None


class Hub(RecordUpdateListener):
    """Announces the members and tells all of them about every service it hears of."""

    def __init__(self, scope: Scope, config: Config) -> None:
        self.ignored = 0
        "Records that no honest node sends."
        self._addresses = scope.addresses
        self._loopback = scope.loopback
        self._config = config
        self._members: dict[bytes, _Member] = {}
        self._heard: OrderedDict[str, tuple[bytes, Announcement]] = OrderedDict()
        self._missing: set[str] = set()
        self._zeroconf: AsyncZeroconf | None = None
        self._asking: asyncio.Task[None] | None = None

    @property
    def is_unused(self) -> bool:
        """Whether no node is left."""
        return not self._members

    @property
    def _engine(self) -> Zeroconf:
        assert self._zeroconf is not None
        return self._zeroconf.zeroconf

    # -- sockets -----------------------------------------------------------------------------------

    async def open(self) -> None:
        """Open the sockets and begin to listen and to ask. Raises OSError where that is impossible."""
        interfaces = multicast_interfaces(self._addresses)
        if not interfaces:
            raise OSError(errno.EADDRNOTAVAIL, "no mDNS on these addresses", ", ".join(self._addresses))
        _try_port()
        try:
            self._zeroconf = AsyncZeroconf(interfaces=interfaces, ip_version=_ip_version(self._addresses))
        except RuntimeError as error:
            raise OSError(errno.EADDRNOTAVAIL, str(error)) from error
        await self._engine.async_wait_for_start()
        if not self._engine.engine.senders:
            await self.close()
            raise OSError(errno.EADDRNOTAVAIL, "no multicast on", ", ".join(self._addresses))
        self._keep_to_interfaces()
        self._engine.async_add_listener(self, None)
        self._ask_again()

    async def _move(self, addresses: tuple[str, ...], *, rejoin: bool = False) -> None:
        """Move to other addresses; with `rejoin`, join the multicast groups anew on the same ones."""
        if addresses == self._addresses and not rejoin:
            return
        interfaces = multicast_interfaces(addresses)
        if not interfaces:
            return
        self._addresses = addresses
        assert self._zeroconf is not None
        if rejoin:
            await self._zeroconf.async_update_interfaces([])
        for member in self._members.values():
            member.stop_broadcast()
        await self._zeroconf.async_update_interfaces(interfaces, _ip_version(addresses))
        self._keep_to_interfaces()
        self._ask_again()

    async def close(self) -> None:
        """Close the sockets."""
        if self._asking is not None:
            self._asking.cancel()
        for member in self._members.values():
            member.stop_broadcast()
        if self._zeroconf is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._zeroconf.async_close(), _CLOSE_S_MAX)

    def _keep_to_interfaces(self) -> None:
        """Hear only what comes in on our interfaces.

        The listening socket is bound to every address, so Linux would also give it the multicasts that any other
        program asked for on any interface, and on loopback it would answer unicast queries from the network.
        """
        if sys.platform != "linux":
            return
        for reader in self._engine.engine.readers:
            with contextlib.suppress(OSError):
                reader.sock.setsockopt(socket.IPPROTO_IP, _IP_MULTICAST_ALL, 0)
            if reader.is_ipv6:
                with contextlib.suppress(OSError):
                    reader.sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MULTICAST_ALL, 0)
            if self._loopback:
                with contextlib.suppress(OSError):
                    reader.sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo\0")

    # -- members -----------------------------------------------------------------------------------

    async def join(
        self, announcement: Announcement, addresses: tuple[str, ...], sink: Callable[[Announcement], None]
    ) -> None:
        """Announce a node, and tell it what was heard so far. Raises OSError when it cannot be announced."""
        await self._move(addresses)
        info = self._service(announcement)
        member = self._members[announcement.node_id] = _Member(announcement, sink)
        await self._announce(member, info)
        for _, heard in self._heard.values():
            sink(heard)

    async def update(self, announcement: Announcement, addresses: tuple[str, ...], *, rejoin: bool) -> None:
        """Announce something else for a node, on other addresses or after the network was away."""
        info = self._service(announcement)
        member = self._members[announcement.node_id]
        member.announcement = announcement
        if info is not None and member.info is not None:
            # Before moving, because zeroconf announces on a new interface what is registered.
            self._engine.registry.async_update(info)
            member.info = info
        await self._move(addresses, rejoin=rejoin)
        await self._announce(member, info)

    def leave(self, node_id: bytes) -> None:
        """Withdraw a node; its goodbye is on the wire when this returns."""
        member = self._members.pop(node_id, None)
        if member is not None:
            self._withdraw(member)

    async def _announce(self, member: _Member, info: ServiceInfo | None) -> None:
        member.stop_broadcast()
        if info is None:
            self._withdraw(member)
        elif member.info is None:
            # Ids are random: nobody has to be asked whether the name is free.
            registered = self._engine.async_register_service(info, cooperating_responders=True)
            member.broadcast = asyncio.ensure_future(await registered)
        else:
            member.broadcast = asyncio.ensure_future(await self._engine.async_update_service(info))
        member.info = info

    def _withdraw(self, member: _Member) -> None:
        member.stop_broadcast()
        if member.info is None:
            return
        self._engine.registry.async_remove(member.info)
        goodbye = self._engine.generate_service_broadcast(member.info, 0)
        self._engine.async_send(goodbye)
        asyncio.get_running_loop().call_later(_SECOND_GOODBYE_S, self._engine.async_send, goodbye)

    def _service(self, announcement: Announcement) -> ServiceInfo | None:
        """What to register; None for a node that nobody can connect to from outside."""
        endpoints = [tcp for tcp in map(parse_tcp, announcement.endpoints) if tcp is not None]
        if not endpoints:
            return None
        info = ServiceInfo(
            _txt.SERVICE_TYPE,
            _txt.instance_name(announcement.node_id),
            port=endpoints[0].port,
            properties=_txt.encode(announcement, self._config.endpoints_per_peer_max),
            server=f"{announcement.node_id.hex()}.local.",
            addresses=_packed(endpoints),
            host_ttl=_RECORD_TTL_S,
            other_ttl=_RECORD_TTL_S,
        )
        info.set_server_if_missing()
        return info

    # -- what is heard -----------------------------------------------------------------------------

    def async_update_records(self, zc: Zeroconf, now: float, records: list[RecordUpdate]) -> None:
        """Called by zeroconf with every record that came in or expired."""
        for update in records:
            record: Any = update.new
            if record.type == _TXT and _INSTANCE.fullmatch(record.key):
                if record.is_expired(now):
                    self._forget(record.key, record.text)
                else:
                    self._hear(record.key, record.text)
            elif record.type == _PTR and record.key == _txt.SERVICE_TYPE:
                name = record.alias.lower()
                if record.is_expired(now):
                    self._forget(name)
                elif name not in self._heard:
                    self._miss(name)

    def async_update_records_complete(self) -> None:
        """Called by zeroconf after each packet: `async_update_records` did everything."""

    def _hear(self, name: str, text: bytes) -> None:
        self._missing.discard(name)
        known = self._heard.get(name)
        if known is not None and known[0] == text:
            self._heard.move_to_end(name)
            return
        try:
            announcement = _txt.decode(
                text,
                name,
                endpoints_max=self._config.endpoints_per_peer_max,
                loopback=self._loopback,
                zones=self._zones(),
            )
        except _txt.MalformedRecord as reason:
            self.ignored += 1
            logger.debug("ignored the announcement of %s: %s", name, reason)
            return
        self._heard[name] = (text, announcement)
        self._heard.move_to_end(name)
        if len(self._heard) > self._config.discovery_records_max:
            self._heard.popitem(last=False)
        for member in self._members.values():
            member.sink(announcement)

    def _forget(self, name: str, text: bytes | None = None) -> None:
        """Stop telling new nodes about a service; those that know it find out by themselves."""
        self._missing.discard(name)
        known = self._heard.get(name)
        # A text that was replaced expires a second later.
        if known is not None and text in (None, known[0]):
            del self._heard[name]

    def _zones(self) -> tuple[str, ...]:
        """The interfaces on which link-local addresses of others may be."""
        return tuple(dict.fromkeys(zone for a in self._addresses if (zone := a.partition("%")[2])))

    # -- questions ---------------------------------------------------------------------------------

    def _miss(self, name: str) -> None:
        """A pointer came without the text that usually goes with it: ask, unless the text still comes."""
        if len(self._missing) >= _MISSING_TEXTS_MAX or not _INSTANCE.fullmatch(name):
            return
        if not self._missing:
            asyncio.get_running_loop().call_later(_MISSING_TEXTS_DELAY_S, self._ask_for_missing)
        self._missing.add(name)

    def _ask_for_missing(self) -> None:
        if not self._missing:
            return
        question = DNSOutgoing(_QUERY_FLAGS)
        for name in self._missing:
            question.add_question(DNSQuestion(name, _TXT, _IN))
        self._missing.clear()
        self._engine.async_send(question)

    def _ask_again(self) -> None:
        if self._asking is not None:
            self._asking.cancel()
        self._asking = asyncio.get_running_loop().create_task(self._ask_from_time_to_time())

    async def _ask_from_time_to_time(self) -> None:
        if not self._loopback:
            await asyncio.sleep(random.uniform(*_FIRST_QUERY_DELAY_S))  # noqa: S311 - no secret
        pause = _QUERY_PAUSE_S
        while True:
            self._ask()
            await asyncio.sleep(pause)
            pause = min(pause * 2, _QUERY_PAUSE_S_MAX)

    def _ask(self) -> None:
        """Ask who is there, naming those that we know so that they stay silent.

        A pointer alone is not knowing: its text may have been lost, or have come in before we listened.
        By multicast from the first time on: of several processes that share the port on this host only one
        would get a unicast answer.
        """
        now = current_time_millis()
        pointers: list[Any] = self._engine.cache.async_all_by_details(_txt.SERVICE_TYPE, _PTR, _IN)
        heard = (pointer for pointer in pointers if pointer.alias.lower() in self._heard)
        known = [pointer for pointer in heard if not pointer.is_stale(now)][-_KNOWN_ANSWERS_MAX:]
        question = DNSQuestion(_txt.SERVICE_TYPE, _PTR, _IN)
        if self._engine.question_history.suppresses(question, now, set(known)):
            return
        query = DNSOutgoing(_QUERY_FLAGS)
        query.add_question(question)
        for pointer in known:
            query.add_answer_at_time(pointer, now)
        self._engine.async_send(query)


def _try_port() -> None:
    """Raise OSError when another program keeps the port to itself; zeroconf would leave its socket open then."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "SO_REUSEPORT"):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        probe.bind(("", _PORT))


def _packed(endpoints: list[TcpEndpoint]) -> list[bytes]:
    return list(dict.fromkeys(tcp.ip.packed for tcp in endpoints))


def _ip_version(addresses: tuple[str, ...]) -> IPVersion:
    usable = [ip for ip in map(ipaddress.ip_address, addresses) if ip.version == 4 or not ip.is_loopback]
    versions = {ip.version for ip in usable}
    if versions == {4, 6}:
        return IPVersion.All
    return IPVersion.V6Only if versions == {6} else IPVersion.V4Only
