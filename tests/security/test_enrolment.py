"""Invitations that work once."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from tests.waiting import wait_until
from zfabric import InvalidKey
from zfabric.cli._enrolling import Listener, enrol
from zfabric.cli._exits import Exit, Stop
from zfabric.security import identities
from zfabric.security.enrolment import Done, Enrol, Enrolled, Enrolment, Invitation, Refused, decode, encode
from zfabric.security.identities import Identities, admit, create, new_secret


class Inviter:
    """An inviter that waits in a thread."""

    def __init__(self, directory: Path) -> None:
        create(directory, "plant", "ada")
        self.directory = directory
        mine = Identities(directory, "plant")
        self.listener = Listener(["127.0.0.1"], 0, mine.public, mine.secret)
        self.invitation = Invitation.new(
            "plant", "bob", mine.public.decode(), time.time() + 60, self.listener.endpoints
        )
        self.refused: list[str] = []
        trust = lambda public, signing: admit(directory, "bob", public, signing, ("member",))  # noqa: E731
        self.enrolment = Enrolment(self.invitation, trust)
        self.thread = threading.Thread(target=self.listener.serve, args=(self.enrolment, 20, self.refused.append))

    def trusts(self) -> set[str]:
        """Who is trusted now."""
        return set(Identities(self.directory, "plant").trusted)


@pytest.fixture
def inviter(tmp_path: Path) -> Iterator[Inviter]:
    """Waits for bob."""
    made = Inviter(tmp_path / "ada")
    made.thread.start()
    yield made
    if made.thread.is_alive():
        enrol(made.invitation, *new_secret("plant", "bob")[1:], lambda _: None)
    made.thread.join(30)
    made.listener.close()


def test_a_second_newcomer_is_refused_and_reported(inviter: Inviter) -> None:
    """While the first one still writes down what it was told: only that one is trusted."""
    _, public, signing = new_secret("plant", "bob")
    _, other, other_signing = new_secret("plant", "bob")

    def interrupted(files: dict[str, str]) -> None:
        assert set(files) == {"ada.toml", "bob.toml"}
        with pytest.raises(Stop, match="used already") as stop:
            enrol(inviter.invitation, other, other_signing, lambda _: None)
        assert stop.value.code is Exit.REFUSED

    enrol(inviter.invitation, public, signing, interrupted)
    inviter.thread.join(10)
    assert (inviter.enrolment.public, inviter.refused) == (public, ["the invitation was used already"])
    assert Identities(inviter.directory, "plant").trusted["bob"].public == (public.encode(),)


@pytest.mark.parametrize("word", [b"", b"\xc1", encode(Enrol(b"guessed", "x" * 40, "y" * 40)), encode(Done(b"x" * 16))])
def test_whoever_has_no_token_gets_nothing(inviter: Inviter, word: bytes) -> None:
    """Not even with the inviter's key, which is public."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.linger = 0
        socket.curve_publickey, socket.curve_secretkey = zmq.curve_keypair()
        socket.curve_serverkey = inviter.invitation.key.encode()
        socket.connect(inviter.invitation.endpoints[0])
        socket.send(word)
        assert socket.poll(10_000)
        assert decode(socket.recv()) == Refused("it has no invitation")
    wait_until(lambda: inviter.refused)  # it is told after the answer
    assert (inviter.trusts(), inviter.refused) == ({"ada"}, ["it has no invitation"])


def test_an_impostor_with_another_key_learns_no_token(inviter: Inviter) -> None:
    """The line pins the inviter's key: a connection to anybody else does not come about, and nothing is shown."""
    public, secret = zmq.curve_keypair()
    heard: list[str] = []
    with Listener(["127.0.0.1"], 0, public, secret) as impostor:
        false = identities.Identities(inviter.directory, "plant").public.decode()
        invitation = Invitation.new("plant", "bob", false, time.time() + 60, impostor.endpoints)
        thread = threading.Thread(target=impostor.serve, args=(Enrolment(invitation, lambda *_: {}), 1, heard.append))
        thread.start()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("zfabric.cli._enrolling.ANSWER_MS", 300)
            with pytest.raises(Stop, match="nobody answers"):
                enrol(invitation, "x" * 40, "y" * 40, lambda _: None)
        thread.join(10)
    assert heard == []


def test_the_inviters_side() -> None:
    """The same newcomer again gets the same answer; expired is expired; keys must be keys."""
    trusted: list[tuple[str, str]] = []

    def trust(public: str, signing: str) -> dict[str, str]:
        if public.startswith("!"):
            raise InvalidKey("a public key is 40 characters of Z85")
        trusted.append((public, signing))
        return {"roles.toml": ""}

    invitation = Invitation.new("plant", "bob", "k" * 40, 100, ["tcp://10.0.0.7:7400"])
    enrolment = Enrolment(invitation, trust)
    bob = encode(Enrol(invitation.token, "p" * 40, "s" * 40))
    assert enrolment.answer(encode(Done(invitation.token)), 50) is None
    assert enrolment.done is False
    answer = enrolment.answer(encode(Enrol(invitation.token, "!" * 40, "s" * 40)), 50)
    assert answer is not None
    assert decode(answer) == Refused("a public key is 40 characters of Z85")
    late = Enrolment(invitation, trust).answer(bob, 100)
    assert late is not None
    assert decode(late) == Refused("the invitation has expired")
    assert enrolment.answer(bob, 99) == enrolment.answer(bob, 200) == encode(Enrolled({"roles.toml": ""}))
    assert enrolment.answer(encode(Done(invitation.token)), 200) is None
    assert (enrolment.done, trusted) == (True, [("p" * 40, "s" * 40)])


def test_lines_are_read_back_or_refused() -> None:
    """Whole lines only; what they say cannot leave its limits."""
    invitation = Invitation.new("plant #1", "bob", "k" * 40, 100, ["tcp://10.0.0.7:7400"])
    assert Invitation.parse(invitation.text) == invitation
    for text in ("", "zfo1:a:b:c", invitation.text[:-1], invitation.text.replace("bob", "eve"), "zfo1:" * 4000):
        with pytest.raises(InvalidKey, match="damaged"):
            Invitation.parse(text)
