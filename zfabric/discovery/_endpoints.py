"""Which announced addresses are well formed and may be dialled at all."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from functools import lru_cache
from pathlib import PurePath
from typing import NamedTuple

__all__ = ["ENDPOINT_BYTES_MAX", "TcpEndpoint", "ipc_path", "parse_tcp", "portable", "reachable"]

ENDPOINT_BYTES_MAX = 200
"Longer ones are malformed: an ipc path has at most 107 bytes, a bracketed IPv6 address 60."

HOSTS_KEPT = 512
"Parsed addresses."

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
    ip = _host(match["v4"] or match["v6"])
    zone = match["zone"] or ""
    port = int(match["port"])
    if ip is None or not 0 < port < 65_536 or (zone and not ip.is_link_local):
        return None
    if (ip.version == 6) is (match["v6"] is None):
        return None
    return TcpEndpoint(ip, zone, port)


@lru_cache(maxsize=HOSTS_KEPT)
def _host(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address of one host; None for any other. A mesh has few, and tells of them thousands of times."""
    try:
        ip = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = ip.version == 6 and ip.ipv4_mapped is not None
    broadcast = ip.version == 4 and int(ip) == 0xFFFFFFFF
    return None if mapped or broadcast or ip.is_unspecified or ip.is_multicast else ip


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
