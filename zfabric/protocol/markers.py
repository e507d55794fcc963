"""Marker subscriptions: how a publisher learns from its own outlet which subscriptions of a peer are in place."""

from __future__ import annotations

__all__ = ["MARKER", "marker", "parse_marker"]

MARKER = b"\xff"
"First byte of marker subscriptions: no topic begins with it, and libzmq resends subscriptions in byte order."


def marker(node_id: bytes, generation: int) -> bytes:
    """The subscription that says: all patterns of this generation are in place."""
    return MARKER + node_id + generation.to_bytes(4, "big")


def parse_marker(data: bytes) -> tuple[bool, bytes, int] | None:
    """(subscribed, node id, generation) of what XPUB received; None for an ordinary subscription."""
    if len(data) != 22 or data[0] > 1 or data[1:2] != MARKER:
        return None
    return data[0] == 1, data[2:18], int.from_bytes(data[18:], "big")
