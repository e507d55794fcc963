"""`zfabric inspect`: what a capture file holds."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import click
from msgspec import to_builtins

from zfabric.capture.reader import CaptureReader, CaptureSummary, Signatures
from zfabric.capture.tally import StreamTotals
from zfabric.cli._exits import Exit
from zfabric.cli._options import Options, output_options
from zfabric.cli._output import Output, count
from zfabric.cli._running import guard
from zfabric.cli._values import safe
from zfabric.cli.bw import human

__all__ = ["command"]


@click.command()
@click.argument("file", type=click.Path(dir_okay=False))
@click.option("--check", is_flag=True, help="Read everything and decode every value.")
@click.option("--signed", is_flag=True, help="Check who signed it, and end with 1 if anything is not signed.")
@output_options
def command(options: Options, file: str, check: bool, signed: bool) -> int:
    """Tell what a capture FILE holds: topics, publishers, counts, rates, times, and whether it is whole.

    It ends with 1 if something in it is damaged. A missing end, as after a crash, is only told: the rest is good.
    """
    output = Output(options)
    return guard(options, output, lambda: _inspect(output, CaptureReader(file), check=check, signed=signed))


def _inspect(output: Output, reader: CaptureReader, *, check: bool, signed: bool) -> int:
    if check:
        reader.check()
    signatures = reader.signatures() if signed else None
    summary = reader.summary()
    if output.json:
        output.record(
            _record(reader, summary) | ({} if signatures is None else {"signatures": to_builtins(signatures)})
        )
    else:
        _show(output, reader, summary)
    if signatures is not None:
        _show_signatures(output, signatures)
    if not reader.complete:
        output.warn("not closed: the recorder was killed, or still runs")
    for problem in reader.problems:
        output.warn(str(problem))
    bad = any(not problem.torn for problem in reader.problems) or (signatures is not None and signatures.unsigned)
    return Exit.FAILED if bad else Exit.OK


def _show_signatures(output: Output, signatures: Signatures) -> None:
    for name, number in sorted(signatures.signers.items()):
        output.note(f"{count(number, 'message')} signed by {safe(name)}")
    if signatures.unsigned:
        output.warn(f"{count(signatures.unsigned, 'message')} not signed")
    if signatures.refused:
        output.warn(f"{count(signatures.refused, 'message')} with a signature that is refused")


def _record(reader: CaptureReader, summary: CaptureSummary) -> dict[str, Any]:
    header = reader.header
    return {
        "files": [str(path) for path in reader.paths],
        "run": header.run,
        "fabric": header.fabric,
        "recorder": header.recorder,
        "patterns": list(header.patterns),
        "started": header.started,
        "complete": reader.complete,
        "problems": [str(problem) for problem in reader.problems],
        "messages": summary.messages,
        "bytes": summary.nbytes,
        "file_bytes": summary.file_bytes,
        "seconds": round(summary.duration_s, 6),
        "streams": [
            {
                "topic": stream.topic,
                "source": stream.source.name,
                "source_id": stream.source.id,
                "messages": stream.messages,
                "missing": stream.missing,
                "bytes": stream.nbytes,
                "rate_hz": _rate_hz(stream),
                "first_seq": stream.first_seq,
                "last_seq": stream.last_seq,
                "first": stream.first_received,
                "last": stream.last_received,
            }
            for stream in summary.streams
        ],
    }


def _show(output: Output, reader: CaptureReader, summary: CaptureSummary) -> None:
    header = reader.header
    parts = f" in {len(reader.paths)} files" if len(reader.paths) > 1 else ""
    output.line(safe(f"{reader.paths[0]}: {count(summary.messages, 'message')}, {human(summary.file_bytes)}{parts}"))
    patterns = ", ".join(header.patterns)
    output.line(
        safe(f"recorded {_moment(header.started)} by {header.recorder} on fabric {header.fabric!r}: {patterns}")
    )
    if summary.first_received is not None:
        output.line(f"first message {_moment(summary.first_received)}, last one {summary.duration_s:.3f} s later")
    titles = ("TOPIC", "SOURCE", "MESSAGES", "MISSING", "MESSAGES/S", "BYTES", "FIRST s", "LAST s")
    origin = summary.first_received or 0.0
    rows = [
        (
            stream.topic,
            stream.source.name,
            f"{stream.messages:,}",
            f"{stream.missing:,}",
            "-" if (rate_hz := _rate_hz(stream)) is None else f"{rate_hz:,.1f}",
            human(stream.nbytes),
            f"{stream.first_received - origin:.3f}",
            f"{stream.last_received - origin:.3f}",
        )
        for stream in summary.streams
    ]
    if rows:
        output.table(titles, rows)


def _rate_hz(stream: StreamTotals) -> float | None:
    """Messages a second from the first to the last; None where there is no time between them."""
    span_s = stream.last_received - stream.first_received
    return round((stream.messages - 1) / span_s, 3) if span_s > 0 else None


def _moment(seconds: float) -> str:
    try:
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"
    except (ValueError, OverflowError, OSError):
        return f"at {seconds} s"
