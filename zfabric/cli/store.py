"""`zfabric store`: the persistence node."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

import click

from zfabric.cli._options import Options, PatternParameter, networked
from zfabric.cli._output import Output
from zfabric.cli._running import run as run_verb
from zfabric.cli._store_files import VERBS, retention_options
from zfabric.cli._store_groups import groups
from zfabric.cli._store_topics import topics
from zfabric.config import Config

__all__ = ["command"]


@click.group()
def command() -> None:
    """Keep durable topics on disk.

    A store is a node like any other: publishers find it, and wait for its confirmation where they want to.
    """


@command.command()
@click.argument("url", metavar="DIR|URL")
@click.option(
    "--topics",
    "patterns",
    multiple=True,
    default=("#",),
    type=PatternParameter(),
    metavar="PATTERN",
    help="Which durable topics to keep; repeat it for more. [all of them]",
)
@retention_options
@networked(timeout="End after this long.")
def run(options: Options, url: str, patterns: tuple[str, ...], **retention: Any) -> int:
    """Keep durable topics in DIR, which is made if it is not there, until Ctrl-C or SIGTERM.

    Topics are kept for ever, or as --age, --bytes, --messages and --compact say, where `retain` has set nothing else.
    Its files are this user's alone. Ends with 1 as soon as the disk fails: nothing is confirmed from then on.
    """
    return run_verb(options, lambda output: _run(options, output, url, patterns, retention))


async def _run(options: Options, output: Output, url: str, patterns: tuple[str, ...], retention: dict[str, Any]) -> int:
    from zfabric.store import Retention, Store

    os.umask(0o077)
    store = Store(
        url,
        topics=patterns,
        retention=Retention(**retention),
        name=options.name or f"store-{os.getpid()}",
        fabric=options.fabric,
        interface=options.interface,
        seeds=options.seeds,
        insecure=options.insecure,
        config=Config(mdns=options.mdns),
    )
    async with store:
        node = store.node
        output.note(f"keeping {', '.join(patterns)} of fabric {node.fabric!r} in {url} as {node.name}")
        await _until_told(store.wait(), options.timeout)
    output.note("closed")
    return 0


async def _until_told(waiting: Coroutine[Any, Any, None], timeout: float | None) -> None:
    """Return on Ctrl-C, SIGTERM or after a time; raises what `waiting` raises."""
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        with suppress(NotImplementedError, RuntimeError, ValueError):
            loop.add_signal_handler(number, told.set)
    failure = asyncio.ensure_future(waiting)
    stop = asyncio.ensure_future(told.wait())
    done, _ = await asyncio.wait((failure, stop), timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    stop.cancel()
    failure.cancel()
    if failure in done:
        failure.result()


command.add_command(groups)
command.add_command(topics)
for _verb in VERBS:
    command.add_command(_verb)
