"""Real nodes over ZeroMQ that see nothing but each other."""

from __future__ import annotations

import asyncio
import secrets
from typing import Any

from zfabric.config import Config
from zfabric.node.node import Node

__all__ = ["RealFabric"]


class RealFabric:
    """Makes nodes on free ports of the loopback interface, in a fabric of a random name and without mDNS.

    The pytest fixture `real_fabric` is one of these, with a runtime directory of its own. Nodes that shall be encrypted
    take the same `key=zfabric.new_key(fabric.name)`.
    """

    def __init__(self, config: Config | None = None) -> None:
        self.name = f"test-{secrets.token_hex(8)}"
        self._config = config or Config(mdns=False)
        self._nodes: list[Node] = []

    def __repr__(self) -> str:
        return f"<RealFabric {self.name} nodes={[node.name for node in self._nodes]}>"

    def node(self, name: str, **options: Any) -> Node:
        """A new node, not open yet; options as for `zfabric.Node`."""
        node = Node(name, **{"fabric": self.name, "config": self._config, **options})
        self._nodes.append(node)
        return node

    async def open(self, name: str, **options: Any) -> Node:
        """A new node that is open; `close()` of the fabric closes it."""
        node = self.node(name, **options)
        await node.open()
        return node

    async def close(self) -> None:
        """Close every node that is still open."""
        await asyncio.gather(*(node.close() for node in self._nodes))
        self._nodes.clear()
