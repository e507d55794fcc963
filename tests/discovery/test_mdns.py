"""Multicast DNS on 127.0.0.1: real sockets, real packets, real processes."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager

import pytest
from zeroconf import (  # type: ignore[attr-defined]
    DNSOutgoing,
    DNSPointer,
    DNSQuestion,
    DNSRecord,
    DNSText,
    Zeroconf,
    current_time_millis,
)

from tests.discovery.peer import PeerProcess
from tests.waiting import SLACK_S, wait_until, wait_until_async
from zfabric.config import Config
from zfabric.discovery import Announcement, MdnsDiscovery, Scope, _hub, _txt, resolve
from zfabric.errors import InterfaceNotFound

CONFIG = Config(discovery_records_max=500)
LOOPBACK = Scope("loopback", ("127.0.0.1",), True)
THREAD = "zfabric-mdns"


def announcement(fabric: str, *endpoints: str, node_id: bytes | None = None) -> Announcement:
    """A new node's announcement."""
    return Announcement(node_id or os.urandom(16), fabric, endpoints or ("tcp://127.0.0.1:7400",), "f1")


class Started:
    """An mDNS discovery that runs, and what it found."""

    def __init__(self, own: Announcement, scope: Scope = LOOPBACK, config: Config = CONFIG) -> None:
        self.own = own
        self.found: list[Announcement] = []
        self.discovery = MdnsDiscovery(scope, config, resolver=lambda spec: self.scope)
        self.scope = scope

    async def start(self) -> Started:
        """Announce and browse."""
        await self.discovery.start(self.own, self.found.append)
        return self


Start = Callable[..., Awaitable[Started]]


@pytest.fixture
def fabric() -> str:
    """A fabric of its own for each test: they all share one network."""
    return f"test-{random.getrandbits(64):x}"


@pytest.fixture
async def start(fabric: str) -> AsyncIterator[Start]:
    """Start discoveries, closed after the test."""
    running: list[Started] = []

    async def begin(own: Announcement | None = None, scope: Scope = LOOPBACK, config: Config = CONFIG) -> Started:
        running.append(Started(own or announcement(fabric), scope, config))
        return await running[-1].start()

    yield begin
    for started in running:
        await started.discovery.close()


@contextmanager
def peers(*fabrics: str) -> Iterator[list[PeerProcess]]:
    """Processes that discover by mDNS on loopback."""
    running = [PeerProcess.start("mdns", "loopback", fabric) for fabric in fabrics]
    try:
        wait_until(lambda: all(peer.id for peer in running))
        yield running
    finally:
        for peer in running:
            peer.kill()


class Stranger:
    """Somebody on the network who sends what they like."""

    def __init__(self) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(("127.0.0.1", 0))

    def says(self, name: str, text: bytes | None, *, ttl: int = 1125) -> None:
        """Announce a service; without text only its pointer, with ttl 0 a goodbye."""
        packet = DNSOutgoing(0x8400)
        packet.add_answer_at_time(DNSPointer(_txt.SERVICE_TYPE, 12, 1, ttl, name), 0)
        if text is not None:
            packet.add_answer_at_time(DNSText(name, 16, 0x8001, ttl, text), 0)
        for data in packet.packets():
            self.sends(data)

    def announces(self, announcement: Announcement) -> None:
        """Announce a node as it should be done."""
        self.says(_txt.instance_name(announcement.node_id), _txt.encode(announcement, 16))

    def sends(self, data: bytes) -> None:
        """Any packet."""
        self.socket.sendto(data, ("224.0.0.251", 5353))


@pytest.fixture
def stranger() -> Iterator[Stranger]:
    """A stranger on 127.0.0.1."""
    somebody = Stranger()
    yield somebody
    somebody.socket.close()


def thread_count() -> int:
    """How many mDNS threads this process has."""
    return sum(thread.name == THREAD for thread in threading.enumerate())


# -- finding each other --------------------------------------------------------------------------------


async def test_two_processes_find_each_other(fabric: str, start: Start) -> None:
    """With the endpoints that each announced, and nothing about itself."""
    with peers(fabric, fabric, f"{fabric}-other") as (one, two, other):
        here = await start()
        endpoints = ["tcp://127.0.0.1:7400"]
        if resolve("loopback").addresses == ("127.0.0.1", "::1"):
            endpoints.append("tcp://[::1]:7400")
        await wait_until_async(lambda: one.endpoints_of(two.id) == two.endpoints_of(one.id) == endpoints)
        await wait_until_async(lambda: {a.node_id.hex() for a in here.found} == {one.id, two.id})
        await wait_until_async(lambda: one.endpoints_of(here.own.node_id.hex()) == ["tcp://127.0.0.1:7400"])

        assert not one.endpoints_of(one.id)
        assert not one.endpoints_of(other.id)
        assert not other.endpoints_of(one.id)


async def test_nodes_of_one_process_share_one_thread_and_find_each_other(start: Start) -> None:
    """The third node hears from the shared table what the others heard before."""
    one = await start()
    two = await start()
    three = await start()

    for node in (one, two, three):
        others = {other.own for other in (one, two, three) if other is not node}
        await wait_until_async(lambda found=node.found, others=others: set(found) == others)  # type: ignore[misc]
    assert thread_count() == 1

    await one.discovery.close()
    await two.discovery.close()
    assert thread_count() == 1
    await three.discovery.close()
    await wait_until_async(lambda: thread_count() == 0)


async def test_nodes_on_different_event_loops_share_it_too(fabric: str, start: Start) -> None:
    """Each is called back in its own loop."""
    here = await start()
    found: list[tuple[Announcement, int]] = []
    own = announcement(fabric)

    async def there() -> None:
        discovery = MdnsDiscovery(LOOPBACK, CONFIG)
        await discovery.start(own, lambda a: found.append((a, threading.get_ident())))
        await wait_until_async(lambda: found and here.found)
        await discovery.close()

    thread = threading.Thread(target=lambda: asyncio.run(there()))
    thread.start()
    await wait_until_async(lambda: not thread.is_alive())

    assert found == [(here.own, thread.ident)]
    assert here.found == [own]


async def test_a_changed_announcement_is_reported_again(fabric: str) -> None:
    """Only the new one."""
    with peers(fabric) as (peer,):
        node = await Started(announcement(fabric)).start()
        node_id = node.own.node_id
        await wait_until_async(lambda: peer.endpoints_of(node_id.hex()))

        await node.discovery.update(announcement(fabric, "tcp://127.0.0.1:7401", node_id=node_id))

        await wait_until_async(lambda: peer.endpoints_of(node_id.hex()) == ["tcp://127.0.0.1:7401"])
        await node.discovery.close()


async def test_an_update_may_add_and_remove_all_tcp_endpoints(start: Start, fabric: str) -> None:
    """A node with ipc alone has nothing to announce on a network; it hears the others all the same."""
    node = await start(announcement(fabric, "ipc:///run/zf/a"))
    other = await start()
    await wait_until_async(lambda: node.found == [other.own])
    assert other.found == []
    reachable = announcement(fabric, "tcp://127.0.0.1:7401", node_id=node.own.node_id)

    await node.discovery.update(reachable)
    await wait_until_async(lambda: other.found == [reachable])
    await node.discovery.update(node.own)

    late = await start()
    await wait_until_async(lambda: late.found == [other.own])


async def test_goodbye_only_stops_the_reporting(start: Start) -> None:
    """Others are not told; who joins later does not hear of the node that left."""
    leaving, staying = await start(), await start()
    await wait_until_async(lambda: staying.found == [leaving.own])

    await leaving.discovery.close()
    hub = await hub_of(staying)
    await wait_until_async(lambda: _txt.instance_name(leaving.own.node_id) not in hub._heard)
    late = await start()

    await wait_until_async(lambda: staying.found == [leaving.own, late.own])
    assert late.found == [staying.own]


async def hub_of(node: Started) -> _hub.Hub:
    """The hub that a node shares with others."""
    shared = node.discovery._shared
    assert shared is not None
    return shared._hubs[node.scope.spec]


async def test_a_pointer_without_its_text_is_asked_about(start: Start, stranger: Stranger, fabric: str) -> None:
    """Some responders send the pointer alone."""
    node = await start()
    name = _txt.instance_name(os.urandom(16))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listening.bind(("224.0.0.251", 5353))
        group = socket.inet_aton("224.0.0.251") + socket.inet_aton("127.0.0.1")
        listening.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
        listening.setblocking(False)
        loop = asyncio.get_running_loop()
        stranger.says(name, None)
        stranger.says("not-a-node." + _txt.SERVICE_TYPE, None)

        async with asyncio.timeout(30):
            while True:
                data = await loop.sock_recv(listening, 9000)
                if data[2] & 0x80 == 0 and name[:32].encode() in data:
                    break
    assert data.endswith(b"\x00\x10\x00\x01"), "one question, for the TXT record"
    assert b"not-a-node" not in data
    assert node.found == []


async def test_who_was_announced_before_we_listened_is_found(
    start: Start, fabric: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """zeroconf reads its sockets before it has our listener: what it alone knows must not keep others silent."""
    with peers(fabric) as (one,):
        name = _txt.instance_name(bytes.fromhex(one.id)).lower()

        async def one_has_been_heard(engine: Zeroconf) -> None:
            monkeypatch.undo()
            await engine.async_wait_for_start()
            question = DNSOutgoing(0)
            question.add_question(DNSQuestion(_txt.SERVICE_TYPE, 12, 1))
            engine.async_send(question)
            await wait_until_async(lambda: any(is_over_announcing(record) for record in cached(engine)))

        def cached(engine: Zeroconf) -> list[DNSRecord]:
            return engine.cache.async_entries_with_name(name)

        def is_over_announcing(record: DNSRecord) -> bool:
            return current_time_millis() - record.created > 1000

        monkeypatch.setattr(Zeroconf, "async_wait_for_start", one_has_been_heard)
        here = await start()

        await wait_until_async(lambda: [found.node_id.hex() for found in here.found] == [one.id])


# -- changes of the network ----------------------------------------------------------------------------


async def test_new_addresses_are_used_after_an_update(start: Start, fabric: str, stranger: Stranger) -> None:
    """The scope is resolved again; the sockets move, also from one address to another of the same interface."""
    node = await start()
    moved = announcement(fabric, "tcp://127.0.0.2:7400", node_id=node.own.node_id)
    node.scope = Scope("loopback", ("127.0.0.2",), True)

    await node.discovery.update(moved)

    hub = await hub_of(node)
    assert [sender.sock_name[0] for sender in hub._engine.engine.senders] == ["127.0.0.2"]
    later = await start(scope=node.scope)
    await wait_until_async(lambda: moved in later.found)
    await wait_until_async(lambda: node.found == [later.own])


async def test_the_same_announcement_again_joins_the_group_again(start: Start, fabric: str) -> None:
    """After the network was away the kernel has forgotten that we listen."""
    node, other = await start(), await start()
    hub = await hub_of(node)
    before = [sender.transport for sender in hub._engine.engine.senders]  # kept, so that no id is used again

    await node.discovery.update(node.own)

    after = [sender.transport for sender in hub._engine.engine.senders]
    assert after and {*map(id, after)}.isdisjoint(map(id, before))
    with peers(fabric) as (peer,):
        await wait_until_async(lambda: len(node.found) == len(other.found) == 2)
        # A question that was lost is asked again after 1, 2, 4 and 8 seconds.
        await wait_until_async(lambda: peer.endpoints_of(node.own.node_id.hex()), 30)


async def test_an_interface_that_is_gone_leaves_the_old_addresses(start: Start, fabric: str) -> None:
    """There is nothing better to use until it comes back."""
    node = await start()

    def gone(spec: str) -> Scope:
        raise InterfaceNotFound(spec, ())

    node.discovery._resolve = gone
    other = await start()
    await node.discovery.update(announcement(fabric, "tcp://127.0.0.1:1", node_id=node.own.node_id))

    await wait_until_async(lambda: ("tcp://127.0.0.1:1",) in [a.endpoints for a in other.found])


@pytest.mark.parametrize("addresses", [("::1",), ("192.0.2.77",)])
async def test_where_mdns_cannot_work_starting_is_an_os_error(addresses: tuple[str, ...], fabric: str) -> None:
    """zeroconf cannot listen on ::1, and nobody can on an address of another machine."""
    discovery = MdnsDiscovery(Scope("x", addresses, True), CONFIG)

    with pytest.raises(OSError, match=addresses[0].replace(".", r"\.")):
        await discovery.start(announcement(fabric), print)

    await discovery.close()
    await wait_until_async(lambda: thread_count() == 0)


async def test_a_fabric_name_that_does_not_fit_is_an_os_error(start: Start) -> None:
    """And the node that fails does not disturb the one that runs."""
    running = await start()

    with pytest.raises(OSError, match="253"):
        await Started(announcement("x" * 254)).start()

    late = await start()
    await wait_until_async(lambda: running.found == [late.own])


# -- strangers -----------------------------------------------------------------------------------------


async def test_forged_records_are_ignored_and_counted(start: Start, stranger: Stranger, fabric: str) -> None:
    """Garbage, foreign ids, addresses outside the scope, ipc; an honest one among them is heard."""
    node = await start()
    forged = announcement(fabric, "tcp://192.0.2.1:7400")
    honest = announcement(fabric)
    stranger.sends(os.urandom(200))
    stranger.sends(b"")
    stranger.says(_txt.instance_name(os.urandom(16)), b"\xffgarbage")
    stranger.says(_txt.instance_name(os.urandom(16)), _txt.encode(honest, 16))
    stranger.announces(forged)
    stranger.says("printer." + _txt.SERVICE_TYPE, b"\x03a=b")
    stranger.announces(honest)

    await wait_until_async(lambda: node.found == [honest])

    assert node.discovery.ignored == 3
    assert (await start()).discovery.ignored == 3


async def test_a_forged_goodbye_does_no_harm(start: Start, stranger: Stranger, fabric: str) -> None:
    """The node is found again when it next says something, and meanwhile its links live."""
    node, victim = await start(), await start()
    await wait_until_async(lambda: node.found == [victim.own])
    hub, name = await hub_of(node), _txt.instance_name(victim.own.node_id)

    stranger.says(name, None, ttl=0)
    await wait_until_async(lambda: name not in hub._heard)
    await victim.discovery.update(announcement(fabric, "tcp://127.0.0.1:1", node_id=victim.own.node_id))

    await wait_until_async(lambda: len(node.found) == 2)


async def test_a_real_flood_leaves_discovery_working(start: Start, stranger: Stranger, fabric: str) -> None:
    """Memory stays within the limit while somebody multicasts thousands of nodes, and an honest one is found."""
    node = await start()
    hub = await hub_of(node)
    for _ in range(3000):
        stranger.announces(announcement(fabric))
    honest = announcement(fabric)

    def found() -> bool:
        stranger.announces(honest)
        return honest in node.found

    await wait_until_async(found, pause=0.1)
    assert len(hub._heard) <= CONFIG.discovery_records_max


# -- closing -------------------------------------------------------------------------------------------


async def test_closing_is_quick_and_may_be_repeated(start: Start, fabric: str) -> None:
    """Also directly after start, also without start, also for several at once."""
    nodes = [await start() for _ in range(5)]
    began = time.monotonic()

    await asyncio.gather(*(node.discovery.close() for node in nodes), *(node.discovery.close() for node in nodes))
    await MdnsDiscovery(LOOPBACK, CONFIG).close()
    await nodes[0].discovery.update(announcement(fabric))

    assert time.monotonic() - began < 1.0 + SLACK_S


async def test_close_does_not_wait_for_a_stuck_thread(start: Start) -> None:
    """It takes less than a second whatever the mDNS thread does."""
    node = await start()
    shared = node.discovery._shared
    assert shared is not None
    stuck = threading.Event()
    shared._loop.call_soon_threadsafe(stuck.wait)
    began = time.monotonic()

    await node.discovery.close()

    assert time.monotonic() - began < 1.0 + SLACK_S
    stuck.set()
    await wait_until_async(lambda: thread_count() == 0)


async def test_a_cancelled_start_leaves_nothing(fabric: str) -> None:
    """The join goes on in its thread, and the leave follows it."""
    node = Started(announcement(fabric))
    task = asyncio.ensure_future(node.start())
    await asyncio.sleep(0)
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task

    await wait_until_async(lambda: thread_count() == 0)


async def test_a_closed_node_is_not_announced_again(start: Start) -> None:
    """An announcement is sent three times: the repetitions must not follow the goodbye."""
    staying, node = await start(), await start()
    hub = await hub_of(staying)
    broadcast = hub._members[node.own.node_id].broadcast
    assert broadcast is not None
    assert not broadcast.done()

    await node.discovery.close()

    await wait_until_async(broadcast.done)
    assert broadcast.cancelled()
    assert hub._engine.registry.async_get_info_name(_txt.instance_name(node.own.node_id)) is None
