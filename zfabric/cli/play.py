"""`zfabric play`: publish a capture file again."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import Any

import click

from zfabric.capture.player import Player
from zfabric.capture.reader import CaptureReader
from zfabric.cli import _input
from zfabric.cli._exits import Exit, Stop
from zfabric.cli._look import find_audience, open_node, poll
from zfabric.cli._options import Number, Options, PatternParameter, Seconds, networked
from zfabric.cli._output import Output, count
from zfabric.cli._progress import Progress
from zfabric.cli._running import run
from zfabric.model import Delivery
from zfabric.node.node import Node

__all__ = ["command"]

WAIT_S = 10.0
"How long --wait waits, unless --timeout says otherwise."


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What the command line asks for."""

    file: str
    wait: int | None
    duration: float | None
    paused: bool
    playing: dict[str, Any]
    "Options of the Player."


def _remap(_ctx: click.Context, _param: click.Parameter, pairs: tuple[str, ...]) -> dict[str, str]:
    for pair in pairs:
        old, mark, new = pair.partition(":=")
        if not (old and mark and new):
            raise click.BadParameter(f"{pair!r} is not OLD:=NEW")
    return {old: new for old, _, new in (pair.partition(":=") for pair in pairs)}


@click.command()
@click.argument("file", type=click.Path(dir_okay=False))
@click.option("-e", "patterns", multiple=True, type=PatternParameter(), metavar="PATTERN", help="Only these topics.")
@click.option(
    "--rate",
    type=Number(min=0, min_open=True),
    default=1.0,
    metavar="FACTOR",
    help="So many times as fast as it was; `inf` is as fast as possible. [1]",
)
@click.option("--loop", is_flag=True, help="Again and again, until Ctrl-C.")
@click.option(
    "--remap",
    multiple=True,
    callback=_remap,
    metavar="OLD:=NEW",
    help="Another name for a topic, or for all below one: `plant.#:=test.#`. Repeatable.",
)
@click.option("--from", "start", type=Number(min=0), default=0.0, metavar="SECONDS", help="Begin there.")
@click.option("--until", type=Number(min=0), metavar="SECONDS", help="End there.")
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="End after N messages.")
@click.option("--duration", type=Seconds(), help="End after this long.")
@click.option(
    "--start-paused", "paused", is_flag=True, help="Wait for a key, or where stdin is no terminal for a line."
)
@click.option(
    "--delivery",
    type=click.Choice([delivery.value for delivery in Delivery]),
    default=Delivery.AT_LEAST_ONCE.value,
    help="The promise. With at-least-once, the default, slow subscribers slow it down.",
)
@click.option("--sign", is_flag=True, help="Sign what is played, as this node. Needs a key.")
@click.option("--wait", type=click.IntRange(min=1), metavar="N", help="First wait for N subscribers of each topic.")
@networked(timeout=f"How long --wait waits. [{WAIT_S:g}]")
def command(
    options: Options,
    file: str,
    patterns: tuple[str, ...],
    wait: int | None,
    duration: float | None,
    paused: bool,
    count: int | None,
    **playing: Any,
) -> int:
    """Publish again what a capture FILE holds, with its keys and headers and in its own time.

    On a terminal, space or Enter stops it and lets it go on. Before it begins it waits until the subscribers that are
    there have been found, a second at most.
    """
    playing |= {"patterns": patterns or None, "messages_max": count, "paused": paused}
    job = Job(file=file, wait=wait, duration=duration, paused=paused, playing=playing)
    return run(options, lambda output: _play(options, output, job))


async def _play(options: Options, output: Output, job: Job) -> int:
    reader = CaptureReader(job.file)
    async with open_node(options, "play") as node:
        loop = asyncio.get_running_loop()
        player = Player(node, reader, **job.playing)
        began_s = loop.time()
        try:
            async with player:
                await _wait_for_audience(options, node, player, job)
                began_s = loop.time()
                with _keys():
                    async with Progress(options, lambda: _state(player)):
                        await _until_end(output, player, job)
        finally:
            _tell(output, job, player, loop.time() - began_s)
    for problem in reader.problems:
        output.warn(f"left out what cannot be read: {problem}")
    return Exit.FAILED if any(not problem.torn for problem in reader.problems) else Exit.OK


async def _until_end(output: Output, player: Player, job: Job) -> None:
    """Play, while keys or a line of stdin may stop it and let it go on."""
    steering = asyncio.create_task(_steer(output, player, job))
    playing = asyncio.create_task(player.play())
    try:
        async with asyncio.timeout(job.duration):
            await asyncio.wait([playing, steering], return_when=asyncio.FIRST_COMPLETED)
            if steering.done() and not playing.done():
                steering.result()
            await playing
    except TimeoutError:
        if playing.done() and not playing.cancelled():
            raise
    finally:
        for task in (playing, steering):
            task.cancel()
        await asyncio.gather(playing, steering, return_exceptions=True)


async def _steer(output: Output, player: Player, job: Job) -> None:
    on_terminal = sys.stdin.isatty()
    if not (on_terminal or job.paused):
        return
    if job.paused:
        output.note("paused: press space to begin" if on_terminal else "paused: a line on stdin begins")
    async with aclosing(_input.chunks()) as chunks:
        async for chunk in chunks:
            if on_terminal:
                for _ in range(sum(chunk.count(key) for key in (b" ", b"\n", b"\r"))):
                    (player.resume if player.paused else player.pause)()
            elif b"\n" in chunk:
                player.resume()
                return
    if job.paused and player.paused and not on_terminal:
        raise Stop(Exit.FAILED, "stdin ended before a line came: nothing was played")


@contextmanager
def _keys() -> Iterator[None]:
    """While the block runs, keys come one by one and are not shown; not for a command in the background."""
    if not _has_keyboard():
        yield
        return
    import termios
    import tty

    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    tty.setcbreak(descriptor)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _has_keyboard() -> bool:
    """Whether keys of a POSIX terminal are for us: changing it from the background would stop the process."""
    if os.name != "posix" or not sys.stdin.isatty():
        return False
    try:
        return os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
    except OSError:
        return False


async def _wait_for_audience(options: Options, node: Node, player: Player, job: Job) -> None:
    if job.wait is None:
        await find_audience(options, node, player.publishers)
        return
    timeout, wanted = options.timeout or WAIT_S, job.wait
    if not await poll(lambda: all(publisher.subscribers >= wanted for publisher in player.publishers), timeout):
        lacking = min(player.publishers, key=lambda publisher: publisher.subscribers)
        there = f"{lacking.subscribers} of {count(wanted, 'subscriber')} of {lacking.topic} came within {timeout:g} s"
        raise Stop(Exit.TIMED_OUT, f"only {there}; nothing was played")


def _state(player: Player) -> str:
    again = f", round {player.rounds + 1}" if player.rounds else ""
    state = "paused at" if player.paused else "at"
    return f"{state} {player.position:.1f} s, {count(player.played.total(), 'message')}{again}"


def _tell(output: Output, job: Job, player: Player, elapsed_s: float) -> None:
    total = player.played.total()
    if output.json:
        output.record(
            {"file": job.file, "messages": total, "topics": dict(player.played), "seconds": round(elapsed_s, 3)}
        )
    output.note(f"played {count(total, 'message')} on {count(len(player.played), 'topic')} in {elapsed_s:.1f} s")
