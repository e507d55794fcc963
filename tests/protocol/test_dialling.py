"""Whom a node dials when thousands were announced."""

from __future__ import annotations

from math import inf

import pytest

from zfabric import Config
from zfabric.protocol.dialling import PLAN_MAX, TRIES_MAX, Dialler
from zfabric.protocol.effects import Dial, Effects
from zfabric.wire.records import Hello, Identity

CONFIG = Config(dials_per_s_max=20, dials_pending_max=8, handshake_timeout_s=0.5, discovery_records_max=2000)
IDENTITY = Identity(bytes(16), "plant", "node", "host", 1, (), ())


class Bench:
    """A dialler and what it does."""

    def __init__(self) -> None:
        self.effects = Effects(bytes(16))
        self.dialled: list[str] = []
        self.asked: list[str] = []
        self.now = 0.0
        self.dialler = Dialler(CONFIG, self.effects, lambda _: Hello(None, IDENTITY), lambda _: None, self.usable)

    def announce(self, number: int, *addresses: str, keep_s: float = 10.0) -> None:
        """Somebody says to be there."""
        self.dialler.seek_peer(number.to_bytes(16), addresses, self.now, keep_s)

    def usable(self, endpoint: str) -> bool:
        """All are, and it is remembered who was asked for."""
        self.asked.append(endpoint)
        return True

    def run(self, until: float) -> None:
        """Let time pass, as a driver does."""
        while (due := max(self.now, self.dialler.timer())) <= until:
            self.now = due
            self.dialler.handle_timer(self.now)
            assert self.dialler.timer() > self.now, "it would be asked again and again"
            self.dialled += [action.endpoint for action in self.effects.take() if isinstance(action, Dial)]
        self.now = until


def test_one_address_of_many_is_dialled_once_and_looked_at_in_slices() -> None:
    """Whoever announces thousands of nodes at one address buys neither connections nor much of a turn."""
    bench = Bench()
    for number in range(2000):
        bench.announce(number, "tcp://10.0.0.1:1")
    bench.run(0.0)
    assert (bench.dialled, len(bench.dialler._waiting)) == (["tcp://10.0.0.1:1"], 2000 - TRIES_MAX)
    bench.announce(2000, "tcp://10.0.0.2:1")
    bench.run(0.5)
    assert "tcp://10.0.0.2:1" in bench.dialled, "it has the place of one that failed"
    assert len(bench.dialler._targets) == 2000
    bench.run(12.0)
    assert bench.dialler.timer() == inf
    assert len(bench.dialled) <= 12 / CONFIG.handshake_timeout_s + 1


def test_a_newcomer_is_dialled_soon_while_thousands_are_forged_at_one_address() -> None:
    """Whenever it comes: it has the place of one that failed, and nothing grows."""
    bench = Bench()
    for number in range(10_000):
        bench.announce(number, "tcp://10.0.0.1:1")
        bench.run(bench.now + 0.00125)
        if number % 1000 == 999:
            newcomer = f"tcp://10.0.0.2:{number}"
            bench.announce(number + 10_000, newcomer)
            bench.run(bench.now + 0.5)
            assert newcomer in bench.dialled
        assert len(bench.dialler._targets) <= 2000
        assert len(bench.dialler._plan) <= PLAN_MAX * 2000


def test_those_that_failed_make_room_and_those_that_wait_do_not() -> None:
    """Of thousands at as many addresses none is pushed out untried; a newcomer need not wait for all of them."""
    bench = Bench()
    for number in range(2000):
        bench.announce(number, f"tcp://10.0.0.1:{number}")
    bench.announce(2000, "tcp://10.0.0.2:1")
    assert 2000 not in numbers(bench)
    bench.run(0.6)
    tried = {int(endpoint.rpartition(":")[2]) for endpoint in bench.dialled}
    bench.announce(2000, "tcp://10.0.0.2:1")
    (gone,) = set(range(2001)) - numbers(bench)
    assert gone in tried
    bench.run(2.0)
    assert "tcp://10.0.0.2:1" in bench.dialled


def test_a_peer_that_was_here_keeps_its_place() -> None:
    """It is sought for `rejoin_s`, whoever is announced meanwhile."""
    bench = Bench()
    bench.announce(1, "tcp://10.0.0.2:1", keep_s=CONFIG.rejoin_s)
    bench.run(5.0)
    for number in range(2, 5000):
        bench.announce(number, "tcp://10.0.0.1:1")
        bench.run(bench.now + 0.001)
    assert 1 in numbers(bench)
    assert len(bench.dialler._targets) == 2000


def numbers(bench: Bench) -> set[int]:
    """Who is sought."""
    return {int.from_bytes(key) for key in bench.dialler._targets if isinstance(key, bytes)}


def test_everybody_has_a_turn_at_the_allowed_rate() -> None:
    """Of many announced nodes each is dialled once before any is dialled again, and given up in its time."""
    bench = Bench()
    for number in range(100):
        bench.announce(number, f"tcp://10.0.0.{number}:1")
    bench.run(8.0)
    assert sorted(bench.dialled[:100]) == sorted({f"tcp://10.0.0.{number}:1" for number in range(100)})
    bench.run(11.0)
    assert bench.dialler.timer() == inf
    dialled = len(bench.dialled)
    bench.announce(1, "tcp://10.0.0.1:1")
    bench.run(11.1)
    assert bench.dialled[dialled:] == ["tcp://10.0.0.1:1"]


@pytest.mark.parametrize("again", [False, True])
def test_who_is_forgotten_while_waiting_is_not_dialled(again: bool) -> None:
    """Nor is anything left of them; who is announced again begins anew."""
    bench = Bench()
    for number in range(50):
        bench.announce(number, f"tcp://10.0.0.{number}:1")
    for number in range(50):
        bench.dialler.forget_peer(number.to_bytes(16))
    if again:
        bench.announce(7, "tcp://10.0.0.7:1")
    bench.run(1.0)
    assert bench.dialled[:1] == ["tcp://10.0.0.7:1"][:again]
    bench.run(12.0)
    assert bench.dialler.timer() == inf


def test_one_address_on_this_host_is_tried_before_the_others() -> None:
    """All of them lead to the same node: one connection, not one for each; if nobody answers, all are tried."""
    bench = Bench()
    addresses = ("ipc:///run/1.in", "tcp://127.0.0.1:1", "tcp://[::1]:1")
    bench.announce(1, *addresses)
    bench.announce(2, "tcp://127.0.0.1:2", "tcp://[::1]:2")
    bench.announce(3, "tcp://10.0.0.3:1", "tcp://10.0.0.4:1")
    bench.run(0.1)
    assert sorted(bench.dialled) == ["ipc:///run/1.in", "tcp://10.0.0.3:1", "tcp://10.0.0.4:1", "tcp://127.0.0.1:2"]
    bench.run(2.0)
    assert set(addresses) < set(bench.dialled)


def test_who_is_told_of_again_and_again_is_looked_at_once() -> None:
    """In a mesh each peer tells of all others; that somebody knows fewer of the addresses changes nothing."""
    bench = Bench()
    both = "ipc:///run/1.in", "tcp://127.0.0.1:1"
    for _ in range(100):
        bench.announce(1, *both)
    assert bench.asked == list(both)
    bench.announce(1, both[1])
    bench.run(0.1)
    assert bench.dialled == [both[0]]


def test_who_came_by_itself_is_not_dialled() -> None:
    """Unless that has begun: the other might rely on that connection."""
    bench = Bench()
    for number in range(20):
        bench.announce(number, f"tcp://10.0.0.{number}:1")
    bench.run(0.0)
    begun = {number for number in range(20) if f"tcp://10.0.0.{number}:1" in bench.dialled}
    for number in range(20):
        bench.dialler.need_not(number.to_bytes(16))
    assert 0 < len(begun) < 20
    assert numbers(bench) == begun
