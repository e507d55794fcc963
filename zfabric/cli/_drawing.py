"""A directed graph as text for Mermaid and Graphviz, or as an SVG picture of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from html import escape

from zfabric.cli._values import safe

__all__ = ["FORMATS", "Edge", "Graph", "Vertex"]

BOX_WIDTH, BOX_HEIGHT, GAP, LANE = 220, 32, 12, 120


@dataclass(frozen=True, order=True)
class Vertex:
    """A node, or something that nodes share: a topic, a service, a queue."""

    kind: str
    name: str
    id: str
    "Tells two nodes of one name apart."

    @property
    def label(self) -> str:
        """The name without characters that break a line, or that XML does not know."""
        return safe(self.name)


@dataclass(frozen=True, order=True)
class Edge:
    """Something goes from one to the other."""

    source: Vertex
    target: Vertex


@dataclass(frozen=True)
class Graph:
    """What `zfabric graph` shows."""

    vertices: tuple[Vertex, ...]
    edges: tuple[Edge, ...]

    def mermaid(self) -> str:
        """A Mermaid flowchart."""
        number = {vertex: f"v{index}" for index, vertex in enumerate(self.vertices)}
        lines = ["flowchart LR"]
        for vertex in self.vertices:
            label = vertex.label.replace('"', "#quot;")
            lines.append(
                f'  {number[vertex]}["{label}"]' if vertex.kind == "node" else f'  {number[vertex]}(["{label}"])'
            )
        lines += [f"  {number[edge.source]} --> {number[edge.target]}" for edge in self.edges]
        return "\n".join(lines) + "\n"

    def dot(self) -> str:
        """A Graphviz digraph."""
        number = {vertex: f"v{index}" for index, vertex in enumerate(self.vertices)}
        lines = ["digraph fabric {", "  rankdir=LR;"]
        for vertex in self.vertices:
            label = vertex.label.replace("\\", "\\\\").replace('"', '\\"')
            lines.append(
                f'  {number[vertex]} [label="{label}", shape={"box" if vertex.kind == "node" else "ellipse"}];'
            )
        lines += [f"  {number[edge.source]} -> {number[edge.target]};" for edge in self.edges]
        return "\n".join([*lines, "}"]) + "\n"

    def svg(self) -> str:
        """Three columns: nodes that send, what they share, nodes that receive."""
        senders = _column(0, (edge.source for edge in self.edges if edge.source.kind == "node"))
        shared = _column(1, (vertex for vertex in self.vertices if vertex.kind != "node"))
        receivers = _column(2, (edge.target for edge in self.edges if edge.target.kind == "node"))
        silent = {v for v in self.vertices if v.kind == "node"} - set(senders) - set(receivers)
        senders |= {vertex: (0, len(senders) + index) for index, vertex in enumerate(sorted(silent))}
        columns = (senders, shared, receivers)
        height = GAP + max((len(column) for column in columns), default=0) * (BOX_HEIGHT + GAP)
        width = 3 * BOX_WIDTH + 2 * LANE + 2 * GAP
        parts = [_curve(senders[e.source], shared[e.target]) for e in self.edges if e.source in senders]
        parts += [_curve(shared[e.source], receivers[e.target]) for e in self.edges if e.target in receivers]
        parts += [_box(vertex, place) for column in columns for vertex, place in column.items()]
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            f'font-family="sans-serif" font-size="13">\n' + "\n".join(parts) + "\n</svg>\n"
        )


def _column(number: int, vertices: Iterable[Vertex]) -> dict[Vertex, tuple[int, int]]:
    return {vertex: (number, index) for index, vertex in enumerate(sorted(set(vertices)))}


def _corner(place: tuple[int, int]) -> tuple[int, int]:
    column, row = place
    return GAP + column * (BOX_WIDTH + LANE), GAP + row * (BOX_HEIGHT + GAP)


def _box(vertex: Vertex, place: tuple[int, int]) -> str:
    x, y = _corner(place)
    radius = 3 if vertex.kind == "node" else BOX_HEIGHT // 2
    colour = {"node": "#e3ecf7", "topic": "#fdf3d8", "service": "#e4f3e0"}.get(vertex.kind, "#f3e2ef")
    label = vertex.label
    text = label if len(label) <= 28 else f"{label[:27]}…"
    return (
        f'<g><title>{escape(vertex.kind)} {escape(label)}</title><rect x="{x}" y="{y}" width="{BOX_WIDTH}" '
        f'height="{BOX_HEIGHT}" rx="{radius}" fill="{colour}" stroke="#667"/><text x="{x + BOX_WIDTH // 2}" '
        f'y="{y + BOX_HEIGHT // 2 + 5}" text-anchor="middle">{escape(text)}</text></g>'
    )


def _curve(source: tuple[int, int], target: tuple[int, int]) -> str:
    (x1, y1), (x2, y2) = _corner(source), _corner(target)
    x1, y1, y2 = x1 + BOX_WIDTH, y1 + BOX_HEIGHT // 2, y2 + BOX_HEIGHT // 2
    middle = (x1 + x2) // 2
    return f'<path d="M{x1} {y1} C{middle} {y1} {middle} {y2} {x2} {y2}" fill="none" stroke="#99a"/>'


FORMATS: dict[str, Callable[[Graph], str]] = {"mermaid": Graph.mermaid, "dot": Graph.dot, "svg": Graph.svg}
