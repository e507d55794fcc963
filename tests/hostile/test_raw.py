"""Connections that are no ZeroMQ, or never become any, on every port of a node."""

from __future__ import annotations

import random
import struct
from typing import Any

import pytest

from tests.hostile.attackers import GREETING, PORTS, Raw, message, port, raws, ready
from tests.hostile.conftest import Arena
from tests.waiting import wait_until_async

HTTP = b"GET / HTTP/1.1\r\nHost: localhost\r\nUser-Agent: curl/8.0\r\nAccept: */*\r\n\r\n"
every_port = pytest.mark.parametrize("name", PORTS)


def socket_type(name: str) -> bytes:
    """What an ordinary peer of this port would be."""
    return b"DEALER" if name.startswith("inbox") else b"SUB"


@every_port
async def test_connections_that_never_finish_the_handshake_are_closed(arena: Arena, name: str) -> None:
    """Silence, half a greeting, noise, HTTP and unknown mechanisms: all gone after Config.handshake_timeout_s."""
    noise = random.Random(name)
    openings = [b"", GREETING[:20], GREETING, GREETING[:12] + b"PLAIN" + GREETING[17:], b"\x16\x03\x01\x02\x00\x01\x00"]
    openings += [b"\xff" + noise.randbytes(200) for _ in range(15)]

    with raws(port(arena.victim, name), 2 * len(openings)) as attackers:
        for raw, opening in zip(attackers, 2 * openings, strict=True):
            raw.send(opening)
        await wait_until_async(lambda: all(raw.gone() for raw in attackers))

    await arena.lives()
    await arena.stays_small()


@every_port
async def test_a_handshake_that_trickles_is_cut(arena: Arena, name: str) -> None:
    """One byte at a time keeps nobody's connection open."""
    with raws(port(arena.victim, name), 4) as attackers:
        for octet in GREETING[:16]:
            for raw in attackers:
                raw.send(bytes([octet]))
            await arena.lives()
        await wait_until_async(lambda: all(raw.gone() for raw in attackers))

    await arena.stays_small()


@every_port
async def test_noise_and_http_reach_nobody(arena: Arena, name: str) -> None:
    """What looks like ZMTP 1.0, as HTTP does, is not taken for it: the connection is closed."""
    noise = random.Random(name)
    with raws(port(arena.victim, name), 30) as attackers:
        for raw in attackers[:10]:
            raw.send(HTTP)
        for raw in attackers[10:]:
            raw.send(noise.randbytes(noise.randrange(1, 2000)))
        await arena.lives()
        await wait_until_async(lambda: all(raw.gone() for raw in attackers))

    assert (len(arena.victim.peers), arena.statistics.protocol_errors) == (1, 0)
    await arena.stays_small()


@every_port
@pytest.mark.parametrize("limits", [{"frame_bytes_max": 100_000}])
async def test_an_oversize_frame_ends_its_connection(arena: Arena, name: str, limits: dict[str, Any]) -> None:
    """A frame that claims more than Config.frame_bytes_max is neither read nor allocated."""
    for size in (100_001, 1 << 40, (1 << 63) - 1):
        raw = Raw(port(arena.victim, name))
        await raw.shake_hands(socket_type(name))
        raw.send(b"\x02" + struct.pack(">Q", size) + b"x" * 1000)
        await wait_until_async(raw.gone)
        raw.close()

    await arena.lives()
    await arena.stays_small()


@every_port
async def test_many_idle_connections_at_once(arena: Arena, name: str) -> None:
    """Hundreds of connections that say nothing cost their descriptors for the handshake's time, and nothing else."""
    with raws(port(arena.victim, name), 150) as attackers:
        await arena.lives()
        await wait_until_async(lambda: all(raw.gone() for raw in attackers))

    await arena.stays_small()


@every_port
@pytest.mark.parametrize("limits", [{"accepted_max": 50}])
async def test_strangers_that_keep_connections_are_shed(arena: Arena, name: str, limits: dict[str, Any]) -> None:
    """Beyond Config.accepted_max all connections to that socket are ended, and good ones come back."""
    transport: Any = arena.victim._driver._transport  # type: ignore[union-attr]
    socket = transport._inbox if name.startswith("inbox") else transport._outlet
    before = transport._accepted[socket]
    with raws(port(arena.victim, name), 40) as attackers:  # those that end are not counted any more
        await wait_until_async(lambda: transport._accepted[socket] >= before + 40)
        await wait_until_async(lambda: all(raw.gone() for raw in attackers))
    await wait_until_async(lambda: transport._accepted[socket] == before)
    with raws(port(arena.victim, name), 60) as attackers:
        for raw in attackers:
            raw.send(GREETING + ready(socket_type(name)))
        await arena.complaint("accepted_max")
        await wait_until_async(lambda: sum(raw.gone() for raw in attackers) > 40)
        await arena.lives()
    await arena.stays_small()


@every_port
async def test_messages_after_a_good_handshake_that_mean_nothing(arena: Arena, name: str) -> None:
    """An ordinary ZeroMQ peer that talks rubbish is counted on the inbox and ignored on the outlet."""
    before = arena.statistics.protocol_errors
    noise = random.Random(name)
    raw = Raw(port(arena.victim, name))
    await raw.shake_hands(socket_type(name))
    for _ in range(100):
        raw.send(message(b"\x07" + noise.randbytes(noise.randrange(0, 254))))

    if name.startswith("inbox"):
        await wait_until_async(lambda: arena.statistics.protocol_errors >= before + 100)
        assert "control frame" in (await arena.complaint()).reason
    await arena.lives()
    raw.close()
    await arena.stays_small()


async def test_a_node_hears_nothing_from_a_port_that_is_no_inbox(arena: Arena) -> None:
    """A seed that leads to an outlet or to a web server is tried for ever and harms nobody."""
    lost = await arena.fabric.open("lost", seeds=[port(arena.victim, "outlet-tcp")])

    await lost.wait_for_peers(2, timeout=30)

    await arena.lives()
