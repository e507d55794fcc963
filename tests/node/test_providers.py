"""Providers that are processes: killed, stopped for a while, and restarted one by one under load."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from pathlib import Path

import pytest

from tests.node.support import TIMEOUT, MakeNode, Start, line_of
from tests.waiting import wait_until_async
from zfabric import Node, ProviderLost

pytestmark = pytest.mark.skipif(os.name == "nt", reason="POSIX processes")

QUICK = 2.0
"Seconds after which a provider that is silent is missed, where one will be."
PATIENT = 10.0
PROVIDER = """
async def main():
    config = Config(mdns=False, heartbeat_interval_s=0.2, peer_timeout_s=float(sys.argv[4]))
    async with Node(sys.argv[1], config=config, fabric=sys.argv[2]) as node:
        log = open(sys.argv[3], "a", buffering=1)

        @node.service("work")
        async def work(number: int, seconds: float = 0.0) -> int:
            log.write(f"{number}\\n")
            await asyncio.sleep(seconds)
            return number

        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        say("ready")
        await stop.wait()
asyncio.run(main())
"""


class Fleet:
    """A client, and provider processes that write down what they begin."""

    def __init__(self, client: Node, start: Start, folder: Path, peer_timeout_s: float) -> None:
        self.client = client
        self._start = start
        self._peer_timeout_s = peer_timeout_s
        self._folder = folder
        self._count = 0

    async def launch(self) -> tuple[str, int]:
        """Start one; returns its name and process id once the client knows it."""
        self._count += 1
        name = f"p{self._count}"
        arguments = name, self.client.fabric, str(self._folder / name), str(self._peer_timeout_s)
        process = self._start(PROVIDER, *arguments)
        assert await line_of(process) == "ready"
        await wait_until_async(lambda: name in self.providers(), TIMEOUT)
        return name, process.pid

    def providers(self) -> set[str]:
        """Those that the client would ask."""
        return {peer.name for peer in self.client.peers if peer.services}

    def begun(self) -> Counter[int]:
        """How often each request was begun, by anybody."""
        lines = (path.read_text().split() for path in self._folder.iterdir())
        return Counter(int(line) for some in lines for line in some)


@pytest.fixture(params=[QUICK])
async def fleet(make_node: MakeNode, start: Start, tmp_path: Path, request: pytest.FixtureRequest) -> Fleet:
    """No provider yet; the parameter is the peer timeout of all."""
    client = await make_node("client", heartbeat_interval_s=0.2, peer_timeout_s=request.param)
    return Fleet(client, start, tmp_path, request.param)


async def test_a_killed_provider_is_noticed(fleet: Fleet) -> None:
    """What it had fails as lost; what is idempotent is done by another, once there."""
    client, (_, one) = fleet.client, await fleet.launch()
    once = asyncio.create_task(client.request("work", 1, 60.0, timeout=60))
    again = asyncio.create_task(client.request("work", 2, 0.01, timeout=60, idempotent=True))
    slow = asyncio.create_task(client.request("work", 3, 1.5, timeout=60, idempotent=True))
    await wait_until_async(lambda: fleet.begun().keys() == {1, 2, 3}, TIMEOUT)
    os.kill(one, signal.SIGKILL)

    with pytest.raises(ProviderLost):
        await once
    await fleet.launch()
    assert await again == 2
    assert await slow == 3
    assert fleet.begun()[1] == 1
    assert fleet.begun()[3] == 2


async def test_a_stopped_provider_is_left_and_does_nothing_twice(fleet: Fleet) -> None:
    """SIGSTOP beyond the peer timeout, then SIGCONT: the reply that comes too late is nobody's."""
    client, (name, one) = fleet.client, await fleet.launch()
    os.kill(one, signal.SIGSTOP)
    once = asyncio.create_task(client.request("work", 1, timeout=60))
    again = asyncio.create_task(client.request("work", 2, timeout=60, idempotent=True))
    try:
        with pytest.raises(ProviderLost):
            await once
        await fleet.launch()
        assert await again == 2
    finally:
        os.kill(one, signal.SIGCONT)
    await wait_until_async(lambda: name in fleet.providers(), TIMEOUT)
    assert sorted(await asyncio.gather(*(client.request("work", n) for n in range(10, 60)))) == list(range(10, 60))

    begun = fleet.begun()
    assert all(begun[number] <= 1 for number in begun if number != 2)
    assert begun[2] <= 2


@pytest.mark.parametrize("fleet", [PATIENT], indirect=True)
async def test_a_rolling_restart_fails_no_request(fleet: Fleet) -> None:
    """Three providers replaced one by one under load: nothing idempotent, nothing lost, nothing done twice."""
    client = fleet.client
    running = [await fleet.launch() for _ in range(3)]
    done, numbers = [], iter(range(1_000_000))
    restarting = True

    async def ask() -> None:
        while restarting:
            number = next(numbers)
            assert await client.request("work", number, 0.002, timeout=30) == number
            done.append(number)

    askers = [asyncio.create_task(ask()) for _ in range(32)]
    for name, pid in running:
        before = len(done)
        await fleet.launch()
        os.kill(pid, signal.SIGTERM)
        await wait_until_async(lambda name=name: name not in fleet.providers(), TIMEOUT)  # type: ignore[misc]
        await wait_until_async(lambda before=before: len(done) > before + 200, 30)  # type: ignore[misc]
    restarting = False
    await asyncio.gather(*askers)

    assert sorted(done) == list(range(len(done)))
    assert fleet.begun() == Counter(done)
