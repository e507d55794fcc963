"""One line on the terminal that says how far a long verb has come."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

import click

from zfabric.cli._options import Options
from zfabric.cli._values import safe

__all__ = ["Progress"]

_EVERY_S = 0.5
_CLEAR = "\r\x1b[K"


class Progress:
    """While the block runs, shows `text()` again and again where stderr is a terminal; nothing elsewhere."""

    def __init__(self, options: Options, text: Callable[[], str]) -> None:
        self._shown = sys.stderr.isatty() and not options.quiet
        self._text = text

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._show()) if self._shown else None
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            self._write(_CLEAR)

    async def _show(self) -> None:
        while True:
            self._write(_CLEAR + safe(self._text()))
            await asyncio.sleep(_EVERY_S)

    def _write(self, text: str) -> None:
        with suppress(BrokenPipeError):
            click.echo(text, nl=False, err=True)
