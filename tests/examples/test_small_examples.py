"""The small examples run as they are printed, each as a program of its own."""

from __future__ import annotations

import secrets
import signal
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"

pytestmark = pytest.mark.slow


def start(name: str, fabric: str) -> subprocess.Popen[str]:
    """Start an example on a fabric of its own."""
    command = [sys.executable, "-W", "error", str(EXAMPLES / name), fabric]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8")


def run(name: str) -> str:
    """Run an example that must succeed; returns what it printed."""
    with start(name, f"test-{secrets.token_hex(4)}") as process:
        try:
            output, errors = process.communicate(timeout=30)
        finally:
            process.kill()
    assert (process.returncode, errors) == (0, "")
    return output


@pytest.mark.parametrize("first", ["hello_publisher.py", "hello_subscriber.py"])
def test_hello(first: str) -> None:
    """Publisher and subscriber find each other whoever starts first, and all ten readings arrive in order."""
    fabric = f"test-{secrets.token_hex(4)}"
    names = sorted(["hello_publisher.py", "hello_subscriber.py"], key=lambda name: name != first)
    processes = {name: start(name, fabric) for name in names}
    publisher, subscriber = processes["hello_publisher.py"], processes["hello_subscriber.py"]
    try:
        assert subscriber.stdout is not None
        lines = [subscriber.stdout.readline() for _ in range(10)]
        _, publisher_errors = publisher.communicate(timeout=30)
        subscriber.send_signal(signal.SIGINT)
        rest, subscriber_errors = subscriber.communicate(timeout=30)
    finally:
        for process in processes.values():
            process.kill()
            process.communicate()

    assert lines == [f"plant.line1.temp #{seq} from sensor-1: {20 + seq / 2} °C\n" for seq in range(10)]
    assert (publisher_errors, subscriber_errors, rest) == ("", "", "")
    assert publisher.returncode == 0
    assert subscriber.returncode == 0


def test_numpy_frames() -> None:
    """Arrays arrive whole, none is lost, and the example says how fast."""
    pytest.importorskip("numpy")

    assert run("numpy_frames.py").startswith("100 frames of (1080, 1920) uint8, none lost, ")


def test_sync_script() -> None:
    """A script without asyncio gets every word, in order."""
    assert run("sync_script.py").splitlines() == [f"writer wrote '{word}'" for word in ("fabric", "thread", "loom")]


def test_shared_map() -> None:
    """Who comes late has the whole map, and sees a key end by itself."""
    assert run("shared_map.py").splitlines() == [
        "late, but complete: {'hall': 'off', 'kitchen': 'on', 'porch': 'on'}",
        "porch is gone",
    ]


def test_last_value() -> None:
    """Who comes late gets the newest value first, and then what is new."""
    assert run("last_value.py").splitlines() == [
        "plant.temp of line1 was 24.5 (#9)",
        "plant.temp of line1 is 99.5 (#10)",
    ]


def test_circuit_breaker() -> None:
    """Three failures open the circuit, and the try after the cooldown closes it."""
    assert run("circuit_breaker.py").splitlines() == ["failed", "failed", "failed", "left alone", "total: 42"]


def test_executor() -> None:
    """Two worker processes start, make twenty calls and end; a plain program has the results."""
    assert run("executor.py") == "2262 primes below 20,000\n"


def test_scatter_gather() -> None:
    """Three of five are enough."""
    assert run("scatter_gather.py") == "3 prices; the best is 100, from shop-0\n"


def test_standby() -> None:
    """One is active, and then the other."""
    assert run("standby.py").splitlines() == ["1 of two is active", "and when one has left, the other is"]


def test_images() -> None:
    """All frames pass three stages."""
    assert "100 frames, " in run("images.py")


def test_wordcount() -> None:
    """Whatever happens to workers, the result is that of a single loop."""
    command = [sys.executable, "-m", "zfabric.examples.wordcount", "--files", "200"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "killed a worker after 50 files"
    assert lines[1] == "another one joined after 100 files"
    assert lines[-1] == "equal to a single loop"
