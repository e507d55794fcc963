"""`zfabric graph`: a picture of who talks to whom."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from zfabric.cli._drawing import FORMATS, Edge, Graph, Vertex
from zfabric.cli._look import look_around
from zfabric.cli._options import Options, networked
from zfabric.cli._output import Output, count
from zfabric.cli._running import run
from zfabric.cli.topics import matched
from zfabric.model import Peer, QueueState
from zfabric.protocol.queues import DEAD_PREFIX
from zfabric.wire.topics import Pattern

__all__ = ["command"]


@click.command()
@networked(timeout="How long to look at most. [3; 10 with --wait]")
@click.option("--format", "format_", type=click.Choice(list(FORMATS)), default="mermaid", show_default=True)
@click.option("--wait", type=click.IntRange(min=1), metavar="N", help="Wait for N nodes; 75 if they do not come.")
def command(options: Options, format_: str, wait: int | None) -> int:
    """Draw nodes, topics, services and queues: who publishes, subscribes, provides, pushes and pulls.

    Mermaid and dot are text for their programs, svg is a picture. With --json: one line for each arrow.
    """
    return run(options, lambda output: _show(options, output, format_, wait or 0))


async def _show(options: Options, output: Output, format_: str, wait: int) -> int:
    sighting = await look_around(options, "graph", wait, queues=True)
    sighting.require(wait, options)
    graph = drawn(sighting.peers, sighting.queues)
    if output.json:
        for edge in graph.edges:
            ends = {"source": edge.source, "target": edge.target}
            output.record({end: {"kind": v.kind, "name": v.name, "id": v.id or None} for end, v in ends.items()})
    else:
        sys.stdout.write(FORMATS[format_](graph))
    output.note(f"{count(len(sighting.peers), 'node')} on fabric {options.fabric!r}", verbose=1)
    return 0


def drawn(peers: Sequence[Peer], queues: Sequence[QueueState] = ()) -> Graph:
    """The graph of what these nodes say of themselves. Arrows go the way messages, requests and jobs go."""
    nodes = {peer: Vertex("node", peer.name, peer.id) for peer in peers}
    edges: set[Edge] = set()
    shared: set[Vertex] = set()
    for name in matched(peers):
        topic = Vertex("topic", name, "")
        shared.add(topic)
        for peer, node in nodes.items():
            if name in peer.topics:
                edges.add(Edge(node, topic))
            if any(Pattern(pattern).matches(name) for pattern in peer.patterns):
                edges.add(Edge(topic, node))
    for peer, node in nodes.items():
        for offer in peer.services:
            service = Vertex("service", offer.service, "")
            shared.add(service)
            edges.add(Edge(service, node))
    by_id = {peer.id: node for peer, node in nodes.items()}
    for state in queues:
        if state.source.id not in by_id or (state.queue.startswith(DEAD_PREFIX) and not state.statistics.depth):
            continue
        queue = Vertex("queue", state.queue, "")
        shared.add(queue)
        edges.add(Edge(by_id[state.source.id], queue))
        edges.update(Edge(queue, by_id[puller]) for puller in state.pullers if puller in by_id)
    return Graph(tuple(sorted({*nodes.values(), *shared})), tuple(sorted(edges)))
