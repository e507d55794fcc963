"""Topics for the Tab key, asked from the live fabric within a moment."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from click.shell_completion import CompletionItem

__all__ = ["topics_that_begin"]

BUDGET_S = 0.2


def topics_that_begin(prefix: str, parameters: Mapping[str, Any]) -> list[CompletionItem]:
    """Topics that are published on this host now; none rather than an error or a wait."""
    with suppress(Exception):
        fabric = parameters.get("fabric") or os.environ.get("ZFABRIC_FABRIC") or "default"
        return [CompletionItem(topic) for topic in asyncio.run(_topics(fabric)) if topic.startswith(prefix)]
    return []


async def _topics(fabric: str) -> list[str]:
    from zfabric import Config, Node
    from zfabric.cli._look import poll, settle

    async with Node("completion", fabric=fabric, config=Config(mdns=False)) as node:
        found = await poll(lambda: any(peer.topics for peer in node.peers), BUDGET_S)
        peers = await settle(node, quiet_s=0.05, least_s=0.05, most_s=BUDGET_S) if found else ()
    return sorted({topic for peer in peers for topic in peer.topics})
