"""The doctor's last checks: a second process, found through each way of discovery, answers messages."""

from __future__ import annotations

import asyncio
import os
import secrets
import statistics
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import zfabric
from zfabric.cli._echo import PING, PONG, TOKEN, configuration, fabric_of, key_of
from zfabric.cli.checks import Check, Situation, failed, ok, skipped
from zfabric.errors import FabricError, InsecureInterface
from zfabric.events import DiscoveryFailed

__all__ = ["live"]

PINGS = 20
NAMES = {"registry": "live: registry", "mdns": "live: mDNS"}
CURES = {
    "registry": "see the runtime directory; processes in other containers or of other users need mDNS or --seed",
    "mdns": "let UDP port 5353 and multicast through on this interface, or give addresses with --seed",
}


@dataclass(frozen=True, slots=True)
class _Echo:
    process: asyncio.subprocess.Process

    async def opened_at(self) -> float:
        """When its nodes were open. Raises ChildProcessError with what it said on stderr."""
        assert self.process.stdout is not None
        line = await self.process.stdout.readline()
        if line:
            return float(line)
        assert self.process.stderr is not None
        said = (await self.process.stderr.read()).decode(errors="replace").strip().splitlines()
        raise ChildProcessError(said[-1] if said else "the second process ended at once")


async def live(situation: Situation, *, registry: bool) -> list[Check]:
    """Find the second process by each way, and measure how long it takes to hear from it."""
    ways = [*(["registry"] if registry else []), *(["mdns"] if situation.mdns else [])]
    checks = []
    if not registry:
        checks.append(skipped(NAMES["registry"], "it needs the runtime directory"))
    if not situation.mdns:
        checks.append(skipped(NAMES["mdns"], "left out by --no-mdns"))
    if not ways:
        return checks
    token = secrets.token_hex(16)
    try:
        async with _echo(situation, token, ways) as echo:
            opened = asyncio.create_task(echo.opened_at())
            results = await asyncio.gather(*(_try(situation, token, way, opened) for way in ways))
            opened.cancel()
    except OSError as error:
        return [*checks, failed("live", f"no second process: {error}", "let this Python start processes")]
    return [*results, *checks]


@asynccontextmanager
async def _echo(situation: Situation, token: str, ways: list[str]) -> AsyncIterator[_Echo]:
    # The same zfabric as ours, wherever it was imported from; and nothing from the current directory.
    root = str(Path(zfabric.__file__).parents[1])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "zfabric.cli._echo", situation.interface),
        *("insecure" if situation.insecure else "secure", *ways),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, TOKEN: token, "PYTHONPATH": os.pathsep.join(paths)},
    )
    try:
        yield _Echo(process)
    finally:
        try:
            async with asyncio.timeout(3):
                await process.communicate(b"")  # which closes its stdin
        except TimeoutError:
            process.kill()
            await process.wait()


async def _try(situation: Situation, token: str, way: str, opened: asyncio.Task[float]) -> Check:
    name, cure = NAMES[way], CURES[way]
    node = zfabric.Node(
        "doctor",
        fabric=fabric_of(token, way),
        interface=situation.interface,
        key=key_of(token, way),
        insecure=situation.insecure,
        config=configuration(way),
    )
    try:
        async with node:
            events = node.events()
            try:
                async with asyncio.timeout(situation.timeout_s):
                    opened_at = await asyncio.shield(opened)
                    found_ms, trip_ms = await _exchange(node, opened_at)
            except TimeoutError:
                if not opened.done():
                    slow = f"the second process was not ready in {situation.timeout_s:g} s"
                    return failed(name, slow, "this machine is busy: give it longer with --timeout")
                events.close()
                reasons = [event.reason async for event in events if isinstance(event, DiscoveryFailed)]
                reason = f": {reasons[0]}" if reasons else ""
                return failed(name, f"no message in {situation.timeout_s:g} s{reason}", cure)
    except InsecureInterface:
        return skipped(name, f"{situation.interface} leaves this machine", "add --insecure to try it there")
    except (FabricError, OSError) as error:
        return failed(name, str(error), cure)
    encrypted = "" if key_of(token, way) is None else "encrypted "
    return ok(
        name, f"found a second process in {found_ms:.0f} ms, {encrypted}message there and back in {trip_ms:.2f} ms"
    )


async def _exchange(node: zfabric.Node, opened_at: float) -> tuple[float, float]:
    """Milliseconds until both directions stand, and the median of a message's way there and back."""
    ping, pong = node.publisher(PING), node.subscribe(PONG)
    await ping.wait_for(1)
    await pong.wait_for(1)
    found_ms = max(0.0, time.time() - opened_at) * 1000
    trips = []
    for number in range(PINGS):
        began = time.perf_counter()
        await ping.publish(number)
        with suppress(StopAsyncIteration):
            await pong.__anext__()
        trips.append((time.perf_counter() - began) * 1000)
    return found_ms, statistics.median(trips)
