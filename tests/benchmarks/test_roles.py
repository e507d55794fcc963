"""The harness runs a process for each role, and none of them can hang it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from benchmarks.harness import TIME_IS_OVER, measure, run_cell
from benchmarks.model import Cell, Entry, Link, Run, Sample


@pytest.mark.slow
def test_cell_that_hung_is_not_run_again() -> None:
    """One hanging peer costs its time once, not once a repetition."""
    entry = Entry(workloads=(), peer="sleepy", roles={"a": bring_name})
    (samples,) = measure([Cell(entry=entry, run=Run(timeout_s=0.0), processes=("a",))], 3)

    assert "did not finish in time" in samples[0].failure
    assert [sample.failure for sample in samples[1:]] == ["not run again, because it hung"] * 2


def test_cells_after_the_deadline_are_named_as_not_run() -> None:
    """A report's time bounds its parts, too."""
    cell = Cell(entry=Entry(workloads=(), peer="late", roles={}), run=Run(), processes=())

    assert [sample.failure for sample in measure([cell], 2, deadline=0.0)[0]] == [TIME_IS_OVER] * 2


@contextmanager
def broken_server(run: Run) -> Iterator[str]:
    """A server that cannot start."""
    if run.directory:
        raise FileNotFoundError("no such program: broker")
    yield ""


def test_server_that_does_not_start_is_a_failure() -> None:
    """Whatever it raises; the other peers are still measured."""
    entry = Entry(workloads=(), peer="brokered", roles={}, server=broken_server)

    assert "no such program" in run_cell(Cell(entry=entry, run=Run(), processes=())).failure


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
    entry = Entry(workloads=("test",), peer="test", roles=by_name)
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
