"""`zfabric push`: push jobs, and wait until they are done."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import click

from zfabric.cli import _input
from zfabric.cli._exits import Exit, Stop
from zfabric.cli._look import open_node
from zfabric.cli._options import AMOUNT, QUEUE_DELIVERIES, Options, Seconds, TopicParameter, header_pairs, networked
from zfabric.cli._output import Output, count
from zfabric.cli._running import run
from zfabric.cli._warnings import Warnings
from zfabric.config import Config
from zfabric.model import QueueStatistics
from zfabric.node.pusher import Pusher
from zfabric.protocol.jobs import PRIORITIES

__all__ = ["command"]

FIND_S = 5.0
"How long to look for a store."


@dataclass(frozen=True, slots=True, kw_only=True)
class Push:
    """What the command line asks for."""

    queue: str
    value: str | None
    form: str
    options: dict[str, Any]
    attempts: int
    delivery: str
    durable: bool


@click.command()
@click.argument("queue", type=TopicParameter())
@click.argument("value", required=False)
@click.option("--text", is_flag=True, help="VALUE is text, even where it looks like JSON.")
@click.option("--raw", is_flag=True, help="VALUE is bytes; all of stdin is one job.")
@click.option("--key", metavar="TEXT", help="Jobs of one key are done one after the other.")
@click.option(
    "-H", "--header", "headers", multiple=True, callback=header_pairs, metavar="NAME=VALUE", help="Repeatable."
)
@click.option("--priority", type=click.IntRange(0, PRIORITIES - 1), default=4, help="0 to 9, higher ones first. [4]")
@click.option("--ttl", type=Seconds(), help="Give a job up that nobody began with in this time.")
@click.option("--delay", type=Seconds(), help="Nobody gets a job before this time has passed.")
@click.option("--attempts", type=AMOUNT, default=5, help="Failures after which a job is dead. [5]")
@click.option(
    "--delivery",
    type=click.Choice(QUEUE_DELIVERIES),
    default="at-least-once",
    help="At most once nothing is tried again, and pullers need the same option. [at-least-once]",
)
@click.option("--dedupe-id", metavar="TEXT", help="Within five minutes it is the same job as one with the same id.")
@click.option("--durable", is_flag=True, help="A store keeps the jobs; end when it has them on its disk.")
@networked(timeout="How long to wait until all is done; then exit with 75, and what is left is lost. [for ever]")
def command(
    options: Options,
    queue: str,
    value: str | None,
    text: bool,
    raw: bool,
    key: str | None,
    headers: dict[str, Any] | None,
    priority: int,
    ttl: float | None,
    delay: float | None,
    attempts: int,
    delivery: str,
    dedupe_id: str | None,
    durable: bool,
) -> int:
    """Push VALUE to QUEUE as a job: JSON if it is JSON, else text. Ends when it is done; with --durable, stored.

    Without VALUE, or with `-`, every line of stdin is a job. The jobs are in this command until somebody has done them;
    exits with 1 if some are dead or lost: `zfabric pull` with `$dead.QUEUE` shows them while another node keeps them.
    """
    if text and raw:
        raise click.UsageError("--text and --raw exclude each other")
    if value is None and sys.stdin.isatty():
        raise click.UsageError("VALUE is missing: give it, or pipe lines into stdin")
    if delivery == "at-most-once" and (priority != 4 or delay or attempts != 5 or dedupe_id is not None or durable):
        raise click.UsageError(
            "--priority, --delay, --attempts, --dedupe-id and --durable need --delivery at-least-once"
        )
    if dedupe_id is not None and dedupe_id != os.fsencode(dedupe_id).decode(errors="replace"):
        raise click.UsageError("--dedupe-id is not UTF-8 text")
    form = _input.Form.RAW if raw else _input.Form.TEXT if text else _input.Form.AUTO
    how = {"key": key, "headers": headers, "priority": priority, "ttl": ttl, "delay": delay or 0.0}
    how["dedupe_id"] = dedupe_id
    job = Push(queue=queue, value=value, form=form, options=how, attempts=attempts, delivery=delivery, durable=durable)
    return run(options, lambda output: _push(options, output, job))


async def _push(options: Options, output: Output, job: Push) -> int:
    async with open_node(options, "push") as node, Warnings(output, node):
        pusher = node.pusher(job.queue, delivery=job.delivery, durable=job.durable, max_attempts=job.attempts)
        if job.durable:
            await _find_store(options, pusher)
        pushed = 0
        async with aclosing(_values(job)) as values:
            async for value in values:
                await pusher.push(value, **job.options)
                pushed += 1
        output.note(f"pushed {count(pushed, 'job')} to {job.queue!r}; {count(pusher.workers, 'worker')}", verbose=1)
        try:
            async with asyncio.timeout(options.timeout):
                await pusher.flush()
        except TimeoutError:
            left = count(pusher.depth, "job")
            if job.durable:
                raise Stop(Exit.TIMED_OUT, f"{left} not stored within {options.timeout:g} s") from None
            hint = "" if pusher.workers else f"; nobody pulls {job.queue!r}"
            await node.close(0)  # it has waited long enough
            raise Stop(Exit.TIMED_OUT, f"{left} not done within {options.timeout:g} s, and lost{hint}") from None
        if job.durable:
            if output.json:
                output.record({"queue": job.queue, "pushed": pushed, "stored": pushed})
            output.note(f"stored {count(pushed, 'job')} of {job.queue!r}")
            return Exit.OK
        return _tell(output, job, pushed, node.statistics().queues[job.queue])


async def _find_store(options: Options, pusher: Pusher) -> None:
    try:
        await pusher.wait_for(0, options.timeout or FIND_S, stores=1)
    except TimeoutError:
        raise Stop(Exit.NOBODY, f"no store that keeps {pusher.queue!r} is in sight: zfabric store run DIR") from None


def _tell(output: Output, job: Push, pushed: int, statistics: QueueStatistics) -> int:
    figures = {"done": statistics.done, "dead": statistics.dead, "expired": statistics.expired, "lost": statistics.lost}
    if output.json:
        output.record({"queue": job.queue, "pushed": pushed, **figures, "redelivered": statistics.redelivered})
    told = ", ".join(f"{number:,} {name}" for name, number in figures.items() if number or name == "done")
    output.note(f"pushed {pushed:,}: {told}")
    return Exit.FAILED if statistics.dead or statistics.lost else Exit.OK


async def _values(job: Push) -> AsyncGenerator[Any, None]:
    """The value of each job."""
    if job.value not in (None, "-"):
        yield _input.parse(os.fsencode(job.value or ""), job.form)
    elif job.form == _input.Form.RAW:
        yield await _input.whole(Config().frame_bytes_max // 2)
    else:
        number = 0
        async with aclosing(_input.lines(Config().frame_bytes_max // 2)) as lines:
            async for line in lines:
                number += 1
                yield _input.parse(line, job.form, f"line {number} of stdin")
