"""INTEREST records: what a node publishes and subscribes to, cut into pieces of bounded size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from zfabric.protocol.outbox import Outbox
from zfabric.wire.records import Interest, PatternRequest, TopicOffer

__all__ = ["interest_records", "offer_of"]

_ITEMS_PER_RECORD = 1000

T = TypeVar("T")


def offer_of(outbox: Outbox) -> TopicOffer:
    """A topic of this node's own, as peers are told of it."""
    return TopicOffer(outbox.topic, outbox.epoch, outbox.delivery, outbox.keeping is not None)


def interest_records(
    state: tuple[int, int],
    *,
    full: bool,
    topics: list[TopicOffer],
    patterns: list[PatternRequest],
    topics_gone: Iterable[str] = (),
    patterns_gone: Iterable[int] = (),
) -> Iterator[Interest]:
    """The first one carries `full` and what is gone, the last one no `more`; `state` is (generation, serial)."""
    if len(topics) + len(patterns) <= _ITEMS_PER_RECORD:
        yield Interest(full, False, *state, topics, list(topics_gone), patterns, list(patterns_gone))
        return
    yield Interest(full, True, *state, [], list(topics_gone), [], list(patterns_gone))
    for some_topics in _chunks(topics):
        yield Interest(False, True, *state, topics=some_topics)
    for some_patterns in _chunks(patterns):
        yield Interest(False, True, *state, patterns=some_patterns)
    yield Interest(False, False, *state)


def _chunks(items: list[T]) -> Iterator[list[T]]:
    for start in range(0, len(items), _ITEMS_PER_RECORD):
        yield items[start : start + _ITEMS_PER_RECORD]
