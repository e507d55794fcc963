"""What the tests of shared memory share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tests.node.support import MakeNode
from tests.waiting import wait_until_async
from zfabric import Node, Publisher, Subscription

MEGABYTE = 1_000_000


def array(number: int, nbytes: int = MEGABYTE) -> np.ndarray[Any, Any]:
    """An array that tells its number all over."""
    return np.full(nbytes // 4, number, np.int32)


def memory_files(pid: int | str = "self") -> int:
    """How many of zfabric's memory files a process has mapped or open."""
    folder = Path(f"/proc/{pid}")
    mapped = {line.split()[-2] for line in (folder / "maps").read_text().splitlines() if "memfd:zfabric" in line}
    opened = 0
    for link in (folder / "fd").iterdir():
        try:
            opened += "memfd:zfabric" in str(link.readlink())
        except FileNotFoundError:
            pass
    return len(mapped) + opened


SECRET = 1
"What a node has before it lends anything: one open file."
OWN = 3
"What a block of its own costs: it is mapped, and Python keeps two descriptors of it."


async def pair(make_node: MakeNode, **options: Any) -> tuple[Node, Node, Publisher, Subscription]:
    """A publisher and a subscriber that can map its memory."""
    one, two = await make_node("one", **options), await make_node("two", **options)
    publisher, subscription = one.publisher("t"), two.subscribe("t")
    await publisher.wait_for(timeout=30)
    await wait_until_async(lambda: maps(one, two))
    return one, two, publisher, subscription


def maps(publisher: Node, *subscribers: Node) -> bool:
    """Whether these subscribers have proved that they can map a publisher's memory."""
    assert publisher._driver is not None
    return {bytes.fromhex(node.id) for node in subscribers} <= publisher._driver.core.lending._mapping
