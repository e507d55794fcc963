"""Plain values that users hold: messages, topics, peers and statistics."""

from __future__ import annotations

from collections.abc import Awaitable
from datetime import datetime
from enum import StrEnum
from math import inf
from typing import Any, Generic, Literal, Protocol, TypeVar, cast

import msgspec

from zfabric.errors import LocalProtocolError

__all__ = [
    "Delivery",
    "GroupMember",
    "GroupProgress",
    "GroupState",
    "Job",
    "Message",
    "Overflow",
    "Peer",
    "Position",
    "ProviderReply",
    "QueueState",
    "QueueStatistics",
    "Retention",
    "Schedule",
    "ServiceOffer",
    "Source",
    "Statistics",
    "StoredTopic",
    "Topic",
    "TopicStatistics",
]

T = TypeVar("T")

STORE_ID_BYTES = 16


class Delivery(StrEnum):
    """What a publisher promises, and what a subscription asks for."""

    AT_MOST_ONCE = "at-most-once"
    AT_LEAST_ONCE = "at-least-once"
    EXACTLY_ONCE = "exactly-once"


class Overflow(StrEnum):
    """What a subscription does when its buffer is full."""

    BLOCK = "block"
    "Stop reading: nothing is dropped here, and the pressure goes back towards the publisher."
    DROP_OLDEST = "drop-oldest"
    "Make room by dropping the oldest batch; a `Gap` event tells what went."
    LATEST = "latest"
    "Keep only the newest message of each topic and key."


class Topic(Generic[T]):
    """A topic with the type of its values: `TEMPS = Topic("plant.temp", Reading)`.

    `type` is anything msgspec can check: a dataclass, `msgspec.Struct`, TypedDict, builtin or union.
    The name may be a pattern when it is only subscribed to. Raises TopicError for a malformed name.
    """

    __slots__ = ("name", "type")

    def __init__(self, name: str, type: type[T]) -> None:  # noqa: A002 - the public name
        from zfabric.wire.topics import check_pattern

        self.name = check_pattern(name)
        self.type = type

    def __repr__(self) -> str:
        return f"Topic({self.name!r}, {getattr(self.type, '__name__', self.type)!s})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Topic) and (self.name, self.type) == (other.name, other.type)

    def __hash__(self) -> int:
        return hash(self.name)


class Source(msgspec.Struct, frozen=True):
    """Who published a message: `str(source)` is the node's name."""

    id: str
    "The node's id of this incarnation, 32 hexadecimal digits."
    name: str
    "The node's name, which other nodes may share."

    def __str__(self) -> str:
        return self.name


class Settlement(Protocol):
    """Where a message's fate is told; subscriptions with `ack="manual"` implement it."""

    def ack(self, message: Message) -> None:
        """Dealt with."""

    def nack(self, message: Message, delay: float) -> None:
        """Again, later."""

    def reject(self, message: Message) -> None:
        """Never again."""


class Position(msgspec.Struct, frozen=True, order=True):
    """The place of a message in a store's log, to be kept with what the message has caused.

    `start=position` goes on with the message after it. Keep it as it is, or as text: `str(position)`.
    """

    topic: str
    partition: int
    "Of the group that it was read in, else -1. Within a partition offsets only rise."
    offset: int
    "Its number among all messages of the topic in the log."
    store: str
    "The log's id, 32 hexadecimal digits: offsets mean nothing in another one."

    def __str__(self) -> str:
        return f"{self.topic}:{self.partition}:{self.offset}:{self.store}"

    @classmethod
    def parse(cls, text: str) -> Position:
        """What `str` gave. Raises ValueError for anything else."""
        topic, *rest = text.split(":")
        if not topic or len(rest) != 3 or len(bytes.fromhex(rest[2])) != STORE_ID_BYTES:
            raise ValueError(f"{text!r} is no position")
        return cls(topic, int(rest[0]), int(rest[1]), rest[2])


class Message(msgspec.Struct, gc=False):
    """One received message."""

    value: Any
    "The decoded payload."
    seq: int
    "Its number among its publisher's messages on this topic, from 0."
    topic: str
    timestamp: float
    "When its batch was opened, by the publisher's clock: seconds since 1970, UTC."
    source: Source
    key: Any = None
    headers: dict[str, Any] | None = None
    _settlement: Settlement | None = None
    _place: tuple[int, int] | None = None
    _store: bytes = b""

    @property
    def position(self) -> Position | None:
        """Where a store's log has it; None if it did not come from a store."""
        return None if self._place is None else Position(self.topic, *self._place, self._store.hex())

    async def ack(self) -> None:
        """Dealt with: it will not come again. Needs `ack="manual"`."""
        self._settle().ack(self)

    async def nack(self, delay: float = 0.0) -> None:
        """Not dealt with: it comes again after `delay` seconds, to the same subscription. Needs `ack="manual"`."""
        if not delay < inf:
            raise ValueError(f"delay must be a number of seconds, not {delay!r}")
        self._settle().nack(self, delay)

    async def reject(self) -> None:
        """Cannot be dealt with: it will not come again, and is reported as a Rejected event. Needs `ack="manual"`."""
        self._settle().reject(self)

    def _settle(self) -> Settlement:
        if self._settlement is None:
            raise LocalProtocolError('this message is acknowledged by itself; subscribe with ack="manual"')
        return self._settlement

    def __repr__(self) -> str:
        key = "" if self.key is None else f" key={self.key!r}"
        return f"<Message {self.topic}#{self.seq} from {self.source.name}{key}: {self.value!r}>"


class ServiceOffer(msgspec.Struct, frozen=True):
    """A service that a node provides."""

    service: str
    version: int
    concurrency: int
    "How many calls it works on at one time."


class ProviderReply(msgspec.Struct, frozen=True):
    """What one provider answers to `node.request_all`."""

    source: Source
    value: Any
    "What it replied; None with an error."
    error: Exception | None = None


class JobSettlement(Protocol):
    """Where a job's fate is told; pullers implement it."""

    def ack(self, job: Job, *, confirm: bool = True) -> Awaitable[None] | None:
        """Done. What confirms that a store has noted it, if a store keeps the job and that is asked for."""

    def nack(self, job: Job, delay: float | None, reason: str) -> None:
        """Again, later."""

    def reject(self, job: Job, reason: str) -> None:
        """Never again."""

    def renew(self, job: Job) -> None:
        """Still at it."""


class Job(Message, gc=False):
    """One job of a queue; `seq` is its number among its pusher's jobs, `topic` the queue."""

    attempt: int = 1
    "1, and one more for each time that it was leased before without success."
    priority: int = 4
    "0 to 9; higher ones come first."
    _position: int = 0

    @property
    def queue(self) -> str:
        """The queue's name."""
        return self.topic

    async def ack(self) -> None:
        """Done: nobody gets it again. With `ack="auto"` the handler's or loop body's end does it.

        Returns at once; for a durable job when the store has it on its disk, and then nothing gives it to anybody
        again. Raises NotStored if that was too late, or the store left before it answered: it may come again.
        """
        kept = self._settlement_of_job().ack(self)
        if kept is not None:
            await kept

    async def nack(self, delay: float | None = None, reason: str = "") -> None:
        """Not done: somebody gets it after `delay` seconds, default as the queue's back-off says.

        It counts as a failed attempt: after the queue's `max_attempts` it becomes a dead letter, with this reason.
        """
        self._settlement_of_job().nack(self, delay, reason)

    async def reject(self, reason: str = "rejected") -> None:
        """It cannot be done: it becomes a dead letter at once."""
        self._settlement_of_job().reject(self, reason)

    async def renew(self) -> None:
        """Tell that its handler makes progress; needed once in `handler_timeout_s`."""
        self._settlement_of_job().renew(self)

    def _settlement_of_job(self) -> JobSettlement:
        assert self._settlement is not None
        return cast(JobSettlement, self._settlement)

    def __repr__(self) -> str:
        key = "" if self.key is None else f" key={self.key!r}"
        again = "" if self.attempt == 1 else f" attempt={self.attempt}"
        return f"<Job {self.topic}#{self.seq} from {self.source.name}{key}{again}: {self.value!r}>"


class Peer(msgspec.Struct, frozen=True):
    """Another node as this one sees it."""

    id: str
    "32 hexadecimal digits, new for every incarnation."
    name: str
    host: str
    "Name of the machine it runs on."
    pid: int
    endpoint: str
    "The address that this node talks to; empty while only the peer's own connection is used."
    since: float
    "When it joined, by this node's clock: seconds since 1970, UTC."
    topics: tuple[str, ...]
    "Topics it publishes."
    patterns: tuple[str, ...]
    "Topics and patterns it subscribes to."
    services: tuple[ServiceOffer, ...] = ()
    "Services it provides."
    durable: tuple[str, ...] = ()
    "Those of its topics that are durable."
    stores: tuple[str, ...] = ()
    "If it is a store: patterns of the durable topics that it keeps."


class TopicStatistics(msgspec.Struct, frozen=True):
    """Counters of one topic since the node started."""

    published: int = 0
    "Messages published here."
    unmatched: int = 0
    "Of those, messages that nobody subscribed to."
    received: int = 0
    "Messages received and handed to a subscription of this node."
    lost: int = 0
    "Messages that a `Gap` told about."
    undecodable: int = 0
    "Messages whose payload did not decode or did not fit the subscription's type."
    expired: int = 0
    "Messages dropped because their ttl had passed."


class QueueStatistics(msgspec.Struct, frozen=True):
    """Counters of one queue on this node since it started; `depth`, `in_flight` and `workers` are as of now."""

    depth: int = 0
    "Jobs pushed here that are not done."
    in_flight: int = 0
    "Of those, jobs that workers have."
    workers: int = 0
    "Pullers that this node leases jobs to."
    pushed: int = 0
    done: int = 0
    redelivered: int = 0
    "Leases of jobs that had been leased before without success."
    dead: int = 0
    "Jobs that failed too often, or were rejected."
    expired: int = 0
    "Jobs given up because their ttl had passed, or because there were too many dead letters."
    deduplicated: int = 0
    "Pushes that were dropped because of their dedupe id."
    refused: int = 0
    "Acknowledgements that came too late."
    lost: int = 0
    "Of jobs pushed at-most-once: those that came to no reader, as far as is known."
    pulled: int = 0
    "Jobs that pullers of this node were handed."
    held: int = 0
    "Jobs that pullers of this node have now."


class QueueState(msgspec.Struct, frozen=True):
    """One queue of one node, as it answered."""

    queue: str
    source: Source
    "The node that the jobs were pushed at."
    statistics: QueueStatistics
    pullers: tuple[str, ...] = ()
    "Ids of the nodes that pull from it."


class Schedule(msgspec.Struct, frozen=True, kw_only=True):
    """A schedule of a durable queue, as its store keeps it."""

    name: str
    queue: str
    value: Any
    "Of its jobs, as all other options."
    cron: str | None
    every: int | None
    "Seconds."
    timezone: str
    missed: Literal["one", "none"]
    key: Any
    headers: dict[str, Any] | None
    ttl: float | None
    priority: int
    next: datetime
    "The next tick, UTC."
    last: datetime | None
    "The tick of its last job, UTC."


class GroupMember(msgspec.Struct, frozen=True):
    """A member of a group."""

    node: str
    "The name of its node; empty while it is away."
    member: str
    "Its own name, as `subscribe(member=)` gave it; may be empty."
    partitions: int
    "How many it owns."


class GroupProgress(msgspec.Struct, frozen=True):
    """How far a group has come in one topic."""

    position: int
    "Everything before this offset is done with."
    next: int
    "The offset that the topic's next message gets."

    @property
    def lag(self) -> int:
        """Messages from the oldest that is not done with to the newest."""
        return max(0, self.next - self.position)


class GroupState(msgspec.Struct, frozen=True, kw_only=True):
    """A group at its store, as of now."""

    name: str
    pattern: str
    "What it reads."
    partitions: int
    paused: bool
    members: tuple[GroupMember, ...]
    topics: dict[str, GroupProgress]
    refused: int
    "Commits that were refused, of members which had lost their partitions."
    store: str
    "The log that it is in: 32 hexadecimal digits, as in `Position.store`."

    @property
    def lag(self) -> int:
        """The lags of all its topics together."""
        return sum(progress.lag for progress in self.topics.values())


class Retention(msgspec.Struct, frozen=True, kw_only=True):
    """What a topic may keep in a store's log; None is no bound. Always whole batches go, the oldest first."""

    age_s: float | None = None
    "Batches stored longer ago go."
    bytes: int | None = None
    "At least the newest batches within this many bytes stay."
    messages: int | None = None
    "At least this many of the newest messages stay."
    compact: bool = False
    "Of each key only the last value is kept, and a tombstone for `tombstone_s`."
    tombstone_s: float = 86_400.0
    "How long a tombstone stays readable, so that every reader sees the deletion."

    def __post_init__(self) -> None:
        """Raises TypeError and ValueError."""
        for name, kinds in (("age_s", int | float), ("bytes", int), ("messages", int), ("tombstone_s", int | float)):
            value = getattr(self, name)
            if value is not None and not isinstance(value, kinds):
                raise TypeError(f"Retention.{name} must be a number, and whole if it counts, not {value!r}")
            if value is not None and not 0 <= value <= 2**62:
                raise ValueError(f"Retention.{name} must be 0 to 2**62, or None for no bound, not {value!r}")


class StoredTopic(msgspec.Struct, frozen=True, kw_only=True):
    """A topic in the log of a store, as of now."""

    topic: str
    first: int
    "The oldest offset that may still be read."
    next: int
    "The offset that the next message gets."
    bytes: int
    "Bytes of its batches, about."
    retention: Retention
    store: str
    "The log that it is in: 32 hexadecimal digits, as in `Position.store`."


class Statistics(msgspec.Struct, frozen=True):
    """What the node counted since it started, as one consistent snapshot."""

    peers: int
    topics: dict[str, TopicStatistics]
    batches_sent: int
    batches_received: int
    bytes_sent: int
    bytes_received: int
    protocol_errors: int
    "Frames that were not the protocol, from peers and strangers."
    handler_errors: int
    "Exceptions that left a handler."
    events_dropped: int
    "Events that a slow `node.events()` iterator missed."
    denials: int
    "What peers tried and their identities may not."
    authentication_failures: int
    "Connections that came to nothing because of keys."
    strangers: int
    "Frames from connections that never said HELLO, or from nodes that are not peers."
    signatures_refused: int = 0
    "Messages that were not delivered because of their signature, or because they had none."
    buffers_lent: int = 0
    "Large buffers that peers on the same host got in shared memory."
    buffers_not_lent: int = 0
    "Those that went through the sockets although they could have been lent, because all the memory was in use."
    queues: dict[str, QueueStatistics] = {}

    def total(self, name: str) -> int:
        """The sum of one counter over all topics: `statistics.total("lost")`."""
        return sum(getattr(topic, name) for topic in self.topics.values())
