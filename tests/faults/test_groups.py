"""Groups with real processes: members and the store are stopped and killed, members come and go."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.waiting import wait_until
from zfabric import Config, Node

CONFIG = Config(mdns=False, heartbeat_interval_s=0.2, peer_timeout_s=1.0)
MEMBER = """
import asyncio, json, sys
from tests.faults.test_groups import CONFIG
from zfabric import Node

async def main(fabric, name, path, pause):
    with open(path, "a", buffering=1) as told:
        async with Node(name, fabric=fabric, config=CONFIG) as node:
            numbers = node.subscribe("numbers", group="g", start="earliest", ack="manual")
            async for message in numbers:
                told.write(json.dumps([name, message.key, message.value]) + "\\n")
                await message.ack()
                await asyncio.sleep(pause)

asyncio.run(main(*sys.argv[1:4], float(sys.argv[4])))
"""


class Processes:
    """A store and members, killed at the end."""

    def __init__(self, directory: Path) -> None:
        self.fabric = f"groups-{uuid.uuid4().hex[:8]}"
        self.told = directory / "told.jsonl"
        self.told.touch()
        self._data = directory / "data"
        self._running: list[subprocess.Popen[bytes]] = []
        self._names = 0

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        """A Python process."""
        process = subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._running.append(process)
        return process

    def store(self) -> subprocess.Popen[bytes]:
        """The store, over the same files each time."""
        return self.start("-m", "tests.store.exactly_once", str(self._data), "--role", "keep", "--fabric", self.fabric)

    def member(self, pause: float = 0.0) -> subprocess.Popen[bytes]:
        """Another member, which writes down what it gets."""
        self._names += 1
        return self.start("-c", MEMBER, self.fabric, f"m{self._names}", str(self.told), str(pause))

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """SIGKILL."""
        process.kill()
        process.wait()
        self._running.remove(process)

    def end(self) -> None:
        """Nothing is left."""
        for process in list(self._running):
            os.kill(process.pid, signal.SIGCONT)
            self.kill(process)

    def effects(self) -> list[tuple[str, int, int]]:
        """(member, key, number) in order of time."""
        lines = self.told.read_text().splitlines()
        return [tuple(json.loads(line)) for line in lines if line.endswith("]")]

    async def publish(self, numbers: range, keys: int) -> None:
        """Publish, until it is stored."""
        async with Node("source", fabric=self.fabric, config=CONFIG) as node:
            publisher = node.publisher("numbers", durable=True, without_store="buffer")
            await publisher.wait_for(stores=1, timeout=20)
            for number in numbers:
                await publisher.publish(number, key=number % keys)
            await publisher.flush()

    def check(self, count: int, keys: int) -> int:
        """Everything was done, in order for each key; returns how many came twice."""
        seen: dict[int, list[int]] = defaultdict(list)
        for _, key, number in self.effects():
            seen[key].append(number)
        for key in range(keys):
            assert list(dict.fromkeys(seen[key])) == list(range(key, count, keys)), f"key {key}"
        return sum(map(len, seen.values())) - count


@contextmanager
def processes(directory: Path) -> Iterator[Processes]:
    """They end with the test."""
    running = Processes(directory)
    try:
        yield running
    finally:
        running.end()


@pytest.fixture
def team(tmp_path: Path, runtime_dir: Path) -> Iterator[Processes]:
    """Processes of one fabric."""
    with processes(tmp_path) as running:
        yield running


def test_a_stopped_member_that_wakes_does_no_harm(team: Processes) -> None:
    """SIGSTOP for twice the timeout: others take over; what it has in hand then is done at most once more."""
    count, keys = 3000, 30
    team.store()
    asyncio.run(team.publish(range(count), keys))
    sleeper = team.member(0.001)
    wait_until(lambda: len(team.effects()) > 100, 20)
    sleeper.send_signal(signal.SIGSTOP)
    helper = team.member()
    wait_until(lambda: {number for _, _, number in team.effects()} >= set(range(count)), 30)
    before = len(team.effects())
    sleeper.send_signal(signal.SIGCONT)
    asyncio.run(team.publish(range(count, count + 300), keys))
    wait_until(lambda: len({number for _, _, number in team.effects()}) == count + 300, 30)

    # The one that was in its hands when it stopped, and what it had read ahead until it heard that it was fenced.
    late = [number for name, _, number in team.effects()[before:] if name == "m1" and number < count]
    assert len(late) <= 50
    assert helper.poll() is None
    assert sleeper.poll() is None


def test_members_come_and_go_while_the_store_is_killed(team: Processes) -> None:
    """A storm of rebalances: nothing is lost, keys stay in order, and the work goes on."""
    count, keys = 4000, 40
    store = team.store()
    asyncio.run(team.publish(range(count), keys))
    members = [team.member(0.004)]
    for step in range(6):
        done = len(team.effects())
        wait_until(lambda done=done: len(team.effects()) > min(done + 50, count - 1), 20)  # type: ignore[misc]
        if step % 3 == 2:
            team.kill(store)
            store = team.store()
        elif step % 3 == 1:
            team.kill(members.pop(0))
        members.append(team.member(0.004))
    wait_until(lambda: {number for _, _, number in team.effects()} >= set(range(count)), 45)

    assert team.check(count, keys) < count // 2
    assert len({name for name, _, _ in team.effects()}) > 3


def test_a_stopped_store_holds_everybody_up_and_nothing_more(team: Processes) -> None:
    """SIGSTOP of the store: members wait; when it goes on, so do they."""
    count, keys = 2000, 20
    store = team.store()
    asyncio.run(team.publish(range(count), keys))
    team.member(0.001)
    wait_until(lambda: len(team.effects()) > 100, 20)
    store.send_signal(signal.SIGSTOP)
    stopped_at = time.monotonic()
    wait_until(lambda: time.monotonic() > stopped_at + 2.5, 5)
    store.send_signal(signal.SIGCONT)
    wait_until(lambda: {number for _, _, number in team.effects()} >= set(range(count)), 30)

    team.check(count, keys)
