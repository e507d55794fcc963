"""The types of fields that several kinds of records share."""

from __future__ import annotations

from typing import Annotated

import msgspec

__all__ = ["Count", "Digest", "Endpoint", "Endpoints", "Id", "Name"]

Id = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
Name = Annotated[str, msgspec.Meta(max_length=255)]
Endpoint = Annotated[str, msgspec.Meta(max_length=255)]
Endpoints = Annotated[tuple[Endpoint, ...], msgspec.Meta(max_length=64)]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
"Sums of two still fit the 64 bits of MessagePack."
Digest = Annotated[int, msgspec.Meta(ge=0)]
