"""What one peer publishes and subscribes to, as it told us."""

from __future__ import annotations

from zfabric.config import Config
from zfabric.wire.records import PatternRequest, TopicOffer
from zfabric.wire.topics import TopicTable

__all__ = ["RemoteInterest"]


class RemoteInterest:
    """What one peer publishes and subscribes to."""

    # fmt: off
    __slots__ = (
        "following", "generation", "incompatible", "more", "outdated", "patterns", "serial", "table", "topics",
        "wanted", "whole",
    )
    # fmt: on

    def __init__(self, config: Config) -> None:
        self.topics: dict[str, TopicOffer] = {}
        self.patterns: dict[int, tuple[PatternRequest, int]] = {}
        self.table: TopicTable[int] = TopicTable(bytes_max=config.topic_bytes_max)
        self.incompatible: set[tuple[int, str]] = set()
        self.wanted: set[str] = set()
        self.following: str | None = None
        self.whole = False
        self.outdated = False
        "What is being told is skipped."
        self.more = False
        self.serial = -1
        self.generation = 0

    def subscribed(self) -> tuple[str, ...]:
        """The patterns of its subscriptions, but for what it stores."""
        return tuple(request.pattern for request, _ in self.patterns.values() if not request.store)
