"""The transition table is total and says nothing impossible."""

from __future__ import annotations

from itertools import product

import pytest

from zfabric.protocol.membership import TRANSITIONS, Input, PeerState, Step, step

JOINS = {Step.JOIN}
LEAVES = {Step.LEAVE}


@pytest.mark.parametrize(("state", "happened"), list(product(PeerState, Input)))
def test_every_input_has_an_answer_in_every_state(state: PeerState, happened: Input) -> None:
    """The table is total: there is no pair of state and input that raises."""
    after, todo = step(state, happened)

    assert isinstance(after, PeerState)
    assert isinstance(todo, Step)


def test_the_table_has_no_other_entries() -> None:
    """Nothing in the table is unreachable by its type."""
    assert set(TRANSITIONS) == set(product(PeerState, Input))


def test_users_hear_of_joining_and_leaving_exactly_when_a_peer_is_up() -> None:
    """JOIN leads into UP and LEAVE out of it, and no other step crosses that line."""
    for (before, _), (after, todo) in TRANSITIONS.items():
        entered = before is not PeerState.UP and after is PeerState.UP
        left = before is PeerState.UP and after is not PeerState.UP
        assert (todo in JOINS) == entered
        assert (todo in LEAVES) == left


def test_a_half_known_peer_is_forgotten_in_silence() -> None:
    """FORGET belongs to peers that users never heard of."""
    for (before, _), (after, todo) in TRANSITIONS.items():
        assert (todo is Step.FORGET) == (before is PeerState.GREETED and after is PeerState.ABSENT)


def test_every_state_can_be_reached_and_left() -> None:
    """No state is a trap."""
    reached, edge = {PeerState.ABSENT}, {PeerState.ABSENT}
    while edge:
        edge = {after for (before, _), (after, _) in TRANSITIONS.items() if before in edge} - reached
        reached |= edge
    assert reached == set(PeerState)
    for state in PeerState:
        assert {after for (before, _), (after, _) in TRANSITIONS.items() if before is state} != {state}


@pytest.mark.parametrize("state", PeerState)
def test_silence_and_goodbye_end_everything(state: PeerState) -> None:
    """After either of them nothing is left of a peer."""
    assert step(state, Input.GOODBYE)[0] is PeerState.ABSENT
    assert step(state, Input.SILENT)[0] is PeerState.ABSENT
