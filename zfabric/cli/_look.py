"""Opening a command's node, and knowing when it has seen who is there."""

from __future__ import annotations

import asyncio
import difflib
import os
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from functools import lru_cache

from zfabric.cli._exits import Exit, Stop
from zfabric.cli._options import Options
from zfabric.config import Config
from zfabric.events import AuthenticationFailed, PeerRefused
from zfabric.model import Peer, QueueState
from zfabric.node.eventhub import EventStream
from zfabric.node.node import Node
from zfabric.node.publisher import Publisher
from zfabric.wire.topics import Pattern

__all__ = ["Sighting", "find_audience", "least_look_s", "look_around", "nearest", "open_node", "poll", "settle"]

POLL_S = 0.02
STEP_S_MAX = 0.1
"What one look may count for: while this process stood still, nobody else was slow."
SETTLE_S = 1.0
"How long to look for subscribers at most."
NOBODY_S = 1.0
"How long to look at least before nobody there means that nobody is: others may be busy."
LOOK_S = 3.0
"How long to look at most, unless --timeout says otherwise."


@asynccontextmanager
async def open_node(options: Options, verb: str) -> AsyncIterator[Node]:
    """The command's own node, named after the verb."""
    node = Node(
        options.name or f"{verb}-{os.getpid()}",
        fabric=options.fabric,
        interface=options.interface,
        seeds=options.seeds,
        insecure=options.insecure,
        config=Config(mdns=options.mdns),
    )
    async with node:
        yield node


async def _step() -> float:
    """Wait for a moment; returns how long it was, as far as that counts."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    await asyncio.sleep(POLL_S)
    return min(loop.time() - began, STEP_S_MAX)


async def poll(condition: Callable[[], bool], timeout: float | None) -> bool:
    """Whether the condition came true within `timeout` seconds; None waits for ever."""
    waited = 0.0
    while not condition():
        if timeout is not None and waited >= timeout:
            return False
        waited += await _step()
    return True


async def settle(
    node: Node,
    *,
    quiet_s: float,
    least_s: float,
    most_s: float,
    enough: Callable[[tuple[Peer, ...]], bool] = lambda _: False,
) -> tuple[Peer, ...]:
    """The peers, once nothing has changed for `quiet_s` and `least_s` have passed, or `enough` holds; or too late."""
    waited = changed = 0.0
    peers = node.peers
    while True:
        waited += await _step()
        seen = node.peers
        if seen != peers:
            changed, peers = waited, seen
        settled = waited - changed >= quiet_s and waited >= (least_s if peers else max(least_s, NOBODY_S))
        if settled or enough(peers) or waited >= most_s:
            return peers


_pattern = lru_cache(Pattern)


async def find_audience(options: Options, node: Node, publishers: Sequence[Publisher]) -> None:
    """Return once the subscribers that are there have been found, or after a second."""

    def interested(topic: str) -> int:
        """Peers that ask for the topic; they count as subscribers once their connection is in place."""
        return sum(any(_pattern(text).matches(topic) for text in peer.patterns) for peer in node.peers)

    def connected() -> bool:
        return all(interested(publisher.topic) <= publisher.subscribers for publisher in publishers)

    def found() -> bool:
        return any(interested(publisher.topic) for publisher in publishers) and connected()

    quiet_s = 0.15 if options.interface == "loopback" else 0.6
    if await poll(found, SETTLE_S):
        await settle(node, quiet_s=quiet_s, least_s=quiet_s, most_s=SETTLE_S)
        await poll(connected, SETTLE_S)


class Sighting:
    """What a look around found: the peers, and why others are none."""

    def __init__(self, peers: tuple[Peer, ...], queues: Sequence[QueueState], refusals: tuple[str, ...]) -> None:
        self.peers = peers
        self.queues = queues
        self.refusals = refusals

    def require(self, count: int, options: Options) -> None:
        """End the command unless there are `count` peers; 0 means any at all."""
        if len(self.peers) >= max(1, count):
            return
        if self.refusals:
            raise Stop(Exit.REFUSED, f"refused: {'; '.join(sorted(set(self.refusals)))}")
        if count:
            raise Stop(Exit.TIMED_OUT, f"only {len(self.peers)} of {count} nodes came; give it longer with --timeout")
        raise Stop(Exit.NOBODY, nobody(options))


def nobody(options: Options) -> str:
    """That no node is there, and what to try."""
    place = "this machine" if options.interface == "loopback" else f"the network of {options.interface!r}"
    cures = ["another --fabric"]
    if options.interface == "loopback":
        cures.append("`--interface lan` to look beyond it")
    cures.append("`zfabric doctor`")
    return f"no node of fabric {options.fabric!r} on {place}; try {', '.join(cures[:-1])} or {cures[-1]}"


def least_look_s(options: Options) -> float:
    """How long to look at least: others may be found later than the first."""
    return 0.3 if not options.mdns else 0.8 if options.interface == "loopback" else 1.5


async def look_around(options: Options, verb: str, wait: int = 0, *, queues: bool = False) -> Sighting:
    """Open a node, wait until discovery has settled or `wait` nodes are there, and say what it sees.

    With `queues` it asks all of them for theirs.
    """
    async with open_node(options, verb) as node:
        events = node.events()
        peers = await settle(
            node,
            quiet_s=0.25,
            least_s=float("inf") if wait else least_look_s(options),
            most_s=options.timeout or (10.0 if wait else LOOK_S),
            enough=lambda peers: bool(wait) and len(peers) >= wait,
        )
        if wait and len(peers) >= wait:
            # The last one to come has only just begun to tell what it does.
            peers = await settle(node, quiet_s=0.1, least_s=0.1, most_s=1.0)
        found = await node.queues(options.timeout or LOOK_S) if queues else ()
        return Sighting(peers, found, await _refusals(events))


async def _refusals(events: EventStream) -> tuple[str, ...]:
    """Why nodes did not become peers."""
    events.close()
    found = []
    async for event in events:
        if isinstance(event, PeerRefused):
            found.append(f"{event.address}: {event.detail or event.reason}")
        elif isinstance(event, AuthenticationFailed):
            found.append(f"{event.peer}: {event.reason}")
    return tuple(found)


def nearest(pattern: str, peers: Iterable[Peer], *, published: bool) -> list[str]:
    """What peers publish (or subscribe to), the most similar to `pattern` first, as a hint at a misspelt name."""
    names = sorted({name for peer in peers for name in (peer.topics if published else peer.patterns)})
    matching = Pattern(pattern).matches
    others = [name for name in names if not (published and matching(name))]
    close = difflib.get_close_matches(pattern, others, 3)
    return [*close, *(name for name in others if name not in close)][:5]
