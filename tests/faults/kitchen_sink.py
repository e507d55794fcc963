"""All faults at once, for as long as you like, and the two long measurements.

    python -m tests.faults.kitchen_sink --minutes 60 --seed 1
    python -m tests.faults.kitchen_sink --minutes 60 --stores
    python -m tests.faults.kitchen_sink --measure stuck
    python -m tests.faults.kitchen_sink --measure ten-million

A run has rounds of half a minute. Each begins with fresh processes (two publishers, three subscribers, everything
between them through the proxy; with `--stores` a store, what it keeps, and a group and workers who share that), rotates
random faults with quiet times, heals, and is judged by the oracle. A failure prints the line that repeats its faults;
how processes interleave is up to the machine.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from tests.durable import test_kills as durable
from tests.durable.test_kills import Process
from tests.faults.children import Child, Crew, crew, hold
from tests.faults.oracle import Stream
from tests.faults.proxy import Proxy
from tests.faults.rotation import Rotation
from tests.faults.store_rotation import StoreRound
from tests.waiting import wait_until

ROUND_S = 25.0
DRAIN_S = 40.0


class Round(Rotation[Child]):
    """Publishers and subscribers."""

    def __init__(self, team: Crew, proxy: Proxy, seed: str) -> None:
        super().__init__(proxy, seed)
        self.team = team
        self.killed: set[tuple[str, int]] = set()
        self.publishers = [self._serve(self._publisher(name)) for name in ("pub-a", "pub-b")]
        self.seeds = [publisher.endpoints[0] for publisher in self.publishers]
        self.subscribers = [self._serve(self._subscriber(f"sub-{number}")) for number in range(3)]
        self.faults += [self.drop_frames, self.hang, self.kill_subscriber, self.kill_publisher]
        for publisher in self.publishers:
            publisher.until("began", 30)

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

    def drop_frames(self) -> None:
        """Batches vanish."""
        part, chance = self.random.uniform(0, 0.3), random.Random(self.random.random())
        outlets = [self.lines[child][1] for child in self.publishers]  # TCP loses no single control frame
        self.hold_with(outlets, frames=lambda _, body: [] if chance.random() < part else [body])

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


@contextmanager
def topic_round(folder: Path, proxy: Proxy, seed: str) -> Iterator[Rotation[Child]]:
    """Processes that end with the block."""
    with crew(folder, folder) as team:
        yield Round(team, proxy, seed)


@contextmanager
def store_round(folder: Path, proxy: Proxy, seed: str) -> Iterator[Rotation[Process]]:
    """Processes that end with the block."""
    team = durable.Crew(folder)
    try:
        yield StoreRound(team, proxy, seed)
    finally:
        team.kill()


def rotate(minutes: float, seed: int, first: int, *, stores: bool) -> None:
    """Round after round."""
    end, number = time.monotonic() + minutes * 60, first
    begin = store_round if stores else topic_round
    while number == first or time.monotonic() < end:
        name = f"{seed}.{number}"
        done: Counter[str] = Counter()
        with tempfile.TemporaryDirectory(prefix="zf") as folder:
            try:
                with Proxy(seed=seed + number) as proxy, begin(Path(folder), proxy, name) as one:
                    done = one.done
                    one.run(ROUND_S)
                    print(f"round {name}: {one.finish()}", flush=True)
            except BaseException:
                kept = Path(folder).rename(f"{folder}-failed")
                Path(folder).mkdir()
                print(f"round {name} failed after {dict(done)}; histories in {kept}", file=sys.stderr)
                again = f"--seed {seed} --first {number}{' --stores' * stores}"
                print(f"again: python -m tests.faults.kitchen_sink {again}", file=sys.stderr)
                raise
        number += 1


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    parser.add_argument("--first", type=int, default=0, help="number of the first round")
    parser.add_argument("--stores", action="store_true", help="a durable topic with a group, and a durable queue")
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
        rotate(options.minutes, options.seed, options.first, stores=options.stores)


def _have_all(lives: list[Child], key: Stream, count: int) -> bool:
    """Whether one of a subscriber's incarnations got the last message: what was processed does not come again."""
    return any(child.lines() and child.streams.get(key, -1) >= count - 1 for child in lives)


if __name__ == "__main__":
    main()
