"""`zfabric nodes`: who is there."""

from __future__ import annotations

from typing import Any

import click

from zfabric.cli._look import look_around
from zfabric.cli._options import Options, networked
from zfabric.cli._output import Output, count
from zfabric.cli._running import run
from zfabric.model import Peer

__all__ = ["command"]


@click.command()
@networked(timeout="How long to look at most. [3; 10 with --wait]")
@click.option("--wait", type=click.IntRange(min=1), metavar="N", help="Wait for N nodes; 75 if they do not come.")
def command(options: Options, wait: int | None) -> int:
    """Show the nodes of the fabric, without this command's own.

    An address can be given to others as their --seed. Exits 69 when there is no node at all.
    """
    return run(options, lambda output: _show(options, output, wait or 0))


async def _show(options: Options, output: Output, wait: int) -> int:
    sighting = await look_around(options, "nodes", wait)
    addresses = _announced(sighting.peers)
    peers = sorted(sighting.peers, key=lambda peer: (peer.name, peer.id))
    if output.json:
        for peer in peers:
            output.record(_record(peer, addresses.get(peer.id, "")))
    elif peers:
        output.table(
            ("NAME", "ID", "HOST", "PID", "ADDRESS", "PUBLISHES", "SUBSCRIBES TO"),
            [_row(peer, addresses.get(peer.id, "")) for peer in peers],
        )
    sighting.require(wait, options)
    output.note(f"{count(len(peers), 'node')} on fabric {options.fabric!r}", verbose=0 if output.on_terminal else 1)
    return 0


def _announced(peers: tuple[Peer, ...]) -> dict[str, str]:
    """An address of each peer: the one that this node talks to, else one that it announces on this host."""
    from zfabric.discovery import announcements

    found = {peer.id: peer.endpoint for peer in peers if peer.endpoint}
    if len(found) < len(peers):
        try:
            local = announcements()
        except OSError:
            local = []
        for announcement in local:
            if announcement.endpoints:
                found.setdefault(announcement.node_id.hex(), announcement.endpoints[0])
    return found


def _record(peer: Peer, address: str) -> dict[str, Any]:
    return {
        "name": peer.name,
        "id": peer.id,
        "host": peer.host,
        "pid": peer.pid,
        "address": address,
        "topics": sorted(peer.topics),
        "patterns": sorted(peer.patterns),
        "stores": sorted(peer.stores),
    }


def _row(peer: Peer, address: str) -> tuple[str, ...]:
    return (
        peer.name,
        peer.id[:8],
        peer.host,
        str(peer.pid),
        address or "-",
        ", ".join(sorted(peer.topics)) or "-",
        ", ".join([*sorted(peer.patterns), *(f"stores {pattern}" for pattern in sorted(peer.stores))]) or "-",
    )
