"""`zfabric hz`: how often messages come."""

from __future__ import annotations

from typing import Any

import click
import msgspec

from zfabric.cli._options import Options
from zfabric.cli._rates import Meter, View, measuring, watch

__all__ = ["command"]


@click.command()
@measuring
def command(options: Options, pattern: str, reports: int | None, duration: float | None, window: float) -> int:
    """Measure how many messages a second come on each topic that matches PATTERN (all of them by default).

    A live table on a terminal, else a JSON object for each topic every second. Times are those of arrival here.
    """
    return watch(options, "hz", VIEW, pattern, reports, duration, window)


def _record(meter: Meter, now: float, window_s: float) -> dict[str, Any]:
    intervals = meter.intervals()
    names = ("interval_ms_mean", "interval_ms_min", "interval_ms_max", "interval_ms_stdev")
    values = [None] * len(names) if intervals is None else [round(seconds * 1000, 3) for seconds in intervals]
    return {
        "rate_hz": round(meter.rate_hz(now, window_s), 3),
        "messages": meter.messages,
        **dict(zip(names, values, strict=True)),
        "window_s": round(meter.span(now, window_s), 3),
    }


def _row(meter: Meter, now: float, window_s: float) -> tuple[str, ...]:
    intervals = meter.intervals()
    times = ("-",) * 4 if intervals is None else tuple(f"{seconds * 1000:,.1f}" for seconds in intervals)
    return (f"{meter.rate_hz(now, window_s):,.1f}", *times, f"{meter.messages:,}")


VIEW = View(
    ("MESSAGES/S", "INTERVAL ms", "MIN", "MAX", "STDEV", "MESSAGES"),
    row=_row,
    record=_record,
    measure=lambda _: 0,
    payload=msgspec.Raw,
)
