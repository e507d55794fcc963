"""What every process of the demo does alike: open a node, get matched, run, report."""

from __future__ import annotations

import abc
import asyncio
import contextlib
import sys
import time
from dataclasses import dataclass, field

import zfabric

from .control import Control, Failed, Finish, Matched, Report
from .readings import READINGS, host_word

__all__ = ["PARTS", "RECEIVERS", "Part", "Settings", "run_part"]

RECEIVERS = ("alarm", "recorder", "table")
"The parts that get every reading."
PARTS = (*READINGS, *RECEIVERS)
"All parts; each runs as a process of its own, whose node has the part's name."


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a part is told when it starts."""

    name: str
    fabric: str
    attached: bool = False
    "Started by the demo: wait for all other parts, and obey the parent's orders."
    rate_hz: float = 0.0
    record: str = "telemetry.jsonl"
    discovery: str = "mdns"
    timeout_s: float = 20.0
    quiet: bool = False
    host: str = field(default_factory=host_word)

    @property
    def config(self) -> zfabric.Config:
        """The node's configuration: which ways of finding peers are on."""
        return zfabric.Config(mdns=self.discovery != "registry", registry=self.discovery != "mdns")


class Part(abc.ABC):
    """One role in the demo."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    @abc.abstractmethod
    def connect(self, node: zfabric.Node) -> None:
        """Declare the part's publishers and subscriptions."""

    async def matched(self) -> None:
        """Wait until all that the part publishes would reach its subscribers."""
        return

    @abc.abstractmethod
    async def run(self) -> None:
        """Do the part's work, until `finish` or cancelled."""

    @abc.abstractmethod
    async def finish(self, published: dict[str, int]) -> Report:
        """Beside `run`: stop publishing, take in what is still on its way, and close the books."""


async def run_part(part: Part, settings: Settings, control: Control) -> int:
    """Run a part from its node's first breath to its last; returns the exit code."""
    task = asyncio.current_task()
    assert task is not None
    control.listen(task)
    opened_at = time.time()
    try:
        async with zfabric.Node(settings.name, fabric=settings.fabric, config=settings.config) as node:
            watch = _Watch(node)
            part.connect(node)
            if settings.attached:
                waits_for = await _wait_for_others(part, settings, node)
                peers = {peer.name: peer.since for peer in node.peers}
                control.tell(Matched(opened_at, time.time(), peers, waits_for))
            await control.order()
            report = await _work(part, control)
            report.gaps, report.problems = watch.gaps, watch.problems
            control.tell(report)
            await asyncio.Event().wait()
    except asyncio.CancelledError:
        return 0  # The parent closed the line, or Ctrl-C: the normal end.
    except (zfabric.FabricError, OSError) as error:
        reason = str(error) or type(error).__name__
        control.tell(Failed(reason))
        print(f"{settings.name}: {reason}", file=sys.stderr)
        return 1
    return 0


async def _wait_for_others(part: Part, settings: Settings, node: zfabric.Node) -> str:
    """Wait for the whole company; returns what was missing when the time was over."""
    others = set(PARTS) - {settings.name}
    try:
        async with asyncio.timeout(settings.timeout_s):
            await node.wait_for_peers(len(others))
            await part.matched()
    except TimeoutError:
        return ", ".join(sorted(others - {peer.name for peer in node.peers})) or "subscribers"
    return ""


async def _work(part: Part, control: Control) -> Report:
    """Run until told to finish; an exception of the part's own work ends it too."""
    running = asyncio.create_task(part.run())
    told = asyncio.create_task(control.order())
    try:
        await asyncio.wait({running, told}, return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            running.result()
        order = await told
        return await part.finish(order.published if isinstance(order, Finish) else {})
    finally:
        told.cancel()
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running


class _Watch:
    """Counts what the node reports as lost, and keeps the first few other complaints."""

    def __init__(self, node: zfabric.Node) -> None:
        self.gaps = 0
        self.problems: list[str] = []
        self._task = asyncio.create_task(self._follow(node))

    async def _follow(self, node: zfabric.Node) -> None:
        async for event in node.events():
            match event:
                case zfabric.Gap():
                    self.gaps += event.count
                    self._complain(event)
                case zfabric.DecodeError() | zfabric.HandlerError() | zfabric.ProtocolError():
                    self._complain(event)
                case _:
                    pass

    def _complain(self, event: object) -> None:
        if len(self.problems) < 10:
            self.problems.append(repr(event))
