"""Where a verb writes to: data to stdout, notes to stderr, tables and colours only on a terminal."""

from __future__ import annotations

import asyncio
import os
import queue
import stat
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

from zfabric.cli._options import Options
from zfabric.cli._values import json_line, safe

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

__all__ = ["Output", "StreamWriter", "abandon_stdout", "count"]


def count(number: int, noun: str) -> str:
    """`1 node`, `2 nodes`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def abandon_stdout() -> None:
    """Nobody reads it any more: let what is buffered, and Python's own flush at the end, go nowhere."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Output:
    """The three channels of one command."""

    def __init__(self, options: Options) -> None:
        self.json = options.json
        self.on_terminal = sys.stdout.isatty()
        self._quiet = options.quiet
        self._verbose = options.verbose
        self._colors = not options.no_color

    # -- stderr ----------------------------------------------------------------------------------

    def note(self, text: str, *, verbose: int = 0) -> None:
        """Tell something that is not data; with `verbose`, only after as many -v."""
        if not self._quiet and self._verbose >= verbose:
            self._say(text, dim=True)

    def warn(self, text: str) -> None:
        """Tell something that should not be missed."""
        self._say(f"warning: {text}", fg="yellow")

    def error(self, text: str) -> None:
        """Tell why the command failed."""
        self._say(f"error: {text}", fg="red")

    def _say(self, text: str, **style: Any) -> None:
        with suppress(BrokenPipeError):
            click.echo(click.style(safe(text), **style), err=True, color=None if self._colors else False)

    # -- stdout ----------------------------------------------------------------------------------

    def style(self, text: str, **style: Any) -> str:
        """The text in a style, where stdout shows it."""
        return click.style(text, **style) if self.on_terminal and self._colors else text

    def line(self, text: str) -> None:
        """One line of data."""
        click.echo(text, color=True)

    def record(self, value: Any) -> None:
        """One JSON object."""
        self.line(json_line(value).decode().rstrip("\n"))

    def table(self, titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Rows under titles: drawn on a terminal, else in aligned columns of plain text."""
        rows = [[safe(cell) for cell in row] for row in rows]
        if self.on_terminal:
            self.console().print(drawn(titles, rows))
            return
        cells = [titles, *rows]
        widths = [max(len(row[column]) for row in cells) for column in range(len(titles))]
        for row in cells:
            self.line("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())

    def console(self) -> Console:
        """What draws on the terminal."""
        from rich.console import Console

        return Console(no_color=not self._colors, highlight=False)


def drawn(titles: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: int = 0) -> RenderableType:
    """A table for a terminal; its last `numbers` columns stand right."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for index, title in enumerate(titles):
        right = index >= len(titles) - numbers
        table.add_column(title, justify="right" if right else "left", style="cyan" if index == 0 else "")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


class StreamWriter:
    """Writes to stdout without holding the event loop up: behind a slow pager or a stopped terminal the node lives.

    A daemon thread writes; nobody waits for it at the end of a process that was told to stop.
    """

    def __init__(self, on_hangup: Callable[[], None]) -> None:
        """`on_hangup` is called, once or more, when nobody reads stdout any more."""
        sys.stdout.flush()
        self._loop = asyncio.get_running_loop()
        self._descriptor = sys.stdout.fileno()
        self._jobs: queue.SimpleQueue[tuple[bytes, asyncio.Future[None]]] = queue.SimpleQueue()
        self._on_hangup = on_hangup
        threading.Thread(target=self._work, name="zfabric-stdout", daemon=True).start()
        self._watch()

    async def write(self, data: bytes) -> None:
        """Return once it is written. Raises BrokenPipeError, or OSError when the disk is full."""
        done: asyncio.Future[None] = self._loop.create_future()
        self._jobs.put((data, done))
        await done

    def close(self) -> None:
        """Stop to watch for a hang-up."""
        with suppress(NotImplementedError, OSError, ValueError):
            self._loop.remove_reader(self._descriptor)

    def _watch(self) -> None:
        """A pipe without a reader becomes readable at its writing end: `| head -1` ends us without a next message."""
        try:
            if stat.S_ISFIFO(os.fstat(self._descriptor).st_mode):
                self._loop.add_reader(self._descriptor, self._hung_up)
        except (NotImplementedError, OSError, ValueError):
            pass

    def _hung_up(self) -> None:
        self.close()
        self._on_hangup()

    def _work(self) -> None:
        while True:
            data, done = self._jobs.get()
            error: OSError | None = None
            try:
                rest = memoryview(data)
                while rest:
                    rest = rest[os.write(self._descriptor, rest) :]
            except OSError as raised:
                error = raised
            try:
                self._loop.call_soon_threadsafe(_finish, done, error)
            except RuntimeError:
                return


def _finish(done: asyncio.Future[None], error: OSError | None) -> None:
    if done.done():
        return
    if error is None:
        done.set_result(None)
    else:
        done.set_exception(error)
