"""Stores, publishers and readers that are killed again and again: confirmed, stored and replayed are the same."""

from __future__ import annotations

import os
import random
import secrets
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.durable.program import TOPIC
from tests.faults.children import hold
from tests.waiting import wait_until
from zfabric.store import StoredBatch, open_log
from zfabric.wire.batch import parse_batch
from zfabric.wire.codec import Codec

pytestmark = pytest.mark.timeout(600)

KILLS = 16
TIMEOUT = 90.0
"Programs are started while others keep the machine busy."
LINE_BYTES = 9
"Of a publisher's history."
ROOT = Path(__file__).parents[2]


class Process:
    """One program that is started again after each kill."""

    def __init__(self, crew: Crew, role: str, name: str, argument: str) -> None:
        self._crew = crew
        self._role = role
        self._argument = argument
        self.name = name
        self.histories: list[Path] = []
        self.start()

    def start(self) -> None:
        """Start it, and wait until it says that it is ready."""
        path = self._crew.path / f"{self.name}-{len(self.histories)}.txt"
        self.histories.append(path)
        command = [sys.executable, "-m", "tests.durable.program", self._role, self._crew.fabric, str(path)]
        crew = self._crew
        settings = {"DEFAULTS": crew.defaults, "HANDICAP": crew.handicap, "POWER": crew.power, "VIA": crew.via}
        environment = {**os.environ, **{f"TEST_{name}": value for name, value in settings.items()}}
        self.process = subprocess.Popen([*command, self._argument], cwd=ROOT, env=environment)

    def ready(self) -> None:
        """Wait until it works."""
        wait_until(lambda: self.lines() or self.process.poll() is not None, TIMEOUT)
        assert self.process.poll() is None, f"{self.name} ended with {self.process.returncode}"

    def lines(self, number: int = -1) -> list[str]:
        """What one incarnation has written, without a last line that it could not finish."""
        path = self.histories[number]
        text = path.read_text() if path.exists() else ""
        return text[: text.rfind("\n") + 1].splitlines()

    def written(self) -> int:
        """Bytes of its histories."""
        return sum(path.stat().st_size for path in self.histories if path.exists())

    def kill(self) -> None:
        """SIGKILL, and start again."""
        self.process.kill()
        self.process.wait()
        self.start()

    def pause(self) -> None:
        """SIGSTOP, for longer than the others wait for a sign of life."""
        self.process.send_signal(signal.SIGSTOP)
        hold(1.5, "a stopped process")
        self.process.send_signal(signal.SIGCONT)

    def end(self) -> None:
        """SIGTERM; it must end well."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(TIMEOUT) == 0, self.name


class Crew:
    """The processes of one test, on a fabric of their own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fabric = f"test-{secrets.token_hex(8)}"
        self.processes: list[Process] = []
        self.handicap = ""
        self.defaults = ""
        "Not empty: with the Config that users have, instead of one for haste."
        self.power = ""
        "Writes after which a store loses power, until the next start; empty for never."
        self.via = ""
        "The address of a proxy that all connect through."

    def start(self, role: str, name: str, argument: str = "") -> Process:
        """Start one."""
        process = Process(self, role, name, argument)
        self.processes.append(process)
        return process

    def kill(self, processes: Sequence[Process] = ()) -> None:
        """SIGKILL to these, or to all; they are not started again."""
        for process in processes or self.processes:
            if process.process.poll() is None:
                process.process.kill()
                process.process.wait()


@pytest.fixture
def crew(tmp_path: Path) -> Iterator[Crew]:
    """Nobody is left behind."""
    made = Crew(tmp_path)
    yield made
    made.kill()


Message = tuple[str, int, str, int]
"Producer, sequence number, publisher and its number."


def in_the_log(directory: Path) -> list[Message]:
    """Everything that was published and is stored, in the order of the log."""
    return [(producer, seq, *value) for producer, seq, value in values_in(directory, TOPIC)]


def values_in(directory: Path, topic: str) -> Iterator[tuple[str, int, Any]]:
    """Producer, sequence number and value of all messages of a topic, in the order of the log."""
    codec = Codec(inline_bytes=65_536)
    with open_log(str(directory)) as log:
        offset = 0
        while items := log.read(topic, offset, 10**7):
            for batch in items:
                assert isinstance(batch, StoredBatch)
                parsed = parse_batch(batch.frames, messages_max=10**6, buffers_max=10, topic_bytes_max=255)
                values = codec.decode_many(parsed.body, ())
                for seq, value in enumerate(values, batch.base):
                    yield batch.producer.hex(), seq, value
            offset = items[-1].next


def heard(lines: list[str]) -> list[Message]:
    """What a reader noted."""
    words = [line.split() for line in lines if line != "ready"]
    return [(producer, int(seq), name, int(number)) for producer, seq, name, number in words]


def check_order(messages: list[Message], who: str) -> None:
    """Each once, and those of one producer in order without a hole from its first on."""
    assert len(messages) == len(set(messages)), f"{who}: a message came twice"
    seen: dict[str, int] = {}
    for producer, seq, _, _ in messages:
        assert seq == seen.get(producer, -1) + 1, f"{who}: {producer} {seq} after {seen.get(producer)}"
        seen[producer] = seq


def check_log(publishers: list[Process], stored: list[Message]) -> int:
    """Confirmed is stored, stored was published, each once and in order; returns how many were confirmed."""
    by_publisher: dict[str, list[int]] = defaultdict(list)
    producers: dict[str, list[str]] = defaultdict(list)
    for producer, _, name, number in stored:
        by_publisher[producer].append(number)
        if producer not in producers[name]:
            producers[name].append(producer)
    confirmed = 0
    for publisher in publishers:
        runs = [set(by_publisher[producer]) for producer in producers[publisher.name]]
        for number, path in enumerate(publisher.histories):
            lines = publisher.lines(number)
            ok = {int(line[3:]) for line in lines if line.startswith("ok ")}
            tried = {int(line[4:]) for line in lines if line.startswith("try ")}
            confirmed += len(ok)
            assert not ok or any(ok <= run <= tried for run in runs), f"{path.name}: confirmed and not stored"
    check_order(stored, "the log")
    return confirmed


def await_lines(processes: Sequence[Process], lines: int) -> None:
    """Wait until these have written about so much more."""
    wanted = sum(process.written() for process in processes) + lines * LINE_BYTES
    wait_until(lambda: sum(process.written() for process in processes) >= wanted, TIMEOUT)


def run(
    crew: Crew, count: int, seed: int, strike: Callable[[Process], None] = Process.kill
) -> tuple[list[Process], Process, Process, list[Message]]:
    """Strike a store, two publishers with outboxes and two readers; returns publishers, readers and what is stored."""
    directory = crew.path / "data"
    store = crew.start("store", "store", str(directory))
    publishers = [crew.start("publish", name, f"{name}:{crew.path}/{name}.outbox") for name in ("ada", "bob")]
    steady, hasty = crew.start("read", "steady"), crew.start("read", "hasty")
    for process in crew.processes:
        process.ready()
    choice = random.Random(seed)
    victims = [store, store, *publishers, hasty]
    for _ in range(count):
        victim = choice.choice(victims)
        await_lines(publishers, choice.randrange(20, 400))
        strike(victim)
        victim.ready()
    for publisher in publishers:
        publisher.end()
    store.end()
    stored = in_the_log(directory)
    store.start()
    hasty.kill()
    for process in (store, hasty):
        process.ready()
    wait_until(lambda: all(len(heard(p.lines())) >= len(stored) for p in (steady, hasty)), TIMEOUT, pause=0.2)
    for process in (steady, hasty, store):
        process.end()
    return publishers, steady, hasty, stored


def test_everybody_is_killed_again_and_again(crew: Crew) -> None:
    """16 kills of the store, publishers with outboxes and a reader, at random times."""
    publishers, steady, hasty, stored = run(crew, KILLS, seed=7)

    assert check_log(publishers, stored) > KILLS * 20
    for number in range(len(hasty.histories)):
        check_order(heard(hasty.lines(number)), f"hasty {number}")
    for reader in (steady, hasty):
        messages = heard(reader.lines())
        check_order(messages, reader.name)
        assert set(messages) == set(stored), reader.name


def test_everybody_is_stopped_for_a_while(crew: Crew) -> None:
    """SIGSTOP of the store, publishers and readers: the others go on or wait, and nothing is lost or doubled."""
    publishers, steady, hasty, stored = run(crew, 4, seed=5, strike=Process.pause)

    assert check_log(publishers, stored) > 100
    for reader in (steady, hasty):
        messages = heard(reader.lines())
        check_order(messages, reader.name)
        assert set(messages) == set(stored), reader.name


@pytest.mark.parametrize(
    ("handicap", "complaint"), [("confirms early", "confirmed and not stored"), ("forgets marks", "came twice")]
)
def test_without_the_mechanism_it_is_caught(crew: Crew, handicap: str, complaint: str) -> None:
    """Confirming before the flush loses what was confirmed; a log without marks stores what is resent twice."""
    crew.handicap = handicap
    store = crew.start("store", "store", str(crew.path / "data"))
    publishers = [crew.start("publish", name, f"{name}:{crew.path}/{name}.outbox") for name in ("ada", "bob")]
    for process in crew.processes:
        process.ready()
    for victim in (store, *publishers):
        await_lines(publishers, 100)
        victim.kill()
        victim.ready()
    crew.kill()

    with pytest.raises(AssertionError, match=complaint):
        check_log(publishers, in_the_log(crew.path / "data"))
