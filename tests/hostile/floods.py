"""What floods do to good traffic: `python -m tests.hostile.floods [--secure]` measures it and prints a table.

Two good nodes in this process exchange messages the whole time; the attackers are a process of their own. Nothing is
asserted here: figures depend on the machine. What must hold on any machine stands in the tests.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import zmq

from tests.hostile.attackers import GREETING, Impostor, Raw
from tests.hostile.conftest import QUICK
from zfabric import Node, new_key
from zfabric.security.keys import FabricKey
from zfabric.transport.handshakes import be_client
from zfabric.wire.records import Hello

MEASURE_S = 4.0
PAUSE_S = 0.002
IDLE = 900
TICK_S = 0.01


def idle(inbox: str, outlet: str, key: FabricKey | None) -> None:
    """Connections that say nothing, opened again as soon as they are hung up."""
    while True:
        opened = [Raw(inbox if n % 2 else outlet) for n in range(IDLE)]
        while not all(raw.gone() for raw in opened):
            time.sleep(TICK_S)


def claims(inbox: str, outlet: str, key: FabricKey | None) -> None:
    """A gigabyte announced as the first command, on ever new connections."""
    while True:
        opened = [Raw(inbox if n % 2 else outlet) for n in range(50)]
        for raw in opened:
            raw.send(GREETING + b"\x06" + (2**30).to_bytes(8, "big") + bytes(60_000))
        for raw in opened:
            raw.close()


def strangers(inbox: str, outlet: str, key: FabricKey | None) -> None:
    """Handshakes that fail: no key where one is needed, or one where there is none."""
    with zmq.Context() as context:
        while True:
            sockets = [context.socket(zmq.DEALER) for _ in range(100)]
            for number, socket in enumerate(sockets):
                socket.linger = 0
                be_client(socket, FabricKey.parse(new_key("x")) if number % 2 or key is None else None, "")
                socket.connect(inbox)
            time.sleep(5 * TICK_S)
            for socket in sockets:
                socket.close()


def subscriptions(inbox: str, outlet: str, key: FabricKey | None) -> None:
    """A member (in a plain fabric: anybody) that subscribes to 100,000 long topics, again and again."""
    with zmq.Context() as context:
        while True:
            with context.socket(zmq.SUB) as feed:
                feed.linger = 0
                feed.set(zmq.SNDHWM, 0)
                be_client(feed, key, "")
                feed.connect(outlet)
                for _ in range(100_000):
                    feed.subscribe(os.urandom(200))
                time.sleep(50 * TICK_S)


def hellos(inbox: str, outlet: str, key: FabricKey | None) -> None:
    """A member that greets under ever new ids."""
    attacker = Impostor(os.environ["ZFABRIC_FLOOD"], key=key)
    attacker.dial(inbox)
    while True:
        for _ in range(100):
            with contextlib.suppress(zmq.Again):
                attacker.say(Hello(None, attacker.identity), sender=os.urandom(16))
        attacker.listen()
        time.sleep(TICK_S)


FLOODS = {each.__name__: each for each in (idle, claims, strangers, subscriptions, hellos)}


async def measure(publisher: object, subscription: object) -> list[float]:
    """Milliseconds from publishing to arrival, of messages sent every PAUSE_S."""
    trips: list[float] = []
    end = time.perf_counter() + MEASURE_S

    async def receive() -> None:
        async for message in subscription:  # type: ignore[attr-defined]
            trip_s = time.perf_counter() - message.value
            trips.append(trip_s * 1000)

    receiving = asyncio.ensure_future(receive())
    while time.perf_counter() < end:
        await publisher.publish(time.perf_counter())  # type: ignore[attr-defined]
        await asyncio.sleep(PAUSE_S)
    await asyncio.sleep(20 * TICK_S)
    receiving.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await receiving
    return sorted(trips)


def line(name: str, trips: list[float], process: psutil.Process) -> None:
    """One row."""
    p50, p99 = (trips[int(len(trips) * share)] if trips else float("nan") for share in (0.5, 0.99))
    rss = process.memory_info().rss / 2**20
    print(f"{name:<14} {len(trips):6}  {p50:8.2f} {p99:8.2f}  {rss:7.0f}  {process.num_fds():5}", flush=True)


async def main(*, secure: bool, names: list[str]) -> None:
    """Measure quiet, then each flood, then quiet again."""
    fabric = f"floods-{os.getpid()}"
    key = new_key(fabric) if secure else None
    process = psutil.Process()
    config = replace(QUICK, handshake_timeout_s=3.0)
    print(f"{'flood':<14} {'msgs':>6}  {'p50 ms':>8} {'p99 ms':>8}  {'RSS MB':>7}  {'fds':>5}")
    async with (
        Node("victim", fabric=fabric, key=key, config=config) as victim,
        Node("friend", fabric=fabric, key=key, config=config) as friend,
        friend.subscribe("good", delivery="at-least-once") as subscription,
    ):
        publisher = victim.publisher("good", delivery="at-least-once")
        await publisher.wait_for(1, timeout=10)
        driver = victim._driver
        assert driver is not None
        inbox, outlet = (
            next(e for e in ends if e.startswith("tcp://127"))
            for ends in (driver._transport.inbox_endpoints, driver._transport.outlet_endpoints)
        )
        line("quiet", await measure(publisher, subscription), process)
        for name in names:
            argv = (sys.executable, "-m", "tests.hostile.floods", "--attack", name, inbox, outlet, key or "")
            attacker = subprocess.Popen(  # noqa: ASYNC220 - takes a millisecond
                argv, env={**os.environ, "ZFABRIC_FLOOD": fabric}, cwd=Path(__file__).parents[2]
            )
            await asyncio.sleep(100 * TICK_S)
            try:
                line(name, await measure(publisher, subscription), process)
            finally:
                attacker.kill()
                attacker.wait()
        await asyncio.sleep(MEASURE_S)
        line("quiet again", await measure(publisher, subscription), process)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--secure", action="store_true", help="the fabric has a key")
    parser.add_argument("--attack", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("floods", nargs="*", default=list(FLOODS), help=f"of {', '.join(FLOODS)}")
    options = parser.parse_args()
    if options.attack:
        which, to_inbox, to_outlet, text = options.attack
        FLOODS[which](to_inbox, to_outlet, FabricKey.parse(text) if text else None)
    else:
        asyncio.run(main(secure=options.secure, names=options.floods))
