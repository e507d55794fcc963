"""What a receiver measures: messages by topic, holes and repeats by sequence number, and latency."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

import msgspec

import zfabric

__all__ = ["Histogram", "Intake"]


class Histogram(msgspec.Struct):
    """Durations in buckets about 3 % wide: small, mergeable, and good enough for percentiles."""

    buckets: dict[int, int] = {}
    max_ns: int = 0

    def add(self, duration_ns: int) -> None:
        """Count one duration."""
        duration_ns = max(0, duration_ns)
        # Below 64 ns exact; above, five bits after the leading one.
        shift = max(0, duration_ns.bit_length() - 6)
        bucket = 32 * shift + (duration_ns >> shift)
        self.buckets[bucket] = self.buckets.get(bucket, 0) + 1
        self.max_ns = max(self.max_ns, duration_ns)

    def merge(self, other: Histogram) -> None:
        """Add all that another one counted."""
        for bucket, count in other.buckets.items():
            self.buckets[bucket] = self.buckets.get(bucket, 0) + count
        self.max_ns = max(self.max_ns, other.max_ns)

    @property
    def count(self) -> int:
        """How many durations it holds."""
        return sum(self.buckets.values())

    def percentile_ms(self, percent: float) -> float:
        """The duration, in milliseconds, that `percent` of all stay within; 0 when empty."""
        wanted = self.count * percent / 100
        seen = 0
        for bucket, count in sorted(self.buckets.items()):
            seen += count
            if seen >= wanted:
                shift = max(0, bucket // 32 - 1)
                upper_ns = ((bucket - 32 * shift + 1) << shift) - 1
                return min(upper_ns, self.max_ns) / 1e6
        return 0.0


class Intake:
    """The books of one receiver: every message is noted once, and `drain` waits for the last.

    With `from_first`, each stream must begin with its first message; without, joining late is no loss.
    """

    def __init__(self, *, from_first: bool = True) -> None:
        self.received: dict[str, int] = {}
        self.missing = 0
        "Sequence numbers that were jumped over."
        self.repeated = 0
        "Messages whose sequence number had been seen."
        self.latency = Histogram()
        self._from_first = from_first
        self._next_seq: dict[tuple[str, str], int] = {}
        self._progress = asyncio.Event()

    def note(self, message: zfabric.Message, sent_ns: int) -> int:
        """Enter a message and return its latency in nanoseconds."""
        latency_ns = time.monotonic_ns() - sent_ns
        self.latency.add(latency_ns)
        self.received[message.topic] = self.received.get(message.topic, 0) + 1
        stream = (message.source.id, message.topic)
        expected = self._next_seq.get(stream, 0 if self._from_first else message.seq)
        if message.seq < expected:
            self.repeated += 1
        else:
            self.missing += message.seq - expected
            self._next_seq[stream] = message.seq + 1
        self._progress.set()
        return latency_ns

    async def drain(self, published: Mapping[str, int], patience_s: float = 3.0) -> bool:
        """Wait until as many arrived as were published; False when nothing came for `patience_s`."""
        while any(self.received.get(topic, 0) < count for topic, count in published.items()):
            self._progress.clear()
            try:
                await asyncio.wait_for(self._progress.wait(), patience_s)
            except TimeoutError:
                return False
        return True
