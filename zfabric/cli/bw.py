"""`zfabric bw`: how many bytes a second come."""

from __future__ import annotations

from typing import Any

import click
import msgspec

from zfabric.cli._options import Options
from zfabric.cli._rates import Meter, View, measuring, watch
from zfabric.model import Message

__all__ = ["command"]


@click.command()
@measuring
def command(options: Options, pattern: str, reports: int | None, duration: float | None, window: float) -> int:
    """Measure how many bytes a second come on each topic that matches PATTERN (all of them by default).

    Counted are the values as they travel, without keys, headers and what the network adds.
    """
    return watch(options, "bw", VIEW, pattern, reports, duration, window)


_encode = msgspec.msgpack.Encoder(enc_hook=lambda value: value.tobytes() if hasattr(value, "tobytes") else None).encode


def size(value: Any) -> int:
    """The bytes of a value as it travels."""
    if isinstance(value, memoryview) or hasattr(value, "dtype"):
        return int(value.nbytes)
    return len(value) if isinstance(value, bytes) else len(_encode(value))


def _measure(messages: list[Message]) -> int:
    return sum(size(message.value) for message in messages)


def _record(meter: Meter, now: float, window_s: float) -> dict[str, Any]:
    return {
        "bytes_per_s": round(meter.bytes_per_s(now, window_s), 1),
        "rate_hz": round(meter.rate_hz(now, window_s), 3),
        "message_bytes_mean": round(meter.mean_bytes(), 1),
        "messages": meter.messages,
        "window_s": round(meter.span(now, window_s), 3),
    }


def _row(meter: Meter, now: float, window_s: float) -> tuple[str, ...]:
    return (
        f"{human(meter.bytes_per_s(now, window_s))}/s",
        f"{meter.rate_hz(now, window_s):,.1f}",
        human(meter.mean_bytes()),
        f"{meter.messages:,}",
    )


def human(number: float) -> str:
    """Bytes in the unit that suits them."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 999.5:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"


VIEW = View(("BYTES", "MESSAGES/S", "MESSAGE", "MESSAGES"), row=_row, record=_record, measure=_measure, payload=None)
