"""What nodes say to each other about queues at-most-once. Tags 96 to 100; all of it travels in letters.

The jobs themselves travel as batches, over a PUSH socket for each queue of a pusher and a PULL socket for each puller:
libzmq deals them out. What is said here joins the two, and tells the pusher what has come to a reader.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

import msgspec

from zfabric.wire.fields import Count, Endpoints, Name

__all__ = [
    "OFFERS_MAX",
    "TAKEN_MAX",
    "PlainEnd",
    "PlainMark",
    "PlainOffers",
    "PlainPull",
    "PlainRecord",
    "PlainTaken",
]

OFFERS_MAX = 1000
TAKEN_MAX = 1000


class PlainOffers(msgspec.Struct, array_like=True, tag=96, frozen=True):
    """Queues at-most-once that the sender has or may have jobs for, beside those it offered before."""

    queues: Annotated[list[Name], msgspec.Meta(max_length=OFFERS_MAX)]


class PlainPull(msgspec.Struct, array_like=True, tag=97, frozen=True):
    """The sender takes jobs of a queue, on a PULL socket that listens there."""

    puller: Count
    queue: Name
    endpoints: Endpoints


class PlainEnd(msgspec.Struct, array_like=True, tag=98, frozen=True):
    """The puller takes no more; what is on the way to it is lost."""

    puller: Count


class PlainTaken(msgspec.Struct, array_like=True, tag=99, frozen=True):
    """The puller's reader is through with these batches, as (first job, the one after the last)."""

    puller: Count
    taken: Annotated[list[tuple[Count, Count]], msgspec.Meta(max_length=TAKEN_MAX)]
    before: Count
    "No job before this one will come to it any more: a connection keeps the order of batches."


class PlainMark(msgspec.Struct, array_like=True, tag=100, frozen=True):
    """Answer with TAKEN once nothing before this job has come for a while, and none of those that came is left."""

    puller: Count
    before: Count


PlainRecord: TypeAlias = PlainOffers | PlainPull | PlainEnd | PlainTaken | PlainMark
