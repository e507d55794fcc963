"""`zfabric services`: what is provided, and by whom."""

from __future__ import annotations

import click

from zfabric.cli._exits import Exit, Stop
from zfabric.cli._look import look_around
from zfabric.cli._options import Options, PatternParameter, networked
from zfabric.cli._output import Output, count
from zfabric.cli._running import run
from zfabric.wire.topics import Pattern

__all__ = ["command"]


@click.command()
@click.argument("pattern", type=PatternParameter(), default="#")
@networked(timeout="How long to look at most. [3; 10 with --wait]")
@click.option("--wait", type=click.IntRange(min=1), metavar="N", help="Wait for N nodes; 75 if they do not come.")
def command(options: Options, pattern: str, wait: int | None) -> int:
    """Show the services that match PATTERN (all of them by default), with their versions and providers.

    Exits 69 when there is none.
    """
    return run(options, lambda output: _show(options, output, pattern, wait or 0))


async def _show(options: Options, output: Output, pattern: str, wait: int) -> int:
    sighting = await look_around(options, "services", wait)
    wanted = Pattern(pattern)
    found: dict[tuple[str, int], list[tuple[str, int]]] = {}
    for peer in sorted(sighting.peers, key=lambda peer: (peer.name, peer.id)):
        for offer in peer.services:
            if wanted.matches(offer.service):
                found.setdefault((offer.service, offer.version), []).append((peer.name, offer.concurrency))
    rows = [(service, version, providers) for (service, version), providers in sorted(found.items())]
    if output.json:
        for service, version, providers in rows:
            named = [{"name": name, "concurrency": concurrency} for name, concurrency in providers]
            output.record({"service": service, "version": version, "providers": named})
    elif rows:
        output.table(
            ("SERVICE", "VERSION", "CALLS AT A TIME", "PROVIDERS"),
            [
                (service, str(version), str(sum(c for _, c in providers)), ", ".join(name for name, _ in providers))
                for service, version, providers in rows
            ],
        )
    sighting.require(wait, options)
    if not rows:
        what = "any service" if pattern == "#" else f"a service that matches {pattern!r}"
        there = count(len(sighting.peers), "node")
        raise Stop(Exit.NOBODY, f"nobody provides {what}; {there} on fabric {options.fabric!r}")
    output.note(f"{count(len(rows), 'service')} on fabric {options.fabric!r}", verbose=0 if output.on_terminal else 1)
    return 0
