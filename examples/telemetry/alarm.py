"""The alarm subscriber: watches readings, and publishes when a metric crosses its threshold."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping

import msgspec

import zfabric

from .control import Report
from .measure import Intake
from .part import RECEIVERS, Part, Settings
from .readings import ALARM, READINGS, Alarm, Cpu, Disk, Memory, Reading, topic_of

__all__ = ["THRESHOLDS", "AlarmPart", "Hysteresis", "Threshold", "Watchdog"]


class Threshold(msgspec.Struct, frozen=True):
    """Raised at or above one value, cleared only below another, lower one: no flutter in between."""

    raise_at: float
    clear_below: float

    def __post_init__(self) -> None:
        """The two must leave a band between them."""
        if self.clear_below >= self.raise_at:
            raise ValueError(f"clear_below {self.clear_below} must be under raise_at {self.raise_at}")


THRESHOLDS: dict[str, Threshold] = {
    "cpu": Threshold(raise_at=75, clear_below=50),
    "memory": Threshold(raise_at=90, clear_below=85),
    "swap": Threshold(raise_at=80, clear_below=70),
    "disk": Threshold(raise_at=95, clear_below=93),
}
"By the metric's first word, in percent."


class Hysteresis:
    """One metric's state."""

    def __init__(self, threshold: Threshold) -> None:
        self.threshold = threshold
        self.raised = False

    def update(self, value: float) -> bool:
        """Take a new value in; True if the state changed."""
        before = self.raised
        self.raised = value >= self.threshold.raise_at or (before and value >= self.threshold.clear_below)
        return self.raised != before


def metrics(reading: Reading) -> Iterator[tuple[str, float]]:
    """The watched metrics of a reading, by name."""
    match reading:
        case Cpu():
            for core, percent in enumerate(reading.cores):
                yield f"cpu.{core}", percent
        case Memory():
            yield "memory", reading.used_percent
            yield "swap", reading.swap_percent
        case Disk():
            yield "disk", reading.used_percent
        case _:
            return


class Watchdog:
    """The state of all metrics."""

    def __init__(self, thresholds: Mapping[str, Threshold] = THRESHOLDS) -> None:
        self._thresholds = thresholds
        self._states: dict[str, Hysteresis] = {}

    def check(self, reading: Reading) -> Iterator[tuple[str, float, Hysteresis]]:
        """Take a reading in; yields metric, value and new state of all that changed."""
        for metric, value in metrics(reading):
            state = self._states.get(metric)
            if state is None:
                state = self._states[metric] = Hysteresis(self._thresholds[metric.split(".")[0]])
            if state.update(value):
                yield metric, value, state


class AlarmPart(Part):
    """Subscribes to every kind of reading, and publishes alarms."""

    publisher: zfabric.Publisher

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.intake = Intake(from_first=settings.attached)
        self._watchdog = Watchdog()
        self._subscriptions: list[zfabric.Subscription] = []
        self._published = 0
        self._raised = 0

    def connect(self, node: zfabric.Node) -> None:
        """Subscribe to each kind, and declare the alarms' publisher."""
        self.publisher = node.publisher(topic_of(ALARM, self.settings.host))
        self._subscriptions = [node.subscribe(topic_of(kind)) for kind in READINGS]

    async def matched(self) -> None:
        """All receivers but this one listen to alarms."""
        await self.publisher.wait_for(subscribers=len(RECEIVERS) - 1)

    async def run(self) -> None:
        """Read all subscriptions at once."""
        async with asyncio.TaskGroup() as readers:
            for subscription in self._subscriptions:
                readers.create_task(self._read(subscription))

    async def _read(self, readings: zfabric.Subscription) -> None:
        async for message in readings:
            for metric, value, state in self._watchdog.check(message.value):
                await self._publish(metric, value, state)
            self.intake.note(message, message.value.sent_ns)

    async def _publish(self, metric: str, value: float, state: Hysteresis) -> None:
        threshold = state.threshold.raise_at if state.raised else state.threshold.clear_below
        self._published += 1
        self._raised += state.raised
        await self.publisher.publish(
            Alarm(
                metric=metric,
                state="raised" if state.raised else "cleared",
                value=value,
                threshold=threshold,
                sent_ns=time.monotonic_ns(),
            )
        )

    async def finish(self, published: dict[str, int]) -> Report:
        """Judge the last readings too, then send the last alarms."""
        await self.intake.drain(published)
        await self.publisher.flush()
        return Report(
            published={self.publisher.topic: self._published},
            received=self.intake.received,
            missing=self.intake.missing,
            repeated=self.intake.repeated,
            latency=self.intake.latency,
            alarms=self._raised,
        )
