"""`graph`: the same picture in every language."""

from __future__ import annotations

import asyncio
from xml.etree import ElementTree as ET

import pytest

import zfabric
from tests.cli.processes import Commands
from zfabric.cli._drawing import Edge, Graph, Vertex

pytestmark = pytest.mark.slow


async def test_a_fabric_is_drawn(cli: Commands, node: zfabric.Node) -> None:
    """Publishers, subscribers, providers, pushers and pullers, as text, as a picture and as JSON."""
    node.publisher("plant.temp")
    node.subscribe("plant.*")

    @node.service("math.add")
    async def add(a: int, b: int) -> int:
        return a + b

    pusher = node.pusher("plant.jobs")
    node.puller("plant.jobs")
    await pusher.wait_for(workers=1, timeout=30)

    mermaid, dot, svg, records = await asyncio.gather(
        cli.run("graph", "--wait", "1"),
        cli.run("graph", "--wait", "1", "--format", "dot"),
        cli.run("graph", "--wait", "1", "--format", "svg"),
        cli.run("graph", "--wait", "1", "--json"),
    )

    assert [outcome.code for outcome in (mermaid, dot, svg, records)] == [0, 0, 0, 0]
    assert mermaid.out.startswith("flowchart LR\n")
    assert '(["plant.temp"])' in mermaid.out
    assert 'label="plant.temp", shape=ellipse' in dot.out
    titles = [title.text for title in ET.fromstring(svg.out).iter("{http://www.w3.org/2000/svg}title")]
    assert {"node friend", "topic plant.temp", "service math.add", "queue plant.jobs"} <= set(titles)
    arrows = {(record["source"]["name"], record["target"]["name"]) for record in records.records}
    assert {("friend", "plant.temp"), ("plant.temp", "friend"), ("math.add", "friend")} <= arrows
    assert {("friend", "plant.jobs"), ("plant.jobs", "friend")} <= arrows


def test_names_cannot_break_a_picture() -> None:
    """Quotes, angle brackets, control characters, ends of lines and long names."""
    node, topic = Vertex("node", 'a"<b>\\\x1b\n' + "x" * 100, "1"), Vertex("topic", "t", "")
    graph = Graph((node, topic), (Edge(node, topic),))

    assert "#quot;<b>" in graph.mermaid()
    assert '\\"<b>\\\\' in graph.dot()
    assert len(list(ET.fromstring(graph.svg()).iter())) > 5
    assert not any("\x1b" in text or "\nx" in text for text in (graph.mermaid(), graph.dot(), graph.svg()))
