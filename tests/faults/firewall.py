"""Faults inside a network namespace: packets dropped or refused by nftables, bandwidth cut by tbf."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.netns import Namespace, namespaces

__all__ = ["Firewall", "hosts_with_firewalls"]

_TABLE = "table inet faults"


class Firewall:
    """One host's packet filter."""

    def __init__(self, host: Namespace) -> None:
        self._host = host
        self.clear()

    def clear(self) -> None:
        """Let everything through."""
        self._nft(f"{_TABLE}; delete {_TABLE}; add {_TABLE}", *self._chains())

    def drop_from(self, *addresses: str) -> None:
        """What these hosts send does not arrive."""
        self._nft(*(f"add rule inet faults in ip saddr {address} drop" for address in addresses))

    def drop_to(self, *addresses: str) -> None:
        """What goes to these hosts does not leave."""
        self._nft(*(f"add rule inet faults out ip daddr {address} drop" for address in addresses))

    def cut(self, *addresses: str) -> None:
        """Nothing passes between here and these hosts, in either direction."""
        self.drop_from(*addresses)
        self.drop_to(*addresses)

    def lose(self, percent: int) -> None:
        """Drop packets at random, both ways."""
        for chain in ("in", "out"):
            self._nft(f"add rule inet faults {chain} oif != lo numgen random mod 100 < {percent} drop")

    def reset_from(self, address: str) -> None:
        """Answer every segment of a host by RST."""
        self._nft(f"add rule inet faults in ip saddr {address} meta l4proto tcp reject with tcp reset")

    def limit(self, rate: str) -> None:
        """Cut the bandwidth of what leaves, e.g. to `1mbit`; packets queue for half a second at most."""
        _run("tc", "-n", self._host.name, "qdisc", "replace", "dev", self._host.interface, "root", "tbf", "rate", rate,
             "burst", "8kb", "latency", "500ms")  # fmt: skip

    def _chains(self) -> list[str]:
        return [
            f"add chain inet faults {name} {{ type filter hook {hook} priority 0 ; }}"
            for name, hook in (("in", "input"), ("out", "output"))
        ]

    def _nft(self, *rules: str) -> None:
        _run("ip", "netns", "exec", self._host.name, "nft", "; ".join(rules))


@contextmanager
def hosts_with_firewalls(count: int) -> Iterator[list[tuple[Namespace, Firewall]]]:
    """Hosts on one switch. Without nftables the test is skipped, and fails when CI is set."""
    if shutil.which("nft") is None:
        reason = "the program `nft` (nftables) is missing"
        if os.environ.get("CI"):
            pytest.fail(f"nftables are required in CI: {reason}")
        pytest.skip(f"no partitions: {reason}")
    with namespaces(count) as hosts:
        yield [(host, Firewall(host)) for host in hosts]


def _run(*argv: str) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=30)
    if done.returncode:
        raise OSError(f"{' '.join(argv)}: {done.stderr.strip()}")
