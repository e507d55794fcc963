"""Runs a verb's coroutine and turns whatever ends it into an exit code."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
import traceback
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from zfabric.cli._exits import Exit, verdict
from zfabric.cli._options import Options
from zfabric.cli._output import Output, abandon_stdout
from zfabric.cli._values import safe

__all__ = ["guard", "run"]


def run(options: Options, verb: Callable[[Output], Coroutine[Any, Any, int]]) -> int:
    """Run `verb(output)` in an event loop; returns the exit code and never raises for what users can cause."""
    output = Output(options)
    return guard(options, output, lambda: _run_in_loop(verb(output)))


def _run_in_loop(coroutine: Coroutine[Any, Any, int]) -> int:
    terminated = False

    async def main() -> int:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None

        def terminate() -> None:
            nonlocal terminated
            terminated = True
            task.cancel()

        with suppress(NotImplementedError, RuntimeError, ValueError):
            loop.add_signal_handler(signal.SIGTERM, terminate)
        return await coroutine

    try:
        return asyncio.run(main())
    except asyncio.CancelledError:
        if terminated:
            return Exit.TERMINATED
        raise


def guard(options: Options, output: Output, work: Callable[[], int]) -> int:
    """Do the work; returns its exit code, or that of what went wrong, having told it."""
    try:
        with _logging_to_stderr(options):
            code = work()
        sys.stdout.flush()
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    except BrokenPipeError:
        abandon_stdout()
        return Exit.OK
    except Exception as raised:  # noqa: BLE001 - the border to the user
        error = _innermost(raised)
        found = verdict(error)
        if found is None or options.verbose > 1:
            traceback.print_exception(raised)
        code, text = found or (Exit.FAILED, f"this is a bug in zfabric: {type(error).__name__}: {error}")
        if isinstance(error, BrokenPipeError):
            abandon_stdout()
            return Exit.OK
        output.error(text)
    return code


def _innermost(error: Exception) -> Exception:
    """The first error that a group of tasks ended with."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return safe(f"{record.levelname.lower()}: {record.getMessage()}")


@contextmanager
def _logging_to_stderr(options: Options) -> Iterator[None]:
    """While a verb runs, the package's log goes to stderr, one line for each record."""
    level = {0: logging.WARNING, 1: logging.INFO}.get(options.verbose, logging.DEBUG)
    handler = logging.StreamHandler(sys.stderr)
    if options.verbose < 2:
        handler.setFormatter(_Formatter())
    logger = logging.getLogger("zfabric")
    before = logger.handlers, logger.propagate, logger.level
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.ERROR if options.quiet else level)
    try:
        yield
    finally:
        logger.handlers, logger.propagate = before[:2]
        logger.setLevel(before[2])
