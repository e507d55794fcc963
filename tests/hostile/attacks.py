"""Floods for `tests.hostile.floods`: each is a process of its own that attacks one node as fast as it can.

    python -m tests.hostile.attacks NAME INBOX OUTLET FABRIC KEY COUNTER CPU

Each flood yields how many items it has just done; COUNTER is the descriptor of eight bytes that have their sum.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import zmq
from zeroconf import DNSOutgoing, DNSPointer, DNSText  # type: ignore[attr-defined]

from tests.hostile.attackers import GREETING, Impostor, Raw
from zfabric import new_key
from zfabric.discovery import Announcement, _txt
from zfabric.security.keys import FabricKey
from zfabric.transport.handshakes import be_client
from zfabric.wire.records import Hello, Interest, PatternRequest, Repair, Start

__all__ = ["FLOODS", "HISTORY", "Target"]

TICK_S = 0.01
IDLE, SLOW = 900, 300
HISTORY = "history"
"A topic of the victim that keeps messages, for `repairs`."


@dataclass(frozen=True)
class Target:
    """The node that is attacked, and what the attacker has."""

    inbox: str
    outlet: str
    fabric: str
    key: FabricKey | None


def idle(target: Target) -> Iterator[int]:
    """connections that say nothing, opened again as soon as they are hung up"""
    while True:
        opened = [Raw(target.inbox if n % 2 else target.outlet) for n in range(IDLE)]
        yield IDLE
        while not all(raw.gone() for raw in opened):
            time.sleep(TICK_S)
            yield 0


def slow(target: Target) -> Iterator[int]:
    """handshakes of a byte every 10 ms"""
    while True:
        opened = [Raw(target.inbox) for _ in range(SLOW)]
        yield SLOW
        for number in range(len(GREETING)):
            for raw in opened:
                raw.send(GREETING[number : number + 1])
            time.sleep(TICK_S)
            yield 0
        for raw in opened:
            raw.close()


def claims(target: Target) -> Iterator[int]:
    """a gigabyte announced in 60 kB, on ever new connections"""
    while True:
        opened = [Raw(target.inbox if n % 2 else target.outlet) for n in range(50)]
        for raw in opened:
            raw.send(GREETING + b"\x06" + (2**30).to_bytes(8, "big") + bytes(60_000))
        for raw in opened:
            raw.close()
        yield len(opened)


def strangers(target: Target) -> Iterator[int]:
    """handshakes without the key, or with one where there is none"""
    with zmq.Context() as context:
        while True:
            sockets = [context.socket(zmq.DEALER) for _ in range(100)]
            for number, each in enumerate(sockets):
                each.linger = 0
                be_client(each, FabricKey.parse(new_key("x")) if number % 2 or target.key is None else None, "")
                each.connect(target.inbox)
            time.sleep(5 * TICK_S)
            for each in sockets:
                each.close()
            yield len(sockets)


def announcements(target: Target) -> Iterator[int]:
    """forged mDNS announcements, each of another node of the fabric"""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
        while True:
            for _ in range(20):
                print_of = "" if target.key is None else target.key.fingerprint
                forged = Announcement(os.urandom(16), target.fabric, ("tcp://127.0.0.1:9",), print_of)
                name = _txt.instance_name(forged.node_id)
                out = DNSOutgoing(0x8400)
                out.add_answer_at_time(DNSPointer(_txt.SERVICE_TYPE, 12, 1, 4500, name), 0)
                out.add_answer_at_time(DNSText(name, 16, 1, 4500, _txt.encode(forged, 16)), 0)
                for packet in out.packets():
                    sender.sendto(packet, ("224.0.0.251", 5353))
            yield 20
            time.sleep(TICK_S)


def subscriptions(target: Target) -> Iterator[int]:
    """100,000 subscriptions of 200 bytes by one member, again and again"""
    with zmq.Context() as context:
        while True:
            with context.socket(zmq.SUB) as feed:
                feed.linger = 0
                feed.set(zmq.SNDHWM, 0)
                be_client(feed, target.key, "")
                feed.connect(target.outlet)
                for _ in range(1000):
                    for _ in range(100):
                        feed.subscribe(os.urandom(200))
                    yield 100
                time.sleep(50 * TICK_S)


def _member(target: Target) -> Impostor:
    attacker = Impostor(target.fabric, key=target.key)
    attacker.dial(target.inbox)
    return attacker


def hellos(target: Target) -> Iterator[int]:
    """greetings of one member under ever new ids"""
    attacker = _member(target)
    while True:
        for _ in range(100):
            with contextlib.suppress(zmq.Again):
                attacker.say(Hello(None, attacker.identity), sender=os.urandom(16))
        attacker.listen()
        yield 100
        time.sleep(TICK_S)


def garbage(target: Target) -> Iterator[int]:
    """frames of one member that are no records"""
    attacker = _member(target)
    while True:
        for _ in range(100):
            with contextlib.suppress(zmq.Again):
                attacker.send(os.urandom(200))
        yield 100
        time.sleep(TICK_S)


def repairs(target: Target) -> Iterator[int]:
    """requests of one member to send all of a history again"""
    attacker = _member(target)
    attacker.say(Hello(None, attacker.identity))
    attacker.say(Interest(True, False, 0, 0))
    with attacker.client(zmq.SUB) as feed:
        feed.connect(target.outlet)
        feed.subscribe(b"\xff" + attacker.id + (1).to_bytes(4, "big"))
        time.sleep(50 * TICK_S)
        earliest = PatternRequest(3, HISTORY, "at-least-once", Start("earliest"))
        attacker.say(Interest(False, False, 1, 0, patterns=[earliest]))
        epoch = None
        while True:
            if epoch is None:
                heard = (position for record in attacker.listen() for position in getattr(record, "positions", ()))
                epoch = next((position.epoch for position in heard), None)
                attacker.heard.clear()
            else:
                attacker.say(*[Repair(3, HISTORY, epoch, [(0, 100)])] * 10)
                _discard(attacker.dealer)
                yield 10
            time.sleep(TICK_S)


def _discard(dealer: zmq.Socket[bytes]) -> None:
    with contextlib.suppress(zmq.Again):
        while True:
            dealer.recv(zmq.NOBLOCK)


FLOODS: dict[str, Callable[[Target], Iterator[int]]] = {
    flood.__name__: flood
    for flood in (idle, slow, claims, strangers, announcements, subscriptions, hellos, garbage, repairs)
}


def main(name: str, inbox: str, outlet: str, fabric: str, key: str, counter: str, cpu: str) -> None:
    """Attack until killed."""
    if cpu:
        os.sched_setaffinity(0, {int(cpu)})
    with mmap.mmap(int(counter), 8) as memory:
        done = 0
        for number in FLOODS[name](Target(inbox, outlet, fabric, FabricKey.parse(key) if key else None)):
            done += number
            struct.pack_into("=Q", memory, 0, done)


if __name__ == "__main__":
    main(*sys.argv[1:])
