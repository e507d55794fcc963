"""mDNS without a network: floods, slow event loops, and processes that end without closing."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys

from zeroconf import (  # type: ignore[attr-defined]
    DNSPointer,
    DNSText,
    RecordUpdate,
    Zeroconf,
    current_time_millis,
)

from tests.waiting import wait_until_async
from zfabric.config import Config
from zfabric.discovery import Announcement, Scope, _hub, _txt, mdns

CONFIG = Config(discovery_records_max=500)
LOOPBACK = Scope("loopback", ("127.0.0.1",), True)


def announcement() -> Announcement:
    """A new node's announcement."""
    return Announcement(os.urandom(16), "test", ("tcp://127.0.0.1:7400",), "f1")


def test_ten_thousand_forged_nodes_do_not_grow_the_table() -> None:
    """Of any number of names the newest `discovery_records_max` are kept, and asked about a few at most."""
    hub = _hub.Hub(LOOPBACK, CONFIG)
    now = current_time_millis()
    zeroconf: Zeroconf = None  # type: ignore[assignment]
    newest = ""
    for _ in range(10_000):
        forged = announcement()
        newest = _txt.instance_name(forged.node_id)
        text = DNSText(newest, 16, 1, 4500, _txt.encode(forged, 16), created=now)
        hub.async_update_records(zeroconf, now, [RecordUpdate(text, None)])

    assert len(hub._heard) == CONFIG.discovery_records_max
    assert newest in hub._heard
    assert hub.ignored == 0


async def test_a_flood_of_names_without_text_asks_little() -> None:
    """The questions that strangers can make us ask are bounded."""
    hub = _hub.Hub(LOOPBACK, CONFIG)
    asked: list[str] = []
    hub._ask_for_missing = lambda: asked.extend(hub._missing)  # type: ignore[method-assign]
    now = current_time_millis()
    zeroconf: Zeroconf = None  # type: ignore[assignment]
    for number in range(10_000):
        pointer = DNSPointer(_txt.SERVICE_TYPE, 12, 1, 4500, f"{number:032x}.{_txt.SERVICE_TYPE}", created=now)
        hub.async_update_records(zeroconf, now, [RecordUpdate(pointer, None)])

    await wait_until_async(lambda: asked)

    assert len(asked) == len(hub._missing) <= 32


async def test_a_flood_reaches_a_slow_node_bounded_and_in_slices() -> None:
    """What its event loop has no time for is replaced by what is newer, and other tasks get their turn."""
    found: list[Announcement] = []
    mailbox = mdns._Mailbox(announcement(), found.append, 100)
    flood = [announcement() for _ in range(1000)]
    for forged in flood:
        mailbox.put(forged)
    assert len(mailbox._waiting) == 100

    await asyncio.sleep(0)
    assert 0 < len(found) < 100
    await wait_until_async(lambda: len(found) == 100)

    assert found == flood[-100:]


async def test_nothing_is_reported_after_close() -> None:
    """Not even what was on its way."""
    found: list[Announcement] = []
    mailbox = mdns._Mailbox(announcement(), found.append, 10)
    mailbox.put(announcement())
    mailbox.close()
    mailbox.put(announcement())

    await wait_until_async(lambda: not mailbox._waiting)

    assert found == []


def test_a_process_that_does_not_close_ends_all_the_same() -> None:
    """A forgotten close must not keep the program from ending."""
    code = """
import asyncio, os
from zfabric.config import Config
from zfabric.discovery import Announcement, MdnsDiscovery, Scope
async def main():
    own = Announcement(os.urandom(16), "test", ("tcp://127.0.0.1:1",))
    await MdnsDiscovery(Scope("loopback", ("127.0.0.1",), True), Config()).start(own, print)
asyncio.run(main())
print("done")
"""
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)

    assert done.returncode == 0
    assert done.stdout.endswith("done\n")
    assert done.stderr == ""


def test_a_forked_child_can_start_its_own() -> None:
    """The thread stayed with the parent; the child gets a new one instead of waiting for it for ever."""
    code = """
import asyncio, os, threading, warnings
warnings.simplefilter("ignore", DeprecationWarning)
from zfabric.config import Config
from zfabric.discovery import Announcement, MdnsDiscovery, Scope
async def one():
    own = Announcement(os.urandom(16), "test", ("tcp://127.0.0.1:1",))
    discovery = MdnsDiscovery(Scope("loopback", ("127.0.0.1",), True), Config())
    await discovery.start(own, lambda found: None)
    return discovery
async def main():
    parent = await one()
    child = os.fork()
    if child == 0:
        thread = threading.Thread(target=lambda: asyncio.run(one()))
        thread.start()
        thread.join(10)
        os._exit(thread.is_alive())
    status = await asyncio.to_thread(os.waitpid, child, 0)
    await parent.close()
    raise SystemExit(os.waitstatus_to_exitcode(status[1]))
asyncio.run(main())
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=30, check=False).returncode == 0
