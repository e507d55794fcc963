"""What nodes say to each other about services. Tags 48 to 63; all of it travels in letters."""

from __future__ import annotations

import msgspec

from zfabric.wire.fields import Name

__all__ = ["ServiceOffers"]


class ServiceOffers(msgspec.Struct, array_like=True, tag=48, frozen=True):
    """The services that the sender provides, all of them: what was offered before and is missing here is gone."""

    services: list[Name]
