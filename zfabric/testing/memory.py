"""A whole fabric in memory: ordinary nodes, an imaginary network."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Collection
from types import TracebackType
from typing import Any, Literal

from zfabric.config import Config
from zfabric.discovery.base import Announcement, Discovery, Found
from zfabric.discovery.interfaces import Scope
from zfabric.errors import LocalProtocolError
from zfabric.node.node import Node
from zfabric.protocol.lending import Memory
from zfabric.testing.links import MemoryTransport, Switchboard
from zfabric.testing.loop import VirtualClockLoop
from zfabric.testing.network import Faults, Network, Plane
from zfabric.transport.base import Credentials, Transport
from zfabric.transport.sharedmemory import SharedMemory

__all__ = ["Clock", "MemoryFabric"]

Who = Node | str
_EPOCH_S = 1_704_067_200.0


class Clock:
    """The time that a fabric in memory lives in: its event loop's."""

    def time(self) -> float:
        """Seconds, as the event loop counts them."""
        return asyncio.get_running_loop().time()

    def utc(self) -> float:
        """Seconds since 1970: virtual time begins with the year 2024, real time is the machine's."""
        loop = asyncio.get_running_loop()
        return _EPOCH_S + loop.time() if isinstance(loop, VirtualClockLoop) else time.time()

    async def advance(self, seconds: float) -> None:
        """Let virtual time pass, with everything that happens in it.

        Raises LocalProtocolError on an event loop whose time is real: use `zfabric.testing.run`.
        """
        if not isinstance(asyncio.get_running_loop(), VirtualClockLoop):
            raise LocalProtocolError("this event loop's time is real: run the test with zfabric.testing.run()")
        await asyncio.sleep(seconds)


class MemoryFabric:
    """Makes nodes that find and reach each other in memory, and breaks their network on demand.

        async def test_alarm() -> None:
            async with MemoryFabric(seed=1) as fabric:
                sensor, panel = await fabric.open("sensor"), await fabric.open("panel")
                ...
                fabric.partition({"sensor"}, {"panel"})

    Nodes are ordinary `zfabric.Node`s; all of them belong to one event loop. The seed decides node ids and faults:
    on a `VirtualClockLoop` (see `zfabric.testing.run`) the same seed gives the same run, timestamps included.

    Connections behave like ZeroMQ's over TCP: they keep the order of frames, come back by themselves after a break,
    and drop batches that a slow subscriber has no room for. `Config.mdns` and `Config.registry` stand for discovery
    in memory: with both off, nodes need `seeds`. `Config.port` gives a fixed address, `memory://<port>:in`.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.clock = Clock()
        self._ids = _generator(f"{seed} ids")
        self._network = Network(_generator(f"{seed} faults"))
        self._board = Switchboard(self._network)
        self._arena = MemoryArena()
        self._announced: dict[MemoryDiscovery, None] = {}
        self._places: dict[Node, _Place] = {}

    def __repr__(self) -> str:
        return f"<MemoryFabric seed={self.seed} nodes={[node.name for node in self._places]}>"

    async def __aenter__(self) -> MemoryFabric:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # -- nodes ---------------------------------------------------------------------------------

    def node(self, name: str, **options: Any) -> Node:
        """A new node, not open yet; options as for `zfabric.Node`."""
        node = Node(name, **options)
        place = self._places[node] = _Place(self, name)
        node._environment = place  # noqa: SLF001 - the seam for this class
        return node

    async def open(self, name: str, **options: Any) -> Node:
        """A new node that is open; `close()` of the fabric closes it."""
        node = self.node(name, **options)
        await node.open()
        return node

    async def close(self) -> None:
        """Close every node that is still open."""
        self.heal()
        self.calm()
        await asyncio.gather(*(node.close() for node in self._places))
        self._places.clear()

    def crash(self, node: Node) -> None:
        """Let a node vanish without goodbye, as if its process had been killed: its connections break.

        The object lives on without a network until it is closed, and so do its handlers.
        """
        place = self._places[node]
        if place.discovery is not None:
            self._announced.pop(place.discovery, None)
        if place.carrier is not None:
            place.carrier.crash()

    # -- the network ---------------------------------------------------------------------------

    def partition(self, *islands: Collection[Who]) -> None:
        """Cut the network between these groups of nodes (or of names); a node in no group reaches all of them.

        Frames that are on the way wait. If the network does not heal within twice
        `Config.peer_timeout_s`, control connections break, as the kernel's retransmission timeout breaks them.
        """
        self._network.divide([{_name(who) for who in island} for island in islands])

    def heal(self) -> None:
        """End all partitions; discovery sees everybody again."""
        self._network.divide([])
        for discovery in self._announced:
            self._announce(discovery)

    def disturb(
        self,
        faults: Faults | None = None,
        *,
        between: Collection[Who] | None = None,
        plane: Literal["control", "data"] | None = None,
        **probabilities: float,
    ) -> None:
        """Make connections bad: `disturb(drop=0.1, plane="data", between=("a", "b"))`; fields as of `Faults`.

        Without `between` all connections, without `plane` control and data. Where several calls speak of the same
        connection the newest counts. A lost control frame is not repeated by anybody: over TCP it cannot be lost
        without its connection.
        """
        names = None if between is None else frozenset(map(_name, between))
        self._network.disturb(faults or Faults(**probabilities), names, None if plane is None else Plane(plane))

    def calm(self) -> None:
        """End all disturbances."""
        self._network.calm()

    # -- discovery -----------------------------------------------------------------------------

    def _announce(self, discovery: MemoryDiscovery) -> None:
        """Tell a newcomer of the others and the others of the newcomer, as far as the network reaches."""
        self._announced[discovery] = None
        for other in self._announced:
            if other is not discovery and not self._network.separated(discovery.name_of_node, other.name_of_node):
                discovery.tell(other)
                other.tell(discovery)

    def _withdraw(self, discovery: MemoryDiscovery) -> None:
        self._announced.pop(discovery, None)


class MemoryDiscovery:
    """Implements `discovery.base.Discovery` in memory."""

    name = "memory"

    def __init__(self, fabric: MemoryFabric, name_of_node: str) -> None:
        self.name_of_node = name_of_node
        self.announcement: Announcement | None = None
        self._fabric = fabric
        self._found: Found | None = None

    async def start(self, announcement: Announcement, found: Found) -> None:
        """Announce, and report the others from now on."""
        self.announcement, self._found = announcement, found
        self._fabric._announce(self)  # noqa: SLF001 - one thing in two classes

    async def update(self, announcement: Announcement) -> None:
        """Replace what is announced."""
        self.announcement = announcement
        self._fabric._announce(self)  # noqa: SLF001 - one thing in two classes

    async def close(self) -> None:
        """Withdraw the announcement."""
        self._found = None
        self._fabric._withdraw(self)  # noqa: SLF001 - one thing in two classes

    def tell(self, other: MemoryDiscovery) -> None:
        """Report another node of the same fabric, later in this turn of the loop."""
        mine, theirs = self.announcement, other.announcement
        if mine is not None and theirs is not None and mine.fabric == theirs.fabric:
            asyncio.get_running_loop().call_soon(self._report, theirs)

    def _report(self, announcement: Announcement) -> None:
        if self._found is not None:
            self._found(announcement)


class MemoryArena:
    """Implements `transport.sharedmemory.Arena` in the memory of this very process."""

    def __init__(self) -> None:
        self._blocks: dict[int, tuple[str, bytearray]] = {}
        self._descriptor = 0

    def create(self, name: str, nbytes: int) -> tuple[int, bytearray]:
        """A new block."""
        self._descriptor += 1
        buffer = bytearray(nbytes)
        self._blocks[self._descriptor] = name, buffer
        return self._descriptor, buffer

    def destroy(self, descriptor: int) -> None:
        """Forget a block."""
        del self._blocks[descriptor]

    def open(self, pid: int, name: str, descriptor: int) -> bytearray:
        """A block of that name."""
        found, buffer = self._blocks.get(descriptor, ("", bytearray()))
        if found != name:
            raise FileNotFoundError(f"{name} is not there")
        return buffer


class _Place:
    """Implements `node.environment.Environment` for one node."""

    def __init__(self, fabric: MemoryFabric, name: str) -> None:
        self._fabric = fabric
        self._name = name
        self.carrier: MemoryTransport | None = None
        self.discovery: MemoryDiscovery | None = None

    def scope(self, interface: str) -> Scope:
        return Scope(interface, ("127.0.0.1",), loopback=True)

    def random_bytes(self, count: int) -> bytes:
        return self._fabric._ids.randbytes(count)  # noqa: SLF001 - one thing in two classes

    def utc(self) -> float:
        return self._fabric.clock.utc()

    def transport(self, node_id: bytes, scope: Scope, config: Config, credentials: Credentials | None) -> Transport:
        board = self._fabric._board  # noqa: SLF001 - one thing in two classes
        self.carrier = MemoryTransport(board, self._name, config, credentials)
        return self.carrier

    def memory(self, node_id: bytes, config: Config) -> Memory | None:
        if not config.shared_memory_bytes:
            return None
        return SharedMemory(node_id, self.random_bytes, config, self._fabric._arena)  # noqa: SLF001 - as above

    def ways(self, scope: Scope, config: Config) -> list[Discovery]:
        if not (config.mdns or config.registry):
            return []
        self.discovery = MemoryDiscovery(self._fabric, self._name)
        return [self.discovery]


def _name(who: Who) -> str:
    return who if isinstance(who, str) else who.name


def _generator(seed: str) -> random.Random:
    return random.Random(seed)  # noqa: S311 - repeatable on purpose: nothing here is a secret
