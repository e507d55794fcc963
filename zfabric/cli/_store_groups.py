"""The verbs of `zfabric store groups`: they ask the store that runs, over the network."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from datetime import datetime
from typing import Any

import click
import msgspec

from zfabric.cli._options import Options, TopicParameter, networked
from zfabric.cli._output import Output, count
from zfabric.cli._stores import FIND_S, at_store, patience
from zfabric.model import GroupState
from zfabric.node.groups import Groups
from zfabric.node.node import Node
from zfabric.node.starts import Beginning

__all__ = ["groups"]

_timeout = f"How long to wait for a store and its answer. [{FIND_S:g}]"
Show = Callable[[Output, "Iterable[GroupState]"], None]


@click.group()
def groups() -> None:
    """Look at the groups of the store that runs, move them, and forget them."""


def _ask(options: Options, show: Show, ask: Callable[[Groups], Awaitable[Iterable[GroupState]]]) -> int:
    async def work(output: Output, node: Node) -> int:
        show(output, await ask(node.groups))
        return 0

    return at_store(options, "groups", work)


@groups.command("list")
@networked(timeout=_timeout)
def list_(options: Options) -> int:
    """Show every group: what it reads, its members, and how far behind it is."""
    return _ask(options, _list, lambda groups: groups.list(timeout=patience(options)))


def _list(output: Output, found: Iterable[GroupState]) -> None:
    found = list(found)
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


def _record(group: GroupState) -> dict[str, Any]:
    members = [msgspec.structs.asdict(member) for member in group.members]
    told = {name: getattr(group, name) for name in ("pattern", "partitions", "paused", "lag", "refused", "store")}
    return {"group": group.name, **told, "members": members}


@groups.command()
@click.argument("group", required=False)
@networked(timeout=_timeout)
def lag(options: Options, group: str | None) -> int:
    """Show how far GROUP, or each group, has come in every topic.

    The lag counts from the oldest message that is not done with.
    """
    if group is None:
        return _ask(options, _lag, lambda groups: groups.list(timeout=patience(options)))
    return _ask_one(options, _lag, lambda groups: groups.get(group, timeout=patience(options)))


def _ask_one(options: Options, show: Show, ask: Callable[[Groups], Awaitable[GroupState]]) -> int:
    async def asked(groups: Groups) -> tuple[GroupState]:
        return (await ask(groups),)

    return _ask(options, show, asked)


def _lag(output: Output, found: Iterable[GroupState]) -> None:
    rows = []
    for group in found:
        for topic, progress in sorted(group.topics.items()):
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
    start = _start(to)
    return _ask_one(options, _lag, lambda groups: groups.seek(group, start, topics=topics, timeout=patience(options)))


@groups.command()
@click.argument("group")
@networked(timeout=_timeout)
def reset(options: Options, group: str) -> int:
    """Let GROUP begin again with the oldest messages."""
    return _ask_one(options, _lag, lambda groups: groups.reset(group, timeout=patience(options)))


@groups.command()
@click.argument("group")
@networked(timeout=_timeout)
def pause(options: Options, group: str) -> int:
    """Send the members of GROUP nothing until `resume`, also over restarts of the store."""
    return _ask_one(options, _list, lambda groups: groups.pause(group, timeout=patience(options)))


@groups.command()
@click.argument("group")
@networked(timeout=_timeout)
def resume(options: Options, group: str) -> int:
    """Let GROUP go on."""
    return _ask_one(options, _list, lambda groups: groups.resume(group, timeout=patience(options)))


@groups.command()
@click.argument("group")
@networked(timeout=_timeout)
def forget(options: Options, group: str) -> int:
    """Let the store know nothing of GROUP any more, its positions neither. Refused while it has members."""

    async def ask(groups: Groups) -> tuple[()]:
        await groups.forget(group, timeout=patience(options))
        return ()

    return _ask(options, lambda output, _: output.note(f"forgot group {group}"), ask)


def _start(to: str) -> str | int | datetime:
    try:
        start: str | int | datetime
        if to in ("earliest", "latest"):
            start = to
        else:
            start = int(to) if to.isdigit() else datetime.fromisoformat(to)
        Beginning(start, None).of_group()
        return start
    except ValueError:
        raise click.BadParameter(f"not an offset, earliest, latest or a time: {to!r}") from None
