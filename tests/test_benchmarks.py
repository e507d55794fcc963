"""The benchmarks run, tiny: they do not rot, lose nothing and say what they should. Speed is not tested here."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from benchmarks import machine, peers, report, workloads
from benchmarks.harness import run_cell
from benchmarks.model import Cell, Entry, Link, Missing, Row, Run, Sample

ROOT = Path(__file__).parent.parent

Lines = list[dict[str, Any]]


def run_tiny(*arguments: str) -> Lines:
    """Run the command and return its JSON lines."""
    command = [sys.executable, "-m", "benchmarks", *arguments, "--tiny", "--json"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=55, check=False)
    except subprocess.TimeoutExpired as error:
        pytest.fail(f"did not finish; it said: {(error.stderr or b'').decode()}")

    assert done.returncode == 0, done.stdout + done.stderr

    return [json.loads(line) for line in done.stdout.splitlines()]


def rows_of(lines: Lines) -> Lines:
    """The rows among the lines."""
    return [line for line in lines if line["type"] == "row"]


def entries_of(workload: str) -> list[Entry]:
    """What the peer files offer for a workload."""
    return [entry for entry in peers.load()[0] if entry.workload == workload]


@pytest.fixture(scope="module", params=["tcp", "ipc"])
def throughput(request: pytest.FixtureRequest) -> tuple[str, Lines]:
    """Transport and output of one tiny throughput run with every peer."""
    return request.param, run_tiny("throughput", "--transport", request.param)


@pytest.fixture(scope="module")
def discovery() -> Lines:
    """Output of one tiny discovery run."""
    return run_tiny("discovery")


@pytest.mark.slow
def test_throughput_measures_every_peer(throughput: tuple[str, Lines]) -> None:
    """Every entry of every peer file gives one row, on each transport that it knows."""
    transport, lines = throughput
    expected = {(entry.peer, entry.payload) for entry in entries_of("throughput") if transport in entry.transports}

    assert expected == {(row["peer"], row["payload"]) for row in rows_of(lines)}


@pytest.mark.slow
def test_throughput_loses_nothing(throughput: tuple[str, Lines]) -> None:
    """All messages of all peers arrive, and no run fails."""
    for row in rows_of(throughput[1]):
        assert (row["lost"], row["failures"]) == (0, []), row["peer"]
        assert len(row["samples"]) == 1
        assert row["low"] == row["median"] == row["high"] > 0
        assert {"sender us/msg", "receiver us/msg"} == set(row["details"])


@pytest.mark.slow
def test_throughput_compares_with_raw_sockets(throughput: tuple[str, Lines]) -> None:
    """Each row has its ratios to pyzmq's two patterns, which are 1 to themselves."""
    for row in rows_of(throughput[1]):
        assert {"x PUSH/PULL", "x PUB/SUB"} == set(row["ratios"])
        for name, ratio in row["ratios"].items():
            if name.removeprefix("x ") in row["peer"]:
                assert ratio == 1.0


@pytest.mark.slow
def test_output_tells_the_machine(throughput: tuple[str, Lines]) -> None:
    """The first line says where and with which versions the figures were measured."""
    first = throughput[1][0]

    assert first["type"] == "machine"
    assert first["cores"] == os.cpu_count()
    assert {"zfabric", "pyzmq", "libzmq", "msgspec"} <= set(first["versions"])
    assert first["command"].startswith("python -m benchmarks throughput")


@pytest.mark.slow
def test_fanout_reaches_every_subscriber() -> None:
    """Every peer delivers everything to one and to three subscribers, and is compared with both."""
    rows = rows_of(run_tiny("fanout", "--subscribers", "1,3"))

    assert {(entry.peer, case) for entry in entries_of("fanout") for case in ("to 1", "to 3")} == {
        (row["peer"], row["case"]) for row in rows
    }
    for row in rows:
        assert (row["lost"], row["failures"]) == (0, []), row["peer"]
        assert {"x PUB/SUB", "x to 1"} == set(row["ratios"])


@pytest.mark.slow
def test_discovery_measures_every_case(discovery: Lines) -> None:
    """Every entry plays every case that it has roles for, without failure."""
    expected = {(entry.peer, role) for entry in entries_of("discovery") for role in entry.roles}
    rows = rows_of(discovery)

    assert expected == {(row["peer"], row["case"].split()[0]) for row in rows}
    for row in rows:
        assert row["failures"] == []
        assert row["median"] is not None
        assert row["target"] is not None


def test_absent_library_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A peer file whose library is not installed is reported, and the others are still loaded."""
    (tmp_path / "unheard_of.py").write_text("import a_library_nobody_has\n")
    monkeypatch.setattr(peers, "__path__", [*peers.__path__, str(tmp_path)])

    entries, missing = peers.load()

    assert Missing(peer="unheard_of", package="a_library_nobody_has") in missing
    assert any(entry.peer == "pyzmq PUSH/PULL" for entry in entries)


def test_table_names_what_is_missing_or_wrong() -> None:
    """Loss, failures, missed targets and absent peers can all be read in the table."""
    row = Row(
        workload="throughput",
        case="one way",
        peer="somelib",
        transport="tcp",
        payload="bytes",
        size=100,
        messages=1000,
        unit="k msg/s",
        **workloads.summarise([3.0, 1.0, 2.0]),
        target=1.5,
        lost=7,
        ratios={"x PUSH/PULL": 1.25},
        failures=["receiver died"],
    )
    out = io.StringIO()

    report.write_table(out, machine.describe(), [row], [Missing(peer="otherlib", package="other")])
    words = " ".join(out.getvalue().split())

    assert "1.25 2.00 1.00 3.00 k msg/s 1.50 somelib one way LOST 7, FAILED 1, OVER TARGET" in words
    assert "not measured: otherlib (package other is not installed)" in words
    assert "FAILED somelib one way tcp: receiver died" in words


def test_ratio_is_taken_within_a_round() -> None:
    """A machine that slows down for a whole round does not change the ratio."""
    throughput = next(workload for workload in workloads.load() if workload.name == "throughput")
    cells = [
        Cell(entry=Entry(workload="throughput", peer=peer, roles={}), run=Run(), processes=())
        for peer in ("pyzmq PUSH/PULL", "somelib")
    ]

    def samples(*rates: float) -> list[Sample]:
        received = [{"rate": rate, "lost": 0, "cpu_s": 0.0} for rate in rates]
        return [Sample(outcomes={"receiver": outcome, "sender": {"cpu_s": 0.0}}) for outcome in received]

    rows = throughput.rows(cells, [samples(1000, 500, 100), samples(2000, 1000, 200)])

    assert rows[1].ratios == {"x PUSH/PULL": 2.0}


def bring_name(run: Run, link: Link) -> Mapping[str, Any]:
    """Role: meet, and return what everybody brought."""
    return {"met": link.meet(link.name.upper()), "directory": run.directory}


def raise_error(run: Run, link: Link) -> Mapping[str, Any]:
    """Role: fail."""
    raise LookupError("no such broker")


def die(run: Run, link: Link) -> Mapping[str, Any]:
    """Role: end without a word."""
    os._exit(3)


def wait_alone(run: Run, link: Link) -> Mapping[str, Any]:
    """Role: return without meeting anybody."""
    return {}


def run_roles(*roles: Any, timeout_s: float = 30.0) -> Sample:
    """Run one process a role, once."""
    by_name = {role.__name__: role for role in roles}
    entry = Entry(workload="test", peer="test", roles=by_name)
    return run_cell(Cell(entry=entry, run=Run(timeout_s=timeout_s), processes=tuple(role.__name__ for role in roles)))


@pytest.mark.slow
def test_roles_meet() -> None:
    """Processes of the same role are numbered, and each gets what all brought; the directory is gone afterwards."""
    sample = run_roles(bring_name, bring_name)

    assert sample.failure == ""
    assert {"bring_name-0", "bring_name-1"} == set(sample.outcomes)
    for outcome in sample.outcomes.values():
        assert outcome["met"] == {"bring_name-0": "BRING_NAME-0", "bring_name-1": "BRING_NAME-1"}
        assert not Path(outcome["directory"]).exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("role", "reason"),
    [(raise_error, "no such broker"), (die, "die died"), (wait_alone, "which has returned")],
)
def test_failing_role_is_reported(role: Any, reason: str) -> None:
    """A role that raises, dies or stays away ends the run with a reason, and the other process with it."""
    sample = run_roles(bring_name, role)

    assert reason in sample.failure
    assert sample.outcomes == {}


@pytest.mark.slow
def test_hanging_role_is_ended() -> None:
    """A run that takes too long is given up, and names who was still running."""
    sample = run_roles(bring_name, timeout_s=0.01)

    assert "did not finish in time" in sample.failure
