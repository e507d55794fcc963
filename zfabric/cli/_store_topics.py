"""The verbs of `zfabric store topics`: they ask the stores that run, over the network."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from zfabric.cli._options import AMOUNT, Options, PatternParameter, TopicParameter, networked
from zfabric.cli._output import Output, count
from zfabric.cli._store_files import kept, show_topics
from zfabric.cli._stores import FIND_S, at_store, patience
from zfabric.cli.bw import human

if TYPE_CHECKING:
    from zfabric.model import StoredTopic
    from zfabric.node.node import Node

__all__ = ["topics"]

_timeout = f"How long to wait for a store and its answer. [{FIND_S:g}]"


@click.group()
def topics() -> None:
    """Look at the topics of the stores that run, and remove from them."""


@topics.command("list")
@click.argument("pattern", default="#", type=PatternParameter())
@networked(timeout=_timeout)
def list_(options: Options, pattern: str) -> int:
    """Show the topics that match PATTERN: offsets, size, and how long they are kept."""

    async def look(output: Output, node: Node) -> int:
        found = await node.stores.topics(pattern, timeout=patience(options))
        _show(output, found)
        output.note(f"{count(len(found), 'topic')}, {human(sum(each.bytes for each in found))}")
        return 0

    return at_store(options, "topics", look)


@topics.command()
@click.argument("topic", type=TopicParameter())
@click.option("--before", type=AMOUNT, metavar="OFFSET", help="Only what is before this offset.")
@networked(timeout=_timeout)
def purge(options: Options, topic: str, before: int | None) -> int:
    """Remove the messages of TOPIC from the stores that run. Whole batches go: one that OFFSET lies in stays."""

    async def remove(output: Output, node: Node) -> int:
        _show(output, await node.stores.purge(topic, before=before, timeout=patience(options)))
        return 0

    return at_store(options, "purge", remove)


def _show(output: Output, found: tuple[StoredTopic, ...]) -> None:
    if not output.json:
        show_topics(output, [(each.topic, each) for each in found])
        return
    for each in found:
        figures = {"first": each.first, "next": each.next, "bytes": each.bytes}
        output.record({"topic": each.topic, **figures, "retention": kept(each.retention), "store": each.store})
