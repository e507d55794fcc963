"""Meters for `hz` and `bw`: what came on each topic within a sliding window, shown again and again."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing, nullcontext
from itertools import groupby, pairwise
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import click

from zfabric.cli._exits import Exit, Stop
from zfabric.cli._look import nearest, open_node
from zfabric.cli._options import Options, PatternParameter, Seconds, networked
from zfabric.cli._output import Output, drawn
from zfabric.cli._running import run
from zfabric.cli._warnings import Warnings
from zfabric.model import Delivery, Message
from zfabric.node.subscription import Subscription

if TYPE_CHECKING:
    from rich.live import Live

__all__ = ["REPORTS_PER_S", "Meter", "Meters", "View", "limiting", "measuring", "watch"]

REPORTS_PER_S = 1.0
TOPICS_MAX = 10_000
"Topics that are measured at one time; the ones that were silent longest are forgotten."


class Meter:
    """One topic: arrivals of the last seconds."""

    def __init__(self, now: float) -> None:
        self.began = now
        self.messages = 0
        "Since the beginning."
        self._arrivals: deque[tuple[float, int, int]] = deque()

    def add(self, now: float, messages: int, size: int) -> None:
        """A batch came."""
        self.messages += messages
        self._arrivals.append((now, messages, size))

    def prune(self, now: float, window_s: float) -> None:
        """Forget what is older than the window."""
        while self._arrivals and self._arrivals[0][0] <= now - window_s:
            self._arrivals.popleft()

    def span(self, now: float, window_s: float) -> float:
        """The seconds that the window covers so far."""
        return max(min(window_s, now - self.began), 1e-9)

    def rate_hz(self, now: float, window_s: float) -> float:
        """Messages a second within the window. The first message of all begins an interval and ends none."""
        messages = sum(number for _, number, _ in self._arrivals)
        first = self._arrivals[0] if self._arrivals else None
        if first is not None and first[0] == self.began:
            messages -= first[1]
        return messages / self.span(now, window_s)

    def bytes_per_s(self, now: float, window_s: float) -> float:
        """Bytes a second within the window."""
        return sum(size for _, _, size in self._arrivals) / self.span(now, window_s)

    def mean_bytes(self) -> float:
        """Bytes of a message within the window."""
        return sum(size for _, _, size in self._arrivals) / max(1, sum(number for _, number, _ in self._arrivals))

    def intervals(self) -> tuple[float, float, float, float] | None:
        """Mean, smallest, largest and standard deviation of the seconds between messages.

        Messages of one batch come at one time.
        """
        moments = [moment for moment, _, _ in self._arrivals]
        together = sum(number - 1 for _, number, _ in self._arrivals)
        gaps = [later - earlier for earlier, later in pairwise(moments)]
        number = len(gaps) + together
        if not gaps:
            return None
        mean = sum(gaps) / number
        spread = (sum((gap - mean) ** 2 for gap in gaps) + together * mean**2) / number
        return mean, 0.0 if together else min(gaps), max(gaps), spread**0.5


Measure = Callable[[list[Message]], int]
"""The bytes of some messages."""


class Meters(dict[str, Meter]):
    """The meters of all topics that a subscription brings."""

    def __init__(self, measure: Measure) -> None:
        self._measure = measure

    async def read(self, subscription: Subscription) -> None:
        """Measure until the subscription ends."""
        loop = asyncio.get_running_loop()
        async with aclosing(subscription.batches()) as batches:  # type: ignore[type-var]
            async for batch in batches:
                now = loop.time()
                for topic, messages in groupby(batch, key=attrgetter("topic")):
                    self._add(now, topic, list(messages))

    def _add(self, now: float, topic: str, messages: list[Message]) -> None:
        meter = self.pop(topic, None) or Meter(now)
        meter.add(now, len(messages), self._measure(messages))
        self[topic] = meter
        if len(self) > TOPICS_MAX:
            del self[next(iter(self))]

    def prune(self, now: float, window_s: float) -> None:
        """Forget what is older than the window."""
        for meter in self.values():
            meter.prune(now, window_s)


class View:
    """What one verb shows of a meter."""

    def __init__(
        self,
        titles: Sequence[str],
        row: Callable[[Meter, float, float], Sequence[str]],
        record: Callable[[Meter, float, float], Mapping[str, Any]],
        measure: Measure,
        payload: Any,
    ) -> None:
        self.titles = titles
        self.row = row
        self.record = record
        self.measure = measure
        self.payload = payload
        "The type to decode to; msgspec.Raw saves the decoding."


def limiting(function: Callable[..., int]) -> Callable[..., int]:
    """Decorator: the options of verbs that report every second."""
    for decorate in (
        click.option("--duration", type=Seconds(), metavar="SECONDS", help="End after this long."),
        click.option("--count", "reports", type=click.IntRange(min=1), metavar="N", help="End after N reports."),
        click.option("--window", type=Seconds(), default=5.0, show_default=True, help="Seconds that the rates cover."),
    ):
        function = decorate(function)
    return function


def measuring(function: Callable[..., int]) -> Callable[..., int]:
    """Decorator: the argument and the options that `hz` and `bw` share."""
    for decorate in (
        limiting,
        networked(timeout="Exit with 69 or 75 when nothing came for this long at the start."),
        click.argument("pattern", type=PatternParameter(), default="#"),
    ):
        function = decorate(function)
    return function


def watch(
    options: Options, verb: str, view: View, pattern: str, reports: int | None, duration: float | None, window: float
) -> int:
    """Run one of the two verbs."""

    async def main(output: Output) -> int:
        return await _Watching(options, output, verb, view, pattern, window).run(reports, duration)

    return run(options, main)


class _Watching:
    def __init__(self, options: Options, output: Output, verb: str, view: View, pattern: str, window_s: float) -> None:
        self._options = options
        self._output = output
        self._verb = verb
        self._view = view
        self._pattern = pattern
        self._window_s = window_s
        self._meters = Meters(view.measure)
        self._drawn = output.on_terminal and not output.json

    async def run(self, reports: int | None, duration: float | None) -> int:
        """Measure and report until enough was reported."""
        async with open_node(self._options, self._verb) as node, Warnings(self._output, node):
            subscription = node.subscribe(self._pattern, delivery=Delivery.AT_MOST_ONCE, type=self._view.payload)
            self._output.note(f"measuring {self._pattern} on fabric {node.fabric!r} as {node.name}")
            with self._live() as live:
                async with asyncio.TaskGroup() as group:
                    reading = group.create_task(self._meters.read(subscription))
                    await self._report(reports, duration, live)
                    reading.cancel()
            if not self._meters:
                self._nothing(bool(subscription.publishers), nearest(self._pattern, node.peers, published=True))
        return Exit.OK

    def _nothing(self, published: bool, others: list[str]) -> None:
        if published:
            raise Stop(Exit.TIMED_OUT, f"{self._pattern!r} is published, but no message came")
        there = f"; there are: {', '.join(others)}" if others else ""
        raise Stop(Exit.NOBODY, f"nobody publishes {self._pattern!r}{there}")

    def _live(self) -> Any:
        if not self._drawn:
            return nullcontext()
        from rich.live import Live

        return Live(self._table(), console=self._output.console(), auto_refresh=False)

    async def _report(self, reports: int | None, duration: float | None, live: Live | None) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        done = 0
        while True:
            now = loop.time()
            due = began + (done + 1) / REPORTS_PER_S
            if duration is not None:
                due = min(due, began + duration)
            await asyncio.sleep(max(0.0, due - now))
            done += 1
            self._show(live)
            now = loop.time()
            if done == reports or (duration is not None and now >= began + duration):
                return
            if not self._meters and self._options.timeout is not None and now >= began + self._options.timeout:
                return

    def _show(self, live: Live | None) -> None:
        now = asyncio.get_running_loop().time()
        self._meters.prune(now, self._window_s)
        if live is not None:
            live.update(self._table(now), refresh=True)
            return
        for topic in sorted(self._meters):
            self._output.record({"topic": topic, **self._view.record(self._meters[topic], now, self._window_s)})

    def _table(self, now: float = 0.0) -> Any:
        if not self._meters:
            from rich.text import Text

            return Text(f"no message on {self._pattern} yet", style="dim")
        rows = [(topic, *self._view.row(self._meters[topic], now, self._window_s)) for topic in sorted(self._meters)]
        return drawn(("TOPIC", *self._view.titles), rows, numbers=len(self._view.titles))
