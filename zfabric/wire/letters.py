"""Letters: what one node says to one other reliably and in order, numbered per channel (see `protocol.channels`).

The records inside stand in modules of their own, by what they are about: queues have tags 32 to 47, services 48 to 63,
the store 64 to 79 and 128 to 130, consumer groups 80 to 95, more about queues 96 to 111, durable queues 112 to 127.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

import msgspec

from zfabric.wire.durable_records import DurableRecord
from zfabric.wire.fields import Count
from zfabric.wire.group_records import GroupRecord
from zfabric.wire.plain_records import PlainRecord
from zfabric.wire.queue_records import QueueRecord
from zfabric.wire.service_records import ServiceRecord
from zfabric.wire.store_records import StoreRecord

__all__ = ["LETTER_RECORDS_MAX", "Broken", "Letter", "LetterAck", "LetterRecord"]

LETTER_RECORDS_MAX = 1000

LetterRecord: TypeAlias = QueueRecord | ServiceRecord | StoreRecord | GroupRecord | PlainRecord | DurableRecord


class Letter(msgspec.Struct, array_like=True, tag=18, frozen=True):
    """Records of the sender's channel; letter `number` follows `number - 1` of the same session."""

    session: Count
    "The sender's; it grows whenever the sender begins anew, at number 0."
    yours: Count
    "The receiver's session as far as the sender has heard, else 0."
    number: Count
    records: Annotated[list[LetterRecord], msgspec.Meta(max_length=LETTER_RECORDS_MAX)]


class LetterAck(msgspec.Struct, array_like=True, tag=19, frozen=True):
    """All letters of the receiver's session `yours` before `number` have arrived."""

    session: Count
    "The sender's own."
    yours: Count
    number: Count


class Broken(msgspec.Struct, array_like=True, tag=20, frozen=True):
    """The receiver's session `yours` speaks to one that the sender has ended: begin anew."""

    yours: Count
