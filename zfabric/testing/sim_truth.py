"""What really happened in a simulation: streams, subscriptions, and the names of the rules that must hold."""

from __future__ import annotations

from typing import Any

import msgspec

from zfabric.protocol.outbox import Reader
from zfabric.wire.ranges import RangeSet
from zfabric.wire.records import Start
from zfabric.wire.topics import Pattern

__all__ = ["RULES", "LaneStream", "LaneTruth", "StreamKey", "StreamTruth", "Violation", "Watch", "payload"]

RULES: dict[str, tuple[int, str]] = {
    "invented": (10, "what is delivered was published, word for word"),
    "duplicate": (11, "no subscription gets a message twice"),
    "order": (12, "messages of one producer and topic arrive in the order they were published"),
    "fencing": (13, "nothing of an old epoch arrives after a newer one"),
    "silent-hole": (14, "every message that a subscription misses is announced by a Gap"),
    "hole-without-cause": (15, "a reliable subscription misses only what its publisher was allowed to give up"),
    "false-gap": (16, "a Gap tells of messages that were published and did not arrive"),
    "confirmed-not-received": (17, "what was confirmed as received has been received"),
    "confirmed-not-processed": (18, "what was confirmed as processed has been processed"),
    "window": (19, "a publisher keeps no more than its window"),
    "memory": (20, "a subscription holds no more than its bounds"),
    "dropped-unacked": (21, "a publisher keeps what a reader has not received"),
    "retention": (22, "a publisher keeps its history"),
    "start": (23, "a subscription begins where it asked to"),
    "evicted-early": (24, "readers are given up only after the grace period"),
    "held-up": (25, "a stuck reader holds its publisher up no longer than the grace period"),
    "incompatible": (26, "a subscription that asks for more than is offered gets nothing"),
    "restart": (27, "a restarted subscriber goes on at what it had not processed"),
    "swallowed": (28, "what arrived at a node is delivered or announced, even if its publisher is gone"),
    "stuck-peers": (30, "in calm, all nodes become peers"),
    "stuck-attach": (31, "in calm, every subscription is in place at every publisher"),
    "stuck-delivery": (32, "in calm, reliable subscriptions catch up"),
    "stuck-acks": (33, "in calm, everything is acknowledged"),
    "stuck-announcement": (34, "in calm, every lost message is announced, also the last one"),
    "stuck-reader": (35, "in calm, readers that are gone are given up"),
    "stuck-flush": (36, "in calm, every flush comes to its end"),
    "job-invented": (40, "what a worker gets was pushed, word for word, and so is a dead letter"),
    "job-lost": (41, "in calm, every job is done, dead or expired"),
    "job-again": (42, "a job that has ended is not leased again, and does not end again"),
    "job-undone": (43, "what counts as done was done"),
    "stale-ack": (44, "only who has the lease can end a job"),
    "job-attempts": (45, "every failed lease counts as an attempt, and none that came back untouched"),
    "job-dead": (46, "a job is dead if it was rejected or failed too often, and then it is a dead letter"),
    "job-order": (47, "jobs of one key are leased one after the other"),
    "job-early": (48, "a job is not leased before its time"),
    "job-expired": (49, "a job expires only after its ttl"),
    "job-dedupe": (50, "the same dedupe id is the same job while its window lasts"),
    "job-selector": (51, "a worker gets only what its selector lets through"),
    "stuck-puller": (53, "in calm, every node that has a queue leases to all of its pullers"),
    "job-credit": (52, "a worker has no more jobs than it asked for"),
    "job-returned": (54, "what a worker gave back it does not work on"),
    "livelock": (37, "quiet nodes send little"),
    "exception": (38, "the core raises nothing"),
}
"""Name of each rule: (exit code of `python -m zfabric.testing.simulate`, what must hold)."""

StreamKey = tuple[bytes, str, int]


class Violation(Exception):
    """A rule does not hold."""

    def __init__(self, rule: str, detail: str) -> None:
        super().__init__(rule, detail)
        self.rule = rule
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.rule}: {self.detail}"


def payload(key: StreamKey, seq: int, size: int) -> list[Any]:
    """The value of a message: nothing else in a simulation is equal to it."""
    producer, topic, epoch = key
    return [producer[:8].hex(), topic, epoch, seq, bytes([(seq * 31 + epoch) & 255]) * size]


class Watch(msgspec.Struct):
    """One reader, as seen from outside its publisher's outbox."""

    reader: Reader
    received: int
    processed: int
    progress_at: float
    kept_from: int
    away_since: float | None = None


class StreamTruth(msgspec.Struct):
    """One publisher's messages on one topic."""

    key: StreamKey
    delivery: str
    history: int
    sizes: list[int] = []
    "Payload bytes by number; -1 where nobody listened."
    times: list[float] = []
    alive: bool = True
    readers: dict[tuple[bytes, int], Watch] = {}
    full_since: float | None = None
    pressed_since: float | None = None
    "Since then it was full once, and never less than half full."
    burst_bytes: int = 0


class LaneStream(msgspec.Struct):
    """One subscription's part of one stream."""

    key: StreamKey
    reliable: bool
    start: int | None = None
    delivered: RangeSet = msgspec.field(default_factory=RangeSet)
    last: int = -1
    next: int = 0
    processed: int = 0
    excused: RangeSet = msgspec.field(default_factory=RangeSet)
    "What the publisher was allowed to give up."
    given_up: bool = False
    "The publisher waits for it no longer, and it has not come back yet."
    abandoned: int = 0
    "Before this number its publisher has given up to wait for its processing."
    arrived: int = 0
    "Everything that came to the node lies before this number."


class LaneTruth:
    """One subscription."""

    def __init__(self, node_id: bytes, node: str, lane: int, pattern: Pattern, delivery: str, start: Start) -> None:
        self.node_id = node_id
        self.node = node
        self.lane = lane
        self.pattern = pattern
        self.delivery = delivery
        self.start = start
        self.closed = False
        self.alive = True
        self.full = False
        self.streams: dict[StreamKey, LaneStream] = {}
        self.epochs: dict[tuple[bytes, str], int] = {}

    def __repr__(self) -> str:
        return f"{self.node}/{self.lane}({self.pattern.text})"
