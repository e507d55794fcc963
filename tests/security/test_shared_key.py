"""Fabrics with a shared key, over ZeroMQ: who gets in, who does not, and who hears of it."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

import zfabric
import zfabric.sync
from tests.hostile.conftest import next_event
from tests.waiting import wait_until, wait_until_async
from zfabric import AuthenticationFailed, Config, InsecureInterface, InvalidKey, Node, PeerJoined, new_key
from zfabric.discovery.base import Announcement
from zfabric.security.keyfiles import key_path, write_key
from zfabric.security.keys import FabricKey
from zfabric.testing import RealFabric

QUICK = Config(mdns=False, handshake_timeout_s=0.5, reconnect_interval_s=0.02, reconnect_interval_s_max=0.1)
SEEDS_ONLY = Config(
    mdns=False, registry=False, handshake_timeout_s=0.5, reconnect_interval_s=0.02, reconnect_interval_s_max=0.1
)


async def test_members_talk(real_fabric: RealFabric) -> None:
    """Nodes with the same key become peers and exchange messages in both directions."""
    key = new_key(real_fabric.name)
    one, other = [await real_fabric.open(name, key=key) for name in ("one", "other")]
    async with one.subscribe("a") as at_one, other.subscribe("b") as at_other:
        to_one = other.publisher("a", delivery="at-least-once")
        to_other = one.publisher("b")
        await to_one.wait_for(1, timeout=30)
        await to_other.wait_for(1, timeout=30)
        await to_one.publish(
            "secret",
        )
        await to_other.publish(bytes(1_000_000))

        assert (await at_one.__anext__()).value == "secret"
        assert (await at_other.__anext__()).value == bytes(1_000_000)

    assert one.statistics().authentication_failures == 0


@pytest.mark.parametrize(("server_key", "client_key"), [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("config", [QUICK, SEEDS_ONLY], ids=["registry", "seeds"])
async def test_others_stay_outside(real_fabric: RealFabric, server_key: bool, client_key: bool, config: Config) -> None:
    """Another key, or none on one side: no peers, and both sides are told why, once."""
    server = await real_fabric.open("server", key=new_key(real_fabric.name) if server_key else None, config=config)
    at_server = server.events()
    key = new_key(real_fabric.name) if client_key else None
    seeds = () if config.registry else server.endpoints
    client = await real_fabric.open("client", key=key, config=config, seeds=seeds)
    at_client = client.events()

    for events, keyed in ((at_server, server_key), (at_client, client_key)):
        event: AuthenticationFailed = await next_event(events, AuthenticationFailed)
        assert "key" in event.reason
        assert keyed or "none" in event.reason or "is no node" in event.reason
    repeated = 3 if not config.registry else 1
    await wait_until_async(lambda: client.statistics().authentication_failures >= repeated)

    for node, events in ((server, at_server), (client, at_client)):
        assert node.peers == ()
        events.close()
        told = [event async for event in events]
        assert not [event for event in told if isinstance(event, PeerJoined)]
        failures = [event for event in told if isinstance(event, AuthenticationFailed)]
        assert len(set(failures)) == len(failures)


async def test_mended_keys_let_in(real_fabric: RealFabric) -> None:
    """A node that comes again with the right key is let in at the same address."""
    key, port = new_key(real_fabric.name), free_port()
    config = Config(mdns=False, registry=False, port=port, reconnect_interval_s=0.02, reconnect_interval_s_max=0.1)
    wrong = await real_fabric.open("server", config=config)
    client = await real_fabric.open("client", key=key, config=SEEDS_ONLY, seeds=wrong.endpoints[-2:])
    await wait_until_async(lambda: client.statistics().authentication_failures)
    await wrong.close()

    await real_fabric.open("server", config=config, key=key)

    await client.wait_for_peers(1, timeout=10)


def free_port() -> int:
    """A port that nobody uses now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


async def test_announcements_of_others_are_not_dialled(real_fabric: RealFabric) -> None:
    """A fingerprint that is not ours is reported once and costs no connection."""
    node = await real_fabric.open("node", key=new_key(real_fabric.name))
    events = node.events()
    driver = node._driver
    assert driver is not None
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        endpoint = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        for number in range(200):
            driver._found(Announcement(number.to_bytes(16, "big"), node.fabric, (endpoint,), "0123456789abcdef"))
        event: AuthenticationFailed = await next_event(events, AuthenticationFailed)

        assert (event.peer, "0123456789abcdef" in event.reason) == (endpoint, True)
        assert node.statistics().authentication_failures == 200
        with pytest.raises(BlockingIOError):
            listener.accept()
    events.close()
    assert [each async for each in events] == []


async def test_a_key_opens_the_network(real_fabric: RealFabric, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a key an interface that leaves the machine is refused; a key is enough, wherever it comes from."""
    address = routable_address()
    options: dict[str, Any] = {
        "interface": address,
        "fabric": real_fabric.name,
        "config": Config(mdns=False, registry=False),
    }
    with pytest.raises(InsecureInterface, match="keys init"):
        await Node("plain", **options).open()

    write_key(key_path(real_fabric.name), FabricKey.parse(new_key(real_fabric.name)))
    async with Node("keyed", **options) as node:
        assert any(address in endpoint for endpoint in node.endpoints)


def routable_address() -> str:
    """An address of this machine that is not loopback; nothing is sent."""
    from zfabric.discovery import resolve

    try:
        return resolve("lan").addresses[0]
    except zfabric.InterfaceNotFound:
        pytest.skip("this machine is on no network")


async def test_the_users_key_is_used_unasked(real_fabric: RealFabric, tmp_path: Path) -> None:
    """Once `keys init` has written a key, nodes of that fabric use it and are closed to those without."""
    plain = await real_fabric.open("plain", config=QUICK)
    write_key(key_path(real_fabric.name), FabricKey.parse(new_key(real_fabric.name)))
    keyed = [await real_fabric.open(f"keyed{n}", config=QUICK) for n in range(2)]

    for node in keyed:
        await node.wait_for_peers(1, timeout=10)
    await wait_until_async(lambda: plain.statistics().authentication_failures)
    assert plain.peers == ()


async def test_bad_keys_do_not_open(real_fabric: RealFabric) -> None:
    """A key that is malformed or of another fabric is an error, never a plain node."""
    for key in ("", "secret", new_key("another")):
        with pytest.raises(InvalidKey):
            await real_fabric.open("node", key=key)


def test_blocking_nodes_take_keys(real_fabric: RealFabric) -> None:
    """`zfabric.sync.Node` takes the same `key=`."""
    key, fabric = new_key(real_fabric.name), real_fabric.name
    with (
        zfabric.sync.Node("one", fabric=fabric, key=key, config=QUICK) as one,
        zfabric.sync.Node("two", fabric=fabric, key=key, config=QUICK) as two,
        zfabric.sync.Node("plain", fabric=fabric, config=QUICK) as plain,
    ):
        one.wait_for_peers(1, timeout=10)
        two.wait_for_peers(1, timeout=10)
        wait_until(lambda: plain.statistics().authentication_failures)
        assert plain.peers == ()


async def test_a_group_joins_at_once(real_fabric: RealFabric) -> None:
    """Eight nodes in one event loop answer each other's handshakes while they make their own."""
    key = new_key(real_fabric.name)
    nodes = [await real_fabric.open(f"n{number}", key=key, config=QUICK) for number in range(8)]

    for node in nodes:
        await node.wait_for_peers(7, timeout=10)
