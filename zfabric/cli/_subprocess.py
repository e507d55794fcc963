"""Programs that verbs run for others: found before, fed on stdin, killed when nobody wants their answer any more."""

from __future__ import annotations

import asyncio
import os
import shlex
import shutil
import signal
from contextlib import suppress
from tempfile import TemporaryFile
from typing import IO

import click

__all__ = ["CommandFailed", "run_program", "split"]

STDERR_CHARACTERS_MAX = 2000


class CommandFailed(Exception):
    """The program exited with an error: its code, and the end of its stderr."""


def split(line: str) -> list[str]:
    """The words of a command line, whose program must exist. No shell is involved."""
    try:
        words = shlex.split(line)
    except ValueError as error:
        raise click.BadParameter(f"{line!r}: {error}", param_hint="--command") from None
    if not words or shutil.which(words[0]) is None:
        raise click.BadParameter(f"there is no program {words[0] if words else ''!r}", param_hint="--command")
    return words


async def run_program(words: list[str], stdin: bytes, environment: dict[str, str]) -> bytes:
    """Run it to its end and return its stdout. Raises CommandFailed; kills it, with what it started, when cancelled.

    Ctrl-C is for whoever runs it: it is in a process group of its own. It reads and writes files, not pipes: what it
    leaves behind in the background would hold them open.
    """
    with TemporaryFile() as given, TemporaryFile() as out, TemporaryFile() as err:
        try:
            given.write(stdin)
            given.seek(0)
            process = await asyncio.create_subprocess_exec(
                *words, stdin=given, stdout=out, stderr=err, env={**os.environ, **environment}, process_group=0
            )
        except (OSError, ValueError) as error:  # a key with a NUL fits no environment
            raise CommandFailed(f"{words[0]} cannot be run: {error}") from None
        try:
            await process.wait()
        finally:
            if process.returncode is None:
                _kill(process)
                await process.wait()
        if process.returncode:
            told = _content(err).decode(errors="replace").strip()[-STDERR_CHARACTERS_MAX:]
            raise CommandFailed(f"{words[0]} exited with {process.returncode}{': ' if told else ''}{told}")
        return _content(out)


def _content(file: IO[bytes]) -> bytes:
    file.seek(0)
    return file.read()


def _kill(process: asyncio.subprocess.Process) -> None:
    """With what it started."""
    with suppress(ProcessLookupError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
