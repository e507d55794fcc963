"""The doctor's checks of addresses and sockets."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing

import ifaddr

from zfabric.cli.checks import Check, Situation, failed, ok, skipped, warned
from zfabric.discovery import Scope, resolve
from zfabric.errors import InterfaceNotFound

__all__ = ["CHECKS", "interfaces", "ipv6", "listening"]


def interfaces(situation: Situation) -> Iterator[Check]:
    """Which addresses are behind `--interface`, and what else is there?"""
    scope, problem = _scope(situation.interface)
    if scope is None:
        yield failed("interface", problem, "name one of these with --interface, or bring it up")
    else:
        yield ok("interface", f"{situation.interface}: {', '.join(scope.addresses)}")
    usable, others = [], []
    for adapter in ifaddr.get_adapters():
        found, _ = _scope(adapter.name)
        if found is None:
            others.append(adapter.name)
        else:
            usable.append(f"{adapter.name} ({', '.join(found.addresses)})")
    without = f"; without a usable address: {', '.join(others)}" if others else ""
    detail = f"usable: {', '.join(usable) or 'none'}{without}"
    yield ok("interfaces", detail) if usable else warned("interfaces", detail, "bring one up, or use loopback")
    lan, _ = _scope("lan")
    if lan is None:
        yield warned("lan", "this machine is on no network", "loopback works; plug in a cable for more")
    else:
        yield ok("lan", f"`--interface lan` means {', '.join(lan.addresses)}")


def listening(situation: Situation) -> Iterator[Check]:
    """Can a node listen on its addresses?"""
    scope, _ = _scope(situation.interface)
    if scope is None:
        yield skipped("tcp", "there is no address to listen on")
        return
    problems = []
    for address in scope.addresses:
        try:
            _listen(address)
        except OSError as error:
            problems.append(f"{address}: {error}")
    if problems:
        yield failed("tcp", "; ".join(problems), "let programs listen on this interface (firewall, container, sandbox)")
    else:
        yield ok("tcp", f"can listen on {', '.join(scope.addresses)}")


def _listen(address: str) -> None:
    info = socket.getaddrinfo(address, 0, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)[0]
    with closing(socket.socket(info[0], info[1], info[2])) as listener:
        listener.bind(info[4])
        listener.listen(1)


def ipv6(_: Situation) -> Iterator[Check]:
    """Does IPv6 work here?"""
    try:
        _listen("::1")
    except OSError as error:
        yield warned("ipv6", f"not here: {error}", "IPv4 is enough, unless your network has only IPv6")
    else:
        yield ok("ipv6", "works on this machine")


def _scope(interface: str) -> tuple[Scope | None, str]:
    try:
        return resolve(interface), ""
    except InterfaceNotFound as error:
        return None, str(error)


CHECKS = (interfaces, listening, ipv6)
