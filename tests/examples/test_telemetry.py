"""The telemetry demo as a stranger runs it: separate processes, real sockets, real discovery."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from zfabric.examples.telemetry import main
from zfabric.examples.telemetry.part import PARTS, RECEIVERS
from zfabric.examples.telemetry.readings import READINGS

COMMAND = [sys.executable, "-m", "zfabric.examples.telemetry"]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a demo to its end."""
    command = [*COMMAND, *arguments]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=90, check=False)


def start(*arguments: str) -> subprocess.Popen[str]:
    """Start a demo, or a part of it."""
    command = [*COMMAND, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8")


@contextlib.contextmanager
def started(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A demo that publishes by now; it is killed when the block is left."""
    process = start(*arguments)
    try:
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if "publishing" in line:
                break
        else:
            pytest.fail("".join(said) + process.communicate()[0])
        yield process
    finally:
        process.kill()
        process.communicate()


def test_everybody_is_found_and_nothing_is_lost(tmp_path: Path) -> None:
    """All processes find each other, and every message is in the books of every receiver and in the file."""
    record = tmp_path / "telemetry.jsonl"

    outcome = run("--seconds", "2", "--json", "--record", str(record))

    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    summary = json.loads(outcome.stdout)
    assert summary["ok"]
    assert summary["found"] == summary["processes"] == len(PARTS)
    assert len(summary["pairs"]) == len(PARTS) * (len(PARTS) - 1) // 2
    assert (summary["lost"], summary["gaps"], summary["repeated"]) == (0, 0, 0)
    check_books(summary)
    check_recording(record, summary)


def check_books(summary: dict[str, Any]) -> None:
    """Every topic's messages reached every receiver that subscribes to it."""
    topics = {topic["topic"].rsplit(".", 1)[-1]: topic for topic in summary["topics"]}
    assert set(topics) == {*READINGS, "alarm"}
    for kind, topic in topics.items():
        listeners = set(RECEIVERS) - ({"alarm"} if kind == "alarm" else set())
        assert topic["received"] == dict.fromkeys(listeners, topic["sent"])
        assert topic["sent"] > 0 or kind == "alarm"
    assert summary["received"] == sum(sum(topic["received"].values()) for topic in topics.values())


def check_recording(record: Path, summary: dict[str, Any]) -> None:
    """Every line of the file is JSON, and each topic's sequence numbers have neither hole nor double."""
    lines = [json.loads(line) for line in record.read_bytes().splitlines()]
    assert len(lines) == summary["recorded_lines"] == summary["sent"]
    counts = Counter(line["topic"] for line in lines)
    assert counts == {topic["topic"]: topic["sent"] for topic in summary["topics"] if topic["sent"]}
    for topic, count in counts.items():
        assert [line["seq"] for line in lines if line["topic"] == topic] == list(range(count))


def test_registry_works_where_mdns_does_not() -> None:
    """Without mDNS the same-host registry is enough."""
    outcome = run("--seconds", "0.5", "--discovery", "registry", "--quiet")

    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    assert f"found     {len(PARTS)} of {len(PARTS)} processes" in outcome.stdout
    assert "same-host registry" in outcome.stdout
    assert "every message arrived everywhere" in outcome.stdout


@pytest.mark.skipif(os.name == "nt", reason="signals of another process group")
def test_ctrl_c_ends_with_the_summary() -> None:
    """Ctrl-C ends the demo early, and the books still balance."""
    with started("--seconds", "60", "--json") as process:
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=30)

    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    assert json.loads(output)["ok"]


def test_parts_end_with_their_parent() -> None:
    """No process outlives the demo, even if that is killed without a chance to say so."""
    with started("--seconds", "60") as process:
        parts = psutil.Process(process.pid).children()
        assert len(parts) == len(PARTS)

        process.kill()
        _, alive = psutil.wait_procs(parts, timeout=20)

    assert alive == []


@pytest.mark.skipif(os.name == "nt", reason="signals of another process group")
def test_parts_run_alone() -> None:
    """Without the demo around them, parts are programs that meet on a fabric, and Ctrl-C ends them quietly."""
    fabric = f"test-{secrets.token_hex(4)}"
    table, source = start("table", "--fabric", fabric), start("disk", "--fabric", fabric)
    try:
        assert table.stderr is not None
        shown = next(line for line in table.stderr if re.search(r" [1-9]\d* msg/s  lost 0 ", line))
        for process in (source, table):
            process.send_signal(signal.SIGINT)
        output = [process.communicate(timeout=30) for process in (source, table)]
    finally:
        for process in (source, table):
            process.kill()
            process.communicate()

    assert "p50" in shown
    assert "Traceback" not in str(output)
    assert (source.returncode, table.returncode) == (0, 0)


def test_part_that_dies_fails_the_demo() -> None:
    """A process that ends early is named, and the exit code is 1."""
    with started("--seconds", "60") as process:
        victim = next(part for part in psutil.Process(process.pid).children() if "disk" in part.cmdline())
        victim.kill()
        output, _ = process.communicate(timeout=60)

    assert process.returncode == 1
    assert "disk ended early" in output
    assert "FAILED" in output


def test_nobody_there_is_a_clear_failure(capfd: pytest.CaptureFixture[str]) -> None:
    """When the parts cannot find each other in time, the summary says who waited for whom."""
    assert main(["--timeout", "0.001", "--quiet", "--seconds", "1"]) == 1

    output = capfd.readouterr().out
    assert "waited in vain" in output
    assert "FAILED: only" in output
