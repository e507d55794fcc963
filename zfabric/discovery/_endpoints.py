"""Which announced addresses are well formed and may be dialled at all."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from pathlib import PurePath
from typing import NamedTuple

__all__ = ["ENDPOINT_BYTES_MAX", "TcpEndpoint", "ipc_path", "parse_tcp", "portable", "reachable"]

ENDPOINT_BYTES_MAX = 200
"Longer ones are malformed: an ipc path has at most 107 bytes, a bracketed IPv6 address 60."

_TCP = re.compile(
    r"tcp://(?:\[(?P<v6>[0-9A-Fa-f:.]+)(?:%(?P<zone>[\w.-]{1,32}))?\]|(?P<v4>[0-9.]+)):(?P<port>[0-9]{1,5})"
)


class TcpEndpoint(NamedTuple):
    """The parts of `tcp://host:port`, host being an address."""

    ip: ipaddress.IPv4Address | ipaddress.IPv6Address
    "Without zone."
    zone: str
    "Interface of a link-local IPv6 address, or empty."
    port: int

    def __str__(self) -> str:
        """The endpoint as ZeroMQ takes it."""
        host = str(self.ip)
        if self.ip.version == 6:
            host = f"[{host}%{self.zone}]" if self.zone else f"[{host}]"
        return f"tcp://{host}:{self.port}"


def parse_tcp(endpoint: str) -> TcpEndpoint | None:
    """The parts of a tcp endpoint that names one host by its address; None for anything else."""
    match = _TCP.fullmatch(endpoint)
    if match is None or len(endpoint) > ENDPOINT_BYTES_MAX:
        return None
    try:
        ip = ipaddress.IPv6Address(match["v6"]) if match["v6"] else ipaddress.IPv4Address(match["v4"])
    except ValueError:
        return None
    zone = match["zone"] or ""
    port = int(match["port"])
    mapped = ip.version == 6 and ip.ipv4_mapped is not None
    broadcast = ip.version == 4 and int(ip) == 0xFFFFFFFF
    if mapped or broadcast or ip.is_unspecified or ip.is_multicast or not 0 < port < 65_536:
        return None
    if zone and not ip.is_link_local:
        return None
    return TcpEndpoint(ip, zone, port)


def ipc_path(endpoint: str) -> PurePath | None:
    """The socket file of an `ipc:///absolute/path`; None for anything else."""
    if not endpoint.startswith("ipc://") or len(endpoint) > ENDPOINT_BYTES_MAX or "\0" in endpoint:
        return None
    path = PurePath(endpoint.removeprefix("ipc://"))
    return path if path.is_absolute() else None


def portable(endpoints: Iterable[str]) -> tuple[str, ...]:
    """The tcp endpoints in the form that means the same on another host: without our names of interfaces."""
    parsed = (parse_tcp(endpoint) for endpoint in endpoints)
    return tuple(dict.fromkeys(str(tcp._replace(zone="")) for tcp in parsed if tcp is not None))


def reachable(endpoints: Iterable[str], *, loopback: bool, zones: tuple[str, ...]) -> tuple[str, ...]:
    """What of another host's tcp endpoints is worth dialling from here.

    On loopback only loopback addresses are, so nobody can make a local node dial out; elsewhere they
    are not, since they would lead to ourselves. A link-local address is tried on each of our `zones`.
    """
    found: dict[str, None] = {}
    for tcp in map(parse_tcp, endpoints):
        if tcp is None or tcp.ip.is_loopback != loopback:
            continue
        if tcp.ip.version == 6 and tcp.ip.is_link_local:
            found.update((str(tcp._replace(zone=zone)), None) for zone in zones)
        else:
            found[str(tcp)] = None
    return tuple(found)
