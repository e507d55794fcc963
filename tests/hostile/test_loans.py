"""Loans of shared memory that are forged, and memory that is a trap."""

from __future__ import annotations

import fcntl
import os
import socket
import sys
from collections.abc import Callable, Iterator

import msgpack
import msgspec
import pytest

from tests.hostile.attackers import Impostor, MakeImpostor, port
from tests.hostile.conftest import Arena
from tests.hostile.test_data import ONE, heard_filter
from tests.waiting import wait_until_async
from zfabric import Node, Subscription
from zfabric.wire.loans import Block, Loan, MemoryOffer, encode_loan, proof_of
from zfabric.wire.records import Data, Mapped, Returned

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="sealed files are Linux'")
NAME = "zfabric-00000000000000ff"
SECRET = b"s" * 16
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW


@pytest.fixture
def files() -> Iterator[Callable[..., int]]:
    """Makes memory files of this process."""
    made = []

    def make(name: str, content: bytes, *, seals: int = SEALS) -> int:
        descriptor = os.memfd_create(name, os.MFD_ALLOW_SEALING)
        made.append(descriptor)
        os.write(descriptor, content)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
        return descriptor

    yield make
    for descriptor in made:
        os.close(descriptor)


async def lender(
    arena: Arena, impostor: MakeImpostor, files: Callable[..., int], *, secret: bytes = SECRET
) -> tuple[Impostor, Subscription]:
    """A peer on this very host that offers memory, and the victim's subscription to it."""
    subscription = arena.victim.subscribe("evil.#")
    attacker = impostor(outlet=True)
    offer = MemoryOffer(NAME, files(NAME, SECRET), proof_of(secret, attacker.id))
    attacker.identity = msgspec.structs.replace(
        attacker.identity, host=socket.gethostname(), pid=os.getpid(), memory=offer
    )
    await attacker.join(port(arena.victim, "inbox-ipc"))
    await attacker.offer("evil.x")
    await wait_until_async(lambda: heard_filter(attacker, b"\x01evil"))
    return attacker, subscription


def victim_id(victim: Node) -> bytes:
    """Who the victim is."""
    return bytes.fromhex(victim.id)


async def test_forged_loans_are_errors_or_losses_and_a_good_one_arrives(
    arena: Arena, impostor: MakeImpostor, files: Callable[..., int]
) -> None:
    """Memory that is not there, too short, unsealed, of another name or no memory: nothing crashes, nothing is read."""
    attacker, subscription = await lender(arena, impostor, files)
    proof = await attacker.hear(Mapped)
    assert proof.proof == proof_of(SECRET, victim_id(arena.victim))
    me = [victim_id(arena.victim)]
    good = files(f"{NAME}-1", b"x" * 200_000)
    unsealed = files(f"{NAME}-2", b"x" * 200_000, seals=fcntl.F_SEAL_GROW)
    pipe, other_end = os.pipe()
    body = msgpack.packb(msgpack.ExtType(1, b"\x00"))
    number = 0

    def publish(blocks: list[Block | None], holders: list[bytes] = me, *rest: bytes, again: int = 0) -> None:
        nonlocal number
        number += 1
        frame = attacker.batch("evil.x", body, base=number)[0]
        attacker.publish(frame, b"", encode_loan(Loan(again or number, holders, blocks)), *rest)

    errors: list[list[Block | None]] = [
        [Block(1, good, 2**62)],
        [Block(1, good, 200_001)],
        [Block(2, unsealed, 1000)],
        [None],
        [Block(9, 9, 9)] * 2000,
    ]
    losses: list[list[Block | None]] = [
        [Block(3, good, 10)],
        [Block(1, 2**31 - 1, 10)],
        [Block(4, pipe, 10)],
        [Block(1, other_end, 10)],
    ]
    publish([Block(1, good, 200_000)], [attacker.id])
    publish([Block(1, good, 200_000)], [])
    for blocks in (*losses, *errors):
        publish(blocks)
    attacker.publish(attacker.batch("evil.x", body)[0], b"", b"\x93\x01\xc0\x90")
    publish([Block(1, good, 200_000)])
    publish([Block(1, good, 200_000)], again=number)

    assert (await subscription.receive(timeout=30)).value == b"x" * 200_000
    for descriptor in (pipe, other_end):
        os.close(descriptor)
    attacker.publish(*attacker.batch("evil.x", ONE, base=1000))
    assert (await subscription.receive(timeout=30)).value == 1
    assert arena.statistics.protocol_errors == len(errors) + 1
    await arena.stays_small()


async def test_nobody_maps_what_is_not_the_peers_own(
    arena: Arena, impostor: MakeImpostor, files: Callable[..., int]
) -> None:
    """An offer whose secret its sender cannot have read gets no proof, and its loans are not looked at."""
    attacker, subscription = await lender(arena, impostor, files, secret=b"guess" * 3 + b"!")
    good = files(f"{NAME}-1", b"x" * 200_000)
    loan = encode_loan(Loan(1, [victim_id(arena.victim)], [Block(1, good, 200_000)]))
    attacker.publish(attacker.batch("evil.x", msgpack.packb(msgpack.ExtType(1, b"\x00")))[0], b"", loan)
    attacker.publish(*attacker.batch("evil.x", ONE, base=1))

    assert (await subscription.receive(timeout=30)).value == 1
    assert not [record for record in attacker.listen() if isinstance(record, Mapped)]


async def test_what_is_said_about_loans_is_checked(
    arena: Arena, impostor: MakeImpostor, files: Callable[..., int]
) -> None:
    """A return of what was never lent and a loan inside of a repair are errors; a false proof proves nothing."""
    attacker, _ = await lender(arena, impostor, files)
    loan = encode_loan(Loan(1, [victim_id(arena.victim)], [None]))
    frames = [bytes(attacker.batch("evil.x", ONE)[0]), b"", loan, b"x"]

    attacker.say(Mapped(b"x" * 16), Returned(5), Data(1, frames))

    await wait_until_async(lambda: arena.statistics.protocol_errors == 2)
    driver = arena.victim._driver
    assert driver is not None
    assert attacker.id not in driver.core.lending._mapping
