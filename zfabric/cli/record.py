"""`zfabric record`: keep what is published in a file."""

from __future__ import annotations

import asyncio
import os

import click

from zfabric.capture.recorder import Recorder
from zfabric.cli._exits import Exit, Stop
from zfabric.cli._look import open_node
from zfabric.cli._options import Options, PatternParameter, Seconds, networked
from zfabric.cli._output import Output, count
from zfabric.cli._progress import Progress
from zfabric.cli._running import run
from zfabric.cli._warnings import Warnings
from zfabric.cli.bw import human
from zfabric.model import Delivery

__all__ = ["command"]


@click.command()
@click.argument("file", type=click.Path(dir_okay=False))
@click.option(
    "-e",
    "patterns",
    multiple=True,
    default=("#",),
    type=PatternParameter(),
    metavar="PATTERN",
    help="What to record; repeat it for more. [everything]",
)
@click.option("--count", "wanted", type=click.IntRange(min=1), metavar="N", help="End after N messages.")
@click.option("--duration", type=Seconds(), help="End after this long.")
@click.option("--compress", is_flag=True, help="Compress the file with zlib.")
@click.option("--split-bytes", type=click.IntRange(min=1024), metavar="N", help="Begin a new file before N bytes.")
@click.option("--split-seconds", type=Seconds(), help="Begin a new file after this long.")
@click.option("--force", is_flag=True, help="Replace an existing file.")
@click.option(
    "--delivery",
    type=click.Choice([delivery.value for delivery in Delivery]),
    help="What publishers must promise; at-most-once only looks on and never holds them up. [what they do promise]",
)
@click.option("--signed", is_flag=True, help="Only what its publisher has signed. Needs a key.")
@networked(timeout="End after this long; with 75 if fewer than --count messages came, or none.")
def command(
    options: Options,
    file: str,
    patterns: tuple[str, ...],
    wanted: int | None,
    duration: float | None,
    compress: bool,
    split_bytes: int | None,
    split_seconds: float | None,
    force: bool,
    delivery: str | None,
    signed: bool,
) -> int:
    """Record what is published into FILE, until Ctrl-C: `zfabric play FILE` publishes it again.

    Lost messages are told on stderr. Parts of a recording that is split are FILE, FILE.1, FILE.2 and so on, with the
    number before the ending: `run.zfr`, `run.1.zfr`.
    """

    async def record(output: Output) -> int:
        async with open_node(options, "record") as node, Warnings(output, node):
            recorder = Recorder(
                node,
                file,
                patterns,
                delivery=delivery,
                signed=signed,
                messages_max=wanted,
                compress=compress,
                split_bytes=split_bytes,
                split_s=split_seconds,
                overwrite=force,
            )
            told = ", ".join(dict.fromkeys(patterns))
            output.note(f"recording {told} on fabric {node.fabric!r} as {node.name} to {file}")
            began_s = asyncio.get_running_loop().time()
            try:
                async with recorder, Progress(options, lambda: f"{_amount(recorder)} to {file}"):
                    in_time = await recorder.wait(_least(duration, options.timeout))
            finally:
                _tell(output, recorder, asyncio.get_running_loop().time() - began_s)
        if not in_time and _least(duration, options.timeout) != duration and recorder.messages < (wanted or 1):
            came = f"{recorder.messages} of {count(wanted, 'message')}" if wanted else "no message"
            raise Stop(Exit.TIMED_OUT, f"{came} came within {options.timeout:g} s")
        return Exit.OK

    return run(options, record)


def _least(*times: float | None) -> float | None:
    return min((time for time in times if time is not None), default=None)


def _amount(recorder: Recorder) -> str:
    return f"{count(recorder.messages, 'message')}, {human(recorder.nbytes)}"


def _tell(output: Output, recorder: Recorder, elapsed_s: float) -> None:
    files = [os.fspath(path) for path in recorder.paths]
    if output.json:
        output.record(
            {
                "files": files,
                "messages": recorder.messages,
                "bytes": recorder.nbytes,
                "seconds": round(elapsed_s, 3),
            }
        )
    if recorder.too_large:
        output.warn(f"left out {count(recorder.too_large, 'message')} that no block of a capture can hold")
    more = f" and {count(len(files) - 1, 'more part')}" if len(files) > 1 else ""
    output.note(f"recorded {_amount(recorder)} in {elapsed_s:.1f} s to {files[0]}{more}")
