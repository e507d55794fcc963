"""The receiving end of one stream: which messages are new, and which will never come."""

from __future__ import annotations

from zfabric.wire.batch import Batch

__all__ = ["Inbox"]


class Inbox:
    """Position in one producer's stream of one topic.

    `expected` is the next sequence number; None until the first batch or the producer's ATTACHED anchors it.
    """

    __slots__ = ("epoch", "expected")

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.expected: int | None = None

    def __repr__(self) -> str:
        return f"<Inbox epoch={self.epoch} expected={self.expected}>"

    def anchor(self, epoch: int, next_seq: int) -> None:
        """The producer sends everything from `next_seq` on; a stream that flows already needs no anchor."""
        if epoch > self.epoch or (epoch == self.epoch and self.expected is None):
            self.epoch = epoch
            self.expected = next_seq

    def accept(self, batch: Batch) -> tuple[bool, tuple[int, int] | None]:
        """Whether the batch is new, and the range (first, last) of messages lost before it."""
        if batch.epoch != self.epoch:
            if batch.epoch < self.epoch:
                return False, None
            self.epoch = batch.epoch
            self.expected = None
        expected = self.expected
        if expected is not None and batch.base < expected:
            return False, None
        self.expected = batch.end
        if expected is None or batch.base == expected:
            return True, None
        return True, (expected, batch.base - 1)
