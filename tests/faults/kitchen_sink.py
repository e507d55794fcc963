"""All faults at once, for as long as you like, and the two long measurements.

    python -m tests.faults.kitchen_sink --minutes 60 --seed 1
    python -m tests.faults.kitchen_sink --measure stuck
    python -m tests.faults.kitchen_sink --measure ten-million

A run has rounds of half a minute. Each begins with fresh processes (two publishers, three subscribers, everything
between them through the proxy), rotates random faults with quiet times, heals, and is judged by the oracle. A
failure prints the line that repeats its faults; how processes interleave is up to the machine.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.faults.children import Child, Crew, crew, hold, memory_kb, open_files
from tests.faults.oracle import Stream
from tests.faults.proxy import Line, Proxy
from tests.waiting import wait_until

ROUND_S = 25.0
DRAIN_S = 40.0
MEMORY_KB_MAX = 400_000
FILES_MAX = 150


class Round:
    """One set of processes and what is done to them."""

    def __init__(self, team: Crew, proxy: Proxy, seed: str) -> None:
        self.random = random.Random(seed)
        self.team = team
        self.proxy = proxy
        self.lines: dict[Child, list[Line]] = {}
        self.killed: set[tuple[str, int]] = set()
        self.done: Counter[str] = Counter()
        self.publishers = [self._serve(self._publisher(name)) for name in ("pub-a", "pub-b")]
        self.seeds = [publisher.endpoints[0] for publisher in self.publishers]
        self.subscribers = [self._serve(self._subscriber(f"sub-{number}")) for number in range(3)]
        self.faults: list[Callable[[], None]] = [
            self.reset, self.blackhole, self.delay, self.flip, self.drop_frames, self.repeat_frames,
            self.stop, self.hang, self.kill_subscriber, self.kill_publisher,
        ]  # fmt: skip

    def _publisher(self, name: str) -> Child:
        return self.team.publisher(
            name, count=100_000_000, chunk=50, rate=3_000, flush_every=1_000, subscribers=3, via=self.proxy.host,
            checksums=True, pad=40,
        )  # fmt: skip

    def _subscriber(self, name: str) -> Child:
        return self.team.subscriber(name, seeds=self.seeds, via=self.proxy.host, checksums=True)

    def _serve(self, child: Child) -> Child:
        self.lines[child] = [self.proxy.serve(endpoint) for endpoint in child.endpoints]
        return child

    @property
    def children(self) -> list[Child]:
        """Those that live."""
        return [*self.publishers, *self.subscribers]

    def some_lines(self) -> list[Line]:
        """A few connections: one endpoint, one node or everything."""
        lines = [line for child in self.children for line in self.lines[child]]
        choice = self.random.random()
        if choice < 0.4:
            return [self.random.choice(lines)]
        return self.lines[self.random.choice(self.children)] if choice < 0.8 else lines

    def run(self, seconds: float) -> None:
        """Rotate faults, a quarter of the time none."""
        end = time.monotonic() + seconds
        for publisher in self.publishers:
            publisher.until("began", 30)
        while time.monotonic() < end:
            if self.random.random() < 0.25:
                hold(self.random.uniform(0.5, 2.0), "quiet")
                self.done["quiet"] += 1
                continue
            fault = self.random.choice(self.faults)
            fault()
            self.done[fault.__name__] += 1
            for child in self.children:
                assert child.process.poll() is None, f"{child} ended: {child.errors.read_text()[-2000:]}"
                assert memory_kb(child.pid) < MEMORY_KB_MAX, f"{child} has {memory_kb(child.pid)} kB"
                assert open_files(child.pid) < FILES_MAX, f"{child} has {open_files(child.pid)} files open"

    def finish(self) -> str:
        """Everything works again: all must arrive in time. Returns a summary, raises AssertionError."""
        for publisher in self.publishers:
            publisher.command("stop")
        for publisher in self.publishers:
            publisher.until("done", DRAIN_S)
        for subscriber in self.subscribers:
            for publisher in self.publishers:
                count = publisher.last("done")
                who = publisher.options.name, publisher.options.incarnation
                for topic in publisher.options.reliable:
                    lives = [child for child in self.team.children if child.options.name == subscriber.options.name]
                    wait_until(partial(_have_all, lives, (*who, topic), count), DRAIN_S)
        self.team.finish(self.children)
        verdict = self.team.verdict().check(duplicates=True, gaps=True)
        unexpected = {stream: n for stream, n in verdict.given_up.items() if stream[:2] not in self.killed}
        assert not unexpected, f"reliable messages were given up though their publisher lived: {unexpected}"
        if not self.done["kill_subscriber"]:
            assert not verdict.duplicates.total(), verdict.duplicates
        delivered, repeated = verdict.delivered.total(), verdict.duplicates.total()
        return f"{delivered} delivered, {repeated} twice, {verdict.announced.total()} announced; {dict(self.done)}"

    # -- faults --------------------------------------------------------------------------------

    def _while(self, lines: list[Line], **settings: object) -> None:
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
        self._while(self.some_lines(), blackhole=True)

    def delay(self) -> None:
        """Latency and jitter."""
        self._while(self.some_lines(), delay_s=self.random.uniform(0, 0.2), jitter_s=self.random.uniform(0, 0.2))

    def flip(self) -> None:
        """Damaged bytes; then the connections begin anew, as their frames make no sense any more."""
        lines = self.some_lines()
        self._while(lines, flip_every=self.random.choice([500, 5_000, 50_000]))
        self.proxy.reset(*lines)

    def drop_frames(self) -> None:
        """Batches vanish."""
        part, chance = self.random.uniform(0, 0.3), random.Random(self.random.random())
        outlets = [self.lines[child][1] for child in self.publishers]  # TCP loses no single control frame
        self._while(outlets, frames=lambda _, body: [] if chance.random() < part else [body])

    def repeat_frames(self) -> None:
        """Frames come twice."""
        part, chance = self.random.uniform(0, 0.5), random.Random(self.random.random())
        self._while(self.some_lines(), frames=lambda _, body: [body] * (1 + (chance.random() < part)))

    def stop(self) -> None:
        """SIGSTOP."""
        child = self.random.choice(self.children)
        child.signal(signal.SIGSTOP)
        hold(self.random.uniform(0.2, 3.0), "SIGSTOP")
        child.signal(signal.SIGCONT)

    def hang(self) -> None:
        """A blocked event loop."""
        child = self.random.choice(self.children)
        child.signal(signal.SIGUSR1)
        hold(self.random.uniform(0.2, 3.0), "hang")
        child.signal(signal.SIGUSR2)

    def kill_subscriber(self) -> None:
        """SIGKILL; it comes back under its name."""
        number = self.random.randrange(len(self.subscribers))
        self.subscribers[number].kill()
        hold(self.random.uniform(0.0, 1.0), "dead subscriber")
        self.subscribers[number] = self._serve(self._subscriber(f"sub-{number}"))

    def kill_publisher(self) -> None:
        """SIGKILL; its successor is a new incarnation on other ports, found through the other nodes."""
        number = self.random.randrange(len(self.publishers))
        old = self.publishers[number]
        old.kill()
        self.killed.add((old.options.name, old.options.incarnation))
        new = self.team.publisher(
            old.options.name, count=100_000_000, chunk=50, rate=3_000, flush_every=1_000, subscribers=3,
            via=self.proxy.host, checksums=True, pad=40, seeds=[self.subscribers[0].endpoints[0]],
        )  # fmt: skip
        self.publishers[number] = self._serve(new)
        new.until("began", 30)
        self.seeds = [publisher.endpoints[0] for publisher in self.publishers]


def rotate(minutes: float, seed: int, first: int) -> None:
    """Round after round."""
    end, number = time.monotonic() + minutes * 60, first
    while number == first or time.monotonic() < end:
        name = f"{seed}.{number}"
        with tempfile.TemporaryDirectory(prefix="zf") as folder, crew(Path(folder), Path(folder)) as team:  # noqa: SIM117 - the proxy ends first
            with Proxy(seed=seed + number) as proxy:
                one = Round(team, proxy, name)
                try:
                    one.run(ROUND_S)
                    print(f"round {name}: {one.finish()}", flush=True)
                except BaseException:
                    kept = Path(folder).rename(f"{folder}-failed")
                    Path(folder).mkdir()
                    print(f"round {name} failed after {dict(one.done)}; histories in {kept}", file=sys.stderr)
                    print(f"again: python -m tests.faults.kitchen_sink --seed {seed} --first {number}", file=sys.stderr)
                    raise
        number += 1


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    parser.add_argument("--first", type=int, default=0, help="number of the first round")
    parser.add_argument("--measure", choices=("stuck", "ten-million"))
    parser.add_argument("--messages", type=int, default=10_000_000)
    parser.add_argument("--seconds", type=float, default=60.0)
    options = parser.parse_args()
    if options.measure == "stuck":
        from tests.faults.measures import stuck

        stuck(options.seconds)
    elif options.measure == "ten-million":
        from tests.faults.measures import ten_million

        ten_million(options.messages, options.seed)
    else:
        rotate(options.minutes, options.seed, options.first)


def _have_all(lives: list[Child], key: Stream, count: int) -> bool:
    """Whether one of a subscriber's incarnations got the last message: what was processed does not come again."""
    return any(child.lines() and child.streams.get(key, -1) >= count - 1 for child in lives)


if __name__ == "__main__":
    main()
