"""`zfabric sub`: show what is published."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from datetime import datetime
from typing import Any

import click

from zfabric.cli._exits import Exit, Stop
from zfabric.cli._look import nearest, open_node
from zfabric.cli._options import Options, PatternParameter, networked
from zfabric.cli._output import Output, StreamWriter, count
from zfabric.cli._running import run
from zfabric.cli._values import FieldMissing, json_line, pick, record, safe, short
from zfabric.cli._warnings import Warnings
from zfabric.model import Delivery, Message
from zfabric.node.node import Node
from zfabric.node.subscription import Subscription
from zfabric.wire.topics import Pattern

__all__ = ["command"]

HINT_S = 2.0
"After this long without a publisher, say what is there instead."


@click.command()
@click.argument("patterns", nargs=-1, required=True, type=PatternParameter(), metavar="PATTERN...")
@click.option("--count", "wanted", type=click.IntRange(min=1), metavar="N", help="End after N messages.")
@click.option("--field", metavar="A.B", help="Show only this part of each value.")
@click.option("--raw", is_flag=True, help="Values only: bytes as they are, text and JSON a line each.")
@click.option(
    "--delivery",
    type=click.Choice([delivery.value for delivery in Delivery]),
    help="What publishers must promise; at-most-once only looks on and never holds them up. [what they do promise]",
)
@click.option("--signed", is_flag=True, help="Only what its publisher has signed. Needs a key.")
@networked(timeout="End after this long; with 75 if fewer than --count messages came, or none.")
def command(
    options: Options,
    patterns: tuple[str, ...],
    wanted: int | None,
    field: str | None,
    raw: bool,
    delivery: str | None,
    signed: bool,
) -> int:
    """Show every message on topics that match a PATTERN: `*` stands for one word, `#` for any number.

    On a terminal a line shows time, topic and value, else it is a JSON object. Lost messages are told on stderr.
    """
    if raw and options.json:
        raise click.UsageError("--raw and --json exclude each other")
    path = tuple(field.split(".")) if field else ()
    how: dict[str, Any] = {"delivery": delivery, "signed": signed}

    async def listen(output: Output) -> int:
        return await _Listening(options, output, patterns, wanted, path, raw=raw, **how).run()

    return run(options, listen)


class _Listening:
    """One run of the command."""

    def __init__(
        self,
        options: Options,
        output: Output,
        patterns: tuple[str, ...],
        wanted: int | None,
        path: tuple[str, ...],
        *,
        raw: bool,
        **how: Any,
    ) -> None:
        """`how` goes to `node.subscribe`."""
        self._options = options
        self._output = output
        self._patterns = [Pattern(text) for text in dict.fromkeys(patterns)]
        self._wanted = wanted
        self._path = path
        self._how = how
        self._arrived = self._written = self._without_field = 0
        self._format = self._raw if raw else self._pretty if output.on_terminal and not output.json else self._json

    async def run(self) -> int:
        """Listen until there is enough, it takes too long, or nobody reads any more."""
        ended = asyncio.Event()
        writer = StreamWriter(ended.set)
        try:
            async with (
                open_node(self._options, "sub") as node,
                Warnings(self._output, node),
                asyncio.TaskGroup() as group,
            ):
                subscriptions = [node.subscribe(pattern.text, **self._how) for pattern in self._patterns]
                self._greet(node)
                tasks = [group.create_task(self._give_hints(node, subscriptions))]
                for index, subscription in enumerate(subscriptions):
                    tasks.append(group.create_task(self._read(index, subscription, writer, ended)))
                in_time = await _within(ended, self._options.timeout)
                for task in tasks:
                    task.cancel()
        finally:
            writer.close()
        self._check(in_time=in_time)
        return Exit.OK

    def _check(self, *, in_time: bool) -> None:
        if self._without_field:
            field = ".".join(self._path)
            self._output.warn(f"{count(self._without_field, 'message')} had no field {field!r}")
        if not in_time and self._arrived < (self._wanted or 1):
            expected = f"{self._arrived} of {count(self._wanted, 'message')}" if self._wanted else "no message"
            raise Stop(Exit.TIMED_OUT, f"{expected} came within {self._options.timeout:g} s")

    # -- messages --------------------------------------------------------------------------------

    async def _read(self, index: int, subscription: Subscription, writer: StreamWriter, ended: asyncio.Event) -> None:
        earlier = self._patterns[:index]
        async with aclosing(subscription.batches()) as batches:  # type: ignore[type-var]
            async for batch in batches:
                fresh = [m for m in batch if not any(pattern.matches(m.topic) for pattern in earlier)]
                lines = []
                for message in fresh:
                    if self._arrived == self._wanted:
                        break
                    line = self._line(message)
                    if line is not None:
                        lines.append(line)
                        self._arrived += 1
                if lines:
                    await writer.write(b"".join(lines))
                    self._written += len(lines)
                if self._written == self._wanted:  # others may have taken the last ones, and still write
                    ended.set()
                    return

    def _line(self, message: Message) -> bytes | None:
        try:
            return self._format(message, pick(message.value, self._path))
        except FieldMissing:
            self._without_field += 1
            return None

    def _json(self, message: Message, value: object) -> bytes:
        return json_line(record(message, value))

    def _raw(self, message: Message, value: object) -> bytes:
        if isinstance(value, bytes | bytearray | memoryview):
            return bytes(value)
        if isinstance(value, str):
            return value.encode(errors="replace") + b"\n"
        line: object = record(message, value)["value"]
        return json_line(line)

    def _pretty(self, message: Message, value: object) -> bytes:
        style = self._output.style
        moment = datetime.fromtimestamp(message.timestamp).astimezone()
        parts = [
            style(f"{moment:%H:%M:%S}.{moment.microsecond // 1000:03}", dim=True),
            style(message.topic, fg="cyan"),
        ]
        if message.key is not None:
            parts.append(style(safe(str(message.key)), fg="magenta"))
        parts.append(short(value))
        if self._options.verbose:
            parts.append(style(f"#{message.seq} from {safe(message.source.name)}", dim=True))
        return "  ".join(parts).encode() + b"\n"

    # -- notes -----------------------------------------------------------------------------------

    def _greet(self, node: Node) -> None:
        patterns = ", ".join(pattern.text for pattern in self._patterns)
        self._output.note(f"listening to {patterns} on fabric {node.fabric!r} as {node.name}")

    async def _give_hints(self, node: Node, subscriptions: list[Subscription]) -> None:
        """Nobody publishes what a pattern asks for: a misspelt topic should not look like silence."""
        await asyncio.sleep(HINT_S)
        for subscription in subscriptions:
            if not subscription.publishers:
                others = nearest(subscription.pattern, node.peers, published=True)
                there = f"; there are: {', '.join(others)}" if others else ""
                self._output.note(f"nobody publishes {subscription.pattern} yet{there}")


async def _within(event: asyncio.Event, timeout: float | None) -> bool:
    """Whether the event came in time."""
    try:
        async with asyncio.timeout(timeout):
            await event.wait()
    except TimeoutError:
        return False
    return True
