"""How far one group has come in one stream, for each of its partitions; and which messages of a batch are whose.

    committed   everything of the partition before this offset is done with
    sent        everything of it before this offset was sent to its owner
    scanned     everything of it before this offset was looked at; what lies between belongs to other partitions

A partition that has nothing on its way has come as far as it was scanned. Work is per batch: choosing a member's
messages is a table look-up over the bytes that tell the partition of each.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import compress
from zlib import crc32

from zfabric.store.log import Key

__all__ = ["IDLE_LAG", "Cursor", "Parcel", "partitions_of"]

IDLE_LAG = 65_536
"Offsets by which the stored position of a partition that gets no messages may lag behind."

_MIX = 0x9E3779B1
_MASK = 0xFFFFFFFF
# The low bits of similar keys' checksums are too much alike.

Parcel = tuple[list[int] | None, bytes]
"The places in a batch that go to one member (None: all), and the partition of each (one byte where all are alike)."


def partitions_of(offset: int, count: int, keys: Iterable[Key], partitions: int) -> bytes:
    """The partition of each message of a batch: by its key; those without share one for each batch."""
    found = bytearray((((offset * _MIX & _MASK) >> 16) % partitions,)) * count
    for key in keys:
        found[key.index] = ((crc32(key.key) * _MIX & _MASK) >> 16) % partitions
    return bytes(found)


class Cursor:
    """One group in one stream."""

    __slots__ = ("committed", "scanned", "sent", "stored")

    def __init__(self, positions: Sequence[int]) -> None:
        self.committed = list(positions)
        self.sent = list(positions)
        self.scanned = list(positions)
        self.stored = list(positions)
        "Positions as the log has them."

    def position(self, partition: int) -> int:
        """Where a new owner of the partition begins."""
        committed = self.committed[partition]
        return self.scanned[partition] if committed >= self.sent[partition] else committed

    def rewind(self, partitions: Iterable[int]) -> None:
        """These get new owners: what was sent and not committed is sent again."""
        for partition in partitions:
            position = self.position(partition)
            self.committed[partition] = self.sent[partition] = self.scanned[partition] = position

    def seek(self, partition: int, offset: int) -> None:
        """Go on from there, whatever was done before."""
        self.committed[partition] = self.sent[partition] = self.scanned[partition] = offset

    def next_scan(self, owned: Iterable[int]) -> int:
        """Where the owner of these goes on reading."""
        return min(map(self.scanned.__getitem__, owned))

    def skip(self, owned: Iterable[int], before: int) -> None:
        """There is nothing for these before that offset."""
        for partition in owned:
            self.scanned[partition] = max(self.scanned[partition], before)

    def choose(
        self, owned: Iterable[int], offset: int, partitions: bytes, dropped: Sequence[tuple[int, int]]
    ) -> Parcel | None:
        """What the owner of these gets of a batch, which counts as sent; None if nothing."""
        scanned = self.scanned
        owned = list(owned)
        if dropped or max(map(scanned.__getitem__, owned)) > offset:
            mine = set(owned)
            gone = {place for start, stop in dropped for place in range(start, stop)}
            mask = bytes(
                partition in mine and scanned[partition] <= offset + place and place not in gone
                for place, partition in enumerate(partitions)
            )
        else:
            table = bytearray(256)
            for partition in owned:
                table[partition] = 1
            mask = partitions.translate(table)
        self.skip(owned, offset + len(partitions))
        where: Sequence[int] = range(len(partitions))
        places, chosen = None, partitions
        if 0 in mask:
            places = where = list(compress(where, mask))
            if not places:
                return None
            chosen = bytes(compress(partitions, mask))
        last = dict(zip(chosen, where, strict=True))
        first = dict(zip(reversed(chosen), reversed(where), strict=True))
        for partition, place in last.items():
            if self.committed[partition] >= self.sent[partition]:  # nothing of it before this batch is open
                self.committed[partition] = max(self.committed[partition], offset + first[partition])
            self.sent[partition] = offset + place + 1
        return places, chosen if len(last) > 1 else chosen[:1]

    def refusal(self, ends: Mapping[int, int]) -> str:
        """Why these positions cannot be committed; empty if they can."""
        for partition, end in ends.items():
            if end <= self.committed[partition]:
                return f"partition {partition} is at {self.committed[partition]} already, not before {end}"
            if end > self.sent[partition]:
                return f"partition {partition} was sent up to {self.sent[partition]}, not {end}"
        return ""

    def commit(self, ends: Mapping[int, int]) -> None:
        """Everything before these is done with."""
        for partition, end in ends.items():
            self.committed[partition] = end

    def idle(self, owned: Iterable[int]) -> list[int]:
        """Those whose stored position lags far behind although nothing of them is on its way."""
        return [p for p in owned if self.position(p) - self.stored[p] > IDLE_LAG]
