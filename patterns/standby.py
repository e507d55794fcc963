"""Hot standby: of several nodes one is active, and another takes over when it is lost.

ZeroMQ Guide, chapter 4, "High-Availability Pair (Binary Star Pattern)". There the clients' requests decide whether the
backup may take over, because two machines alone cannot tell a dead partner from a cut cable. Here an arbiter on a third
node decides: it lends the active role for `lease_s` seconds at a time.

    arbiter = Arbiter(third_node, "orders")                    # on a third machine

    async with Standby(node, "orders") as standby:             # on both of the others
        epoch = await standby.wait_active()
        while standby.epoch == epoch:
            ...                                                # work, and send the epoch with every effect

Every term has a greater epoch than the one before. A program that is stopped in the middle of its work goes on with it
afterwards, without knowing that its term is over: whatever it changes must refuse lower epochs (`Fence`).

What can fail: the active node is killed: another is active after at most `lease_s`, at once if it left in order. It is
cut off from the arbiter: its term ends first, and only then another's begins. The arbiter is lost: the active node's
term ends with its lease, then nobody is active until there is an arbiter again, which lends nothing for its first
`lease_s`: nobody rather than two. Two arbiters of one name: two active nodes; start one. Its machine's clock set back
between two arbiters: epochs may repeat. Without a `Fence`, effects of a stopped program come late, in the next term.
"""

from __future__ import annotations

import asyncio
import time
from types import TracebackType

import msgspec

from zfabric import FabricError, Node, NodeClosed

__all__ = ["Arbiter", "Fence", "Fenced", "Standby"]

LEASE_S = 2.0


class Fenced(FabricError):
    """An effect of a term that is over: its epoch is lower than one that was seen."""

    def __init__(self, epoch: int, newest: int) -> None:
        super().__init__(f"epoch {epoch} is over, {newest} has begun: become active again before you go on")
        self.epoch = epoch
        self.newest = newest


class Fence:
    """Keeps the greatest epoch seen; put it where the effects happen, and save `newest` with them if they are saved."""

    def __init__(self, newest: int = 0) -> None:
        self.newest = newest

    def check(self, epoch: int) -> None:
        """Let an effect through, or raise Fenced. Raises TypeError for what is no epoch, such as that of no term."""
        if not isinstance(epoch, int):
            raise TypeError(f"an epoch is a whole number, not {epoch!r}")
        if epoch < self.newest:
            raise Fenced(epoch, self.newest)
        self.newest = epoch


def _checked(lease_s: float) -> float:
    if not lease_s > 0:
        raise ValueError(f"lease_s must be above 0, not {lease_s}")
    return lease_s


class Lease(msgspec.Struct, frozen=True):
    """What the arbiter says: whose term it is. The receiver's own if `granted`."""

    granted: bool
    epoch: int


class Arbiter:
    """Lends the active role to one member at a time. Run one for each name, on a node of its own."""

    def __init__(self, node: Node, name: str, *, lease_s: float = LEASE_S) -> None:
        """Raises ValueError."""
        self._lease_s = _checked(lease_s)
        self._loop = asyncio.get_running_loop()
        self._holder: str | None = None
        self._until = self._loop.time() + lease_s  # an arbiter before this one may have lent it
        self._epoch = 0
        self.service = node.service(f"standby.{name}")(self._ask)

    def __repr__(self) -> str:
        return f"<Arbiter of {self.service.name}: {self._holder} in epoch {self._epoch}>"

    async def _ask(self, member: str, leaving: bool) -> Lease:
        now = self._loop.time()
        if leaving:
            if self._holder == member:
                self._until = now
            return Lease(False, self._epoch)
        if now >= self._until:
            self._holder, self._epoch = member, max(self._epoch + 1, time.time_ns() // 1_000_000)
        if self._holder == member:
            self._until = now + self._lease_s
        return Lease(self._holder == member, self._epoch)


class Standby:
    """One member. `epoch` is the current term's number while this member is the active one, else None.

    `lease_s` as the arbiter's. Members ask three times in that time.
    """

    def __init__(self, node: Node, name: str, *, lease_s: float = LEASE_S) -> None:
        self._node = node
        self._service = f"standby.{name}"
        self._lease_s = _checked(lease_s)
        self._loop = asyncio.get_running_loop()
        self._until = 0.0
        self._epoch = 0
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Standby {self._service} {'passive' if self.epoch is None else f'active in epoch {self.epoch}'}>"

    @property
    def epoch(self) -> int | None:
        """The number of this member's term, None while it is passive. Look again after every await."""
        return self._epoch if self._loop.time() < self._until else None

    async def __aenter__(self) -> Standby:
        self._task = self._loop.create_task(self._run(), name=f"zfabric-{self._service}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.wait([self._task])
        if self.epoch is not None:
            self._until = 0.0
            await self._ask(leaving=True)

    async def wait_active(self, timeout: float | None = None) -> int:
        """Return the epoch once this member is active. Raises TimeoutError after `timeout` seconds."""
        async with asyncio.timeout(timeout):
            while (epoch := self.epoch) is None:
                self._changed.clear()
                await self._changed.wait()
        return epoch

    async def wait_passive(self, timeout: float | None = None) -> None:
        """Return once this member is not, or no more, active. Raises TimeoutError after `timeout` seconds."""
        async with asyncio.timeout(timeout):
            while (left_s := self._until - self._loop.time()) > 0:  # noqa: ASYNC110 - time is what ends it
                await asyncio.sleep(left_s)

    async def _run(self) -> None:
        while True:
            await self._ask(leaving=False)
            await asyncio.sleep(self._lease_s / 3)

    async def _ask(self, *, leaving: bool) -> None:
        asked = self._loop.time()
        try:
            lease = await self._node.request(
                self._service, self._node.id, leaving, timeout=self._lease_s / 3, type=Lease
            )
        except NodeClosed:
            raise
        except FabricError:
            return  # the term goes on until its lease ends
        if lease.granted:
            self._epoch, self._until = lease.epoch, asked + self._lease_s  # the arbiter counts from later on
            self._changed.set()
        else:
            self._until = 0.0
