"""Marker subscriptions: how a publisher learns from its own outlet which subscriptions of a peer are in place."""

from __future__ import annotations

from collections import Counter

__all__ = ["MARKER", "MarkerCounts", "marker", "parse_marker"]

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


class MarkerCounts:
    """Which markers are in place where the outlet reports each subscription, and its end, for each connection.

    A connection that ends does not say whose it was. What others than a node's own identity subscribed to counts apart,
    so that they cannot end it either.
    """

    def __init__(self) -> None:
        self._own: Counter[bytes] = Counter()
        self._foreign: Counter[bytes] = Counter()

    def changed(self, data: bytes, *, subscribed: bool, own: bool | None) -> bool:
        """Count a subscription or its end; whether the marker has come or gone by it. `own` is None where unknown."""
        if own is None:
            own = not self._foreign[data]
        counts = self._own if own else self._foreign
        before = counts[data]
        counts[data] = max(0, before + (1 if subscribed else -1))
        if not counts[data]:
            del counts[data]
        return own and (subscribed or before == 1)
