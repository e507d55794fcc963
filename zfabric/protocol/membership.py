"""How a peer comes and goes, as one transition table.

    ABSENT --HELLO--> GREETED --WELCOME or any traffic--> UP
    ABSENT --WELCOME (the answer to our own HELLO)------> UP
    UP --GOODBYE, SILENT, GONE--> ABSENT

Only this file says which state follows which; `peers.py` carries out what it says.
"""

from __future__ import annotations

from enum import Enum, auto

__all__ = ["TRANSITIONS", "Input", "PeerState", "Step", "step"]


class PeerState(Enum):
    """Where a peer stands."""

    ABSENT = auto()
    "Unknown, or gone."
    GREETED = auto()
    "It said HELLO and was sent WELCOME; nothing proves yet that it heard us."
    UP = auto()
    "Both sides have heard each other."


class Input(Enum):
    """What can happen to a peer."""

    HELLO = auto()
    WELCOME = auto()
    TRAFFIC = auto()
    "Any other record, on a route that is known to be the peer's."
    STRAY = auto()
    "Any other record, on a route that has not said HELLO."
    REROUTED = auto()
    "What was last said to it may have been lost with a connection: another one is used from now on."
    GOODBYE = auto()
    SILENT = auto()
    "Nothing was heard for Config.peer_timeout_s."
    GONE = auto()
    "Its connections ended, and nobody listens at its addresses any more."
    REVOKED = auto()
    "Its identity is not trusted any more."


class Step(Enum):
    """What to do on a transition."""

    NOTHING = auto()
    GREET = auto()
    "Remember it, answer WELCOME."
    JOIN = auto()
    "Tell the user, exchange interests."
    RESYNC = auto()
    "It reconnected: exchange interests again."
    ASK_HELLO = auto()
    "Answer UNKNOWN on that route."
    LEAVE = auto()
    "Forget it, tell the user."
    FORGET = auto()
    "Forget it; the user never knew."


_A, _G, _U = PeerState.ABSENT, PeerState.GREETED, PeerState.UP

TRANSITIONS: dict[tuple[PeerState, Input], tuple[PeerState, Step]] = {
    (_A, Input.HELLO): (_G, Step.GREET),
    (_A, Input.WELCOME): (_U, Step.JOIN),
    (_A, Input.TRAFFIC): (_A, Step.ASK_HELLO),
    (_A, Input.STRAY): (_A, Step.ASK_HELLO),
    (_A, Input.REROUTED): (_A, Step.NOTHING),
    (_A, Input.GOODBYE): (_A, Step.NOTHING),
    (_A, Input.SILENT): (_A, Step.NOTHING),
    (_A, Input.GONE): (_A, Step.NOTHING),
    (_A, Input.REVOKED): (_A, Step.NOTHING),
    (_G, Input.HELLO): (_G, Step.GREET),
    (_G, Input.WELCOME): (_U, Step.JOIN),
    (_G, Input.TRAFFIC): (_U, Step.JOIN),
    (_G, Input.STRAY): (_G, Step.ASK_HELLO),
    (_G, Input.REROUTED): (_G, Step.NOTHING),
    (_G, Input.GOODBYE): (_A, Step.FORGET),
    (_G, Input.SILENT): (_A, Step.FORGET),
    (_G, Input.GONE): (_A, Step.FORGET),
    (_G, Input.REVOKED): (_A, Step.FORGET),
    (_U, Input.HELLO): (_U, Step.RESYNC),
    (_U, Input.WELCOME): (_U, Step.RESYNC),
    (_U, Input.TRAFFIC): (_U, Step.NOTHING),
    (_U, Input.STRAY): (_U, Step.ASK_HELLO),
    (_U, Input.REROUTED): (_U, Step.RESYNC),
    (_U, Input.GOODBYE): (_A, Step.LEAVE),
    (_U, Input.SILENT): (_A, Step.LEAVE),
    (_U, Input.GONE): (_A, Step.LEAVE),
    (_U, Input.REVOKED): (_A, Step.LEAVE),
}


def step(state: PeerState, happened: Input) -> tuple[PeerState, Step]:
    """The next state, and what to do."""
    return TRANSITIONS[state, happened]
