"""Scatter and gather: ask everybody, and go on as soon as enough have answered.

ZeroMQ Guide, chapter 4, "Brokerless Reliability (Freelance Pattern)", model two: the client sends its request to all
servers. There the first reply counts and the others are thrown away; here you say how many count.

    found = await scatter_gather(node, "search", "blue shoes", enough=3, timeout=0.5)
    for reply in found.replies:
        print(reply.source.name, reply.value)

It returns when `enough` providers have replied (default: all), when all have ended, or at the timeout, whichever comes
first; it then cancels what is still out.

What can fail: a provider that joins after the question is not asked. One that is lost, fails, refuses or is late
stands in `failed` with its error; at the timeout that may be all of them, and `complete` is False. The fastest `enough`
are not a sample of all: whoever has less to search answers first. A provider that is not among `replies` may have done
the work all the same.
"""

from __future__ import annotations

from contextlib import aclosing
from typing import Any

import msgspec

from zfabric import Node, ProviderReply

__all__ = ["Gathered", "scatter_gather"]


class Gathered(msgspec.Struct, frozen=True):
    """What came back."""

    replies: list[ProviderReply]
    "In the order in which they came."
    failed: list[ProviderReply]
    "Those whose `error` is set."
    complete: bool
    "Whether there are as many replies as were asked for."


async def scatter_gather(
    node: Node, service: str, *arguments: Any, enough: int | None = None, timeout: float = 5.0, **options: Any
) -> Gathered:
    """Ask every provider of a service. Options as for `node.request_all`; raises NoResponders and ValueError."""
    if enough is not None and enough < 1:
        raise ValueError(f"enough must be 1 or more, not {enough}")
    replies: list[ProviderReply] = []
    failed: list[ProviderReply] = []
    async with aclosing(node.request_all(service, *arguments, timeout=timeout, **options)) as answers:
        async for reply in answers:
            (replies if reply.error is None else failed).append(reply)
            if enough is not None and len(replies) >= enough:
                break
    return Gathered(replies, failed, len(replies) >= enough if enough is not None else not failed)
