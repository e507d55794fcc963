"""Network namespaces for tests: hosts on one switch, inside this machine and out of everybody's way.

    with namespaces(2) as (a, b):
        server = a.run(sys.executable, "server.py", a.ipv4)
        client = b.run(sys.executable, "client.py", a.ipv4)

Nothing is created in the namespace of the machine itself: the switch has one of its own.
Without root the tests are skipped, but they fail when the environment variable CI is set.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

__all__ = ["INTERFACE", "Namespace", "namespaces", "run"]

INTERFACE = "eth0"
"Name of the interface in each namespace, beside `lo`."

_STOP_S = 5.0


@dataclass
class Namespace:
    """A host: a network namespace with `lo` and one interface on the switch."""

    name: str
    ipv4: str
    ipv6: str
    switch: str
    "Namespace of the switch."
    port: str
    "Its end of the cable."
    interface: str = INTERFACE
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    def run(self, *argv: str, **options: Any) -> subprocess.Popen[str]:
        """Start a program in here, with pipes and text; it is killed when the namespace goes."""
        return run(self, argv, **options)

    def ip(self, *arguments: str) -> str:
        """Run `ip ...` in here and return what it prints."""
        return _ip("-n", self.name, *arguments)

    def add_interface(self) -> None:
        """Give the host its interface, with addresses, and connect it to the switch."""
        ends = ("add", self.port, "type", "veth", "peer", "name", self.interface, "netns", self.name)
        _ip("-n", self.switch, "link", *ends)
        _ip("-n", self.switch, "link", "set", self.port, "master", "br0")
        _ip("-n", self.switch, "link", "set", self.port, "up")
        # Duplicate address detection would keep addresses unusable for two seconds.
        accept_dad = f"echo 0 > /proc/sys/net/ipv6/conf/{self.interface}/accept_dad"
        _command("ip", "netns", "exec", self.name, "sh", "-c", accept_dad)
        self.ip("link", "set", self.interface, "up")
        self.ip("addr", "add", f"{self.ipv4}/24", "dev", self.interface)
        self.ip("addr", "add", f"{self.ipv6}/64", "dev", self.interface, "nodad")

    def remove_interface(self) -> None:
        """Take the interface out, as one would an adapter on USB."""
        self.ip("link", "del", self.interface)

    def disconnect(self) -> None:
        """Pull the cable."""
        self.ip("link", "set", self.interface, "down")

    def connect(self) -> None:
        """Plug the cable in again. IPv6 addresses went with it (as on a real host) and are set anew."""
        self.ip("link", "set", self.interface, "up")
        self.ip("addr", "replace", f"{self.ipv6}/64", "dev", self.interface, "nodad")


def run(namespace: Namespace, argv: tuple[str, ...] | list[str], **options: Any) -> subprocess.Popen[str]:
    """Start `argv` inside a namespace."""
    options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, **options}
    # `ip netns exec` replaces itself, so signals reach the program.
    process: subprocess.Popen[str] = subprocess.Popen(["ip", "netns", "exec", namespace.name, *argv], **options)
    namespace.processes.append(process)
    return process


@contextmanager
def namespaces(count: int = 2) -> Iterator[tuple[Namespace, ...]]:
    """Hosts on one switch, each with an IPv4, an IPv6 and a link-local address that work at once."""
    _require()
    tag = secrets.token_hex(3)
    with ExitStack() as stack:
        switch = f"zf{tag}-sw"
        _create(stack, switch)
        _ip("-n", switch, "link", "add", "br0", "type", "bridge")
        _ip("-n", switch, "link", "set", "br0", "type", "bridge", "mcast_snooping", "0")
        _ip("-n", switch, "link", "set", "br0", "up")
        hosts = []
        for number in range(1, count + 1):
            host = Namespace(f"zf{tag}-{number}", f"10.77.0.{number}", f"fd77::{number:x}", switch, f"port{number}")
            _create(stack, host.name)
            stack.callback(_stop, host.processes)
            host.ip("link", "set", "lo", "up")
            host.add_interface()
            hosts.append(host)
        yield tuple(hosts)


def _create(stack: ExitStack, name: str) -> None:
    _ip("netns", "add", name)
    stack.callback(_ip, "netns", "del", name)


def _stop(processes: list[subprocess.Popen[str]]) -> None:
    for process in processes:
        process.kill()
    for process in processes:
        process.wait(_STOP_S)
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                # What was written and not read is of no interest any more.
                try:
                    pipe.close()
                except BrokenPipeError:
                    continue


def _ip(*arguments: str) -> str:
    return _command("ip", *arguments)


def _command(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=30)
    if done.returncode:
        raise OSError(f"{' '.join(argv)}: {done.stderr.strip()}")
    return done.stdout


def _require() -> None:
    reason = _missing()
    if reason is None:
        return
    if os.environ.get("CI"):
        pytest.fail(f"network namespaces are required in CI: {reason}")
    pytest.skip(f"no network namespaces: {reason}")


def _missing() -> str | None:
    if not hasattr(os, "geteuid") or not Path("/proc/self/ns/net").exists():
        return "this is not Linux"
    if os.geteuid() != 0:
        return "needs root"
    if shutil.which("ip") is None:
        return "the program `ip` (iproute2) is missing"
    name = f"zf{secrets.token_hex(3)}-try"
    try:
        _ip("netns", "add", name)
        _ip("netns", "del", name)
    except OSError as error:
        return str(error)
    return None
