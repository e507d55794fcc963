"""Which addresses of this machine a node uses, and when they change.

An address that does not work is worse than none: peers try it and wait. So interfaces that are down, bridges
of container engines and IPv6 addresses that the kernel would not bind yet are left out here, once for all.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import re
import socket
import struct
import sys
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import ifaddr

from zfabric.config import Config
from zfabric.errors import InterfaceNotFound

if sys.platform != "win32":
    import fcntl

__all__ = ["AddressWatch", "Scope", "multicast_interfaces", "resolve"]

logger = logging.getLogger("zfabric.discovery")

_CONTAINERS_AND_TUNNELS = re.compile(
    r"^(docker|br-|veth|virbr|vmnet|vboxnet|vEthernet|cni|flannel|cali|lxc|lxdbr|podman|kube"
    r"|tun|tap|wg|tailscale|zt|utun|awdl|llw|anpi)"
)
"Interfaces that lead to containers of this host or into a tunnel: a LAN only when there is nothing else."

_SIOCGIFFLAGS = {"linux": 0x8913, "darwin": 0xC0206911}
_IFF_UP, _IFF_POINTOPOINT, _IFF_RUNNING = 0x1, 0x10, 0x40

_IF_INET6 = Path("/proc/net/if_inet6")
_IFA_F_TEMPORARY, _IFA_F_DADFAILED, _IFA_F_DEPRECATED, _IFA_F_TENTATIVE = 0x01, 0x08, 0x20, 0x40
_IFA_F_UNUSABLE = _IFA_F_TEMPORARY | _IFA_F_DADFAILED | _IFA_F_DEPRECATED | _IFA_F_TENTATIVE


@dataclass(frozen=True, slots=True)
class Scope:
    """The addresses that a node binds and announces."""

    spec: str
    "What the user asked for: `loopback`, `lan`, an interface or an address."
    addresses: tuple[str, ...]
    "Best first; link-local IPv6 addresses carry their zone, `fe80::1%eth0`."
    loopback: bool
    "Nothing outside this machine can reach any of the addresses."
    interfaces: frozenset[int] = frozenset()
    "The system's numbers of their interfaces: one that was taken out and put back has another."


@dataclass(frozen=True, slots=True)
class _Interface:
    name: str
    nice_name: str
    index: int
    flags: int
    addresses: tuple[str, ...]

    @property
    def is_lan(self) -> bool:
        up = self.flags & _IFF_UP and self.flags & _IFF_RUNNING
        return bool(up) and any(not is_loopback(address) for address in self.addresses)

    @property
    def is_second_choice(self) -> bool:
        return bool(self.flags & _IFF_POINTOPOINT or _CONTAINERS_AND_TUNNELS.match(self.name))


def is_loopback(address: str) -> bool:
    """Whether only this machine can reach the address."""
    return ipaddress.ip_address(address).is_loopback


def resolve(interface: str) -> Scope:
    """The addresses behind `loopback`, `lan`, an interface's name or an address.

    Raises InterfaceNotFound, naming what there is, when no usable address is behind it now.
    """
    interfaces = _interfaces()
    if interface == "loopback":
        addresses = _loopback_addresses(interfaces)
    elif interface == "lan":
        addresses = _lan_addresses(interfaces)
    else:
        addresses = _addresses_of(interface, interfaces)
    if not addresses:
        raise InterfaceNotFound(interface, ("loopback", "lan", *(i.name for i in interfaces if i.addresses)))
    used = frozenset(i.index for i in interfaces if not set(addresses).isdisjoint(i.addresses))
    return Scope(interface, addresses, all(is_loopback(address) for address in addresses), used)


def multicast_interfaces(addresses: Iterable[str]) -> list[str | int]:
    """One way in and out per interface and IP version, as python-zeroconf wants them.

    IPv4 addresses stay; link-local IPv6 becomes the interface's index, because the same address may
    exist on several. `::1` is left out, because zeroconf cannot listen there, and so is what is gone by now.
    """
    by_address = {address: i for i in _interfaces() for address in i.addresses}
    chosen: dict[tuple[str, int], str | int] = {}
    for address in addresses:
        ip = ipaddress.ip_address(address)
        if ip.version == 6 and ip.is_loopback:
            continue
        interface = by_address.get(address)
        if interface is None and not (ip.version == 4 and _can_bind(address)):
            continue
        value = interface.index if interface and ip.version == 6 and ip.is_link_local else address
        chosen.setdefault((interface.name if interface else address, ip.version), value)
    return list(chosen.values())


def _loopback_addresses(interfaces: list[_Interface]) -> tuple[str, ...]:
    present = {address for i in interfaces for address in i.addresses}
    found = tuple(address for address in ("127.0.0.1", "::1") if address in present)
    return found or ("127.0.0.1",)


def _lan_addresses(interfaces: list[_Interface]) -> tuple[str, ...]:
    usable = [i for i in interfaces if i.is_lan]
    best = [i for i in usable if not i.is_second_choice] or usable
    return tuple(a for i in best for a in _preferred(i.addresses) if not is_loopback(a))


def _addresses_of(spec: str, interfaces: list[_Interface]) -> tuple[str, ...]:
    named = [i for i in interfaces if spec in (i.name, i.nice_name, i.name.partition(":")[0])]
    if named:
        return _preferred(tuple(address for i in named for address in i.addresses))
    try:
        ip = ipaddress.ip_address(spec)
    except ValueError:
        return ()
    if ip.version == 6 and ip.is_link_local:
        return _link_local(spec, interfaces)
    address = str(ip)
    if any(address in i.addresses for i in interfaces):
        return (address,)
    # All of 127.0.0.0/8 may work though the interface lists 127.0.0.1 only.
    return (address,) if ip.version == 4 and ip.is_loopback and _can_bind(address) else ()


def _link_local(spec: str, interfaces: list[_Interface]) -> tuple[str, ...]:
    address, _, zone = spec.partition("%")
    plain = str(ipaddress.ip_address(address))
    return tuple(
        f"{plain}%{i.name}"
        for i in interfaces
        if zone in ("", i.name, str(i.index)) and f"{plain}%{i.name}" in i.addresses
    )[:1]


def _preferred(addresses: tuple[str, ...]) -> tuple[str, ...]:
    """Link-local addresses only where an interface has no other: a peer needs luck to reach them."""
    routable = tuple(a for a in addresses if not ipaddress.ip_address(a).is_link_local)
    return routable or addresses


def _can_bind(address: str) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


def _interfaces() -> list[_Interface]:
    unusable = _unusable_ipv6()
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        for adapter in ifaddr.get_adapters():
            index = adapter.index or 0
            addresses = [
                address
                for ip in adapter.ips
                if (address := _address(ip.ip, adapter.name)) is not None and (address, index) not in unusable
            ]
            # IPv4 first; the order of the system otherwise.
            addresses.sort(key=lambda address: ":" in address)
            flags = _flags(control, adapter.name)
            found.append(_Interface(adapter.name, adapter.nice_name, index, flags, tuple(addresses)))
    return sorted(found, key=lambda i: i.index)


def _address(ip: str | tuple[str, int, int], name: str) -> str | None:
    if isinstance(ip, str):
        return ip
    address = ipaddress.IPv6Address(ip[0].partition("%")[0])
    return f"{address}%{name}" if address.is_link_local else str(address)


def _flags(control: socket.socket, name: str) -> int:
    """The interface's flags; where the system does not tell, it counts as up."""
    request = _SIOCGIFFLAGS.get(sys.platform)
    if request is None or sys.platform == "win32":
        return _IFF_UP | _IFF_RUNNING
    try:
        answer = fcntl.ioctl(control, request, struct.pack("16sH14x", name.encode()[:15], 0))
    except OSError:
        return 0
    return int(struct.unpack_from("16xH", answer)[0])


def _unusable_ipv6() -> set[tuple[str, int]]:
    """Addresses (with interface index) that cannot be bound yet, or will go away soon. Known on Linux only."""
    try:
        lines = _IF_INET6.read_text("ascii").splitlines()
    except OSError:
        return set()
    unusable = set()
    for line in lines:
        digits, index, _, _, flags, name = line.split()
        if int(flags, 16) & _IFA_F_UNUSABLE:
            address = _address((str(ipaddress.IPv6Address(bytes.fromhex(digits))), 0, 0), name)
            assert address is not None
            unusable.add((address, int(index, 16)))
    return unusable


class AddressWatch:
    """Tells when the addresses behind a scope changed and stayed the same for a while.

    Await `run()` in a task, or call `check(now)` at the times that it asks for. A network that comes
    back with its old addresses is told too, because it forgot our multicast memberships. While there is
    no address at all nothing is told: there would be nobody to tell.
    """

    def __init__(
        self,
        scope: Scope,
        config: Config,
        changed: Callable[[Scope], None],
        *,
        resolver: Callable[[str], Scope] = resolve,
    ) -> None:
        self.scope = scope
        "The scope told last."
        self._poll_s = config.address_poll_s
        self._settle_s = config.address_settle_s
        self._changed = changed
        self._resolve = resolver
        self._seen: Scope | None = scope
        self._seen_since = 0.0
        self._was_away = False

    def check(self, now: float) -> float:
        """Look once; returns the seconds after which to look again."""
        try:
            scope: Scope | None = self._resolve(self.scope.spec)
        except (InterfaceNotFound, OSError):
            scope = None
        self._was_away |= scope is None or not set(self.scope.addresses) <= set(scope.addresses)
        if scope != self._seen:
            self._seen, self._seen_since = scope, now
        if scope is None or (scope == self.scope and not self._was_away):
            return self._poll_s
        remaining = self._seen_since + self._settle_s - now
        if remaining > 0:
            return min(remaining, self._poll_s)
        self.scope, self._was_away = scope, False
        try:
            self._changed(scope)
        except Exception:
            logger.exception("telling about the new addresses %s failed", ", ".join(scope.addresses))
        return self._poll_s

    async def run(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> NoReturn:
        """Watch until cancelled."""
        pause = self._poll_s
        while True:
            await sleep(pause)
            pause = self.check(clock())
