"""The benchmarks run, tiny: they do not rot, lose nothing and refuse what makes no sense. Speed is not tested here."""

from __future__ import annotations

import importlib
import importlib.util
import os
import pkgutil
import re
from pathlib import Path

import pytest

from benchmarks import peers, workloads
from benchmarks.__main__ import main
from benchmarks.harness import run_cell
from benchmarks.model import Cell, Missing, Run
from tests.benchmarks.support import ROOT, entries_of, rows_of, run_tiny

OWN = ("fabric", "pyzmq P", "pyzmq R", "Python alone", "disk")
"Words in the names of the peers that are always installed; none is a whole name, which would mean that peer alone."

TINY = {
    "throughput": ["--transport", "ipc", "--payload", "bytes,struct"],
    "fanout": ["--subscribers", "2"],
    "topics": ["--topics", "100"],
    "latency": ["--load", "50"],
    "requests": ["--in-flight", "1,20"],
    "queue": ["--workers", "2"],
    "fairness": [],
    "durable": [],
    "confirm": [],
    "replay": [],
    "storelog": [],
    "frames": ["--size", "1000000"],
    "cost": [],
    "startup": [],
    "discovery": [],
}
"Options that keep each workload short."


@pytest.mark.slow
@pytest.mark.parametrize("workload", TINY)
def test_workload_runs(workload: str) -> None:
    """Every workload measures every peer that is always installed; nothing is lost and nothing fails."""
    own = [entry for entry in entries_of(workload) if any(word in entry.peer for word in OWN)]
    expected = {entry.peer for entry in own if workload != "throughput" or entry.payload in {"bytes", "struct"}}
    lines = run_tiny(workload, "--peers", ",".join(OWN), *TINY[workload])
    rows = rows_of(lines)

    assert expected == {row["peer"] for row in rows}
    for row in rows:
        assert (row["lost"], row["failures"]) == (0, []), row["peer"]
        assert row["median"] is not None
        assert row["low"] == row["median"] == row["high"] == row["samples"][0]
    first = lines[0]
    assert first["type"] == "machine"
    assert first["cores"] == os.cpu_count()
    assert {"zfabric", "pyzmq", "libzmq", "msgspec"} <= set(first["versions"])
    assert first["command"].startswith(f"python -m benchmarks {workload}")


def test_help_names_every_workload(capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever stands in their summaries."""
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out

    assert [workload.name for workload in workloads.load() if f"    {workload.name} " not in shown] == []


def test_no_workload_is_left_out() -> None:
    """The list above names every workload."""
    assert set(TINY) == {workload.name for workload in workloads.load()}


FOREIGN = sorted(
    module.name
    for module in pkgutil.iter_modules(peers.__path__)
    if not module.name.startswith("zfabric") and module.name not in {"python_alone", "disk"}
)


@pytest.mark.slow
@pytest.mark.parametrize("module", FOREIGN)
def test_peer_runs(module: str) -> None:
    """A peer that is installed carries a few messages in its first workload; one that is not is skipped by name."""
    missing = {each.peer: each.why for each in peers.load()[1]}
    if module in missing:
        pytest.skip(f"{module}: {missing[module]}")
    entry = importlib.import_module(f"benchmarks.peers.{module}").ENTRIES[0]
    requests = "client" in entry.roles
    run = Run(messages=100, warmup=10, payload=entry.payload)
    cell = Cell(entry=entry, run=run, processes=("server", "client") if requests else ("receiver", "sender"))

    sample = run_cell(cell)

    assert sample.failure == ""
    if not requests:
        assert sample.outcomes["receiver"]["received"] == 100


@pytest.mark.slow
def test_documented_peer_runs(tmp_path: Path) -> None:
    """The peer that the documentation shows is a whole one: it runs in two workloads from a user's own folder."""
    guide = (ROOT / "benchmarks" / "README.md").read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```$", guide, re.MULTILINE | re.DOTALL)
    (tmp_path / "pipes.py").write_text(code)

    for workload in ("throughput", "latency"):
        options = ["--peers", "multiprocessing", *(["--payload", "bytes"] if workload == "throughput" else [])]
        rows = rows_of(run_tiny(workload, *options, BENCHMARKS_PEERS=str(tmp_path)))

        assert {row["peer"] for row in rows} == {"multiprocessing"}
        assert all(row["median"] and not row["lost"] and not row["failures"] for row in rows)


def test_absent_library_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A peer file whose library is not installed is reported, and the others are still loaded."""
    (tmp_path / "unheard_of.py").write_text("import a_library_nobody_has\n")
    monkeypatch.setattr(peers, "__path__", [*peers.__path__, str(tmp_path)])

    entries, missing = peers.load()

    assert Missing(peer="unheard_of", why="package a_library_nobody_has is not installed") in missing
    assert any(entry.peer == "pyzmq PUSH/PULL" for entry in entries)


@pytest.mark.parametrize(
    "arguments",
    [
        ["throughput", "--size", "big"],
        ["throughput", "--size", "0"],
        ["throughput", "--payload", "pickle"],
        ["fanout", "--subscribers", ""],
        ["latency", "--transport", "udp"],
        ["discovery", "--case", "trio"],
        ["requests", "--repeat", "0"],
    ],
)
def test_bad_option_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """With one line that says what would do, before anything runs."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)

    assert ended.value.code == 2
    assert f"argument {arguments[1]}" in capsys.readouterr().err
