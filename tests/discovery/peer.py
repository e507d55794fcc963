"""A node's discovery in a process of its own, for the tests that need real processes.

    python -m tests.discovery.peer mdns eth0 plant

Prints a JSON line for each thing that happens; reads `close` (or the end of input) to stop.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from zfabric.config import Config
from zfabric.discovery import AddressWatch, Announcement, MdnsDiscovery, RegistryDiscovery, Scope, resolve

CONFIG = Config(address_poll_s=0.05, address_settle_s=0.05, registry_poll_s=0.05)
ROOT = Path(__file__).parents[2]


def argv(way: str, interface: str = "loopback", fabric: str = "test") -> tuple[str, ...]:
    """The command line of a peer."""
    return (sys.executable, "-m", "tests.discovery.peer", way, interface, fabric)


class PeerProcess:
    """The test's end of a peer: collects what it prints."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[dict[str, Any]] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @classmethod
    def start(cls, *arguments: str) -> PeerProcess:
        """Start a peer on this host."""
        pipe = subprocess.PIPE
        return cls(subprocess.Popen(argv(*arguments), stdin=pipe, stdout=pipe, text=True, cwd=ROOT))

    @property
    def id(self) -> str:
        """The peer's node id once it has started; empty before."""
        return next((line["started"] for line in self.lines if "started" in line), "")

    def endpoints_of(self, node_id: str) -> list[str]:
        """What this peer found last about another one."""
        return next((line["endpoints"] for line in reversed(self.lines) if line.get("found") == node_id), [])

    def says(self, word: str) -> Any:
        """The value of the last line with this word."""
        return next((line[word] for line in reversed(self.lines) if word in line), None)

    def close(self) -> None:
        """Ask the peer to close, and wait until it has ended."""
        assert self.process.stdin is not None
        self.process.stdin.write("close\n")
        self.process.stdin.flush()
        assert self.process.wait(10) == 0
        self._reader.join(10)

    def kill(self) -> None:
        """End the peer, whatever it does."""
        self.process.kill()
        self.process.wait(10)
        self._reader.join(10)
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.lines.extend(json.loads(line) for line in self.process.stdout)


def _say(**line: object) -> None:
    print(json.dumps(line), flush=True)


def _announcement(node_id: bytes, fabric: str, scope: Scope) -> Announcement:
    hosts = [f"[{address}]" if ":" in address else address for address in scope.addresses]
    return Announcement(node_id, fabric, tuple(f"tcp://{host}:7400" for host in hosts))


async def _main(way: str, interface: str, fabric: str) -> None:
    node_id = os.urandom(16)
    scope = resolve(interface)
    discovery = MdnsDiscovery(scope, CONFIG) if way == "mdns" else RegistryDiscovery(CONFIG)
    updates = set()

    def found(announcement: Announcement) -> None:
        _say(found=announcement.node_id.hex(), endpoints=announcement.endpoints, at=time.time())

    def changed(scope: Scope) -> None:
        _say(addresses=scope.addresses)
        task = asyncio.ensure_future(discovery.update(_announcement(node_id, fabric, scope)))
        updates.add(task)
        task.add_done_callback(updates.discard)

    began = time.time()
    await discovery.start(_announcement(node_id, fabric, scope), found)
    watch = asyncio.ensure_future(AddressWatch(scope, CONFIG, changed).run())
    _say(started=node_id.hex(), began=began, took=time.time() - began)
    await asyncio.to_thread(sys.stdin.readline)
    watch.cancel()
    began = time.time()
    await discovery.close()
    _say(closed=time.time() - began, ignored=discovery.ignored)


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
