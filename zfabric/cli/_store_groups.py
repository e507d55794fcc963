"""The verbs of `zfabric store groups`: they ask the store that runs, over the network."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from zfabric.cli._exits import Exit, Stop
from zfabric.cli._look import open_node, poll
from zfabric.cli._options import Options, TopicParameter, networked
from zfabric.cli._output import Output, count
from zfabric.cli._running import run

if TYPE_CHECKING:
    from zfabric.node.storeclient import Verb
    from zfabric.wire.fields import Start
    from zfabric.wire.group_records import GroupTold

__all__ = ["groups"]

TIMEOUT_S = 5.0
_timeout = "How long to wait for a store and its answer. [5]"
Show = Callable[[Output, "list[GroupTold]"], None]


@click.group()
def groups() -> None:
    """Look at the groups of the store that runs, and move them."""


def _ask(
    options: Options, show: Show, verb: Verb, group: str = "", start: Start | None = None, streams: tuple[str, ...] = ()
) -> int:
    async def work(output: Output) -> int:
        from zfabric.node.storeclient import LATEST, StoreClient

        async with open_node(options, "groups") as node:
            driver = node._opened()  # noqa: SLF001 - a command of the same house
            stores = driver.core.stores
            if not await poll(lambda: bool(stores.all()), options.timeout or TIMEOUT_S):
                raise Stop(Exit.NOBODY, f"no store on fabric {options.fabric!r}")
            client = StoreClient(driver)
            found: list[GroupTold] = []
            for store in stores.all():
                found += await client.groups(store, verb, group, start or LATEST, streams)
            show(output, found)
        return 0

    worked: Callable[[Output], Coroutine[Any, Any, int]] = work
    return run(options, worked)


@groups.command("list")
@networked(timeout=_timeout)
def list_(options: Options) -> int:
    """Show every group: what it reads, its members, and how far behind it is."""
    return _ask(options, _list, "list")


def _list(output: Output, found: list[GroupTold]) -> None:
    if output.json:
        for group in found:
            output.record(_record(group))
        return
    rows = [
        (
            group.name,
            group.pattern,
            ", ".join(f"{member.node or f'({member.member})'}:{member.partitions}" for member in group.members) or "-",
            str(group.lag),
            "paused" if group.paused else "",
        )
        for group in found
    ]
    if rows:
        output.table(("GROUP", "READS", "MEMBERS:PARTITIONS", "LAG", ""), rows)
    output.note(count(len(found), "group"))


def _record(group: GroupTold) -> dict[str, Any]:
    return {
        "group": group.name,
        "pattern": group.pattern,
        "partitions": group.partitions,
        "paused": group.paused,
        "lag": group.lag,
        "refused": group.refused,
        "members": [
            {"node": member.node, "member": member.member, "partitions": member.partitions} for member in group.members
        ],
    }


@groups.command()
@click.argument("group", required=False, default="")
@networked(timeout=_timeout)
def lag(options: Options, group: str) -> int:
    """Show how far GROUP, or each group, has come in every topic.

    The lag counts from the oldest message that is not done with.
    """
    return _ask(options, _lag, "list", group)


def _lag(output: Output, found: list[GroupTold]) -> None:
    rows = []
    for group in found:
        for topic, progress in sorted(group.streams.items()):
            if output.json:
                told = {"position": progress.position, "next": progress.next, "lag": progress.lag}
                output.record({"group": group.name, "topic": topic, **told})
            rows.append((group.name, topic, str(progress.position), str(progress.next), str(progress.lag)))
    if not output.json and rows:
        output.table(("GROUP", "TOPIC", "POSITION", "NEXT", "LAG"), rows)


@groups.command()
@click.argument("group")
@click.argument("to", metavar="OFFSET|earliest|latest|TIME")
@click.option("--topic", "topics", multiple=True, type=TopicParameter(), help="Only in this topic. [all of the group]")
@networked(timeout=_timeout)
def seek(options: Options, group: str, to: str, topics: tuple[str, ...]) -> int:
    """Let GROUP go on elsewhere. TIME is like 2026-01-31T12:00. Its members drop what they have, and go on there."""
    return _ask(options, _lag, "seek", group, _start(to), topics)


@groups.command()
@click.argument("group")
@networked(timeout=_timeout)
def reset(options: Options, group: str) -> int:
    """Let GROUP begin again with the oldest messages."""
    return _ask(options, _lag, "seek", group, _start("earliest"))


@groups.command()
@click.argument("group")
@networked(timeout=_timeout)
def pause(options: Options, group: str) -> int:
    """Send the members of GROUP nothing until `resume`, also over restarts of the store."""
    return _ask(options, _list, "pause", group)


@groups.command()
@click.argument("group")
@networked(timeout=_timeout)
def resume(options: Options, group: str) -> int:
    """Let GROUP go on."""
    return _ask(options, _list, "resume", group)


def _start(to: str) -> Start:
    from zfabric.wire.fields import Start

    if to == "earliest":
        return Start("earliest")
    if to == "latest":
        return Start("latest")
    if to.isdigit():
        return Start("seq", int(to))
    try:
        then = datetime.fromisoformat(to)
    except ValueError:
        raise click.BadParameter(f"not an offset, earliest, latest or a time: {to!r}") from None
    return Start("since", max(0.0, (datetime.now(UTC) - then.astimezone(UTC)).total_seconds()))
