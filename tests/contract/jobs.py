"""What the tests of queues share."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from tests.contract.support import TIMEOUT
from zfabric import (
    Node,
    Puller,
    Pusher,
)

Pair = tuple[Node, Node]


@dataclass
class Task:
    """What typed queues carry here."""

    number: int


async def ends(pair: Pair, **options: Any) -> tuple[Pusher, Puller]:
    """A pusher and a puller that know each other."""
    pusher, puller = pair[0].pusher("jobs", **options.pop("pusher", {})), pair[1].puller("jobs", **options)
    await pusher.wait_for(1, timeout=TIMEOUT)
    return pusher, puller


async def flush(pusher: Pusher) -> None:
    """Wait until all is done."""
    async with asyncio.timeout(TIMEOUT):
        await pusher.flush()


async def values(puller: Puller, count: int) -> list[Any]:
    """The values of the next jobs."""
    return [(await puller.receive(TIMEOUT)).value for _ in range(count)]
