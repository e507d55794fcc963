"""Two hosts on one network, opened safely by what a new user types."""

from __future__ import annotations

import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.cli.processes import environment
from tests.netns import INTERFACE, Namespace, namespaces
from tests.waiting import wait_until

MARK = "reading-of-the-day-4711"
TIMEOUT_S = 30.0


class Host:
    """A machine of its own: network, configuration, runtime directory."""

    def __init__(self, namespace: Namespace, home: Path) -> None:
        self.namespace = namespace
        (home / "run").mkdir(parents=True, mode=0o700)
        self.keys = home / "config" / "zfabric" / "keys"
        self.environment = environment(
            XDG_CONFIG_HOME=str(home / "config"), ZFABRIC_RUNTIME_DIR=str(home / "run"), ZFABRIC_MDNS="1"
        )

    def start(self, line: str) -> subprocess.Popen[str]:
        """Type a line that begins with `zfabric`."""
        program, *arguments = shlex.split(line)
        assert program == "zfabric"
        # `ip netns exec` gives each process mounts of its own. Other hosts' ipc sockets must not be there.
        alone = (
            "sh",
            "-c",
            'mount -t tmpfs -o mode=700 tmpfs "$0" && exec "$@"',
            self.environment["ZFABRIC_RUNTIME_DIR"],
        )
        command = (*alone, sys.executable, "-P", "-m", "zfabric", *arguments)
        return self.namespace.run(*command, env=self.environment, stderr=subprocess.PIPE)

    def type(self, line: str) -> tuple[int, str, str]:
        """Type a line and wait for the command's end; returns exit code, stdout and stderr."""
        process = self.start(line)
        out, err = process.communicate(timeout=TIMEOUT_S)
        return process.returncode, out, err


class Capture:
    """tcpdump on a host's interface."""

    def __init__(self, host: Host, path: Path) -> None:
        if shutil.which("tcpdump") is None:
            pytest.skip("the program `tcpdump` is missing")
        self.path = path
        command = ("tcpdump", "-i", INTERFACE, "--immediate-mode", "-U", "-s", "0", "-Z", "root", "-w", str(path))
        self._process = host.namespace.run(*command, stderr=subprocess.PIPE)
        assert self._process.stderr is not None
        assert "listening on" in self._process.stderr.readline()

    def stop(self, mark: bytes) -> bytes:
        """Everything that went over the wire, once the mark was among it."""
        wait_until(lambda: mark in self.path.read_bytes())
        self._process.send_signal(signal.SIGINT)
        self._process.communicate(timeout=TIMEOUT_S)
        return self.path.read_bytes()


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[tuple[Host, Host, Host]]:
    """Three hosts on one switch."""
    with namespaces(3) as there:
        yield tuple(Host(namespace, tmp_path / namespace.name) for namespace in there)  # type: ignore[misc]


def exchange(sender: Host, receiver: Host, options: str) -> None:
    """Publish the mark on one host and see it on the other."""
    listening = receiver.start(f"zfabric sub plant.secret --count 1 --timeout 20 --json {options}")
    assert listening.stderr is not None
    assert "listening" in listening.stderr.readline()
    code, _, err = sender.type(f"zfabric pub plant.secret {MARK} --wait 1 --timeout 20 {options}")
    assert code == 0, err
    out, _ = listening.communicate(timeout=TIMEOUT_S)
    assert MARK in out


def refusal(host: Host, *options: str) -> str:
    """What a host is told that nobody wants; empty if it found nobody who says so."""
    code, _, err = host.type(shlex.join(["zfabric", "nodes", "--fabric", "plant", "--interface", "lan", *options]))
    return err if code == 77 else ""


def test_a_host_that_was_invited(hosts: tuple[Host, Host, Host], tmp_path: Path) -> None:
    """`keys new` and `keys invite` here, the line there: messages pass, the wire shows nothing, the line is spent.

    They go on passing when that host rotates its key, and it is told why when it was revoked.
    """
    one, two, thief = hosts
    assert one.type("zfabric keys new plant ada")[0] == 0
    inviting = one.start("zfabric keys invite plant bob")
    assert inviting.stdout is not None
    line = inviting.stdout.readline()
    capture = Capture(two, tmp_path / "joining.pcap")
    code, _, err = two.type(line)
    assert code == 0, err
    _, err = inviting.communicate(timeout=TIMEOUT_S)
    assert (inviting.returncode, "has joined" in err) == (0, True)
    seen = capture.stop(b"CURVE")
    assert b"roles = " not in seen

    exchange(one, two, "--fabric plant --interface lan")
    code, _, err = thief.type(line)
    assert (code, "was used" in err) == (69, True)

    for finish in ("", " --finish"):
        assert two.type(f"zfabric keys rotate plant{finish}")[0] == 0
        shutil.copy(two.keys / "plant.d/trusted/bob.toml", one.keys / "plant.d/trusted/bob.toml")
        exchange(one, two, "--fabric plant --interface lan")

    listening = one.start("zfabric sub plant.secret --fabric plant --interface lan")
    assert listening.stderr is not None
    assert "listening" in listening.stderr.readline()
    assert one.type("zfabric keys revoke plant bob")[0] == 0

    assert "does not trust this node's key" in wait_until(partial(refusal, two))  # the directory is read once a second
    listening.send_signal(signal.SIGINT)
    assert listening.communicate(timeout=TIMEOUT_S)[0] == ""


def test_two_hosts_joined_by_a_key(hosts: tuple[Host, Host, Host], tmp_path: Path) -> None:
    """`keys init` here, `keys join` there: messages pass, the wire shows none of them, and strangers stay outside.

    The third host has no key: it gets nothing, whatever it says, and what it sends in a plain fabric shows that the
    capture would have seen the message.
    """
    one, two, stranger = hosts
    _, line, _ = one.type("zfabric keys init plant")
    code, _, err = two.type(line)
    assert code == 0, err
    code, _, err = one.type("zfabric sub '#' --fabric default --interface lan")
    assert (code, "keys init" in err) == (77, True)
    capture = Capture(two, tmp_path / "secure.pcap")
    eavesdropper = stranger.start("zfabric sub '#' --fabric plant --interface lan --insecure --json")

    exchange(one, two, "--fabric plant --interface lan")

    eavesdropper.send_signal(signal.SIGINT)
    assert eavesdropper.communicate(timeout=TIMEOUT_S)[0] == ""
    listening = one.start("zfabric sub '#' --fabric plant --interface lan")
    assert listening.stderr is not None
    assert "listening" in listening.stderr.readline()
    assert "it announces a key" in wait_until(partial(refusal, stranger, "--insecure"))
    listening.send_signal(signal.SIGINT)
    assert listening.communicate(timeout=TIMEOUT_S)[0] == ""
    seen = capture.stop(b"CURVE")
    assert MARK.encode() not in seen
    assert b"plant.secret" not in seen

    capture = Capture(two, tmp_path / "plain.pcap")
    exchange(stranger, two, "--fabric open --interface lan --insecure")
    capture.stop(MARK.encode())
