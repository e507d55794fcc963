"""A town: a fabric in which every node has an identity, each with a directory of its own."""

from __future__ import annotations

import shutil
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from zfabric import Config, Node
from zfabric.security.identities import accept, create, invite, unpack
from zfabric.testing import RealFabric

__all__ = ["QUICK", "SEEDS_ONLY", "Opened", "Town", "exchange"]

Opened = Callable[..., Awaitable[Node]]
QUICK = Config(
    mdns=False,
    handshake_timeout_s=0.5,
    reconnect_interval_s=0.02,
    reconnect_interval_s_max=0.1,
    identities_poll_s=0.02,
)
SEEDS_ONLY = replace(QUICK, registry=False)
ROLES = """
[sensor]
publish = ["plant.*.temp"]
[viewer]
subscribe = ["plant.#"]
[worker]
pull = ["jobs.#"]
serve = ["math.#"]
[boss]
push = ["jobs.#"]
request = ["math.#"]
[clerk]
publish = ["#"]
subscribe = ["log.app"]
"""


class Town:
    """One directory of identities per node, as on different hosts."""

    def __init__(self, root: Path, fabric: RealFabric) -> None:
        self.root = root
        self.fabric = fabric
        create(root / "mayor", fabric.name, "mayor")
        (root / "mayor" / "roles.toml").write_text(ROLES)

    def invite(self, name: str, *roles: str) -> Path:
        """Let somebody join; everybody's directory is brought up to date."""
        token = invite(self.root / "mayor", self.fabric.name, name, roles or ("member",))
        _, _, files, secret = accept(token)
        unpack(self.root / name, files, secret)
        self.spread()
        return self.root / name

    def spread(self) -> None:
        """Copy what the mayor trusts to everybody."""
        source = self.root / "mayor"
        for directory in self.root.iterdir():
            if directory != source:
                for path in (directory / "trusted").iterdir():
                    if not (source / "trusted" / path.name).exists():
                        path.unlink()
                for path in (source / "trusted").iterdir():
                    shutil.copy(path, directory / "trusted" / path.name)
                shutil.copy(source / "roles.toml", directory / "roles.toml")

    async def open(self, name: str, **options: Any) -> Node:
        """A node of that identity."""
        return await self.fabric.open(name, **{"key": self.root / name, "config": QUICK, **options})


async def exchange(publisher: Node, subscriber: Node, topic: str = "plant.a.temp", pattern: str = "plant.#") -> None:
    """One message passes."""
    async with subscriber.subscribe(pattern) as subscription:
        outgoing = publisher.publisher(topic, delivery="at-least-once")
        await outgoing.wait_for(1, timeout=30)
        await subscription.wait_for(1, timeout=30)  # what the publisher counts may be an older one that is ending
        await outgoing.publish("hello")
        assert (await subscription.receive(timeout=30)).value == "hello"
        await outgoing.close()
