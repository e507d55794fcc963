"""What an interface specification resolves to, and when a change of addresses is told."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from zfabric.config import Config
from zfabric.discovery import AddressWatch, Scope, interfaces, resolve
from zfabric.discovery.interfaces import multicast_interfaces
from zfabric.errors import InterfaceNotFound

UP = 0x41
POINT_TO_POINT = 0x10
CONFIG = Config(address_poll_s=5.0, address_settle_s=1.0)


def interface(name: str, *addresses: str, flags: int = UP) -> interfaces._Interface:
    """A made-up interface."""
    return interfaces._Interface(name, name, sum(map(ord, name)), flags, addresses)


LO = interface("lo", "127.0.0.1", "::1")
ETHERNET = interface("eth0", "192.168.1.5", "2001:db8::5", "fe80::5%eth0")
WIFI = interface("wlan0", "192.168.7.9")
DOCKER = interface("docker0", "172.17.0.1")
TUNNEL = interface("ppp0", "10.8.0.2", flags=UP | POINT_TO_POINT)
IPV6_ONLY = interface("eth1", "fe80::6%eth1")
UNPLUGGED = interface("eth2", "192.168.2.1", flags=0x1)


def here(monkeypatch: pytest.MonkeyPatch, *there: interfaces._Interface) -> None:
    """Pretend that this machine has these interfaces."""
    monkeypatch.setattr(interfaces, "_interfaces", lambda: list(there))


def test_loopback_is_127_0_0_1_on_this_machine() -> None:
    """The default scope works here and stays on this machine."""
    scope = resolve("loopback")

    assert scope.addresses[0] == "127.0.0.1"
    assert set(scope.addresses) <= {"127.0.0.1", "::1"}
    assert scope.loopback
    assert scope.spec == "loopback"


def test_the_loopback_interface_by_name() -> None:
    """`lo` is found among the real interfaces, with its flags."""
    assert resolve("lo").loopback
    assert "127.0.0.1" in resolve("lo").addresses


def test_any_address_of_127_8_works() -> None:
    """Linux answers on all of 127.0.0.0/8 although the interface lists one."""
    assert resolve("127.0.0.2") == Scope("127.0.0.2", ("127.0.0.2",), True)


@pytest.mark.parametrize("spec", ["eth7", "192.0.2.77", "fe80::77%lo", "2001:db8::77", "", "127.0.0.1:80", "%"])
def test_unknown_interfaces_name_those_that_exist(spec: str) -> None:
    """The error lists what the user may write instead."""
    with pytest.raises(InterfaceNotFound) as caught:
        resolve(spec)

    assert caught.value.interface == spec
    assert {"loopback", "lan", "lo"} <= set(caught.value.known)


def test_lan_takes_every_real_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loopback, bridges of containers, tunnels and unplugged cables stay out; IPv4 and IPv6 come in."""
    here(monkeypatch, LO, ETHERNET, WIFI, DOCKER, TUNNEL, UNPLUGGED)

    scope = resolve("lan")

    assert scope.addresses == ("192.168.1.5", "2001:db8::5", "192.168.7.9")
    assert not scope.loopback


def test_lan_falls_back_to_tunnels_and_bridges(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that has nothing better uses what it has."""
    here(monkeypatch, LO, DOCKER, TUNNEL)

    assert resolve("lan").addresses == ("172.17.0.1", "10.8.0.2")


def test_lan_without_network_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """No silent retreat to loopback."""
    here(monkeypatch, LO, UNPLUGGED)

    with pytest.raises(InterfaceNotFound):
        resolve("lan")


def test_link_local_addresses_serve_where_there_is_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """They carry their zone, and an interface with a routable address does not offer them."""
    here(monkeypatch, LO, ETHERNET, IPV6_ONLY)

    assert resolve("lan").addresses == ("192.168.1.5", "2001:db8::5", "fe80::6%eth1")
    assert resolve("eth1").addresses == ("fe80::6%eth1",)


@pytest.mark.parametrize("spec", ["fe80::5%eth0", "fe80::5", f"fe80::5%{ETHERNET.index}", "FE80:0::5%eth0"])
def test_a_link_local_address_finds_its_zone(monkeypatch: pytest.MonkeyPatch, spec: str) -> None:
    """The zone may be a name, an index or missing."""
    here(monkeypatch, LO, ETHERNET)

    assert resolve(spec).addresses == ("fe80::5%eth0",)


def test_an_address_on_lo_that_others_reach_is_not_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some routers put a routable address on lo: that scope leaves the machine."""
    here(monkeypatch, interface("lo", "127.0.0.1", "203.0.113.1"))

    assert not resolve("lo").loopback
    assert resolve("loopback").addresses == ("127.0.0.1",)


def test_aliases_belong_to_their_interface(monkeypatch: pytest.MonkeyPatch) -> None:
    """`eth0:1` is a second address of eth0."""
    here(monkeypatch, ETHERNET, interface("eth0:1", "192.168.1.6"))

    assert resolve("eth0").addresses == ("192.168.1.5", "2001:db8::5", "192.168.1.6")
    assert resolve("eth0:1").addresses == ("192.168.1.6",)


def test_ipv6_addresses_that_cannot_be_bound_yet_are_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Tentative, duplicate, deprecated and temporary ones, as /proc/net/if_inet6 tells."""
    table = tmp_path / "if_inet6"
    table.write_text(
        "20010db8000000000000000000000001 02 40 00 80     eth0\n"
        "20010db8000000000000000000000002 02 40 00 c0     eth0\n"
        "20010db8000000000000000000000003 02 40 00 01     eth0\n"
        "fe800000000000000000000000000004 02 40 20 88     eth0\n"
    )
    monkeypatch.setattr(interfaces, "_IF_INET6", table)

    assert interfaces._unusable_ipv6() == {("2001:db8::2", 2), ("2001:db8::3", 2), ("fe80::4%eth0", 2)}

    table.unlink()

    assert interfaces._unusable_ipv6() == set()


def test_multicast_uses_one_address_per_interface_and_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two addresses of one interface would send every packet twice; `::1` does not work at all."""
    twice = interface("eth0", "192.168.1.5", "192.168.1.6", "2001:db8::5", "2001:db8::6")
    here(monkeypatch, LO, twice, IPV6_ONLY)

    addresses = (*LO.addresses, *twice.addresses, *IPV6_ONLY.addresses)

    assert multicast_interfaces(addresses) == ["127.0.0.1", "192.168.1.5", "2001:db8::5", IPV6_ONLY.index]
    assert multicast_interfaces(("::1",)) == []


class Network:
    """A resolver whose answer the test sets, and the changes that a watch told."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = addresses
        self.interfaces = frozenset({2})
        self.told: list[tuple[str, ...]] = []
        self.watch = AddressWatch(self.resolve("lan"), CONFIG, self.changed, resolver=self.resolve)

    def resolve(self, spec: str) -> Scope:
        """What `resolve` would say."""
        if not self.addresses:
            raise InterfaceNotFound(spec, ())
        return Scope(spec, self.addresses, False, self.interfaces)

    def changed(self, scope: Scope) -> None:
        """Remember what was told."""
        self.told.append(scope.addresses)


def test_a_change_is_told_once_it_has_settled() -> None:
    """The watch looks again when the settling time is over, not a whole period later."""
    network = Network("10.0.0.1")
    assert network.watch.check(0.0) == 5.0
    network.addresses = ("10.0.0.2",)

    assert network.watch.check(5.0) == 1.0
    assert network.told == []
    assert network.watch.check(6.0) == 5.0
    assert network.told == [("10.0.0.2",)]
    assert network.watch.check(11.0) == 5.0
    assert network.told == [("10.0.0.2",)]


def test_a_flapping_network_is_told_when_it_stops() -> None:
    """Each further change starts the settling time anew."""
    network = Network("10.0.0.1")
    for second in range(5):
        network.addresses = (f"10.0.0.{second + 2}",)
        assert network.watch.check(second * 0.75) == 1.0
    assert network.told == []

    assert network.watch.check(4.0) == 5.0

    assert network.told == [("10.0.0.6",)]


def test_an_address_that_comes_and_goes_is_not_told() -> None:
    """Nothing of ours was touched, so nothing is to do."""
    network = Network("10.0.0.1")
    network.addresses = ("10.0.0.1", "10.9.9.9")
    network.watch.check(0.0)
    network.addresses = ("10.0.0.1",)

    assert network.watch.check(0.5) == 5.0
    assert network.watch.check(9.0) == 5.0
    assert network.told == []


def test_a_network_that_was_away_and_came_back_is_told() -> None:
    """Its old address is the same, but the kernel forgot our multicast groups."""
    network = Network("10.0.0.1")
    network.addresses = ()
    assert network.watch.check(0.0) == 5.0
    assert network.watch.check(5.0) == 5.0
    assert network.told == []
    network.addresses = ("10.0.0.1",)

    assert network.watch.check(10.0) == 1.0
    assert network.watch.check(11.0) == 5.0
    assert network.told == [("10.0.0.1",)]
    assert network.watch.check(16.0) == 5.0
    assert network.told == [("10.0.0.1",)]


def test_a_network_that_was_away_between_two_looks_is_told() -> None:
    """Address and name are the same, but the interface is another one."""
    network = Network("10.0.0.1")
    network.interfaces = frozenset({3})

    assert network.watch.check(0.0) == 1.0
    assert network.watch.check(1.0) == 5.0
    assert network.watch.check(6.0) == 5.0
    assert network.told == [("10.0.0.1",)]


def test_a_failing_callback_does_not_end_the_watch(caplog: pytest.LogCaptureFixture) -> None:
    """It is logged, and the next change is told again."""
    told: list[Scope] = []

    def changed(scope: Scope) -> None:
        told.append(scope)
        raise ZeroDivisionError

    watch = AddressWatch(
        Scope("lan", ("10.0.0.1",), False), CONFIG, changed, resolver=lambda spec: Scope(spec, ("10.0.0.2",), False)
    )
    watch.check(0.0)
    with caplog.at_level(logging.ERROR, "zfabric.discovery"):
        watch.check(1.0)

    assert [scope.addresses for scope in told] == [("10.0.0.2",)]
    assert "10.0.0.2" in caplog.text


async def test_run_sleeps_as_long_as_check_asks() -> None:
    """The loop around `check` uses the clock and the sleep that it was given."""
    network = Network("10.0.0.1")
    now = 0.0
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds
        pauses.append(seconds)
        network.addresses = ("10.0.0.2",)
        if network.told:
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await network.watch.run(clock=lambda: now, sleep=sleep)

    assert pauses == [5.0, 1.0, 5.0]
