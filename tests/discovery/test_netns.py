"""mDNS between hosts: network namespaces on one switch, created by the test."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import netns
from tests.discovery.peer import PeerProcess, argv
from tests.netns import Namespace, namespaces
from tests.waiting import SLACK_S, wait_until

ROOT = Path(__file__).parents[2]
PATIENCE_S = 40.0
"A question that was lost is asked again after 1, 2, 4, 8 and 16 seconds."


@pytest.fixture
def hosts() -> Iterator[tuple[Namespace, ...]]:
    """Two hosts on one switch."""
    with namespaces(2) as there:
        yield there


def start(host: Namespace, interface: str = "eth0", way: str = "mdns") -> PeerProcess:
    """Start a peer on a host, and wait until it has started."""
    peer = PeerProcess(host.run(*argv(way, interface), cwd=ROOT))
    wait_until(lambda: peer.id)
    return peer


def endpoints(*addresses: str) -> list[str]:
    """What a peer announces on these addresses."""
    return [f"tcp://[{address}]:7400" if ":" in address else f"tcp://{address}:7400" for address in addresses]


def meet(one: PeerProcess, two: PeerProcess) -> None:
    """Wait until both know each other."""
    try:
        wait_until(lambda: one.endpoints_of(two.id) and two.endpoints_of(one.id), PATIENCE_S)
    except AssertionError as error:
        raise AssertionError(f"{one.lines} and {two.lines} do not know each other") from error


@pytest.mark.parametrize("interface", ["eth0", "lan"])
def test_hosts_find_each_other(hosts: tuple[Namespace, ...], interface: str) -> None:
    """With their IPv4 and IPv6 addresses, and no link-local one."""
    a, b = hosts
    one, two = start(a, interface), start(b, interface)

    meet(one, two)

    assert one.endpoints_of(two.id) == endpoints(b.ipv4, b.ipv6)
    assert two.endpoints_of(one.id) == endpoints(a.ipv4, a.ipv6)
    for peer in (one, two):
        peer.close()
        assert peer.says("ignored") == 0
        assert peer.says("closed") < 1 + SLACK_S


def test_one_address_is_enough(hosts: tuple[Namespace, ...]) -> None:
    """Given by itself, only it is announced."""
    a, b = hosts
    one, two = start(a, a.ipv4), start(b)

    meet(one, two)

    assert two.endpoints_of(one.id) == endpoints(a.ipv4)


def test_ipv6_alone_works(hosts: tuple[Namespace, ...]) -> None:
    """A network without IPv4."""
    for host in hosts:
        host.ip("addr", "flush", "dev", "eth0", "scope", "global")
        host.ip("addr", "add", f"{host.ipv6}/64", "dev", "eth0", "nodad")
    one, two = (start(host) for host in hosts)

    meet(one, two)

    assert one.endpoints_of(two.id) == endpoints(hosts[1].ipv6)


def test_link_local_addresses_work_with_the_readers_zone(hosts: tuple[Namespace, ...]) -> None:
    """A network without any configuration; the hosts call their interfaces differently."""
    a, b = hosts
    b.disconnect()
    b.ip("link", "set", "eth0", "name", "lan7")
    b.interface = "lan7"
    b.ip("link", "set", "lan7", "up")
    for host in hosts:
        host.ip("addr", "flush", "dev", host.interface, "scope", "global")
    wait_until(lambda: all("fe80" in host.ip("-6", "addr", "show", "-tentative") for host in hosts))
    one, two = start(a, "eth0"), start(b, "lan7")

    meet(one, two)

    (heard_by_one,) = one.endpoints_of(two.id)
    (heard_by_two,) = two.endpoints_of(one.id)
    assert heard_by_one.startswith("tcp://[fe80::")
    assert "%eth0]" in heard_by_one
    assert "%lan7]" in heard_by_two


def test_a_new_address_is_announced(hosts: tuple[Namespace, ...]) -> None:
    """DHCP gives another address: both ends go on without a restart."""
    a, b = hosts
    one, two = start(a), start(b)
    meet(one, two)

    a.ip("addr", "del", f"{a.ipv4}/24", "dev", "eth0")
    a.ip("addr", "add", "10.77.0.99/24", "dev", "eth0")

    wait_until(lambda: two.endpoints_of(one.id) == endpoints("10.77.0.99", a.ipv6), PATIENCE_S)
    three = start(a)
    wait_until(lambda: two.endpoints_of(three.id) == endpoints("10.77.0.99", a.ipv6))
    four = start(b)
    wait_until(lambda: one.endpoints_of(four.id) and four.endpoints_of(one.id))


def test_a_network_that_was_away_works_again(hosts: tuple[Namespace, ...]) -> None:
    """The interface was taken out and put back at once, with the same addresses: multicast groups went with it."""
    a, b = hosts
    one = start(a)
    a.remove_interface()
    a.add_interface()
    wait_until(lambda: one.says("addresses") == [a.ipv4, a.ipv6])

    two = start(b)

    meet(one, two)


@pytest.mark.parametrize("interface", ["loopback", "other0"])
def test_an_interface_hears_only_itself(hosts: tuple[Namespace, ...], interface: str) -> None:
    """Others of the same host have the port open on another interface: what comes in there is not for us."""
    a, b = hosts
    a.ip("link", "add", "other0", "type", "veth", "peer", "name", "other1")
    a.ip("addr", "add", "10.88.0.1/24", "dev", "other0")
    a.ip("link", "set", "other0", "up")
    a.ip("link", "set", "other1", "up")
    private = start(a, interface)
    neighbour, outside = start(a), start(b)
    meet(neighbour, outside)

    private.close()

    assert not private.endpoints_of(neighbour.id)
    assert not private.endpoints_of(outside.id)
    assert not neighbour.endpoints_of(private.id)
    assert not outside.endpoints_of(private.id)
    assert private.says("ignored") == 0


def test_loopback_does_not_answer_the_network(hosts: tuple[Namespace, ...]) -> None:
    """Not even a question that is sent to the host's address directly; a node of that interface does."""
    a, b = hosts
    start(a, "loopback")

    assert ask(b, a.ipv4) == "nobody\n"

    start(a, "eth0")

    wait_until(lambda: ask(b, a.ipv4) == "somebody\n")


def ask(host: Namespace, address: str) -> str:
    """Ask for nodes by unicast, each time with another id: repeated packets are not answered."""
    code = f"""
import os, socket
from zeroconf import DNSOutgoing, DNSQuestion
query = DNSOutgoing(0, multicast=False, id_=os.getpid() % 65536)
query.add_question(DNSQuestion("_zfabric._tcp.local.", 12, 1))
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
    asking.settimeout(0.5)
    asking.sendto(query.packets()[0], ({address!r}, 5353))
    try:
        answer = asking.recv(9000)
    except TimeoutError:
        answer = b""
print("somebody" if b"_zfabric" in answer else "nobody")
"""
    answer, _ = host.run(sys.executable, "-c", code).communicate(timeout=30)
    return str(answer)


def test_a_port_that_somebody_will_not_share_is_an_os_error(hosts: tuple[Namespace, ...]) -> None:
    """Some programs take 5353 for themselves: no socket is left open, and mDNS works again when they end."""
    code = """
import asyncio, os, socket
from zfabric.config import Config
from zfabric.discovery import Announcement, MdnsDiscovery, resolve
async def start():
    discovery = MdnsDiscovery(resolve("loopback"), Config())
    await discovery.start(Announcement(os.urandom(16), "test", ("tcp://127.0.0.1:1",)), print)
    await discovery.close()
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as selfish:
    selfish.bind(("0.0.0.0", 5353))
    try:
        asyncio.run(start())
    except OSError as error:
        print(error.strerror)
asyncio.run(start())
print("works")
"""
    process = hosts[0].run(sys.executable, "-W", "error", "-c", code, cwd=ROOT)
    output, _ = process.communicate(timeout=30)

    assert output == "Address already in use\nworks\n"
    assert process.returncode == 0


@pytest.mark.parametrize(("environment", "outcome"), [("", pytest.skip.Exception), ("1", pytest.fail.Exception)])
def test_missing_namespaces_are_a_failure_in_ci(
    monkeypatch: pytest.MonkeyPatch, environment: str, outcome: type[BaseException]
) -> None:
    """Elsewhere these tests are skipped; either way the reason is told."""
    monkeypatch.setenv("CI", environment)
    monkeypatch.setattr(netns, "_missing", lambda: "needs root")

    with pytest.raises(outcome, match="needs root"), namespaces(2):
        raise AssertionError("unreachable")
