"""What nodes say to each other about queues. Tags 32 to 47; all of it travels in letters."""

from __future__ import annotations

import msgspec

from zfabric.wire.fields import Name

__all__ = ["QueueOffers"]


class QueueOffers(msgspec.Struct, array_like=True, tag=32, frozen=True):
    """The queues that the sender has jobs for, all of them: what was offered before and is missing here is gone."""

    queues: list[Name]
