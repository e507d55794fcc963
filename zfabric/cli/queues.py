"""`zfabric queues`: which queues there are, and how they do."""

from __future__ import annotations

import click

from zfabric.cli._exits import Exit, Stop
from zfabric.cli._look import look_around
from zfabric.cli._options import Options, networked
from zfabric.cli._output import Output, count
from zfabric.cli._running import run
from zfabric.protocol.queues import DEAD_PREFIX

__all__ = ["command"]


@click.command()
@click.option("--dead", is_flag=True, help="Show the dead-letter queues, too.")
@networked(timeout="How long to look and ask at most. [3; 10 with --wait]")
@click.option("--wait", type=click.IntRange(min=1), metavar="N", help="Wait for N nodes; 75 if they do not come.")
def command(options: Options, dead: bool, wait: int | None) -> int:
    """Show every queue: the node that keeps its jobs, how many there are, and what became of the others.

    Exits 69 when there is none.
    """
    return run(options, lambda output: _show(options, output, wait or 0, dead=dead))


async def _show(options: Options, output: Output, wait: int, *, dead: bool) -> int:
    sighting = await look_around(options, "queues", wait, queues=True)
    sighting.require(wait, options)
    states = [state for state in sighting.queues if dead or not state.queue.startswith(DEAD_PREFIX)]
    if output.json:
        for state in states:
            figures = {name: getattr(state.statistics, name) for name in _FIGURES}
            output.record({"queue": state.queue, "node": state.source.name, **figures})
    elif states:
        output.table(
            ("QUEUE", "NODE", *(name.upper().replace("_", " ") for name in _FIGURES)),
            [
                (state.queue, state.source.name, *(f"{getattr(state.statistics, name):,}" for name in _FIGURES))
                for state in states
            ],
        )
    if not states:
        there = count(len(sighting.peers), "node")
        raise Stop(Exit.NOBODY, f"nobody has a queue; {there} on fabric {options.fabric!r}")
    return Exit.OK


_FIGURES = ("depth", "in_flight", "workers", "done", "redelivered", "dead", "expired", "lost")
