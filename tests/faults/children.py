"""The test's end of the child processes: starts them, tells them what to do, reads their histories."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from tests.faults.options import Options
from tests.faults.oracle import Line, Stream, Verdict, judge, read
from tests.netns import Namespace
from tests.waiting import wait_until

__all__ = ["ENDLESS", "FAST", "Child", "Crew", "crew", "hold", "memory_kb", "open_files"]

ROOT = Path(__file__).parents[2]
FAST: dict[str, Any] = {
    "heartbeat_interval_s": 0.2,
    "peer_timeout_s": 1.0,
    "handshake_timeout_s": 0.5,
    "reconnect_interval_s": 0.05,
    "reconnect_interval_s_max": 0.3,
    "gap_settle_s": 0.3,
}
"Timeouts that make a fault of a second long enough."
ENDLESS = 10_000_000
"Messages: the stream goes on until it is stopped, so it has not ended before what is to happen in it."


def hold(seconds: float, reason: str) -> None:
    """Let a fault last: the one thing that has to be waited for by the clock. `reason` names the fault."""
    deadline = time.monotonic() + seconds
    wait_until(lambda: time.monotonic() >= deadline, seconds + 5)


def memory_kb(pid: int) -> int:
    """Resident memory of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    return 0


def open_files(pid: int) -> int:
    """File descriptors of a process."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


class Child:
    """One program, running."""

    def __init__(self, options: Options, namespace: Namespace | None, environment: dict[str, str]) -> None:
        self.options = options
        self.path = Path(options.history)
        self._read = 0
        self._lines: list[Line] = []
        self._got: dict[str, int] = {}
        self._told: dict[str, int] = {}
        self.streams: dict[Stream, int] = {}
        "The newest message of every stream that it got."
        argv = [sys.executable, "-m", "tests.faults.program", msgspec.json.encode(options).decode()]
        if namespace is not None:
            # `ip netns exec` replaces itself, so signals reach the program.
            argv = ["ip", "netns", "exec", namespace.name, *argv]
        self.errors = self.path.with_suffix(".err")
        with self.errors.open("wb") as errors:
            self.process = subprocess.Popen(
                argv, stdin=subprocess.PIPE, stdout=errors, stderr=errors, cwd=ROOT, env=environment
            )

    @property
    def pid(self) -> int:
        """Its process."""
        return self.process.pid

    def lines(self) -> list[Line]:
        """Its history so far."""
        if self.path.exists():
            with self.path.open("rb") as file:
                file.seek(self._read)
                data = file.read()
            whole = data[: data.rfind(b"\n") + 1]
            self._read += len(whole)
            for line in map(msgspec.json.decode, whole.splitlines()):
                self._lines.append(line)
                if "got" in line:
                    name, incarnation, topic, _, last = line["got"]
                    self._got[topic] = self.streams[name, incarnation, topic] = last
                elif line.get("event") == "Gap":
                    self._told[line["topic"]] = line["last"]
        return self._lines

    def all(self, word: str) -> list[Any]:
        """The value of every line with this word."""
        return [line[word] for line in self.lines() if word in line]

    def last(self, word: str) -> Any:
        """The value of the newest line with this word, None if there is none."""
        return next((line[word] for line in reversed(self.lines()) if word in line), None)

    def events(self, name: str) -> list[Line]:
        """The events of one kind."""
        return [line for line in self.lines() if line.get("event") == name]

    def silences(self) -> list[Line]:
        """How often it took another node for dead."""
        return [event for event in self.events("PeerLeft") if event["reason"] != "goodbye"]

    def position(self, *topics: str) -> int:
        """Number of the newest message that it got on each of these topics (default: the reliable ones); -1 before."""
        self.lines()
        return min(self._got.get(topic, -1) for topic in topics or self.options.reliable)

    def settled(self, count: int) -> bool:
        """Whether message `count - 1` of every stream was delivered or announced as lost."""
        self.lines()
        return all(max(self._got.get(t, -1), self._told.get(t, -1)) >= count - 1 for t in self.options.streams())

    @property
    def endpoints(self) -> list[str]:
        """Its addresses: inbox, then outlet."""
        line = self.until("endpoints")
        return list(line)

    def until(self, word: str, timeout: float = 30.0) -> Any:
        """Wait for a line with this word, and return its value; fails at once when the program ends before."""

        def there() -> Any:
            value = self.last(word)
            assert value is not None or self.process.poll() is None, f"{self} ended: {self.errors.read_text()[-2000:]}"
            return [value] if value is not None else None

        return wait_until(there, timeout)[0]

    def until_event(self, name: str, timeout: float = 30.0) -> Line:
        """Wait for an event of one kind."""
        return wait_until(lambda: self.events(name), timeout)[-1]

    def until_position(self, number: int, timeout: float = 30.0) -> None:
        """Wait until it got this message on every reliable topic."""
        wait_until(lambda: self.position() >= number, timeout)

    def until_settled(self, count: int, timeout: float = 30.0) -> None:
        """Wait until of `count` messages on each topic all were delivered, or announced as lost."""
        wait_until(lambda: self.settled(count), timeout)

    def command(self, line: str) -> None:
        """Tell it something, and wait until it has done so."""
        assert self.process.stdin is not None
        done = len(self.all("did"))
        self.process.stdin.write(f"{line}\n".encode())
        self.process.stdin.flush()
        if line != "close":
            wait_until(lambda: len(self.all("did")) > done)

    def measure(self) -> Line:
        """Latencies since the last call, in seconds: count, p50, p99 and max."""
        self.command("mark")
        return dict(self.last("latency"))

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self.process.kill()
        self.process.wait(10)

    def close(self, timeout: float = 30.0) -> int:
        """Ask it to close; returns its exit status."""
        if self.process.poll() is None:
            self.command("close")
        return self.wait(timeout)

    def wait(self, timeout: float = 30.0) -> int:
        """Its exit status."""
        return self.process.wait(timeout)

    def __str__(self) -> str:
        return f"{self.options.name}.{self.options.incarnation}"


class Crew:
    """The children of one test."""

    def __init__(self, folder: Path, runtime_dir: Path) -> None:
        self.folder = folder
        self.children: list[Child] = []
        self._environment = {**os.environ, "ZFABRIC_RUNTIME_DIR": str(runtime_dir)}
        self._environment.pop("PYTHONWARNINGS", None)

    def start(self, role: str, name: str, *, on: Namespace | None = None, **options: Any) -> Child:
        """Start a program; an incarnation of a name that existed before gets the next number."""
        incarnation = sum(child.options.name == name for child in self.children)
        path = self.folder / f"{name}.{incarnation}.jsonl"
        config = {**FAST, **options.pop("config", {})}
        if on is not None:
            options.setdefault("interface", on.interface)
        told = Options(role=role, name=name, incarnation=incarnation, history=str(path), config=config, **options)
        child = Child(told, on, self._environment)
        self.children.append(child)
        return child

    def publisher(self, name: str = "pub", **options: Any) -> Child:
        """Start a publisher."""
        return self.start("publish", name, **options)

    def subscriber(self, name: str = "sub", **options: Any) -> Child:
        """Start a subscriber."""
        return self.start("subscribe", name, **options)

    def pusher(self, name: str = "pusher", **options: Any) -> Child:
        """Start a program that pushes jobs."""
        return self.start("push", name, **options)

    def worker(self, name: str = "worker", **options: Any) -> Child:
        """Start a program that works on them."""
        return self.start("work", name, **options)

    def verdict(self, **options: Any) -> Verdict:
        """Judge everything that happened."""
        return judge([read(child.path) for child in self.children], **options)

    def finish(self, children: Sequence[Child] | None = None) -> None:
        """Close the children (publishers first) and see that they end well."""
        chosen = [c for c in (self.children if children is None else children) if c.process.poll() is None]
        for role in ("publish", "push", "subscribe", "work", "idle"):
            leaving = [child for child in chosen if child.options.role == role]
            for child in leaving:
                child.command("close")
            for child in leaving:
                assert child.wait() == 0, child.errors.read_text()[-2000:]
        for child in chosen:
            assert "Traceback" not in child.errors.read_text(), child.errors.read_text()[-2000:]

    def end(self) -> None:
        """Kill what is left."""
        for child in self.children:
            if child.process.poll() is None:
                child.process.send_signal(signal.SIGCONT)
                child.process.kill()
            child.process.wait(10)
            if child.process.stdin is not None:
                try:
                    child.process.stdin.close()
                except BrokenPipeError:
                    continue


@contextmanager
def crew(folder: Path, runtime_dir: Path) -> Iterator[Crew]:
    """Children that end with the block."""
    those = Crew(folder, runtime_dir)
    try:
        yield those
    finally:
        those.end()
