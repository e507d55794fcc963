"""`zfabric top`: nodes, topics and queues on one live screen."""

from __future__ import annotations

import asyncio
from contextlib import nullcontext
from typing import Any

import click

from zfabric.cli import bw
from zfabric.cli._exits import Exit, Stop
from zfabric.cli._look import nobody, open_node
from zfabric.cli._options import Options, PatternParameter, networked
from zfabric.cli._output import Output, drawn
from zfabric.cli._rates import REPORTS_PER_S, Meter, Meters, limiting
from zfabric.cli._running import run
from zfabric.cli._values import safe
from zfabric.cli._warnings import Warnings
from zfabric.model import Delivery, QueueState, QueueStatistics
from zfabric.node.node import Node

__all__ = ["command"]

ASK_S = 0.5
"How long nodes may take to tell of their queues."


@click.command()
@limiting
@networked(timeout="Exit with 69 when no node was there for this long at the start.")
@click.argument("pattern", type=PatternParameter(), default="#")
def command(options: Options, pattern: str, reports: int | None, duration: float | None, window: float) -> int:
    """Watch the fabric: who is there, what passes on topics that match PATTERN (all by default), how queues do.

    A live screen on a terminal, else a JSON object every second. It subscribes to what it measures.
    """
    return run(options, lambda output: _Top(options, output, pattern, window).run(reports, duration))


class _Top:
    def __init__(self, options: Options, output: Output, pattern: str, window_s: float) -> None:
        self._options = options
        self._output = output
        self._pattern = pattern
        self._window_s = window_s
        self._meters = Meters(bw.VIEW.measure)
        self._drawn = output.on_terminal and not output.json

    async def run(self, reports: int | None, duration: float | None) -> int:
        """Show until enough was shown."""
        async with open_node(self._options, "top") as node, Warnings(self._output, node):
            subscription = node.subscribe(self._pattern, delivery=Delivery.AT_MOST_ONCE)
            with self._live() as live:
                async with asyncio.TaskGroup() as group:
                    reading = group.create_task(self._meters.read(subscription))
                    seen = await self._report(node, reports, duration, live)
                    reading.cancel()
        if not seen:
            raise Stop(Exit.NOBODY, nobody(self._options))
        return Exit.OK

    def _live(self) -> Any:
        if not self._drawn:
            return nullcontext()
        from rich.live import Live

        return Live(console=self._output.console(), screen=True, auto_refresh=False)

    async def _report(self, node: Node, reports: int | None, duration: float | None, live: Any) -> bool:
        """Show once a second. Returns whether there ever was another node."""
        loop = asyncio.get_running_loop()
        began, done, seen = loop.time(), 0, False
        while True:
            due = began + (done + 1) / REPORTS_PER_S
            if duration is not None:
                due = min(due, began + duration)
            await asyncio.sleep(max(0.0, due - loop.time()))
            queues = await node.queues(ASK_S) if node.peers else []
            seen = seen or bool(node.peers)
            done += 1
            now = loop.time()
            self._meters.prune(now, self._window_s)
            if live is None:
                self._output.record(self._record(node, queues, now))
            else:
                live.update(self._screen(node, queues, now), refresh=True)
            if done == reports or (duration is not None and now >= began + duration):
                return seen
            if not seen and self._options.timeout is not None and now >= began + self._options.timeout:
                return False

    def _record(self, node: Node, queues: list[QueueState], now: float) -> dict[str, Any]:
        return {
            "nodes": [
                {
                    "name": peer.name,
                    "id": peer.id,
                    "host": peer.host,
                    "pid": peer.pid,
                    "topics": len(peer.topics),
                    "patterns": len(peer.patterns),
                    "services": len(peer.services),
                }
                for peer in sorted(node.peers, key=lambda peer: (peer.name, peer.id))
            ],
            "topics": [
                {"topic": topic, **bw.VIEW.record(meter, now, self._window_s)} for topic, meter in self._busiest(now)
            ],
            "queues": [
                {"queue": state.queue, "node": state.source.name, **_figures(state.statistics)} for state in queues
            ],
        }

    def _busiest(self, now: float) -> list[tuple[str, Meter]]:
        """Topics and their meters, most bytes first."""
        return sorted(self._meters.items(), key=lambda each: (-each[1].bytes_per_s(now, self._window_s), each[0]))

    def _screen(self, node: Node, queues: list[QueueState], now: float) -> Any:
        from rich.console import Group

        record = self._record(node, queues, now)
        rows_max = max(3, (self._output.console().height - 9) // 3)
        nodes = [[safe(str(value)) for name, value in each.items() if name != "id"] for each in record["nodes"]]
        topics = [(topic, *bw.VIEW.row(meter, now, self._window_s)) for topic, meter in self._busiest(now)]
        figures = [[safe(str(value)) for value in each.values()] for each in record["queues"]]
        return Group(
            drawn(("NODE", "HOST", "PID", "TOPICS", "PATTERNS", "SERVICES"), nodes[:rows_max], numbers=4),
            drawn(("TOPIC", *bw.VIEW.titles), topics[:rows_max], numbers=len(bw.VIEW.titles)),
            drawn(("QUEUE", "NODE", *map(str.upper, _FIGURES)), figures[:rows_max], numbers=len(_FIGURES)),
        )


_FIGURES = ("depth", "in_flight", "workers", "done", "dead")


def _figures(of: QueueStatistics) -> dict[str, int]:
    return {name: getattr(of, name) for name in _FIGURES}
