"""What `node.events()` yields: everything a user should be able to see happening."""

from __future__ import annotations

import msgspec

from zfabric.model import Peer, Source

__all__ = [
    "DecodeError",
    "DiscoveryFailed",
    "DuplicateId",
    "Event",
    "Gap",
    "HandlerError",
    "PeerJoined",
    "PeerLeft",
    "PeerRefused",
    "ProtocolError",
    "SubscriberJoined",
    "SubscriberLeft",
]


class Event(msgspec.Struct, frozen=True):
    """Base of all events."""


class PeerJoined(Event, frozen=True):
    """A node of the same fabric answered and is now a peer."""

    peer: Peer


class PeerLeft(Event, frozen=True):
    """A peer is gone."""

    peer: Peer
    reason: str
    "`goodbye`, `silent` (nothing heard for Config.peer_timeout_s), `unreachable` or `refused`."


class PeerRefused(Event, frozen=True):
    """We and another node could not become peers; both sides see why."""

    address: str
    reason: str
    "`version`, `fabric`, `duplicate-id`, `peers-max` or `stranger` (another node took over that port)."
    detail: str


class DuplicateId(Event, frozen=True):
    """Another live node uses a node id that is taken; the newer one is refused."""

    id: str
    address: str


class SubscriberJoined(Event, frozen=True):
    """A peer's subscription is connected: from here on it gets every message of the topic."""

    topic: str
    peer: Source


class SubscriberLeft(Event, frozen=True):
    """A peer no longer receives the topic."""

    topic: str
    peer: Source


class Gap(Event, frozen=True):
    """Messages `first` to `last` (inclusive) of a stream did not arrive and will not."""

    source: Source
    topic: str
    first: int
    last: int
    cause: str
    "`overflow` (a queue on the way was full), `buffer` (this subscription's own) or `link` (the connection broke)."

    @property
    def count(self) -> int:
        """How many messages are missing."""
        return self.last - self.first + 1


class DecodeError(Event, frozen=True):
    """A payload that is not what the subscription asked for; the message was skipped."""

    source: Source
    topic: str
    seq: int
    reason: str


class HandlerError(Event, frozen=True):
    """An exception left a handler; the node goes on."""

    topic: str
    handler: str
    error: str


class ProtocolError(Event, frozen=True):
    """Somebody sent something that is not the protocol."""

    address: str
    "The peer's name and id, or the connection it came from."
    reason: str


class DiscoveryFailed(Event, frozen=True):
    """One way of finding peers does not work here; the others go on."""

    name: str
    reason: str
