"""What `node.events()` yields: everything a user should be able to see happening."""

from __future__ import annotations

import msgspec

from zfabric.model import Peer, Source

__all__ = [
    "AccessDenied",
    "AckRefused",
    "AuthenticationFailed",
    "DecodeError",
    "DiscoveryFailed",
    "DuplicateId",
    "Event",
    "Evicted",
    "Gap",
    "HandlerError",
    "IncompatibleDelivery",
    "JobDead",
    "JobsExpired",
    "JobsLost",
    "JobsOrphaned",
    "JobsUnfinished",
    "LogMissing",
    "PeerJoined",
    "PeerLeft",
    "PeerRefused",
    "ProtocolError",
    "Rejected",
    "ScheduleLost",
    "StoreLacks",
    "SubscriberJoined",
    "SubscriberLeft",
    "Undelivered",
    "Unroutable",
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
    """`goodbye`, `gone` (its connections ended and nobody listens at its addresses: its process died), `silent`
    (nothing heard for Config.peer_timeout_s) or `revoked` (its identity is not trusted any more)."""


class PeerRefused(Event, frozen=True):
    """We and another node could not become peers; both sides see why."""

    address: str
    reason: str
    "`version`, `fabric`, `duplicate-id`, `peers-max` or `stranger` (another node took over that port)."
    detail: str


class AccessDenied(Event, frozen=True):
    """A peer tried what its identity may not do, or we did. Both sides are told, once a minute."""

    peer: Source
    "The other side."
    action: str
    "`publish`, `subscribe`, `push`, `pull`, `serve`, `request` or `store`."
    name: str
    "The topic, pattern, queue or service."
    here: bool
    "True if this node denied it."


class AuthenticationFailed(Event, frozen=True):
    """A connection came to nothing because of keys. Told once a minute for each peer and reason."""

    peer: str
    "Where we dialled or what was announced; of somebody who dialled us only which address of ours, or its IP address."
    reason: str
    "What is known; the other side may know more."


class SignatureRefused(Event, frozen=True):
    """Messages `first` to `last` (inclusive) were not delivered: they are not signed as they must be.

    Each is a Gap as well; this is told once a minute for each stream and reason.
    """

    source: Source
    "The node whose messages these are said to be."
    topic: str
    first: int
    last: int
    reason: str


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
    """At-most-once: `overflow` (a queue on the way was full, or the link broke) or `buffer` (this subscription's own
    bound). Reliable: `expired` (the publisher keeps it no longer), `evicted`, `closed` or `epoch` (the publisher
    ended or began anew), `too-large` (over this node's Config.frame_bytes_max), `unanswered` or `store` (see
    LogMissing). Either: `signature` (see SignatureRefused)."""

    @property
    def count(self) -> int:
        """How many messages are missing."""
        return self.last - self.first + 1


class Undelivered(Event, frozen=True):
    """A subscriber was given up that had not acknowledged messages `first` to `last` (inclusive) of this node.

    Or they were left in an outbox by an earlier process, and a store cannot take them.
    """

    peer: Source
    topic: str
    first: int
    last: int
    reason: str
    "`away` (it did not come back within Config.grace_s), `evicted`, or what the store said."

    @property
    def count(self) -> int:
        """How many messages it may lack."""
        return self.last - self.first + 1


class StoreLacks(Event, frozen=True):
    """A store keeps a topic of this node now, and may lack messages `first` to `last` that another confirmed.

    Both included. The store is new, was wiped, restored from a backup or away, or came late. Said once for each, while
    this node publishes the topic; or pushes to the durable queue of that name: then these are jobs, and those that were
    not done are lost. If an outbox had messages of an earlier process, these are that one's.
    """

    peer: Source
    "The store."
    topic: str
    first: int
    last: int
    elsewhere: bool
    "Whether a store that has them keeps the topic, too. Otherwise they are lost, unless that one comes back."

    @property
    def count(self) -> int:
        """How many messages it lacks."""
        return self.last - self.first + 1


class LogMissing(Event, frozen=True):
    """The store whose log a subscription here reads left, and did not come back with that log within Config.grace_s.

    It stays away, or was wiped. Said again when a subscription that waited goes on.
    """

    topic: str
    "Or the pattern."
    group: str
    "Empty for a subscription of its own."
    store: str
    "Whose log, as in `Position.store`."
    waits: bool
    """False: the subscription goes on with the log of another store; a Gap (`store`) says what that one lacks. True: it
    waits, for any store, or (a group, or one with positions for its `start`) for that log: if that was wiped, close it
    and subscribe again."""


class Evicted(Event, frozen=True):
    """A subscriber held its publisher up for too long. Both sides are told."""

    topic: str
    peer: Source
    "The other side."
    reason: str
    here: bool
    "True on the subscriber's node: its subscription goes on from the newest message once it has room."


class IncompatibleDelivery(Event, frozen=True):
    """A subscription asks for more than the topic's publisher offers, and gets nothing. Both sides are told.

    Or a puller's delivery is not that of a pusher of its queue.
    """

    topic: str
    "Or the queue."
    peer: Source
    "The other side."
    offered: str
    requested: str


class DecodeError(Event, frozen=True):
    """A payload that is not what the subscription asked for; the message was skipped."""

    source: Source
    topic: str
    seq: int
    reason: str


class Rejected(Event, frozen=True):
    """A subscription with `ack="manual"` rejected a message."""

    source: Source
    topic: str
    seq: int


class AckRefused(Event, frozen=True):
    """Jobs were settled too late: their lease had ended, and they are, or will be, somebody else's."""

    queue: str
    peer: Source
    "The other side."
    count: int
    here: bool
    "True on the worker's node."


class JobDead(Event, frozen=True):
    """A job of this node failed too often, or was rejected; it is in the dead-letter queue now."""

    queue: str
    id: int
    attempts: int
    reason: str


class JobsExpired(Event, frozen=True):
    """Jobs of this node were given up because their ttl had passed."""

    queue: str
    count: int


class JobsLost(Event, frozen=True):
    """Jobs that this node pushed at-most-once came to no reader, as far as is known: connections or workers ended."""

    queue: str
    count: int


class JobsOrphaned(Event, frozen=True):
    """The node that these jobs came from is gone, or lost sight of this one: it may not hear that they are done."""

    queue: str
    peer: Source
    count: int


class JobsUnfinished(Event, frozen=True):
    """This node closed before all of its jobs were done; they are lost with it."""

    queue: str
    count: int


class ScheduleLost(Event, frozen=True):
    """A schedule that this node declared makes no jobs: its store did not come back with that log in Config.grace_s.

    If it was wiped, declare the schedule again.
    """

    name: str
    queue: str
    store: str
    "Whose log, as in `Position.store`."


class Unroutable(Event, frozen=True):
    """A node binds the topic to queues, and none of its bindings took these messages. Both sides are told."""

    topic: str
    peer: Source
    "Who published them; on the publisher's node, who did not take them."
    count: int
    here: bool
    "True on the node with the bindings."


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
