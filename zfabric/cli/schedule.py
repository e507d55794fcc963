"""`zfabric schedule`: jobs that a store pushes again and again."""

from __future__ import annotations

from typing import Any

import click
import msgspec

from zfabric.cli import _input
from zfabric.cli._exits import Exit, Stop
from zfabric.cli._options import Options, Seconds, TopicParameter, header_pairs, networked
from zfabric.cli._output import Output, count
from zfabric.cli._stores import FIND_S, at_store, patience
from zfabric.cli._values import plain, short
from zfabric.model import Schedule
from zfabric.node.node import Node
from zfabric.protocol.jobs import PRIORITIES

__all__ = ["command"]

_timeout = f"How long to look for a store. [{FIND_S:g}]"


@click.group()
def command() -> None:
    """Have a store push jobs to a durable queue, again and again."""


@command.command()
@click.argument("schedule")
@click.argument("queue", type=TopicParameter())
@click.argument("value", required=False)
@click.option("--cron", metavar="EXPRESSION", help='Minute, hour, day, month, day of week: "0 3 * * *".')
@click.option("--every", type=click.IntRange(min=1), metavar="SECONDS", help="Instead: every so many seconds.")
@click.option("--timezone", default="UTC", metavar="ZONE", help="Of --cron, as Europe/Berlin. [UTC]")
@click.option(
    "--missed", type=click.Choice(("one", "none")), default="one", help="Jobs for ticks without a store. [one]"
)
@click.option("--text", is_flag=True, help="VALUE is text, even where it looks like JSON.")
@click.option("--key", metavar="TEXT", help="Jobs of one key are done one after the other.")
@click.option(
    "-H", "--header", "headers", multiple=True, callback=header_pairs, metavar="NAME=VALUE", help="Repeatable."
)
@click.option("--priority", type=click.IntRange(0, PRIORITIES - 1), default=4, help="0 to 9, higher ones first. [4]")
@click.option("--ttl", type=Seconds(), help="Give a job up that nobody began with in this time.")
@networked(timeout=_timeout)
def add(
    options: Options,
    schedule: str,
    queue: str,
    value: str | None,
    cron: str | None,
    every: int | None,
    text: bool,
    **job: Any,
) -> int:
    """Push VALUE to QUEUE at each tick, as SCHEDULE. Ends when a store has that on its disk.

    Adding the same again changes nothing; where something differs it replaces the old one.
    """
    if (cron is None) == (every is None):
        raise click.UsageError("give either --cron or --every")
    form = _input.Form.TEXT if text else _input.Form.AUTO

    async def declare(output: Output, node: Node) -> int:
        parsed = None if value is None else _input.argument(value, form)
        try:
            await node.schedule(
                schedule, queue=queue, value=parsed, cron=cron, every=every, timeout=patience(options), **job
            )
        except ValueError as error:
            raise Stop(Exit.USAGE, str(error)) from None
        output.note(f"scheduled {schedule!r}")
        return Exit.OK

    return at_store(options, "schedule", declare)


@command.command("list")
@networked(timeout=_timeout)
def list_them(options: Options) -> int:
    """Show every schedule. Exits 69 when there is none."""

    async def show(output: Output, node: Node) -> int:
        schedules = await node.schedules(timeout=patience(options))
        if not schedules:
            raise Stop(Exit.NOBODY, "there are no schedules")
        if output.json:
            for each in schedules:
                output.record({**msgspec.structs.asdict(each), "value": plain(each.value)})
        else:
            output.table(("NAME", "QUEUE", "WHEN", "NEXT", "LAST", "VALUE"), [_row(each) for each in schedules])
        return Exit.OK

    return at_store(options, "schedule", show)


def _row(schedule: Schedule) -> tuple[str, ...]:
    when = f"every {count(schedule.every, 'second')}" if schedule.every else f"{schedule.cron} {schedule.timezone}"
    last = "" if schedule.last is None else f"{schedule.last:%Y-%m-%d %H:%M:%SZ}"
    return schedule.name, schedule.queue, when, f"{schedule.next:%Y-%m-%d %H:%M:%SZ}", last, short(schedule.value)


@command.command()
@click.argument("schedule")
@networked(timeout=_timeout)
def remove(options: Options, schedule: str) -> int:
    """Make no more jobs of SCHEDULE. Those that are there stay. Exits 69 when there is no such schedule."""

    async def end(output: Output, node: Node) -> int:
        if not await node.unschedule(schedule, timeout=patience(options)):
            raise Stop(Exit.NOBODY, f"there is no schedule {schedule!r}")
        output.note(f"removed {schedule!r}")
        return Exit.OK

    return at_store(options, "schedule", end)
