"""Addresses that are forged, nonsense or far too many."""

from __future__ import annotations

import os
import time
from typing import Any

import pytest
import zmq
from msgspec.structs import replace

from tests.hostile.attackers import MakeImpostor, port
from tests.hostile.conftest import Arena, count_dials, driver_of
from tests.waiting import wait_until_async
from zfabric.wire.records import (
    Hello,
    Interest,
    PeerAddress,
    Peers,
    TopicOffer,
)


@pytest.mark.parametrize(
    "limits",
    [{"dials_per_s_max": 40.0, "dials_pending_max": 10, "discovery_records_max": 200, "endpoints_per_peer_max": 2}],
)
async def test_forged_addresses_cannot_flood_the_network(
    arena: Arena, impostor: MakeImpostor, limits: dict[str, Any]
) -> None:
    """PEERS with thousands of addresses: few targets are kept, few are dialled at once, few a second."""
    attacker = impostor()
    await attacker.join(port(arena.victim, "inbox-tcp"))
    dialler = driver_of(arena).core.peers.dialler
    dials, begin, most = count_dials(arena), time.monotonic(), 0

    for first in range(0, 5000, 1000):
        attacker.say(
            Peers(
                [
                    PeerAddress(
                        os.urandom(16), tuple(f"tcp://127.1.{n % 250}.{m}:{1 + n // 250}" for m in range(1, 21))
                    )
                    for n in range(first, first + 1000)
                ]
            )
        )
    while len(dials) < (60 if arena.key is None else 12):
        await arena.lives()
        most = max(most, len(dialler._by_route))

    assert len(dials) <= 40 + 40 * (time.monotonic() - begin) + 2
    assert (most, len(dialler._targets) <= 200) == (10 if arena.key is None else 1, True)
    assert {endpoint.split(":")[1].rpartition(".")[2] for endpoint in dials} <= {"1", "2"}
    await arena.lives()


async def test_forged_ids_at_one_address_do_not_pile_up_connections(arena: Arena, impostor: MakeImpostor) -> None:
    """An address is dialled once at a time, whoever is said to live there; one in use is not dialled again."""
    attacker = impostor()
    await attacker.join(port(arena.victim, "inbox-tcp"))
    with zmq.Context() as context, context.socket(zmq.STREAM) as silent:
        number = silent.bind_to_random_port("tcp://127.0.0.1")
        dials = count_dials(arena)
        addresses = (f"tcp://127.0.0.1:{number}", *arena.friend.endpoints)

        attacker.say(Peers([PeerAddress(os.urandom(16), addresses) for _ in range(1000)]))

        await wait_until_async(lambda: len(dials) >= 3)
        for _ in range(10):
            await arena.lives()
        assert max(dials.count(endpoint) for endpoint in dials) <= 200  # again and again, not once for each id
        arena.attackers += 1
        await arena.stays_small()
        silent.close(0)


async def test_nonsense_addresses_are_not_dialled_or_fail_quietly(arena: Arena, impostor: MakeImpostor) -> None:
    """Whatever text is announced as an address, the node goes on."""
    attacker = impostor()
    await attacker.join(port(arena.victim, "inbox-tcp"))
    nonsense = ["", "tcp://", "tcp://:", "tcp://*:*", "tcp://127.0.0.1", "tcp://127.0.0.1:99999", "tcp://[::1:1"]
    nonsense += ["tcp://\0:1", "ipc://", "ipc:///", "ipc:///nowhere", "inproc://x", "udp://127.0.0.1:1", "ä" * 100]
    nonsense += ["tcp://127.0.0.1:1\n", "file:///etc/passwd", "tcp://127.0.0.1:0", "tcp://127.0.0.1:-1"]

    attacker.say(Peers([PeerAddress(os.urandom(16), (endpoint,)) for endpoint in nonsense]))
    attacker.say(Hello(None, replace(attacker.identity, inbox=tuple(nonsense), outlet=tuple(nonsense))))
    attacker.say(Interest(False, False, 0, 0, [TopicOffer("good.b", 1, "at-least-once")]))
    for _ in range(10):
        await arena.lives()

    assert len(arena.victim.peers) == 2
