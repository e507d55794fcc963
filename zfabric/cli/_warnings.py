"""Tells on stderr what a node's events say: losses summed up, the rest as it comes."""

from __future__ import annotations

import asyncio
from collections import Counter
from types import TracebackType
from typing import Self

from zfabric.cli._output import Output, count
from zfabric.events import (
    AccessDenied,
    AuthenticationFailed,
    DecodeError,
    DiscoveryFailed,
    DuplicateId,
    Event,
    Evicted,
    Gap,
    IncompatibleDelivery,
    JobDead,
    JobsLost,
    LogMissing,
    PeerJoined,
    PeerLeft,
    PeerRefused,
    ProtocolError,
    SignatureRefused,
)
from zfabric.node.node import Node

__all__ = ["Warnings"]

_SUM_UP_S = 1.0
"Losses of this time make one line, and so does what strangers do again and again."
_STRANGERS_MAX = 10
"Lines about strangers in that time: they may come from ever new addresses."

_CAUSES = {
    "overflow": "a queue on the way was full",
    "buffer": "this command was too slow",
    "link": "the connection broke",
    "signature": "not signed as it must be",
    "store": "the store that had them is gone, and another has not",
}
_DENIALS = {True: "may not", False: "does not let us"}


class Warnings:
    """Reports events while the block runs, and what is left of them at its end."""

    def __init__(self, output: Output, node: Node) -> None:
        self._output = output
        self._node = node
        self._events = node.events()
        self._lost: Counter[tuple[str, str, str]] = Counter()
        self._undecodable: Counter[tuple[str, str, str]] = Counter()
        self._strangers: Counter[str] = Counter()

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._follow()), asyncio.create_task(self._sum_up())]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        self._events.close()
        async for event in self._events:
            self._tell(event)
        self._flush()

    async def _follow(self) -> None:
        async for event in self._events:
            self._tell(event)

    async def _sum_up(self) -> None:
        while True:
            await asyncio.sleep(_SUM_UP_S)
            self._flush()

    def _flush(self) -> None:
        for (topic, source, cause), number in self._lost.items():
            why = _CAUSES.get(cause, cause)
            self._output.warn(f"lost {count(number, 'message')} of {topic} from {source}: {why}")
        for (topic, source, reason), number in self._undecodable.items():
            self._output.warn(f"{count(number, 'message')} of {topic} from {source} did not decode: {reason}")
        for text, number in self._strangers.most_common(_STRANGERS_MAX):
            self._output.warn(f"{text} ({number:,} times)" if number > 1 else text)
        if len(self._strangers) > _STRANGERS_MAX:
            self._output.warn(f"{count(len(self._strangers) - _STRANGERS_MAX, 'more warning')} like that")
        self._lost.clear()
        self._undecodable.clear()
        self._strangers.clear()

    def _unconnected(self, other: str, why: str) -> None:
        text = f"no connection with {other}: {why}"
        if why.startswith("it ended the handshake"):  # as a node of ours that closes just then does, too
            self._output.note(text, verbose=1)
        else:
            self._strangers[text] += 1

    def _differ(self, event: IncompatibleDelivery) -> str:
        peer, offered, requested = event.peer.name, event.offered, event.requested
        if event.topic in self._node.statistics().queues:
            return f"with {peer} it is pushed {offered} and pulled {requested}; give both the same --delivery"
        return f"{peer} promises only {offered}; leave out --delivery {requested}"

    def _tell(self, event: Event) -> None:
        output = self._output
        match event:
            case Gap():
                self._lost[event.topic, event.source.name, event.cause] += event.count
            case DecodeError():
                self._undecodable[event.topic, event.source.name, event.reason] += 1
            case Evicted():
                output.warn(f"{event.peer.name} gave us up on {event.topic}, which goes on with what comes next")
            case IncompatibleDelivery():
                output.warn(f"nothing of {event.topic}: {self._differ(event)}")
            case JobDead():
                output.warn(f"job {event.id} is dead after {count(event.attempts, 'attempt')}: {event.reason}")
            case JobsLost():
                output.warn(f"{count(event.count, 'job')} of {event.queue} lost on the way")
            case LogMissing():
                then = "waiting for it" if event.waits else "going on with another store"
                output.warn(f"the store of {event.topic} left, or was wiped: {then}")
            case PeerRefused(address=other, detail=why) | AuthenticationFailed(peer=other, reason=why):
                self._unconnected(other, why or event.reason)
            case AccessDenied():
                output.warn(f"{event.peer.name} {_DENIALS[event.here]} {event.action} {event.name}")
            case DuplicateId() | ProtocolError():
                reason = getattr(event, "reason", "duplicate id")
                self._strangers[f"{event.address} does not speak our protocol: {reason}"] += 1
            case SignatureRefused():
                output.warn(f"refused {event.topic} from {event.source.name}: {event.reason}")
            case DiscoveryFailed():
                output.note(f"discovery by {event.name} does not work here: {event.reason}", verbose=1)
            case PeerJoined():
                output.note(f"{event.peer.name} joined", verbose=1)
            case PeerLeft():
                output.note(f"{event.peer.name} left ({event.reason})", verbose=1)
