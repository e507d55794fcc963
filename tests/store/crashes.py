"""A program that kills a writer again and again, and judges what is left.

    python -m tests.store.crashes DIRECTORY --kills 100 --seed 1 [--without MECHANISM]

A child writes and kills itself at a named point; what it was told goes to the parent through a pipe, so what was
confirmed is known exactly. Then the next child goes on where the last confirmation was. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import apsw

from tests.store.oracle import STREAMS, Oracle, transaction
from zfabric import Config
from zfabric.store import Append, Commit, Mark, Outcome, rules
from zfabric.store.directory import Directory
from zfabric.store.sqlite import SqliteLog

POINTS = (
    "before append",
    "between append and commit",
    "between commit and confirmation",
    "before the new head has its name",
    "after the new head has its name",
    "before a thinned file has its name",
    "after a thinned file has its name",
    "before a file is removed",
)
CONFIG = Config(store_segment_bytes=60_000, store_reserve_bytes=64 * 1024, store_checkpoint_bytes=100_000)


KILLS_EACH = 25
"So many kills a log gets before the next one begins, so that judging it stays quick."


class Fuse:
    """Kills this process at the n-th passing of a point."""

    def __init__(self, point: str, passings: int) -> None:
        self.point = point
        self.left = passings

    def __call__(self, point: str) -> None:
        """Pass a point."""
        if point == self.point:
            self.left -= 1
            if self.left <= 0:
                os.kill(os.getpid(), signal.SIGKILL)


def write(directory: Path, start: int, fuse: Fuse, tell: Callable[[str], None], without: str) -> None:
    """The child: transactions in groups of one to four, until the fuse burns down or 150 transactions are done."""
    publish, remove = Directory.publish, Directory.remove

    def publish_or_die(self: Directory, new: Path, name: str) -> None:
        what = "the new head" if name.startswith("log") else "a thinned file"
        fuse(f"before {what} has its name")
        publish(self, new, name)
        fuse(f"after {what} has its name")

    def remove_or_die(self: Directory, name: str) -> None:
        fuse("before a file is removed")
        remove(self, name)

    def between() -> bool:
        fuse("between append and commit")
        return False

    Directory.publish, Directory.remove = publish_or_die, remove_or_die  # type: ignore[method-assign]
    log = SqliteLog(directory, CONFIG, create=True)
    number = start
    while number < start + 150:
        group = range(number, number + 1 + number % 4)
        tell(f"sent {group.stop}")
        if without == "commit before confirmation":
            tell(f"confirmed {group.stop}")
        log._writer.connection.set_commit_hook(between)
        fuse("before append")
        outcomes = log.commit(_split([transaction(each) for each in group], without))
        fuse("between commit and confirmation")
        if any(isinstance(outcome, Exception) for outcome in outcomes):
            raise SystemExit(f"refused: {outcomes}")
        tell(f"confirmed {group.stop}")
        if number % 40 < len(group):
            log.compact(STREAMS[0])
            with log._layout:
                segments = dict.fromkeys(held.segment for held in log._catalog.streams[STREAMS[1]].sealed)
                log._replace(list(segments)[:2], {})
        number = group.stop
    log.close()


def _split(commits: Sequence[Commit], without: str) -> Sequence[Commit]:
    """Without atomic commits: every append and position is a commit of its own, in a group of its own."""
    if without != "atomic commits":
        return commits
    return [Commit([append]) for commit in commits for append in commit.appends] + [
        Commit(positions=commit.positions) for commit in commits
    ]


def disable(without: str) -> None:
    """Switch one mechanism off, to see that the oracle misses it."""
    if without == "marks":
        rules._is_new = _always_new
    if without == "atomic commits":
        whole = SqliteLog.commit

        def one_by_one(self: SqliteLog, commits: Sequence[Commit]) -> list[Outcome]:
            return [outcome for commit in commits for outcome in whole(self, [commit])]

        SqliteLog.commit = one_by_one  # type: ignore[method-assign]


def _always_new(append: Append, mark: Mark | None) -> bool:
    return True


def crash(directory: Path, oracle: Oracle, fuse: Fuse, without: str) -> bool:
    """Run one child to its end and note what it was told; whether it was killed."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(reading)
            write(directory, oracle.confirmed, fuse, lambda text: _tell(writing, text), without)
            status = 0
        except BaseException:
            traceback.print_exc()
            raise
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading, encoding="ascii") as told:
        for line in told:
            word, number = line.split()
            if word == "sent":
                oracle.sent = max(oracle.sent, int(number))
            else:
                oracle.confirmed = max(oracle.confirmed, int(number))
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise SystemExit("the child failed")
    return os.WIFSIGNALED(status)


def _tell(pipe: int, text: str) -> None:
    os.write(pipe, f"{text}\n".encode())


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--without", default="")
    options = parser.parse_args()
    chance = random.Random(options.seed)
    killed: Counter[str] = Counter()
    complaints: set[str] = set()
    disable(options.without)
    oracles: list[Oracle] = []
    while killed.total() < options.kills and not complaints:
        if killed.total() >= KILLS_EACH * len(oracles):
            oracles.append(Oracle())
        oracle, directory = oracles[-1], options.directory / str(len(oracles))
        fuse = Fuse(chance.choice(POINTS), chance.randrange(1, 4))
        if crash(directory, oracle, fuse, options.without):
            killed[fuse.point] += 1
        with SqliteLog(directory, CONFIG) as log:
            complaints |= oracle.complaints(log) | {f"damage: {finding}" for finding in log.damage}
    result: dict[str, Any] = {
        "seed": options.seed,
        "kills": dict(killed),
        "sent": sum(oracle.sent for oracle in oracles),
        "confirmed": sum(oracle.confirmed for oracle in oracles),
        "complaints": sorted(complaints),
        "sqlite": apsw.sqlite_lib_version(),
    }
    json.dump(result, sys.stdout)


if __name__ == "__main__":
    main()
