"""Strangers at a fabric with a key: none of them gets in, and none of them is in the way."""

from __future__ import annotations

import asyncio
import struct
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
import zmq

from tests.hostile.attackers import GREETING, PORTS, Impostor, Raw, port, raws, ready
from tests.hostile.conftest import QUICK, Arena, next_event
from tests.waiting import wait_until_async
from zfabric import AuthenticationFailed, Config, new_key
from zfabric.discovery.base import Announcement
from zfabric.security.identities import accept, create, invite, unpack
from zfabric.security.keys import FabricKey
from zfabric.testing import RealFabric
from zfabric.wire.records import Hello

every_port = pytest.mark.parametrize("name", PORTS)
CURVE = GREETING[:12] + b"CURVE" + GREETING[17:]
IDLE = 1000


@pytest.fixture
def keyed() -> bool:
    """All of these fabrics have a key."""
    return True


@every_port
@pytest.mark.parametrize("wrong", [None, "another key"])
async def test_strangers_get_no_data(arena: Arena, name: str, wrong: str | None) -> None:
    """Without a key, or with another one, nothing goes in or out at any port; it is reported and counted."""
    key = None if wrong is None else FabricKey.parse(new_key(arena.fabric.name))
    stranger = Impostor(arena.fabric.name, key=key)
    arena.attackers += 1
    try:
        feed = stranger.client(zmq.SUB)
        feed.subscribe(b"")
        for socket in (stranger.dealer, feed):
            socket.set(zmq.RECONNECT_IVL, 5)
            socket.connect(port(arena.victim, name))
        for _ in range(100):
            stranger.say(Hello(None, stranger.identity))
        event: AuthenticationFailed = await next_event(arena.events, AuthenticationFailed)
        assert "no key" in event.reason or "another key" in event.reason
        await wait_until_async(lambda: arena.statistics.authentication_failures > 1)
        for _ in range(5):
            await arena.lives()
        assert stranger.listen() == []
        assert not feed.poll(0)
        assert [peer.name for peer in arena.victim.peers] == ["friend"]
    finally:
        stranger.close()
    await arena.stays_small()


@every_port
async def test_plain_traffic_is_refused_byte_by_byte(arena: Arena, name: str) -> None:
    """A client that offers NULL is hung up on before it may say anything."""
    with raws(port(arena.victim, name), 20) as attackers:
        for raw in attackers:
            raw.send(GREETING + ready(b"DEALER") + b"\x00\x05hello")
        await wait_until_async(lambda: all(raw.gone() for raw in attackers))
        assert not any(b"READY" in raw.received for raw in attackers)
    await arena.lives()


@every_port
async def test_claims_before_authentication_cost_nothing(arena: Arena, name: str) -> None:
    """A gigabyte that is announced as the first command of a handshake is never waited for."""
    for claim in (b"\x06" + struct.pack(">Q", 2**30), b"\x02" + struct.pack(">Q", 2**62), b"\x04\xff"):
        with raws(port(arena.victim, name), 10) as attackers:
            for raw in attackers:
                raw.send(CURVE + claim + bytes(1000))
            await wait_until_async(lambda: all(raw.gone() for raw in attackers))
    await arena.lives()
    await arena.stays_small()


@every_port
async def test_idle_strangers_are_hung_up(arena: Arena, name: str) -> None:
    """A thousand connections that begin a handshake and stop: all gone after Config.handshake_timeout_s."""
    openings = [b"", GREETING[:11], CURVE, CURVE + b"\x04\xc8\x05HELLO" + bytes(100)]
    async with AsyncExitStack() as stack:
        for first in range(0, IDLE, 100):
            attackers = stack.enter_context(raws(port(arena.victim, name), 100))
            for number, raw in enumerate(attackers):
                raw.send(openings[number % len(openings)])
            if first % 500 == 0:
                await arena.lives()
            await all_gone(attackers)
    await arena.lives()
    await arena.stays_small()


async def all_gone(attackers: list[Raw]) -> None:
    """Until the other end has hung up on all of them."""
    await wait_until_async(lambda: all(raw.gone() for raw in attackers))


async def test_slow_handshakes_are_cut(arena: Arena) -> None:
    """A byte from time to time does not make a handshake last."""
    with raws(port(arena.victim, "inbox-tcp"), 50) as attackers:
        sent = 0
        while not all(raw.gone() for raw in attackers):
            for raw in attackers:
                raw.send(CURVE[sent : sent + 1])
            sent += 1
            await arena.lives()
            assert sent < len(CURVE), "the handshake was not cut"
    await arena.stays_small()


async def test_a_stolen_routing_id_gets_no_mail(arena: Arena, impostor: Any) -> None:
    """Whoever takes the routing id of a connection that lives, its own or libzmq's, is not heard and hears nothing."""
    routes = [route for peer in driver_peers(arena) for route in peer.routes if isinstance(route, bytes)]
    assert routes
    thieves = [impostor(routing_id=route) for route in routes]
    for thief in thieves:
        thief.dial(port(arena.victim, "inbox-tcp"))
        thief.say(Hello(None, thief.identity))
    first, second = impostor(routing_id=b"chosen"), impostor(routing_id=b"chosen")
    await first.join(port(arena.victim, "inbox-tcp"))
    second.dial(port(arena.victim, "inbox-tcp"))
    second.say(Hello(None, second.identity))
    await arena.lives()
    assert [thief.listen() for thief in (*thieves, second)] == [[] for _ in (*thieves, second)]


def driver_peers(arena: Arena) -> list[Any]:
    """The victim's peers, as its core knows them."""
    driver = arena.victim._driver
    assert driver is not None
    return list(driver.core.peers.known.values())


class Replayer:
    """Stands between two nodes and sends what it heard again, or in another order."""

    def __init__(self, target: str, trick: str) -> None:
        host, _, number = target[6:].rpartition(":")
        self._target = host, int(number)
        self._trick = trick
        self.tricks = 0

    async def __aenter__(self) -> Replayer:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1")
        host, number = self._server.sockets[0].getsockname()
        self.endpoint = f"tcp://{host}:{number}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(*self._target)
        with suppress(OSError, asyncio.CancelledError):
            await asyncio.gather(self._pass(reader, back), self._pass(there, writer))
        for each in (writer, back):
            each.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        passed = 0
        while data := await reader.read(65_536):
            passed += 1
            if passed > 5 and passed % 4 == 0:
                self.tricks += 1
                data = data + data if self._trick == "replay" else data[len(data) // 2 :] + data[: len(data) // 2]
            writer.write(data)
            await writer.drain()
        writer.close()


@pytest.mark.parametrize("trick", ["replay", "reorder"])
async def test_replayed_and_reordered_frames_end_the_connection(arena: Arena, trick: str) -> None:
    """Whoever sits on the wire can break connections, but repeat or reorder nothing that is then believed."""
    assert arena.key is not None
    endpoint = next(e for e in arena.victim.endpoints if e.startswith("tcp://127"))
    async with Replayer(endpoint, trick) as wire:
        config = Config(mdns=False, registry=False, ipc=False, reconnect_interval_s=0.02, heartbeat_interval_s=0.05)
        guest = await arena.fabric.open("guest", key=arena.key.text, config=config, seeds=[wire.endpoint])
        await wait_until_async(lambda: wire.tricks > 0)
        await guest.wait_for_peers(1, timeout=10)
        await arena.lives()
        assert arena.statistics.protocol_errors == 0
        assert guest.statistics().protocol_errors == 0
        await guest.close()


async def test_forged_announcements_with_the_right_fingerprint(arena: Arena) -> None:
    """Ten thousand services that show the fabric's own fingerprint, which anybody can see, gain nothing."""
    assert arena.key is not None
    driver = arena.victim._driver
    assert driver is not None

    async def half_a_node(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(CURVE)
        with suppress(OSError):
            while await reader.read(1000):
                continue
        writer.close()

    async with await asyncio.start_server(half_a_node, "127.0.0.1") as server:
        host, number = server.sockets[0].getsockname()
        for index in range(10_000):
            addresses = (f"tcp://{host}:{number}", f"tcp://127.3.{index % 250}.{index // 250}:9")
            node_id = index.to_bytes(16, "big")
            driver._found(Announcement(node_id, arena.fabric.name, addresses, arena.key.fingerprint))
            if index % 1000 == 0:
                await arena.lives()
        await arena.lives()
        assert len(driver.core.peers.dialler._targets) <= arena.victim._config.discovery_records_max
        assert [peer.name for peer in arena.victim.peers] == ["friend"]


async def test_untrusted_identities_are_refused_at_every_port(real_fabric: RealFabric, tmp_path: Path) -> None:
    """A key pair that is well made but in nobody's directory gets through no door, though it knows the server's key."""
    create(tmp_path / "ada", real_fabric.name, "ada")
    _, _, files, secret = accept(invite(tmp_path / "ada", real_fabric.name, "eve"))
    unpack(tmp_path / "eve", files, secret)
    (tmp_path / "ada" / "trusted" / "eve.toml").unlink()
    ada = await real_fabric.open("ada", key=tmp_path / "ada", config=QUICK)
    events = ada.events()

    address = next(e for e in ada.endpoints if e.startswith("tcp://127")).partition("#")[0]
    eve = await real_fabric.open("eve", key=tmp_path / "eve", config=QUICK, seeds=[f"{address}#ada"])

    event: AuthenticationFailed = await next_event(events, AuthenticationFailed, lambda e: "trusted" in e.reason)
    assert event.reason == "its key is not trusted here"
    await next_event(eve.events(), AuthenticationFailed, lambda e: "does not trust" in e.reason)
    assert (ada.peers, eve.peers) == ((), ())


async def test_a_greeted_stranger_cannot_end_a_marker(arena: Arena) -> None:
    """What a stranger subscribes to at the outlet never reaches the node, so it cannot end what others have."""
    friend = bytes.fromhex(arena.friend.id)
    raw = Raw(port(arena.victim, "outlet-tcp"))
    try:
        raw.send(GREETING + ready(b"SUB") + b"\x00\x16\x00\xff" + friend + bytes(4))
        await wait_until_async(raw.gone)
    finally:
        raw.close()
    await arena.lives()
