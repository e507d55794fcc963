"""The TXT record of a node: announcement <-> bytes, with every byte checked on the way in.

Keys (RFC 6763 section 6): `v` version, `id` node id, `f` fabric, `k` fingerprint, `e0`, `e1`, ... tcp endpoints.
"""

from __future__ import annotations

import errno

from zfabric.discovery._endpoints import parse_tcp, portable, reachable
from zfabric.discovery.base import Announcement

__all__ = ["SERVICE_TYPE", "MalformedRecord", "decode", "encode", "instance_name"]

SERVICE_TYPE = "_zfabric._tcp.local."

_VERSION = b"1"
_TEXT_BYTES_MAX = 4096
_STRING_BYTES_MAX = 255
_ID_BYTES = 16
_FINGERPRINT_CHARS_MAX = 128


class MalformedRecord(ValueError):
    """A TXT record that no honest node sends."""


def instance_name(node_id: bytes) -> str:
    """The name under which a node is announced."""
    return f"{node_id.hex()}.{SERVICE_TYPE}"


def encode(announcement: Announcement, endpoints_max: int) -> bytes:
    """The TXT record that announces a node; ipc endpoints stay on this host. Raises OSError when it is too long."""
    pairs = [
        (b"v", _VERSION),
        (b"id", announcement.node_id.hex().encode()),
        (b"f", announcement.fabric.encode()),
    ]
    if announcement.fingerprint:
        pairs.append((b"k", announcement.fingerprint.encode()))
    for number, endpoint in enumerate(portable(announcement.endpoints)[:endpoints_max]):
        pairs.append((b"e%d" % number, endpoint.encode()))
    strings = [key + b"=" + value for key, value in pairs]
    longest = max(map(len, strings))
    if longest > _STRING_BYTES_MAX:
        raise OSError(errno.ENAMETOOLONG, f"mDNS carries names of up to {_STRING_BYTES_MAX - 2} bytes, not {longest}")
    return b"".join(bytes((len(string),)) + string for string in strings)


def decode(text: bytes, name: str, *, endpoints_max: int, loopback: bool, zones: tuple[str, ...]) -> Announcement:
    """What the TXT record of service `name` announces, reduced to endpoints worth dialling.

    Raises MalformedRecord for anything that `encode` would not write.
    """
    pairs = _split(text)
    if pairs.get("v") != _VERSION:
        raise MalformedRecord("another version")
    node_id = _node_id(pairs.get("id", b""))
    if name.lower() != instance_name(node_id):
        raise MalformedRecord("the id is not the name")
    fabric = _text(pairs.get("f", b""), "fabric")
    if not fabric:
        raise MalformedRecord("no fabric")
    fingerprint = _text(pairs.get("k", b""), "fingerprint")
    if len(fingerprint) > _FINGERPRINT_CHARS_MAX:
        raise MalformedRecord("the fingerprint is too long")
    announced = [_text(value, "endpoint") for key, value in pairs.items() if key[0] == "e" and key[1:].isdigit()]
    if len(announced) > endpoints_max:
        raise MalformedRecord("too many endpoints")
    if any(endpoint.startswith("tcp://") and parse_tcp(endpoint) is None for endpoint in announced):
        raise MalformedRecord("an endpoint is no address")
    endpoints = reachable(announced, loopback=loopback, zones=zones)[:endpoints_max]
    if not endpoints:
        raise MalformedRecord("no endpoint that leads anywhere from here")
    return Announcement(node_id, fabric, endpoints, fingerprint)


def _split(text: bytes) -> dict[str, bytes]:
    if len(text) > _TEXT_BYTES_MAX:
        raise MalformedRecord("too long")
    pairs: dict[str, bytes] = {}
    position = 0
    while position < len(text):
        end = position + 1 + text[position]
        if end > len(text):
            raise MalformedRecord("a string is cut off")
        key, _, value = text[position + 1 : end].partition(b"=")
        if key:
            # RFC 6763: of several equal keys only the first counts.
            pairs.setdefault(_text(key, "key"), value)
        position = end
    return pairs


def _node_id(digits: bytes) -> bytes:
    try:
        node_id = bytes.fromhex(digits.decode("ascii"))
    except ValueError:
        raise MalformedRecord("the id is not hexadecimal") from None
    if len(node_id) != _ID_BYTES or len(digits) != 2 * _ID_BYTES:
        raise MalformedRecord("the id has the wrong length")
    return node_id


def _text(value: bytes, what: str) -> str:
    try:
        text = value.decode("utf-8")
    except UnicodeDecodeError:
        raise MalformedRecord(f"the {what} is not UTF-8") from None
    if not text.isprintable():
        raise MalformedRecord(f"the {what} has control characters")
    return text
