"""Running a verb that asks the stores which run."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from zfabric.cli._exits import Exit, Stop
from zfabric.cli._look import open_node
from zfabric.cli._options import Options
from zfabric.cli._output import Output
from zfabric.cli._running import run
from zfabric.errors import NotStored
from zfabric.node.node import Node

__all__ = ["FIND_S", "at_store", "patience"]

FIND_S = 5.0


def patience(options: Options) -> float:
    """How long to look for a store and wait for its answer."""
    return options.timeout or FIND_S


def at_store(options: Options, verb: str, work: Callable[[Output, Node], Awaitable[int]]) -> int:
    """Run a verb with a node of its own; exits 69 where no store is."""

    async def worked(output: Output) -> int:
        async with open_node(options, verb) as node:
            try:
                return await work(output, node)
            except NotStored as error:
                nobody = not any(peer.stores for peer in node.peers)
                raise Stop(Exit.NOBODY if nobody else Exit.FAILED, str(error)) from None

    return run(options, worked)
