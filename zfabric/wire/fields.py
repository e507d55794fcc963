"""The types of fields that several kinds of records share."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

__all__ = ["NAME_CHARS_MAX", "Count", "Digest", "Endpoint", "Endpoints", "Id", "Name", "Start"]

NAME_CHARS_MAX = 255
Id = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
Name = Annotated[str, msgspec.Meta(max_length=NAME_CHARS_MAX)]
Endpoint = Annotated[str, msgspec.Meta(max_length=255)]
Endpoints = Annotated[tuple[Endpoint, ...], msgspec.Meta(max_length=64)]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
"Sums of two still fit the 64 bits of MessagePack."
Digest = Annotated[int, msgspec.Meta(ge=0)]


class Start(msgspec.Struct, array_like=True, frozen=True):
    """Where a subscription begins in a stream that has history."""

    kind: Literal["latest", "earliest", "seq", "last", "since", "last-per-key"] = "latest"
    value: float | int = 0
    "The sequence number, the count of messages, or the age in seconds. Publishers know no keys: those are the store's."
