"""Thousands of fabrics under faults, each drawn from a seed; every one must keep every promise."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from zfabric.testing.sim_truth import RULES
from zfabric.testing.simulate import main, outcomes
from zfabric.testing.simulator import Outcome, simulate

ROOT = Path(__file__).parents[2]
SEEDS = 2000
FAULTS = {
    *("partition", "clog", "reset", "crash", "close", "pause", "clock", "weather"),
    *("stick", "resubscribe", "reopen", "repull"),
}


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_promise_holds_under_every_fault() -> None:
    """No rule breaks in 2,000 simulations, in which every kind of fault and a lot of traffic happen."""
    totals: Counter[str] = Counter()
    broken: list[Outcome] = []

    for outcome in outcomes(range(SEEDS), processes=2):
        totals.update(outcome.faults)
        totals.update(delivered=outcome.delivered, announced=outcome.announced, confirmed=outcome.confirmed)
        totals.update(lost_batches=outcome.lost_batches)
        totals.update(jobs_done=outcome.jobs_done, jobs_dead=outcome.jobs_dead, acks_refused=outcome.acks_refused)
        totals.update(jobs_redelivered=outcome.jobs_redelivered)
        if outcome.violation is not None:
            broken.append(outcome)

    assert not broken, "\n\n".join(outcome.report() for outcome in broken[:3])
    assert {fault: totals[fault] for fault in FAULTS if totals[fault] < SEEDS // 10} == {}
    assert totals["delivered"] > 50 * SEEDS
    assert totals["announced"] > SEEDS
    assert totals["confirmed"] > SEEDS
    assert totals["lost_batches"] > SEEDS
    assert totals["jobs_done"] > 50 * SEEDS
    assert totals["jobs_redelivered"] > 10 * SEEDS
    assert totals["jobs_dead"] > SEEDS
    assert totals["acks_refused"] > SEEDS // 2


@pytest.mark.parametrize("seed", range(3))
def test_a_seed_is_a_whole_history(seed: int) -> None:
    """The same seed gives the same simulation, event by event, with and without a trace."""
    first, again, traced = simulate(seed), simulate(seed), simulate(seed, trace=True)

    assert first.digest == again.digest == traced.digest
    assert first.steps == again.steps
    assert not first.trace
    assert traced.trace


@pytest.mark.slow
def test_a_seed_means_the_same_in_every_process() -> None:
    """The order of hashes, which differs from process to process, changes nothing."""
    script = "from zfabric.testing.simulator import simulate; print(*(simulate(seed).digest for seed in range(20)))"

    printed = {
        subprocess.run(
            [sys.executable, "-c", script],
            cwd=ROOT,
            env={"PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2", "3")
    }

    assert len(printed) == 1


def test_the_command_runs_seeds(capsys: pytest.CaptureFixture[str]) -> None:
    """`--seeds` runs that many, and `--verbose` says a line about each."""
    assert main(["--seeds", "4", "--start", "7", "--verbose"]) == 0

    printed = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in printed[:4]] == ["seed 7", "seed 8", "seed 9", "seed 10"]
    assert printed[4].startswith("4 seeds in ")


def test_the_command_replays_one_seed(capsys: pytest.CaptureFixture[str]) -> None:
    """`--seed` shows what happened, from the first node's start to the verdict."""
    assert main(["--seed", "1"]) == 0

    printed = capsys.readouterr().out
    assert " boot " in printed
    assert printed.endswith("seed 1: all rules hold\n")


def test_the_command_refuses_nonsense(capsys: pytest.CaptureFixture[str]) -> None:
    """Bad options exit with 2 and say why."""
    with pytest.raises(SystemExit) as refused:
        main(["--seeds", "0"])

    assert refused.value.code == 2
    assert "at least 1" in capsys.readouterr().err


def test_every_rule_has_its_exit_code() -> None:
    """Exit codes tell rules apart, and from success and bad options."""
    codes = [code for code, _ in RULES.values()]

    assert len(set(codes)) == len(codes)
    assert not {0, 1, 2} & set(codes)
