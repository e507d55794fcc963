"""`zfabric topics`: what is published, by whom and for whom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import click

from zfabric.cli._exits import Exit, Stop
from zfabric.cli._look import look_around
from zfabric.cli._options import Options, PatternParameter, networked
from zfabric.cli._output import Output, count
from zfabric.cli._running import run
from zfabric.model import Peer
from zfabric.wire.topics import Pattern

__all__ = ["command"]


@dataclass
class _Topic:
    publishers: list[str] = field(default_factory=list)
    subscribers: list[str] = field(default_factory=list)
    stores: list[str] = field(default_factory=list)
    "Of a durable topic."


@click.command()
@click.argument("pattern", type=PatternParameter(), default="#")
@networked(timeout="How long to look at most. [3; 10 with --wait]")
@click.option("--wait", type=click.IntRange(min=1), metavar="N", help="Wait for N nodes; 75 if they do not come.")
def command(options: Options, pattern: str, wait: int | None) -> int:
    """Show the topics that match PATTERN (all of them by default), with publishers and subscribers.

    A topic that somebody subscribes to by its full name is shown also when nobody publishes it.
    Exits 69 when there is none.
    """
    return run(options, lambda output: _show(options, output, pattern, wait or 0))


async def _show(options: Options, output: Output, pattern: str, wait: int) -> int:
    sighting = await look_around(options, "topics", wait)
    topics = {name: topic for name, topic in matched(sighting.peers).items() if Pattern(pattern).matches(name)}
    if output.json:
        for name, topic in topics.items():
            record = {"topic": name, "publishers": topic.publishers, "subscribers": topic.subscribers}
            output.record({**record, "stores": topic.stores})
    elif topics:
        output.table(
            ("TOPIC", "PUBLISHERS", "SUBSCRIBERS", "STORES"),
            [
                (name, _names(topic.publishers), _names(topic.subscribers), ", ".join(topic.stores) or "-")
                for name, topic in topics.items()
            ],
        )
    sighting.require(wait, options)
    if not topics:
        what = "anything" if pattern == "#" else f"what matches {pattern!r}"
        there = count(len(sighting.peers), "node")
        raise Stop(Exit.NOBODY, f"nobody publishes {what}; {there} on fabric {options.fabric!r}")
    output.note(f"{count(len(topics), 'topic')} on fabric {options.fabric!r}", verbose=0 if output.on_terminal else 1)
    return 0


def matched(peers: Sequence[Peer]) -> dict[str, _Topic]:
    """Every topic that is published or subscribed to by its full name, with the names of the nodes."""
    topics: dict[str, _Topic] = {}
    for peer in peers:
        for name in peer.topics:
            topics.setdefault(name, _Topic()).publishers.append(peer.name)
    patterns = [(peer, [Pattern(text) for text in peer.patterns]) for peer in peers]
    for _, wanted in patterns:
        for pattern in wanted:
            if pattern.literal:
                topics.setdefault(pattern.text, _Topic())
    for peer, wanted in patterns:
        for name, topic in topics.items():
            if any(pattern.matches(name) for pattern in wanted):
                topic.subscribers.append(peer.name)
    for name in {name for peer in peers for name in peer.durable}:
        for peer in peers:
            if any(Pattern(pattern).matches(name) for pattern in peer.stores):
                topics[name].stores.append(peer.name)
    for topic in topics.values():
        topic.stores.sort()
        topic.publishers.sort()
        topic.subscribers.sort()
    return dict(sorted(topics.items()))


def _names(names: list[str]) -> str:
    return ", ".join(names) if names else "nobody"
