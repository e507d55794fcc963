"""The demo's parent: starts one process per part, lets them find each other, and balances the books.

It opens no node: the parts meet on the fabric without it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from .control import Control, Failed, Finish, Go, Matched, Order, Report, decode_report
from .part import PARTS, RECEIVERS, Part, Settings, run_part
from .readings import ALARM, READINGS, host_word
from .summary import Summary, render, summarise

__all__ = ["RATES_HZ", "main", "run_demo"]

RATES_HZ = {"cpu": 1000.0, "memory": 100.0, "network": 100.0, "disk": 10.0, "processes": 10.0}
"Readings per second by source, unless `--rate` says otherwise."

T = TypeVar("T", Matched, Report)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo, or the part that `argv` names, and return the exit code: 0 when nothing was lost."""
    options = _parse(argv)
    try:
        import psutil  # noqa: F401 - only asks whether it is there
    except ImportError:
        print("the demo reads this machine with psutil: pip install 'zfabric[demo]'", file=sys.stderr)
        return 1
    if options.part is not None:
        with contextlib.suppress(KeyboardInterrupt):
            return asyncio.run(_run_part(options))
        return 0
    summary = asyncio.run(run_demo(options))
    print(msgspec.json.encode(summary).decode() if options.json else render(summary))
    return 0 if summary.ok else 1


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m zfabric.examples.telemetry",
        description="Telemetry of this machine, fanned out between processes that find each other by themselves.",
    )
    parser.add_argument("part", nargs="?", choices=PARTS, metavar="PART", help=f"run only one of: {', '.join(PARTS)}")
    parser.add_argument("--seconds", type=_positive, default=10.0, help="how long to publish (default: 10)")
    parser.add_argument("--json", action="store_true", help="print the summary as one JSON object")
    parser.add_argument("--quiet", action="store_true", help="no live table, only the summary")
    parser.add_argument("--record", metavar="FILE", help="keep the recorder's JSON lines in FILE")
    parser.add_argument(
        "--rate", metavar="SOURCE=HZ", action="append", type=_rate, default=[], help="readings per second of one source"
    )
    parser.add_argument("--timeout", type=_positive, default=20.0, help="seconds to find each other (default: 20)")
    parser.add_argument(
        "--discovery",
        choices=("mdns", "registry", "all"),
        default="mdns",
        help="how to find each other (default: mdns)",
    )
    parser.add_argument("--fabric", help="the fabric's name (default: a new one, so that demos do not mix)")
    parser.add_argument("--attached", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    options.rates = RATES_HZ | dict(options.rate)
    if options.fabric is None:
        options.fabric = "telemetry" if options.part else f"telemetry-{secrets.token_hex(3)}"
    return options


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def _rate(text: str) -> tuple[str, float]:
    source, _, rate = text.partition("=")
    if source not in READINGS:
        raise argparse.ArgumentTypeError(f"no source {source!r}; there are: {', '.join(READINGS)}")
    try:
        rate_hz = float(rate)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{rate!r} is not a number") from None
    if not 1 <= rate_hz <= 1000:
        raise argparse.ArgumentTypeError(f"{rate} is not within 1 and 1000")
    return source, rate_hz


# -- one part, in its own process ----------------------------------------------------------------


async def _run_part(options: argparse.Namespace) -> int:
    settings = Settings(
        name=options.part,
        fabric=options.fabric,
        attached=options.attached,
        rate_hz=options.rates.get(options.part, 0.0),
        record=options.record or "telemetry.jsonl",
        discovery=options.discovery,
        timeout_s=options.timeout,
        quiet=options.quiet,
    )
    if not settings.attached:
        print(f"{settings.name} on fabric {settings.fabric}; Ctrl-C ends it", file=sys.stderr)
    return await run_part(_make_part(settings), settings, Control(attached=settings.attached))


def _make_part(settings: Settings) -> Part:
    # Each process imports only what its own part needs.
    match settings.name:
        case "alarm":
            from .alarm import AlarmPart

            return AlarmPart(settings)
        case "recorder":
            from .recorder import RecorderPart

            return RecorderPart(settings)
        case "table":
            from .table import TablePart

            return TablePart(settings)
        case _:
            from .sources import SourcePart

            return SourcePart(settings)


# -- the parent ----------------------------------------------------------------------------------


class PartFailed(Exception):
    """A part gave up, or its process ended."""


@dataclass
class Child:
    """One part's process, and the line to it."""

    name: str
    process: asyncio.subprocess.Process

    def order(self, order: Order) -> None:
        """Send an order; a part that has ended shows when its answer is read."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.write(msgspec.json.encode(order) + b"\n")

    async def answer(self, expected: type[T]) -> T:
        """The part's next line; raises PartFailed when there is none or another."""
        assert self.process.stdout is not None
        line = await self.process.stdout.readline()
        if not line:
            raise PartFailed(f"{self.name} ended early (exit code {await self.process.wait()})")
        message = decode_report(line)
        if isinstance(message, Failed):
            raise PartFailed(f"{self.name}: {message.reason}")
        if not isinstance(message, expected):
            raise PartFailed(f"{self.name} answered {message!r}")
        return message

    async def close(self, patience_s: float = 8.0) -> str | None:
        """End the process by closing its line; returns a complaint if it had to be killed."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        try:
            await asyncio.wait_for(self.process.wait(), patience_s)
        except TimeoutError:
            self.process.kill()
            await self.process.wait()
            return f"{self.name} did not end within {patience_s:g} s and was killed"
        return None


@contextlib.asynccontextmanager
async def _children(options: argparse.Namespace, record: str, problems: list[str]) -> AsyncIterator[dict[str, Child]]:
    """A process for each part; all have ended when the block is left."""
    children: dict[str, Child] = {}
    try:
        for name in PARTS:
            command = [sys.executable, "-m", __package__, name, "--attached", "--fabric", options.fabric]
            command += ["--discovery", options.discovery, "--timeout", str(options.timeout), "--record", record]
            command += ["--quiet"] if options.quiet else []
            if name in options.rates:
                command += ["--rate", f"{name}={options.rates[name]}"]
            # Ctrl-C in the terminal must reach only the parent, which then ends the parts in order.
            own_group = {"creationflags": 0x200} if os.name == "nt" else {"start_new_session": True}
            process = await asyncio.create_subprocess_exec(
                *command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, limit=1 << 24, **own_group
            )
            children[name] = Child(name, process)
        yield children
    finally:
        complaints = await asyncio.gather(*(child.close() for child in children.values()))
        problems += [complaint for complaint in complaints if complaint is not None]


@contextlib.contextmanager
def _interrupts(stop: asyncio.Event) -> Iterator[None]:
    """The first Ctrl-C sets `stop`; a second one interrupts as usual."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    before = {int(number): signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def handle(number: int, _frame: object) -> None:
        loop.call_soon_threadsafe(stop.set)
        signal.signal(number, before[number])

    for number in before:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


async def run_demo(options: argparse.Namespace) -> Summary:
    """Start, match, publish, drain, balance; never raises for what a part does."""
    problems: list[str] = []
    matched: dict[str, Matched] = {}
    reports: dict[str, Report] = {}
    seconds = 0.0
    stop = asyncio.Event()
    with _interrupts(stop), tempfile.TemporaryDirectory(prefix="zfabric-demo-") as scratch:
        record = options.record or str(Path(scratch, "telemetry.jsonl"))
        _say(f"starting {len(PARTS)} processes: {', '.join(PARTS)}")
        async with _children(options, record, problems) as children:
            matched = await _gather(children, Matched, problems, stop)
            problems += [
                f"{name} waited in vain for {part.waits_for}" for name, part in matched.items() if part.waits_for
            ]
            if len(matched) == len(PARTS) and not problems:
                _say(f"all have found each other; publishing for {options.seconds:g} s")
                _say(f"to look in from another terminal: zfabric sub 'telemetry.#' --fabric {options.fabric}")
                seconds = await _publish(children, options.seconds, stop)
                reports = await _balance(children, problems)
            elif stop.is_set():
                problems.append("stopped before all had found each other")
    return summarise(
        matched,
        reports,
        problems=problems,
        host=host_word(),
        fabric=options.fabric,
        discovery=options.discovery,
        seconds=round(seconds, 3),
        recording=options.record,
    )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


async def _gather(
    children: Mapping[str, Child], expected: type[T], problems: list[str], stop: asyncio.Event | None = None
) -> dict[str, T]:
    """The answer of each child that gives one. With `stop`, that or a failure ends the wait for the others."""
    answers = {asyncio.create_task(child.answer(expected)): name for name, child in children.items()}
    stopped = asyncio.create_task((stop or asyncio.Event()).wait())
    found: dict[str, T] = {}
    waiting: set[asyncio.Task[T]] = set(answers)
    hopeless = False
    while waiting and not (hopeless or stopped.done()):
        await asyncio.wait([*waiting, stopped], return_when=asyncio.FIRST_COMPLETED)
        done = {task for task in waiting if task.done()}
        for task in done:
            try:
                found[answers[task]] = task.result()
            except PartFailed as failure:
                problems.append(str(failure))
                hopeless = stop is not None
        waiting -= done
    stopped.cancel()
    for task in waiting:
        task.cancel()
    return found


async def _publish(children: Mapping[str, Child], seconds: float, stop: asyncio.Event) -> float:
    """Let the parts work until the time is over, `stop` is set or a process ends; returns the seconds."""
    started_s = time.monotonic()
    for child in children.values():
        child.order(Go())
    ends = [asyncio.create_task(child.process.wait()) for child in children.values()]
    stopped = asyncio.create_task(stop.wait())
    await asyncio.wait([stopped, *ends], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    for task in (stopped, *ends):
        task.cancel()
    return time.monotonic() - started_s


async def _balance(children: Mapping[str, Child], problems: list[str]) -> dict[str, Report]:
    """Collect all reports, upstream first: each receiver waits for what was published to it."""
    reports: dict[str, Report] = {}
    published: dict[str, int] = {}
    readers = [name for name in RECEIVERS if name != ALARM]
    for stage in (list(READINGS), [ALARM], readers):
        some = {name: children[name] for name in stage}
        for child in some.values():
            child.order(Finish(published=published))
        reports |= await _gather(some, Report, problems)
        published = {topic: count for report in reports.values() for topic, count in report.published.items()}
    return reports
