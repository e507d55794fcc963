"""`zfabric serve`: provide a service by running a command for each request."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

import click
import msgspec

from zfabric.cli import _input
from zfabric.cli._exits import Exit, Stop
from zfabric.cli._look import open_node
from zfabric.cli._options import AMOUNT, Options, TopicParameter, networked
from zfabric.cli._output import Output
from zfabric.cli._running import run
from zfabric.cli._subprocess import CommandFailed, run_program, split
from zfabric.cli._values import plain
from zfabric.cli._warnings import Warnings
from zfabric.node.services import current_request

__all__ = ["command"]


@click.command()
@click.argument("service", type=TopicParameter())
@click.option("--command", "line", required=True, metavar="COMMAND", help="What to run for each request.")
@click.option("--concurrency", type=click.IntRange(min=1), metavar="N", help="Commands at one time. [number of CPUs]")
@click.option("--version", type=AMOUNT, default=1, metavar="N", help="Version of the service. [1]")
@networked(timeout="How long requests in progress may take to finish after Ctrl-C or SIGTERM. [5]")
def command(options: Options, service: str, line: str, concurrency: int | None, version: int) -> int:
    """Provide SERVICE: run COMMAND for each request, until Ctrl-C.

    The arguments stand on its stdin as one line, a JSON array. Its stdout is the reply: JSON if it is JSON, else text.
    The time that is left is in $ZFABRIC_TIMEOUT_S. When it exits with an error, the request fails.
    No shell is involved.
    """
    words = split(line)
    count = concurrency or os.cpu_count() or 1
    return run(options, lambda output: _serve(options, output, service, words, count, version))


async def _serve(
    options: Options, output: Output, service: str, words: list[str], concurrency: int, version: int
) -> int:
    async with open_node(options, "serve") as node, Warnings(output, node):

        async def handle(*arguments: Any) -> Any:
            began, source = time.monotonic(), current_request().source.name
            failed = ""
            try:
                return await _run(words, arguments)
            except CommandFailed as error:
                failed = str(error)
                raise
            except asyncio.CancelledError:
                failed = "given up"
                raise
            finally:
                seconds = time.monotonic() - began
                if output.json:
                    output.record({"service": service, "source": source, "seconds": seconds, "error": failed or None})
                else:
                    output.note(f"{source}: {failed or 'done'} in {seconds:.3f} s")

        provided = node.service(service, version=version, concurrency=concurrency)(handle)
        output.note(f"providing {service!r} as {node.name}")
        try:
            await asyncio.Event().wait()
        finally:
            await provided.stop(options.timeout)
    return Exit.OK


async def _run(words: list[str], arguments: tuple[Any, ...]) -> Any:
    """Run the command once; a request that is cancelled kills it."""
    environment = {"ZFABRIC_TIMEOUT_S": f"{current_request().remaining:.3f}"}
    out = await run_program(words, msgspec.json.encode(plain(arguments)) + b"\n", environment)
    try:
        return _input.parse(out.rstrip(b"\r\n"), _input.Form.AUTO) if out.strip() else None
    except Stop:
        return out
