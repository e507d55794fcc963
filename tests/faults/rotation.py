"""Random faults one after the other, with quiet times: what the rounds of the kitchen sink have in common."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from tests.faults.children import hold, memory_kb, open_files
from tests.faults.proxy import Line, Proxy

__all__ = ["Rotation"]

MEMORY_KB_MAX = 400_000
FILES_MAX = 150


class Running(Protocol):
    """A program and its process of now."""

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """Another one after a kill, perhaps."""


P = TypeVar("P", bound=Running)


class Rotation(ABC, Generic[P]):
    """One set of processes and what is done to them."""

    def __init__(self, proxy: Proxy, seed: str) -> None:
        self.random = random.Random(seed)
        self.proxy = proxy
        self.lines: dict[P, list[Line]] = {}
        self.done: Counter[str] = Counter()
        self.times: list[tuple[str, int, int]] = []
        "When each fault began and ended, in nanoseconds of the monotonic clock."
        self.faults: list[Callable[[], None]] = [
            self.reset, self.blackhole, self.delay, self.flip, self.repeat_frames, self.stop,
        ]  # fmt: skip

    @property
    @abstractmethod
    def children(self) -> list[P]:
        """Those that live."""

    @abstractmethod
    def finish(self) -> str:
        """Everything works again: all must arrive in time. Returns a summary, raises AssertionError."""

    def run(self, seconds: float) -> None:
        """Rotate faults."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.strike()

    def strike(self) -> None:
        """One fault, a quarter of the time none."""
        if self.random.random() < 0.25:
            hold(self.random.uniform(0.5, 2.0), "quiet")
            self.done["quiet"] += 1
            return
        fault, began = self.random.choice(self.faults), time.monotonic_ns()
        fault()
        self.times.append((fault.__name__, began, time.monotonic_ns()))
        self.done[fault.__name__] += 1
        for child in self.children:
            assert child.process.poll() is None, f"{child} ended with {child.process.returncode}"
            pid = child.process.pid
            assert memory_kb(pid) < MEMORY_KB_MAX, f"{child} has {memory_kb(pid)} kB"
            assert open_files(pid) < FILES_MAX, f"{child} has {open_files(pid)} files open"

    def some_lines(self) -> list[Line]:
        """A few connections: one endpoint, one node or everything."""
        lines = [line for child in self.children for line in self.lines[child]]
        choice = self.random.random()
        if choice < 0.4:
            return [self.random.choice(lines)]
        return self.lines[self.random.choice(self.children)] if choice < 0.8 else lines

    # -- faults --------------------------------------------------------------------------------

    def hold_with(self, lines: list[Line], **settings: object) -> None:
        """Let these lines be so for a while."""
        for line in lines:
            for name, value in settings.items():
                setattr(line, name, value)
        hold(self.random.uniform(0.3, 2.5), ", ".join(settings))
        normal = Line(("", 0), 0)
        for line in lines:
            for name in settings:
                setattr(line, name, getattr(normal, name))

    def reset(self) -> None:
        """RST."""
        for _ in range(self.random.randrange(1, 5)):
            self.proxy.reset(*self.some_lines())
            hold(self.random.uniform(0.0, 0.4), "between resets")

    def blackhole(self) -> None:
        """Half-open links."""
        self.hold_with(self.some_lines(), blackhole=True)

    def delay(self) -> None:
        """Latency and jitter."""
        self.hold_with(self.some_lines(), delay_s=self.random.uniform(0, 0.2), jitter_s=self.random.uniform(0, 0.2))

    def flip(self) -> None:
        """Damaged bytes; then the connections begin anew, as their frames make no sense any more."""
        lines = self.some_lines()
        self.hold_with(lines, flip_every=self.random.choice([500, 5_000, 50_000]))
        self.proxy.reset(*lines)

    def repeat_frames(self) -> None:
        """Frames come twice."""
        part, chance = self.random.uniform(0, 0.5), random.Random(self.random.random())
        self.hold_with(self.some_lines(), frames=lambda _, body: [body] * (1 + (chance.random() < part)))

    def stop(self) -> None:
        """SIGSTOP."""
        process = self.random.choice(self.children).process
        process.send_signal(signal.SIGSTOP)
        hold(self.random.uniform(0.2, 3.0), "SIGSTOP")
        process.send_signal(signal.SIGCONT)
