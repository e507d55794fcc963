"""Mechanisms are switched off one at a time, and the simulator must miss each."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from zfabric.testing.simulator import Outcome, Simulation

__all__ = ["Saboteur", "first_broken", "must_be_missed"]

Saboteur = Callable[[pytest.MonkeyPatch], None]


def first_broken(seeds: range) -> Outcome | None:
    """The first outcome in which a rule is violated."""
    return next((outcome for seed in seeds if (outcome := Simulation(seed).run()).violation is not None), None)


def must_be_missed(patch: pytest.MonkeyPatch, saboteur: Saboteur, rules: set[str], seeds: range) -> None:
    """Some seed fails, and the rule that it violates is one that the mechanism is there for."""
    saboteur(patch)

    outcome = first_broken(seeds)

    assert outcome is not None
    assert outcome.rule in rules, outcome.report()
