"""Every parser that is fuzzed by command is fuzzed a little in each run, too."""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.__main__ import mutate, own_loop
from tests.fuzz.targets import TARGETS, Target


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_are_no_trouble(name: str) -> None:
    """Golden inputs, and some thousand mutations of them, break no parser."""
    for seed in TARGETS[name].seeds:
        TARGETS[name].run(seed)
    assert own_loop(name, TARGETS[name], 300 if name in ("capture", "identities") else 1500, seed=1) == 0


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=300))
def test_any_bytes_give_a_value_or_a_documented_error(name: str, data: bytes) -> None:
    """Hypothesis finds nothing either."""
    TARGETS[name].run(data)


def test_the_loop_finds_what_breaks() -> None:
    """A parser that fails on a rare input is reported."""

    def fragile(data: bytes) -> None:
        assert b"\xdd\xff" not in data

    assert own_loop("fragile", Target(fragile, (b"abc",)), 10_000, seed=1) == 1
    assert mutate(b"abc", random.Random(1), ()) != b"abc"
