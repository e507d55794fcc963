"""What nodes say to each other about services. Tags 48 to 63; all of it travels in letters.

Arguments, results and items are MessagePack values that stand in the record as they are. A request is named by its
client and the number that the client gave it.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

import msgspec

from zfabric.wire.fields import Count, Name

__all__ = [
    "OFFERS_MAX",
    "Cancel",
    "Credit",
    "End",
    "Failure",
    "Item",
    "Offer",
    "Reply",
    "Request",
    "ServiceOffers",
    "ServiceRecord",
]

OFFERS_MAX = 100_000
Text = Annotated[str, msgspec.Meta(max_length=1_000_000)]


class Offer(msgspec.Struct, array_like=True, frozen=True):
    """One service that the sender provides."""

    service: Name
    version: Count
    concurrency: Annotated[int, msgspec.Meta(ge=1, le=2**62)]
    "How many calls it works on at one time."


class ServiceOffers(msgspec.Struct, array_like=True, tag=48, frozen=True):
    """The services that the sender provides, all of them: what was offered before and is missing here is gone."""

    offers: Annotated[list[Offer], msgspec.Meta(max_length=OFFERS_MAX)]


class Request(msgspec.Struct, array_like=True, tag=49, frozen=True, gc=False):
    """Call a service."""

    number: Count
    service: Name
    version: Count
    arguments: msgspec.Raw
    "An array."
    options: dict[str, msgspec.Raw] = {}
    "Arguments by name."
    budget_s: Annotated[float, msgspec.Meta(ge=0)] | None = None
    "How much time is left; nil for no deadline."
    idempotent: bool = False
    "Keep the reply: the same request may come again."
    credit: Count = 0
    "Bytes of items that the client has room for; 0 if it expects one reply."


class Reply(msgspec.Struct, array_like=True, tag=50, frozen=True, gc=False):
    """The result of a call: nothing more will come."""

    number: Count
    body: msgspec.Raw


class Failure(msgspec.Struct, array_like=True, tag=51, frozen=True):
    """A call has no result: nothing more will come.

    `absent`, `draining` and `overloaded` say that it was not begun. `stopped`: the provider ended in the middle of it.
    `arguments`: they do not fit the service. `streams`: the service streams, and no credit was given. `error`: the
    handler raised an exception.
    """

    number: Count
    code: Name
    kind: Name = ""
    "The exception's class."
    message: Text = ""
    trace: Text | None = None
    retry_after_s: Annotated[float, msgspec.Meta(ge=0)] = 0.0


class Item(msgspec.Struct, array_like=True, tag=52, frozen=True, gc=False):
    """One value of a reply that streams."""

    number: Count
    body: msgspec.Raw


class End(msgspec.Struct, array_like=True, tag=53, frozen=True):
    """A reply that streams is complete."""

    number: Count


class Credit(msgspec.Struct, array_like=True, tag=54, frozen=True):
    """The client has read items of that many bytes."""

    number: Count
    nbytes: Count


class Cancel(msgspec.Struct, array_like=True, tag=55, frozen=True):
    """Nobody waits for that reply any more."""

    number: Count


ServiceRecord: TypeAlias = ServiceOffers | Request | Reply | Failure | Item | End | Credit | Cancel
