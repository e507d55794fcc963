"""The live table: a screen that updates four times a second, or plain lines where there is no terminal."""

from __future__ import annotations

import asyncio
import sys
import time
from collections import deque
from typing import TYPE_CHECKING

import zfabric

from .control import Report
from .measure import Histogram, Intake
from .part import Part, Settings
from .readings import ALARM, READINGS, Alarm, Cpu, Disk, Memory, Network, Processes, Reading, topic_of

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

__all__ = ["TablePart", "bar", "describe", "human_bytes"]

KINDS = (*READINGS, ALARM)


def human_bytes(count: float) -> str:
    """A number of bytes in the unit that suits it: `1.5 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def bar(percent: float, width: int = 8) -> str:
    """A percentage as a bar of blocks."""
    filled = round(max(0.0, min(100.0, percent)) * width / 100)
    return "█" * filled + "░" * (width - filled)


def describe(reading: Reading, *, cores_max: int = 4) -> str:
    """A reading in one short line."""
    match reading:
        case Cpu():
            cores = "  ".join(f"{bar(percent)} {percent:3.0f} %" for percent in reading.cores[:cores_max])
            more = f"  and {len(reading.cores) - cores_max} more" if len(reading.cores) > cores_max else ""
            return f"{cores}{more}"
        case Memory():
            return f"{bar(reading.used_percent)} {reading.used_percent:3.0f} % of {human_bytes(reading.total_bytes)}"
        case Network():
            received = sum(traffic.received_bytes_per_s for traffic in reading.interfaces.values())
            sent = sum(traffic.sent_bytes_per_s for traffic in reading.interfaces.values())
            return f"in {human_bytes(received)}/s  out {human_bytes(sent)}/s  on {len(reading.interfaces)} interfaces"
        case Disk():
            moved = (
                f"read {human_bytes(reading.read_bytes_per_s)}/s  write {human_bytes(reading.written_bytes_per_s)}/s"
            )
            return f"{bar(reading.used_percent)} {reading.used_percent:3.0f} % full  {moved}"
        case Processes():
            busiest = ", ".join(f"{process.name} {process.cpu_percent:.0f} %" for process in reading.busiest[:2])
            return f"{reading.count} running: {busiest}"
        case Alarm():
            sign = "≥" if reading.state == "raised" else "<"
            return f"{reading.metric} {reading.state}: {reading.value:.0f} % {sign} {reading.threshold:.0f} %"
        case _:
            return ""


class Row:
    """One line of the table: a kind of reading, over the current and the last second."""

    def __init__(self) -> None:
        self.latest: Reading | None = None
        self.received = 0
        self.rate = 0.0
        self.latency = Histogram()
        self._running = Histogram()
        self._turned_s = time.monotonic()

    def take(self, reading: Reading, latency_ns: int) -> None:
        """Enter a reading."""
        self.latest = reading
        self.received += 1
        self._running.add(latency_ns)

    def turn(self, now_s: float) -> None:
        """Publish the figures of the second that is over."""
        self.rate = self._running.count / max(now_s - self._turned_s, 1e-9)
        self.latency, self._running, self._turned_s = self._running, Histogram(), now_s


class TablePart(Part):
    """Subscribes to readings and alarms with handlers, and shows the latest of each."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.intake = Intake(from_first=settings.attached)
        self.rows = {kind: Row() for kind in KINDS}
        self._alarms: deque[Alarm] = deque(maxlen=3)
        self._started_s = time.monotonic()
        self._turned_s = self._started_s

    def connect(self, node: zfabric.Node) -> None:
        """Subscribe with one handler for all kinds; an `async def` runs on the event loop."""
        for kind in KINDS:
            node.on(topic_of(kind))(self.handle)

    async def handle(self, message: zfabric.Message) -> None:
        """Enter one message."""
        reading: Reading = message.value
        latency_ns = self.intake.note(message, reading.sent_ns)
        self.rows[message.topic.rsplit(".", 1)[-1]].take(reading, latency_ns)
        if isinstance(reading, Alarm):
            self._alarms.append(reading)

    async def run(self) -> None:
        """Show the table until cancelled; with `quiet`, only count."""
        self._started_s = self._turned_s = time.monotonic()
        console = None if self.settings.quiet else _terminal()
        if console is not None:
            await self._live(console)
        else:
            await self._lines()

    async def _live(self, console: Console) -> None:
        from rich.live import Live

        with Live(self.render(), console=console, auto_refresh=False) as live:
            try:
                while True:
                    await asyncio.sleep(0.25)
                    self._turn()
                    live.update(self.render(), refresh=True)
            finally:
                live.update(self.render(), refresh=True)

    async def _lines(self) -> None:
        while True:
            await asyncio.sleep(0.25)
            if self._turn() and not self.settings.quiet:
                print(self.line(), file=sys.stderr, flush=True)

    def _turn(self) -> bool:
        now_s = time.monotonic()
        if now_s - self._turned_s < 1.0:
            return False
        self._turned_s = now_s
        for row in self.rows.values():
            row.turn(now_s)
        return True

    def line(self) -> str:
        """The last second as one plain line."""
        latency = Histogram()
        for row in self.rows.values():
            latency.merge(row.latency)
        rate = sum(row.rate for row in self.rows.values())
        latest = [describe(row.latest) for row in self.rows.values() if isinstance(row.latest, Cpu | Memory | Alarm)]
        return (
            f"{self._turned_s - self._started_s:4.0f} s  {rate:7,.0f} msg/s  lost {self.intake.missing}  "
            f"p50 {latency.percentile_ms(50):.2f} ms  p99 {latency.percentile_ms(99):.2f} ms  {'  '.join(latest)}"
        )

    def render(self) -> RenderableType:
        """The table as it stands."""
        from rich.table import Table

        elapsed_s = time.monotonic() - self._started_s
        table = Table(
            title=f"telemetry of [bold]{self.settings.host}[/]   fabric {self.settings.fabric}   {elapsed_s:.0f} s",
            caption=f"{sum(self.intake.received.values()):,} received, {self.intake.missing} lost",
            expand=False,
        )
        for column in ("source", "msg/s", "received", "p50 ms", "p99 ms"):
            table.add_column(column, justify="left" if column == "source" else "right", no_wrap=True)
        table.add_column("latest", no_wrap=True, overflow="ellipsis", min_width=50)
        for kind, row in self.rows.items():
            figures = (f"{row.rate:,.0f}", f"{row.received:,}") if row.received else ("-", "0")
            spread = [f"{row.latency.percentile_ms(p):.2f}" if row.latency.count else "-" for p in (50, 99)]
            latest = describe(row.latest) if row.latest is not None else ""
            table.add_row(kind, *figures, *spread, latest, style="yellow" if kind == ALARM and row.received else "")
        return table

    async def finish(self, published: dict[str, int]) -> Report:
        """Count the last messages."""
        await self.intake.drain(published)
        return Report(
            received=self.intake.received,
            missing=self.intake.missing,
            repeated=self.intake.repeated,
            latency=self.intake.latency,
        )


def _terminal() -> Console | None:
    """The terminal on stderr (stdout belongs to the summary), or None: no terminal, or no rich."""
    if not sys.stderr.isatty():
        return None
    try:
        from rich.console import Console
    except ImportError:
        return None
    return Console(stderr=True)
